"""Pictures that are no corpus, such as RGB-D frames, as a source to pack: the same store, loader and trainer.

Folders of images and, as far as there are any, of masks, depths and clean backgrounds, paired by file name without
its ending. Every picture is cut to its centre square and scaled to the store's size, like backgrounds of a corpus:
images by area, masks likewise and then by half, depth to the nearest pixel. A row is a picture, in order of name.
"""

import hashlib
import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from dsgen.corpus.plan import DTYPE, assign_splits, split_counts
from dsgen.corpus.sources import list_pictures
from dsgen.errors import DamagedError, DsgenError, InvalidValueError, NotFoundError, raise_all
from dsgen.io import images
from dsgen.store import schema
from dsgen.units import MAX_DEPTH_MM

log = logging.getLogger("dsgen")

_CHUNK = 20


class Pictures:
    """Rows of pictures, paired and checked; a `Source` of `pack`.

    `png_unit_m` is what 1 in a depth PNG stands for, in metres; `.npy` depths are float metres. 0, negative and not
    finite depths are invalid. The shares say how many pictures are held out, by name. Raises one `DsgenError` for all
    that is wrong with any picture; `checked` skips looking at them again, in a worker.
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
        if not 16 <= size <= 4096:
            raise InvalidValueError("--size", f"got {size}, expected 16 to 4096 pixels")
        if not 0 < png_unit_m <= 1:
            raise InvalidValueError(
                "--png-unit", f"got {png_unit_m}, expected metres above 0 and up to 1, such as 0.001"
            )
        if not (0 <= validation_share < 1 and 0 <= test_share < 1 - validation_share):
            raise InvalidValueError(
                "--validation-share, --test-share",
                f"got {validation_share}, {test_share}, expected 0 to below 1 in all",
            )
        self.size, self._unit_m = size, png_unit_m
        folders = {"image": image_folder, "mask": mask_folder, "depth": depth_folder, "background": background_folder}
        self._paths = _pair({part: Path(folder) for part, folder in folders.items() if folder is not None})
        self.parts = tuple(self._paths)
        sha256 = checked or self._check()
        names = [path.stem for path in self._paths["image"]]
        count = len(names)
        self.chunk = min(count, schema.chunk_rows(_CHUNK, size))
        self.plan = np.zeros(count, DTYPE)
        self.plan["background"] = np.arange(count)
        self.plan["split"] = assign_splits(names, "picture", seed, validation_share, test_share)
        self.made_from: dict[str, Any] = {
            "format": schema.FORMAT,
            "pictures_sha256": sha256,
            "parts": list(self.parts),
            "rows": count,
            "size": size,
            "seed": seed,
            "validation_share": validation_share,
            "test_share": test_share,
            "chunk_rows": self.chunk,
            "block_rows": schema.block_rows(self.chunk, size),
            "depth": {"model": "files", "png_unit_m": png_unit_m, "units": "mm"} if "depth" in self.parts else None,
        }
        self.attributes = {"pictures": [path.name for path in self._paths["image"]]}
        options = (size, png_unit_m, validation_share, test_share, seed)
        self.folders = [Path(folder).absolute() for folder in folders.values() if folder is not None]
        places = (folder and str(Path(folder).absolute()) for folder in folders.values())
        self.key = (Pictures, *places, *options, sha256)

    @property
    def splits(self) -> dict[str, int]:
        """How many pictures every split has."""
        return split_counts(self.plan)

    def _check(self) -> str:
        """Decode every picture once, list all that is wrong, and hash names and bytes."""
        digest = hashlib.sha256()
        errors: list[DsgenError] = []
        with ThreadPoolExecutor() as pool:
            for sums, found in pool.map(self._check_row, range(len(self._paths["image"]))):
                digest.update(sums)
                errors += found
        raise_all(errors)
        return digest.hexdigest()

    def _check_row(self, row: int) -> tuple[bytes, list[DsgenError]]:
        errors, digest, shapes = [], hashlib.sha256(), {}
        for part, paths in self._paths.items():
            path = paths[row]
            digest.update(f"{part}\0{path.name}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
            try:
                shapes[part] = self._read(part, path).shape[:2]
            except DsgenError as error:
                errors.append(error)
        for part, shape in shapes.items():
            if "image" in shapes and shape != shapes["image"]:
                height, width = shapes["image"]
                reason = (
                    f"{shape[1]}x{shape[0]} pixels, expected {width}x{height} like {self._paths['image'][row].name}"
                )
                errors.append(DsgenError(self._paths[part][row], reason, "scale it"))
        return digest.digest(), errors

    def _read(self, part: str, path: Path) -> np.ndarray:
        """Decode a picture: RGB u1, mask u1 of 0 or 255, or depth f4 in metres, 0 invalid."""
        if part == "mask":
            grey = images.read_picture(path)[..., 0]
            if 0 < grey.max() < 128:
                raise DsgenError(
                    path,
                    f"values up to {grey.max()}, expected a mask of 0 and 255, where 128 and more is foreground",
                    "scale the values",
                )
            return np.where(grey >= 128, 255, 0).astype(np.uint8)
        if part == "depth":
            depth_m = _read_depth(path, self._unit_m)
            if not (depth_m > 0).any():
                raise DamagedError(path, "no valid depth, expected some values above 0", "leave the picture out")
            if depth_m.max() * 1000 > MAX_DEPTH_MM:
                raise DsgenError(
                    path,
                    f"depth up to {depth_m.max():,.1f} m, expected at most 65.535 m",
                    "check --png-unit, or set farther values to 0",
                )
            return depth_m
        return images.read_picture(path)

    def _scaled(self, part: str, row: int) -> np.ndarray:
        picture = images.centre_square(self._read(part, self._paths[part][row]))
        if part == "depth":
            nearest = cv2.resize(picture, (self.size, self.size), interpolation=cv2.INTER_NEAREST_EXACT)
            return np.rint(nearest * 1000).astype(np.uint16)
        scaled = images.resize(picture, self.size, self.size)
        return np.where(scaled >= 128, 255, 0).astype(np.uint8) if part == "mask" else scaled

    def pictures(self, first: int, last: int) -> dict[str, np.ndarray]:
        """Read and scale rows `first` to `last`, exclusive."""
        return {
            part: np.stack([self._scaled(part, row) for row in range(first, last)])
            for part in self.parts
            if part != "background"
        }

    def background(self, number: int) -> np.ndarray:
        """Return the clean background of picture `number`, (S,S,3) u1."""
        return self._scaled("background", number)

    def coded_depth(self, first: int, last: int) -> list[bytes] | None:  # noqa: ARG002
        """There is none in a store's form."""
        return None

    def cutouts(self) -> tuple[np.ndarray, np.ndarray]:
        """There are none: pictures cannot be drawn."""
        raise InvalidValueError("--recipe", "for a corpus, whose pictures can be drawn again", "leave it out")


