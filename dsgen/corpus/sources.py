"""Folders of pictures -> checked, normalised sources, kept in `sources.zarr` at every size they are drawn at.

`background_SIZE` (b,S,S,3) u1; `foreground_SIZE` (f,H,W,4) u1 straight RGBA, each in the top left corner of its
frame; `foreground_shape` (f,2) u2 height and width at the stored size. At scale k a foreground is exactly k times as
large, so a place in stored pixels is a place at every size. Everything is checked in one pass, and all that is wrong
is said at once.
"""

import hashlib
import logging
import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import zarr
from zarr.codecs import ZstdCodec

from dsgen.errors import DsgenError, InvalidValueError, NotFoundError, raise_all
from dsgen.io import images

_CHUNK_BYTES = 4 * 2**20
log = logging.getLogger("dsgen")


@dataclass(frozen=True)
class SourceFile:
    """A picture of a source folder: `name` is the file name without its ending."""

    name: str
    file: str
    sha256: str

    @property
    def record(self) -> dict[str, str]:
        """What the manifest says of it."""
        return {"name": self.name, "file": self.file, "sha256": self.sha256}


def list_pictures(folder: Path, kind: str, most: int | None = None) -> list[Path]:
    """List a folder's pictures in order of name; other files are reported, subfolders refused as unread."""
    if not folder.is_dir():
        raise NotFoundError(f"--{kind}", f"{folder} is no folder, expected one with pictures")
    entries = sorted((p for p in folder.iterdir() if not p.name.startswith(".")), key=lambda p: p.name)
    found = [p for p in entries if p.is_file() and p.suffix.lower() in images.SUFFIXES]
    others = [p.name for p in entries if p not in set(found)]
    if others:
        shown = ", ".join(others[:5]) + (", ..." if len(others) > 5 else "")
        log.warning("%s: not read, since they are no picture files: %s", folder, shown)
    if not found:
        known = " ".join(sorted(images.SUFFIXES))
        raise InvalidValueError(f"--{kind}", f"{folder} holds no pictures, expected files ending in {known}")
    if most is not None and most < 1:
        raise InvalidValueError(f"--max-{kind}", f"got {most}, expected 1 or more")
    return found[:most]


def hash_files(paths: list[Path], jobs_: int) -> list[SourceFile]:
    """Hash the files' bytes, in the order given."""

    def digest(path: Path) -> SourceFile:
        with path.open("rb") as file:
            return SourceFile(path.stem, path.name, hashlib.file_digest(file, "sha256").hexdigest())

    with ThreadPoolExecutor(jobs_) as pool:
        return list(pool.map(digest, paths))


def name_errors(files: list[SourceFile], folder: Path) -> list[DsgenError]:
    """Say which files would get the same name: placements hang on names, so these must differ."""
    by_name = defaultdict(list)
    for file in files:
        by_name[file.name].append(file.file)
    return [
        DsgenError(
            folder, f"{' and '.join(same)} have the same name {name!r} but for the ending", "rename or remove one"
        )
        for name, same in by_name.items()
        if len(same) > 1
    ]


def normalise_background(path: Path, sizes: tuple[int, ...]) -> list[np.ndarray]:
    """Read a background, cut the centre square out, and scale it to every size: (S,S,3) u1 each."""
    square = images.centre_square(images.read_picture(path))
    return [images.resize(square, size, size) for size in sizes]


def normalise_foreground(path: Path, fg_height: int, size: int, scales: tuple[int, ...]) -> list[np.ndarray]:
    """Read a foreground, trim it to its alpha, and scale it to `fg_height` rows times every scale: (h,w,4) u1 each.

    One that would be wider than the picture is made smaller until it fits, keeping its proportions.
    """
    rgba = images.read_cutout(path)
    if not (rgba[..., 3] > 0).any():
        raise DsgenError(path, "empty alpha (nothing is visible), expected a cut-out", "replace it")
    rgba = images.trim(rgba)
    height, width = fg_height, max(1, round(rgba.shape[1] * fg_height / rgba.shape[0]))
    if width > size:
        height, width = max(1, round(rgba.shape[0] * size / rgba.shape[1])), size
    scaled = [images.resize_cutout(rgba, height * scale, width * scale) for scale in scales]
    if not all((s[..., 3] >= 128).any() for s in scaled):
        raise DsgenError(path, f"alpha nowhere reaches 128 at {width}x{height} pixels, so the mask would be empty")
    return scaled


