"""Check and normalise folders of pictures into `sources.zarr`, at every size that rows are rendered at.

- `background_SIZE`: (b,S,S,3) u1 RGB.
- `foreground_SIZE`: (f,H,W,4) u1 RGBA with straight alpha, each foreground in the top left corner of its frame.
- `foreground_shape`: (f,2) u2, height and width at the stored size.

Where people have sizes of their own:

- `figure`: (f,H,W,4) u1 RGBA, each foreground as large as its file has it, at most as large as labels.
- `figure_shape`: (f,2) u2, their heights and widths.

At scale k a foreground is exactly k times as large, so that a location in stored pixels holds at every size. All
pictures are checked in one pass, and all errors are raised together.
"""

import contextlib
import hashlib
import logging
import math
import os
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self, cast

import numpy as np
import zarr
from zarr.codecs import ZstdCodec

from dsgen.camera import ASSUMED_FOV_DEG
from dsgen.errors import DamagedError, DsgenError, InvalidValueError, raise_all
from dsgen.io import images
from dsgen.io.cameras import ASSUMED, Camera, read_cameras
from dsgen.io.cutouts import SOLID, drop_loose_pixels
from dsgen.io.folders import class_of, list_pictures, match_key
from dsgen.io.people import Person, read_people
from dsgen.io.picture_files import read_size_and_fov, share_memory

_LEAST_FRAME = 16  # pixels
_CHUNK_BYTES = 4 * 2**20
log = logging.getLogger("dsgen")


@dataclass(frozen=True)
class SourceFile:
    """A picture file of a source folder; `name` is its name within the folder without the ending, `file` with it.

    `label` is the class of a picture in a folder that has classes, else None, see `dsgen.io.folders.class_of`.
    """

    name: str
    file: str
    sha256: str
    label: str | None = None


@dataclass(frozen=True)
class SourceFolder:
    """A folder of backgrounds or foregrounds: its pictures' `paths` and `files`, both in order of name.

    `others` are its pictures beyond the limit. `cameras` and `people`, in the order of the files, are those of
    backgrounds and of foregrounds, see `with_cameras` and `with_people`.
    """

    folder: Path
    paths: list[Path]
    files: list[SourceFile]
    others: tuple[Path, ...] = ()
    cameras: tuple[Camera | None, ...] = ()
    people: tuple[Person, ...] = ()

    @classmethod
    def read(cls, folder: Path, kind: str, limit: int | None, workers: int) -> "SourceFolder":
        """List and hash the pictures of a folder of "backgrounds" or "foregrounds", the first `limit` only.

        Foregrounds may lie in sub-folders, one for each class. Raises as `list_pictures`, and `InvalidValueError` for a
        `limit` below 1.
        """
        found = list_pictures(folder, kind, in_classes=kind == "foregrounds")
        if limit is not None and limit < 1:
            raise InvalidValueError.expected(f"max_{kind}", limit, "1 or more")
        paths = found[:limit]
        return cls(folder, paths, hash_files(folder, paths, workers), tuple(found[len(paths) :]))

    def with_cameras(self, fov_deg: float | None, workers: int) -> Self:
        """Return the folder with the cameras of its pictures; raises as `read_cameras`, as which `fov_deg` is."""
        return replace(self, cameras=tuple(read_cameras(self.folder, self.paths, fov_deg, workers, self.others)))

    def with_people(self) -> Self:
        """Return the folder with the heights and classes of its subjects; raises as `read_people`."""
        return replace(self, people=tuple(read_people(self.folder, self.paths, self.others)))

    def views(self) -> list[tuple[float, str]]:
        """Return the fields of view of the pictures' centre squares and where they are from; see `read_cameras`.

        Those that cannot be read have the assumed one: decoding them raises the error to report.
        """
        return [
            (ASSUMED_FOV_DEG, ASSUMED)
            if camera is None or camera.fov_from == ASSUMED
            else (camera.square_fov_deg(), camera.fov_from)
            for camera in self.cameras
        ]

    def fields_of_view(self) -> dict[str, tuple[float, str]]:
        """Return the fields of view of the pictures' centre squares that are known, and their sources, by file."""
        return {
            file.file: (camera.square_fov_deg(), camera.fov_from)
            for file, camera in zip(self.files, self.cameras, strict=False)
            if camera is not None and camera.fov_from != ASSUMED
        }

    @property
    def names(self) -> list[str]:
        """The names of the pictures, without ending."""
        return [file.name for file in self.files]

    def name_errors(self) -> list[DsgenError]:
        """Return an error for each name that several files share: names must differ, since locations depend on them."""
        by_name = defaultdict(list)
        for file in self.files:
            by_name[match_key(file.name)].append(file.file)
        return [
            DsgenError(
                self.folder,
                f"{' and '.join(same)} have the same name {name!r} except for the ending or the Unicode normalisation",
                "rename or remove one",
            )
            for name, same in by_name.items()
            if len(same) > 1
        ]