def _pair(folders: dict[str, Path]) -> dict[str, list[Path]]:
    """List the folders' files so that the same place in every list is the same picture; name all that lack one."""
    by_name: dict[str, dict[str, Path]] = {}
    errors: list[DsgenError] = []
    for part, folder in folders.items():
        paths = _list_depths(folder) if part == "depth" else list_pictures(folder, f"{part}s")
        by_name[part] = {}
        for path in paths:
            if path.stem in by_name[part]:
                other = by_name[part][path.stem].name
                errors.append(DsgenError(path, f"has the name of {other} but for the ending", "rename or remove one"))
            by_name[part][path.stem] = path
    names = sorted(by_name["image"])
    for part, found in by_name.items():
        lacking = [name for name in names if name not in found]
        extra = sorted(set(found) - set(names))
        if lacking:
            shown = ", ".join(lacking[:5]) + (", ..." if len(lacking) > 5 else "")
            reason = f"no {part} for {len(lacking)} of {len(names)} images ({shown})"
            errors.append(NotFoundError(folders[part], reason, "add them, or remove these images"))
        if extra:
            log.warning(
                "%s: %d files have no image of their name, not used: %s ...", folders[part], len(extra), extra[0]
            )
    raise_all(errors)
    return {part: [found[name] for name in names] for part, found in by_name.items()}


def _list_depths(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise NotFoundError("--depths", f"{folder} is no folder, expected one with 16-bit PNG or .npy files")
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in (".png", ".npy"))
    if not found:
        raise InvalidValueError("--depths", f"{folder} holds no depth maps, expected 16-bit PNG or .npy files")
    return found


def _read_depth(path: Path, png_unit_m: float) -> np.ndarray:
    """Read a depth map as (h,w) f4 metres, 0 invalid."""
    if path.suffix.lower() == ".npy":
        try:
            depth = np.load(path, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise DamagedError(path, f"cannot be read ({error}), expected float metres", "replace it") from error
        if depth.ndim != 2 or depth.dtype.kind != "f":
            raise DsgenError(path, f"got {depth.dtype} {depth.shape}, expected (height, width) of float metres")
        depth = depth.astype(np.float32)
    else:
        raw = images.read_depth_png(path)
        if raw.ndim != 2 or raw.dtype == np.uint8:
            raise DsgenError(
                path, f"got {raw.dtype} {raw.shape}, expected a 16-bit grey PNG, whose unit is known", "convert it"
            )
        depth = (raw.astype(np.float64) * png_unit_m).astype(np.float32)
    return np.where(np.isfinite(depth) & (depth > 0), depth, 0).astype(np.float32)
