"""Pictures that are no corpus, such as RGB-D frames, as a source of a store.

They come as a folder of images and, optionally, folders of masks, depth maps and clean backgrounds, paired by file
name without its extension. Every picture is cropped to its centre square and scaled to the store's size, like the
backgrounds of a corpus: images by area, masks by area and then thresholded at half, depth to the nearest pixel. A row
is one image, in order of name.
"""

import hashlib
import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from dsgen.corpus.chunks import chunk_rows
from dsgen.corpus.plan import DTYPE, assign_splits, split_counts
from dsgen.errors import (
    DamagedError,
    DsgenError,
    InvalidValueError,
    NotFoundError,
    check_rules,
    raise_all,
)
from dsgen.io import images
from dsgen.io.folders import DEPTH_SUFFIXES, list_files, list_pictures, match_key, names_in_words
from dsgen.io.mask_pictures import read_mask
from dsgen.io.npy_files import read_npy
from dsgen.io.picture_files import is_quarter_turn, open_picture, read_orientation, share_memory
from dsgen.store import schema
from dsgen.store.source import RoomParts, SourceKey
from dsgen.units import MAX_DEPTH_MM

log = logging.getLogger("dsgen")

_CHUNK = 20


class Pictures:
    """Rows of pictures, paired and checked; a `Source`.

    `size` is the side of the stored images in pixels. `png_unit_m` is what 1 in a depth PNG stands for, in metres;
    `.npy` files hold float metres. Depth that is 0, negative or not finite is invalid. The shares say how many
    images are held out, by name. `checked` is the hash of pictures that were checked before: a worker need not check
    them again.

    Raises `InvalidValueError` for bad options, and one `DsgenError` for everything that is wrong with any picture.
    """

    def __init__(
        self,
        image_folder: Path | str,
        mask_folder: Path | str | None = None,
        depth_folder: Path | str | None = None,
        background_folder: Path | str | None = None,
        size: int = 224,
        png_unit_m: float = 0.001,
        validation_share: float = 0.1,
        test_share: float = 0.1,
        seed: int = 0,
        checked: str | None = None,
    ):
        shares_fit = 0 <= validation_share < 1 and 0 <= test_share < 1 - validation_share
        check_rules(
            [
                (16 <= size <= 4096, "size", size, "16 to 4096 pixels"),
                (0 < png_unit_m <= 1, "png_unit", png_unit_m, "metres above 0 and up to 1, such as 0.001"),
                (
                    shares_fit,
                    "--validation-share, --test-share",
                    f"{validation_share}, {test_share}",
                    "0 or more each, and less than 1 together",
                ),
            ]
        )
        self.size, self._unit_m = size, png_unit_m
        folders = {"image": image_folder, "mask": mask_folder, "depth": depth_folder, "background": background_folder}
        self._paths = _pair({field: Path(folder) for field, folder in folders.items() if folder is not None})
        self.fields = tuple(self._paths)
        sha256 = checked or self._check()
        names = [path.stem for path in self._paths["image"]]
        count = len(names)
        self.chunk = min(count, chunk_rows(_CHUNK, size))
        self.drawn: tuple[str, ...] = ()
        self.people, self.rooms = 0, False
        self.plan = np.zeros(count, DTYPE)
        self.plan["background"] = np.arange(count)
        self.plan["split"] = assign_splits(names, "picture", seed, validation_share, test_share)
        self.made_from: dict[str, Any] = {
            "format": schema.FORMAT,
            "pictures_sha256": sha256,
            "parts": list(self.fields),
            "rows": count,
            "size": size,
            "seed": seed,
            "validation_share": validation_share,
            "test_share": test_share,
            "chunk_rows": self.chunk,
            "block_rows": schema.block_rows(self.chunk, size),
            "depth": {"model": "files", "png_unit_m": png_unit_m} if "depth" in self.fields else None,
        }
        self.attributes = {"pictures": [path.name for path in self._paths["image"]]}
        options = (size, png_unit_m, validation_share, test_share, seed)
        self.folders = [Path(folder).absolute() for folder in folders.values() if folder is not None]
        paths = (folder and str(Path(folder).absolute()) for folder in folders.values())
        self.key = SourceKey(Pictures, (*paths, *options, sha256))

    @property
    def splits(self) -> dict[str, int]:
        """How many rows every split has."""
        return split_counts(self.plan)

    def _check(self) -> str:
        """Decode every picture once, raise everything that is wrong, and return a hash of names and bytes."""
        digest = hashlib.sha256()
        errors: list[DsgenError] = []
        with ThreadPoolExecutor() as pool:
            for sums, found in pool.map(self._check_row, range(len(self._paths["image"]))):
                digest.update(sums)
                errors += found
        raise_all(errors)
        return digest.hexdigest()

    def _check_row(self, row: int) -> tuple[bytes, list[DsgenError]]:
        errors: list[DsgenError] = []
        digest, shapes, turns = hashlib.sha256(), {}, {}
        for field, paths in self._paths.items():
            path = paths[row]
            digest.update(f"{field}\0{path.name}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
            try:
                with share_memory(path) if path.suffix.lower() != ".npy" else nullcontext():
                    shapes[field] = self._read(field, path).shape[:2]
                turns[field] = _orientation(path)
            except DsgenError as error:
                errors.append(error)
        if "image" in shapes:
            image = self._paths["image"][row].name, shapes["image"], turns["image"]
            found = (_compare(self._paths[field][row], shapes[field], turns[field], *image) for field in shapes)
            errors += [error for error in found if error]
        return digest.digest(), errors

    def _read(self, field: str, path: Path) -> np.ndarray:
        """Decode a picture: RGB u1, a mask u1 of 0 or 255 (see `read_mask`), or depth f4 in metres, 0 invalid."""
        if field == "mask":
            return read_mask(path)
        if field == "depth":
            depth_m = _read_depth(path, self._unit_m)
            if not (depth_m > 0).any():
                raise DamagedError(path, "no valid depth, expected some values above 0", "leave this picture out")
            if depth_m.max() * 1000 > MAX_DEPTH_MM:
                raise DsgenError(
                    path,
                    f"depth up to {depth_m.max():,.1f} m, expected at most 65.535 m",
                    "check --png-unit, or set larger values to 0",
                )
            return depth_m
        return images.read_picture(path)

    def _scaled(self, field: str, row: int) -> np.ndarray:
        picture = images.centre_square(self._read(field, self._paths[field][row]))
        if field == "depth":
            nearest = cv2.resize(picture, (self.size, self.size), interpolation=cv2.INTER_NEAREST_EXACT)
            return np.rint(nearest * 1000).astype(np.uint16)
        scaled = images.resize(picture, self.size, self.size)
        return np.where(scaled >= 128, 255, 0).astype(np.uint8) if field == "mask" else scaled

    def pictures(
        self,
        first: int,
        last: int,
        out: Mapping[str, np.ndarray] | None = None,  # noqa: ARG002
    ) -> dict[str, np.ndarray]:
        """Read and scale rows `first` to `last`, exclusive."""
        return {
            field: np.stack([self._scaled(field, row) for row in range(first, last)])
            for field in self.fields
            if field != "background"
        }

    def background(self, number: int) -> np.ndarray:
        """Return the clean background of image `number`, (S,S,3) u1."""
        return self._scaled("background", number)

    def coded_depth(self, first: int, last: int) -> list[bytes] | None:  # noqa: ARG002
        """Return None: the files are not encoded as a store is."""
        return None

    def room(self, number: int) -> RoomParts:
        """Raise `NotImplementedError`: pictures are no recipe."""
        raise NotImplementedError

    def cutouts(self) -> tuple[np.ndarray, np.ndarray]:
        """Raise `InvalidValueError`: there are no foregrounds to draw."""
        raise InvalidValueError("--recipe", "only for a corpus, whose composites can be drawn again", "leave it out")


def _pair(folders: dict[str, Path]) -> dict[str, list[Path]]:
    """List the files of every folder, all in the same order; raise for every image without its counterpart."""
    by_name: dict[str, dict[str, Path]] = {}
    errors: list[DsgenError] = []
    for field, folder in folders.items():
        paths = _list_depths(folder) if field == "depth" else list_pictures(folder, f"{field}s")
        by_name[field] = {}
        for path in paths:
            name = match_key(path.stem)
            if name in by_name[field]:
                reason = f"differs from {by_name[field][name].name} only in its extension or Unicode normalisation"
                errors.append(DsgenError(path, reason, "rename or remove one of the two"))
            by_name[field][name] = path
    names = sorted(by_name["image"])
    for field, found in by_name.items():
        lacking = [name for name in names if name not in found]
        extra = sorted(set(found) - set(names))
        if lacking:
            reason = f"no {field} for {len(lacking)} of {len(names)} images ({names_in_words(lacking)})"
            errors.append(NotFoundError(folders[field], reason, "add them, or remove these images"))
        if extra:
            log.warning(
                "%s: ignoring %d files without an image of the same name: %s",
                folders[field],
                len(extra),
                names_in_words(extra),
            )
    raise_all(errors)
    return {field: [found[name] for name in names] for field, found in by_name.items()}


def _orientation(path: Path) -> int:
    if path.suffix.lower() == ".npy":
        return 1
    with open_picture(path) as picture:
        return read_orientation(picture)


def _compare(
    path: Path,
    shape: tuple[int, ...],
    turn: int,
    image: str,
    image_shape: tuple[int, ...],
    image_turn: int,
) -> DsgenError | None:
    """Return what is wrong with a picture beside its image: its size, or that the two may be turned differently.

    `turn` is the EXIF orientation. Where one is turned by 90 degrees and the other is not, sizes that agree show that
    the two do, unless they are square.
    """
    (height, width), sizes = image_shape, f"{shape[1]}x{shape[0]} pixels, expected {image_shape[1]}x{image_shape[0]}"
    quarter = is_quarter_turn(turn) != is_quarter_turn(image_turn)
    if shape == image_shape and (turn == image_turn or (quarter and height != width)):
        return None
    if shape == image_shape:
        reason = f"EXIF orientation {turn}, but {image} has {image_turn}, so one may be turned against the other"
        return DsgenError(path, reason, "save both upright, without an orientation")
    if quarter and shape == (width, height):
        turned = f"{image}, which its" if is_quarter_turn(image_turn) else f"{image}; its own"
        reason = f"{sizes} like {turned} EXIF orientation turns by 90 degrees"
        return DsgenError(path, reason, "turn both alike, or remove the orientation from both")
    return DsgenError(path, f"{sizes} like {image}", "scale it")


def _list_depths(folder: Path) -> list[Path]:
    if not folder.is_dir():
        reason = f"{folder} does not exist, expected a folder with 16-bit PNG or .npy files"
        raise NotFoundError("--depths", reason, "check the path")
    found = list_files(folder, DEPTH_SUFFIXES)
    if not found:
        reason = f"{folder} holds no depth maps, expected 16-bit PNG or .npy files"
        raise NotFoundError("--depths", reason, "check the path")
    return found


def _read_depth(path: Path, png_unit_m: float) -> np.ndarray:
    """Read a depth map as (h,w) f4 metres, 0 invalid."""
    if path.suffix.lower() == ".npy":
        depth = read_npy(path)
        if depth.ndim != 2 or depth.dtype.kind != "f":
            raise DsgenError(path, f"got {depth.dtype} {depth.shape}, expected (height, width) of float metres")
        depth = depth.astype(np.float32)
    else:
        raw = images.read_depth_png(path)
        if raw.ndim != 2 or raw.dtype == np.uint8:
            raise DsgenError(path, f"got {raw.dtype} {raw.shape}, expected a 16-bit grey PNG", "convert it")
        depth = (raw.astype(np.float64) * png_unit_m).astype(np.float32)
    return np.where(np.isfinite(depth) & (depth > 0), depth, 0).astype(np.float32)