def hash_files(folder: Path, paths: list[Path], workers: int) -> list[SourceFile]:
    """Compute the SHA-256 of files in a folder in `workers` threads, in the order given."""

    def digest(path: Path) -> SourceFile:
        inside = path.relative_to(folder)
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        return SourceFile(inside.with_suffix("").as_posix(), inside.as_posix(), sha256, class_of(folder, path))

    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(digest, paths))


def normalise_background(path: Path, sizes: tuple[int, ...]) -> list[np.ndarray]:
    """Read a background, crop its centre square and resize it to every size: (S,S,3) u1 each."""
    with share_memory(path):
        square = images.centre_square(images.read_picture(path))
        return [images.resize(square, size, size) for size in sizes]


def normalise_foreground(
    path: Path,
    fg_height: int,
    size: int,
    scales: tuple[int, ...],
    loose: dict[Path, int] | None = None,
    *,
    figure: int = 0,
) -> list[np.ndarray]:
    """Read a foreground, trim it to what counts and resize it to `fg_height` rows times every scale: (h,w,4) u1 each.

    A foreground that would be wider than `size` pixels is reduced to that width, keeping its proportions. `loose` is
    told how many pixels of the file did not count, as `dsgen.io.cutouts` defines. With `figure` the trimmed cut-out as
    the file has it, with at most so many pixels along its longer side, is the last.
    """
    with share_memory(path):
        rgba = read_trimmed(path, loose)
        height, width = fg_height, max(1, round(rgba.shape[1] * fg_height / rgba.shape[0]))
        if width > size:
            height, width = max(1, round(rgba.shape[0] * size / rgba.shape[1])), size
        scaled = [images.resize_cutout(rgba, height * scale, width * scale) for scale in scales]
        if figure:
            scaled.append(_limited(rgba, figure))
    if not all((s[..., 3] >= SOLID).any() for s in scaled):
        reason = f"alpha is below 128 everywhere at {width}x{height} pixels, so the mask would be empty"
        raise DsgenError(path, reason, "replace it or use a larger --fg-height")
    return scaled


def read_trimmed(path: Path, loose: dict[Path, int] | None = None) -> np.ndarray:
    """Read a foreground and trim it to what counts, (h,w,4) u1; `loose` as for `normalise_foreground`."""
    rgba = images.read_cutout(path)
    least, most = rgba[..., 3].min(), rgba[..., 3].max()
    if most == 0:
        raise DamagedError(path, "empty alpha (nothing is visible), expected a cut-out", "replace it")
    if least >= SOLID:
        reason = f"alpha is {'' if least == most else 'at least '}{least} everywhere, so nothing of it is cut out"
        remedy = "remove its background, or give it a transparent border of one pixel to paste it whole"
        raise DamagedError(path, reason, remedy)
    dropped = drop_loose_pixels(rgba)
    if dropped and loose is not None:
        loose[path] = dropped
    return images.trim(rgba)