def write_sources(
    path: Path,
    background_paths: list[Path],
    foreground_paths: list[Path],
    *,
    size: int,
    scales: tuple[int, ...],
    fg_height: int,
    errors: list[DsgenError],
    workers: int,
) -> np.ndarray:
    """Check and normalise all pictures and write them to the zarr group at `path`.

    Returns the foregrounds' sizes at the stored size, (f,2) height and width. Raises one `DsgenError` that lists
    every picture at fault, after the `errors` already found. Pictures with the same pixels are reported.
    """
    errors = list(errors)
    group = zarr.create_group(path)
    _write_all(
        background_paths,
        lambda p: normalise_background(p, tuple(size * scale for scale in scales)),
        [_create(group, f"background_{size * k}", (len(background_paths), size * k, size * k, 3)) for k in scales],
        errors,
        workers,
    )
    shapes = _write_all(
        foreground_paths,
        lambda p: normalise_foreground(p, fg_height, size, scales),
        [_create(group, f"foreground_{size * k}", (len(foreground_paths), fg_height * k, size * k, 4)) for k in scales],
        errors,
        workers,
    )
    raise_all(errors)
    group.create_array("foreground_shape", data=np.array(shapes, np.uint16))
    return np.array(shapes, np.int64)


def _create(group: zarr.Group, name: str, shape: tuple[int, ...]) -> zarr.Array:
    chunk = max(1, min(shape[0], _CHUNK_BYTES // math.prod(shape[1:])))
    return group.create_array(
        name, shape=shape, chunks=(chunk, *shape[1:]), dtype="uint8", compressors=ZstdCodec(level=3), fill_value=0
    )


def _write_all(
    paths: list[Path],
    normalise: Callable[[Path], list[np.ndarray]],
    arrays: list[zarr.Array],
    errors: list[DsgenError],
    workers: int,
) -> list[tuple[int, int]]:
    """Normalise pictures in threads, a few in memory at a time, and write each at its number; return their shapes."""
    shapes: list[tuple[int, int]] = []
    seen: dict[bytes, Path] = {}
    chunk = max(array.chunks[0] for array in arrays)
    held = [np.zeros((chunk, *array.shape[1:]), np.uint8) for array in arrays]
    for number, (path, result) in enumerate(zip(paths, _ahead(normalise, paths, workers), strict=True)):
        if isinstance(result, DsgenError):
            errors.append(result)
            continue
        for pictures, picture in zip(held, result, strict=True):
            pictures[number % chunk, : picture.shape[0], : picture.shape[1]] = picture
        if number % chunk == chunk - 1 or number == len(paths) - 1:
            start = number - number % chunk
            for array, pictures in zip(arrays, held, strict=True):
                array[start : number + 1] = pictures[: number + 1 - start]
                pictures[...] = 0
        shapes.append(result[0].shape[:2])
        digest = hashlib.sha256(repr(result[0].shape).encode() + result[0].tobytes()).digest()
        if digest in seen:
            log.warning("%s and %s show the same picture; both are used", seen[digest], path)
        seen.setdefault(digest, path)
    return shapes


def _ahead(
    normalise: Callable[[Path], list[np.ndarray]], paths: list[Path], workers: int
) -> Iterator[list[np.ndarray] | DsgenError]:
    def attempt(path: Path) -> list[np.ndarray] | DsgenError:
        try:
            return normalise(path)
        except DsgenError as error:
            return error

    with ThreadPoolExecutor(workers) as pool:
        for start in range(0, len(paths), 4 * workers):
            yield from pool.map(attempt, paths[start : start + 4 * workers])