def _limited(rgba: np.ndarray, most: int) -> np.ndarray:
    """Scale a cut-out down to `most` pixels along its longer side, if it has more."""
    longer = max(rgba.shape[:2])
    if longer <= most:
        return rgba
    return images.resize_cutout(rgba, *(max(1, round(side * most / longer)) for side in rgba.shape[:2]))


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
    figures: bool = False,
) -> np.ndarray:
    """Check and normalise all pictures and write them to the zarr group at `path`.

    `scales` are the multiples of `size` to write. Returns the foregrounds' heights and widths at the stored size,
    (f,2) i8. With `figures` it also writes the cut-outs as
    the files have them, as large as the largest pictures at most. Raises all errors together: those
    already found, `errors`, and one for every picture that cannot be used. Pictures with the same pixels are logged as
    a warning.
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
    loose: dict[Path, int] = {}
    frames = [
        _create(group, f"foreground_{size * k}", (len(foreground_paths), fg_height * k, size * k, 4)) for k in scales
    ]
    figure_shapes: list[tuple[int, int]] = []
    if figures:
        shape = (len(foreground_paths), *_figure_frame(foreground_paths, max(scales) * size), 4)
        frames.append(_create(group, "figure", shape, each=1))  # they are read one by one
    shapes = _write_all(
        foreground_paths,
        lambda p: normalise_foreground(p, fg_height, size, scales, loose, figure=max(scales) * size if figures else 0),
        frames,
        errors,
        workers,
        figure_shapes if figures else None,
    )
    raise_all(errors)
    if figures:
        group.create_array("figure_shape", data=np.array(figure_shapes, np.uint16))
    if loose:
        folder = Path(os.path.commonpath([path.parent for path in foreground_paths]))
        names = ", ".join(f"{path.relative_to(folder)} ({loose[path]:,} pixels)" for path in sorted(loose))
        log.warning("%s: left out specks and haze, which are not the subject: %s", folder, names)
    group.create_array("foreground_shape", data=np.array(shapes, np.uint16))
    return np.array(shapes, np.int64)


def _figure_frame(paths: list[Path], most: int) -> tuple[int, int]:
    """Return the height and width of a frame in which every cut-out fits, limited to `most` pixels."""
    sides = [(_LEAST_FRAME, _LEAST_FRAME)]
    for path in paths:
        with contextlib.suppress(DsgenError):  # reading the pixels raises the error to report
            (height, width), _ = read_size_and_fov(path)
            sides.append((min(height, most), min(width, most)))
    return max(height for height, _ in sides), max(width for _, width in sides)


def read_figures(sources: zarr.Group) -> Iterator[np.ndarray]:
    """Yield every cut-out of the array `figure`, (h,w,4) u1, in order."""
    figure, shapes = (cast(zarr.Array, sources[name]) for name in ("figure", "figure_shape"))
    length = figure.chunks[0]
    sides = np.asarray(shapes[:]).tolist()
    for start in range(0, len(sides), length):
        frames = np.asarray(figure[start : start + length])
        for frame, (height, width) in zip(frames, sides[start : start + length], strict=True):
            yield frame[:height, :width]


def _create(group: zarr.Group, name: str, shape: tuple[int, ...], each: int | None = None) -> zarr.Array:
    """Create an array of pictures, `each` of them in a chunk, by default some 4 MiB."""
    chunk = each or max(1, min(shape[0], _CHUNK_BYTES // math.prod(shape[1:])))
    return group.create_array(
        name,
        shape=shape,
        chunks=(chunk, *shape[1:]),
        dtype="uint8",
        compressors=ZstdCodec(level=3),
        fill_value=0,
        config={"write_empty_chunks": True},  # a missing file is damage, also where all pixels are black
    )


def _write_all(
    paths: list[Path],
    normalise: Callable[[Path], list[np.ndarray]],
    arrays: list[zarr.Array],
    errors: list[DsgenError],
    workers: int,
    last_shapes: list[tuple[int, int]] | None = None,
) -> list[tuple[int, int]]:
    """Normalise pictures in threads, a few in memory at a time, and write each at its index; return their shapes.

    `arrays` has one array for each size; `last_shapes` is told the shapes in the last of them. Errors are appended to
    `errors`, and the other pictures still checked.
    """
    shapes: list[tuple[int, int]] = []
    seen: dict[bytes, Path] = {}
    length = max(array.chunks[0] for array in arrays)
    buffers = [np.zeros((length, *array.shape[1:]), np.uint8) for array in arrays]
    for index, (path, result) in enumerate(zip(paths, _normalised(normalise, paths, workers), strict=True)):
        if isinstance(result, DsgenError):
            errors.append(result)
            continue
        for buffer, image in zip(buffers, result, strict=True):
            buffer[index % length, : image.shape[0], : image.shape[1]] = image
        if index % length == length - 1 or index == len(paths) - 1:
            start = index - index % length
            for array, buffer in zip(arrays, buffers, strict=True):
                array[start : index + 1] = buffer[: index + 1 - start]
                buffer[...] = 0
        shapes.append(result[0].shape[:2])
        if last_shapes is not None:
            last_shapes.append(result[-1].shape[:2])
        digest = hashlib.sha256(repr(result[0].shape).encode() + result[0].tobytes()).digest()
        if digest in seen:
            log.warning("%s and %s show the same picture; both are used", seen[digest], path)
        seen.setdefault(digest, path)
    return shapes


def _normalised(
    normalise: Callable[[Path], list[np.ndarray]], paths: list[Path], workers: int
) -> Iterator[list[np.ndarray] | DsgenError]:
    """Yield the normalised images of every path in order, or its error, at most 4 * `workers` pictures ahead."""

    def attempt(path: Path) -> list[np.ndarray] | DsgenError:
        try:
            return normalise(path)
        except DsgenError as error:
            return error
        except MemoryError:
            return DsgenError(path, "too little memory to normalise it", "scale it down, or use fewer --jobs")

    with ThreadPoolExecutor(workers) as pool:
        for start in range(0, len(paths), 4 * workers):
            yield from pool.map(attempt, paths[start : start + 4 * workers])
