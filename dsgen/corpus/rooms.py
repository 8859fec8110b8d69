"""What is known of the backgrounds as rooms, `rooms.zarr`: their depth, and where their floor is.

    depth_SIZE   (b,S,S) u2   planar depth in millimetres, 0 = not known, at every size that rows are drawn at
    floor_SIZE   (b,S,S) u1   255 where the floor itself is seen, else 0

The attribute `rooms` has a record for every background, see `RoomRecord`; `files_sha256` has the hash of every file,
and `sha256` is the hash of the other attributes. A corpus with people on the floor is planned from this file. Another
corpus has it once `dsgen depth --composed` was asked for; then the attribute `heights_m` has the heights of its
foregrounds.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NotRequired, TypeVar

import cv2
import numpy as np
import zarr
from typing_extensions import TypedDict
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec

from dsgen.camera import focal_px
from dsgen.corpus.floor import Floor, find_floor
from dsgen.corpus.scene import Room
from dsgen.corpus.sources import SourceFile
from dsgen.corpus.vouched import named_damage, open_array, open_vouched
from dsgen.errors import ConflictError, DamagedError, Difference, DsgenError, NotFoundError, raise_all
from dsgen.io import images
from dsgen.io.assets import asset
from dsgen.io.atomic import write_folder
from dsgen.io.cameras import ASSUMED
from dsgen.io.folders import match_key, names_in_words
from dsgen.io.json_files import check_as
from dsgen.io.npy_files import read_npy
from dsgen.parallel.progress import progress

T = TypeVar("T")
FILE, BUNDLED = "file", "bundled"
EXACT_PERMILLE, ESTIMATED_PERMILLE = 20, 100  # margins of depth that is measured, and of a network's
_MOST_MM = 65534
_SHOWN = 3  # differences in an error
_HOLE = 90  # of these in a picture's side, holes in a floor are small
_ROOT = "zarr.json"


class FloorRecord(TypedDict):
    """The plane of a floor: its unit normal, upwards in the camera's coordinates, and the camera's height above it."""

    normal: list[float]
    height_m: float


class RoomRecord(TypedDict):
    """What is recorded of a background as a room.

    `depth_from` is "file", "bundled", or names the network that estimated the depth, `depth_sha256` the hash of the
    file or of the network's weights. `fov_deg` is the field of view of the square background, `fov_from` where it is
    from. `margin_permille` is how far depth may be wrong, of itself. `floor` is absent where none was found.
    """

    name: str
    depth_from: str
    depth_sha256: str
    fov_deg: float
    fov_from: Literal["csv", "exif", "option", "assumed"]
    margin_permille: int
    floor: NotRequired[FloorRecord]


class _Attributes(TypedDict):
    rooms: list[RoomRecord]
    heights_m: NotRequired[list[float]]
    files_sha256: dict[str, str]
    sha256: str


@dataclass(frozen=True)
class RoomDepth:
    """The depth of one background before it is stored: (h,w) f4 metres of its centre square, 0 = not known."""

    depth_m: np.ndarray
    depth_from: str
    sha256: str

    @property
    def margin_permille(self) -> int:
        """How far the depth may be wrong, of itself."""
        return EXACT_PERMILLE if self.depth_from in (FILE, BUNDLED) else ESTIMATED_PERMILLE


Estimator = Callable[[np.ndarray, float], RoomDepth]
"""Estimates the depth of a square picture, (S,S,3) u1, whose field of view is so many degrees."""


class Rooms:
    """The rooms of a corpus, read-only. `records` has one record for every background, `sha256` vouches for all.

    Raises `DamagedError` for anything that is not as recorded.
    """

    def __init__(self, path: Path, backgrounds: int, sha256: str | None = None):
        self.path = path
        remedy = f"run dsgen repair {path.parent}"
        with named_damage(path / _ROOT, remedy):
            root = (path / _ROOT).read_bytes()
            attributes = check_as(_Attributes, json.loads(root).get("attributes"), path / _ROOT, remedy)
        if attributes["sha256"] != _hash(attributes) or len(attributes["rooms"]) != backgrounds:
            raise DamagedError(path / _ROOT, "damaged, differs from the hash in it", remedy)
        if sha256 not in (None, attributes["sha256"]):
            raise DamagedError(path / _ROOT, "damaged or replaced, differs from the hash in corpus.json", remedy)
        self.records: list[RoomRecord] = attributes["rooms"]
        self.heights_m: list[float] | None = attributes.get("heights_m")
        self.sha256: str = attributes["sha256"]
        self.files: dict[str, str] = attributes["files_sha256"]
        self._remedy, self._backgrounds = remedy, backgrounds
        self._group = open_vouched(path, self.files | {_ROOT: hashlib.sha256(root).hexdigest()}, remedy)
        self._arrays: dict[str, zarr.Array] = {}

    def read(self, kind: Literal["depth", "floor"], number: int, size: int) -> np.ndarray:
        """Return the depth (S,S) u2 in millimetres, or the floor (S,S) u1, of a background at a stored size."""
        name = f"{kind}_{size}"
        with named_damage(self.path / f"{name}/c/{number}/0/0", self._remedy):
            if name not in self._arrays:
                dtype = "uint16" if kind == "depth" else "uint8"
                layout = (self._backgrounds, size, size), dtype
                self._arrays[name] = open_array(self._group, name, self.path, self._remedy, layout)
            return np.asarray(self._arrays[name][number])

    def floor(self, number: int, size: int) -> Floor | None:
        """Return the floor of a background at a stored size, None where none was found."""
        record = self.records[number].get("floor")
        if record is None:
            return None
        return Floor(np.array(record["normal"]), record["height_m"], self.read("floor", number, size) > 0)

    def focal_px(self, number: int, size: int) -> float:
        """Return the focal length of a background in pixels of a square of `size`."""
        return round(focal_px(self.records[number]["fov_deg"], size), 4)

    def room(self, number: int, image: np.ndarray) -> Room:
        """Return a background (S,S,3) u1 as a room that people are drawn into."""
        size = image.shape[0]
        depth, floor = self.read("depth", number, size), self.read("floor", number, size)
        return Room.of(image, depth, floor, *self.geometry(number))

    def geometry(self, number: int) -> tuple[int, int, int]:
        """Return `margin_permille`, `camera_mm` and `lean` of a background, see `Room`; without a floor 0."""
        record = self.records[number]
        floor = record.get("floor")
        if floor is None:
            return record["margin_permille"], 0, 0
        lean = round(2**20 * floor["normal"][2] / focal_px(record["fov_deg"], 1))
        return record["margin_permille"], round(1000 * floor["height_m"]), lean

    def check_same_views(self, views: Sequence[tuple[float, str]]) -> None:
        """Raise `ConflictError` unless the backgrounds have these fields of view, each with where it is from."""
        others = [
            Difference(
                f"field of view of {record['name']}",
                f"{now:g}, {source}",
                f"{record['fov_deg']:g}, {record['fov_from']}",
            )
            for record, (now, source) in zip(self.records, views, strict=True)
            if (record["fov_deg"], record["fov_from"]) != (now, source)
        ]
        if others:
            reason = "made with other fields of view, for which people were placed"
            raise ConflictError(
                self.path.parent, reason, "use the same, or make another corpus", others[:_SHOWN], "corpus"
            )

    def check_same_depth(self, folder: Path) -> None:
        """Raise `ConflictError` unless the depth maps of a folder are those that the rooms were made from."""
        given = DepthFolder(folder)
        differences = []
        for record in self.records:
            name, was = record["name"], record["depth_sha256"]
            now = given.read(name, None).sha256 if given.has(name) else None
            if now != was:
                told = "none" if now is None else f"sha256 {now[:12]}"
                differences.append(Difference(f"depth of {name}", told, f"sha256 {was[:12]} ({record['depth_from']})"))
        if differences:
            remedy = f"leave out --background-depths, or remove {self.path} if people do not stand in it"
            corpus = self.path.parent
            raise ConflictError(corpus, "its backgrounds have other depth", remedy, differences[:_SHOWN], "corpus")

    def depth_sources(self) -> dict[str, int]:
        """Count the backgrounds by where their depth is from."""
        return dict(Counter(record["depth_from"] for record in self.records))

    def assumed_views(self) -> int:
        """Count the backgrounds whose field of view had to be assumed."""
        return sum(record["fov_from"] == ASSUMED for record in self.records)

    def without_floor(self) -> list[str]:
        """Name the backgrounds in which no floor was found."""
        return [record["name"] for record in self.records if "floor" not in record]


def write_rooms(
    path: Path,
    names: Sequence[str],
    views: Sequence[tuple[float, str]],
    sizes: Sequence[int],
    depth_of: Callable[[int], RoomDepth],
    heights_m: Sequence[float] | None = None,
) -> None:
    """Write `rooms.zarr`: of every background the name, the field of view and its source, and what `depth_of` answers.

    `heights_m` are those of the foregrounds, where `corpus.json` does not have them.

    Errors of several backgrounds are raised together.
    """
    errors: list[DsgenError] = []
    with write_folder(path) as unfinished:
        group = zarr.create_group(unfinished)
        arrays = {}
        for size in sizes:
            shape, chunks = (len(names), size, size), (1, size, size)
            common: dict[str, Any] = {"shape": shape, "chunks": chunks, "fill_value": 0}
            common["config"] = {"write_empty_chunks": True}
            common["dimension_names"] = ("picture", "y", "x")
            arrays["depth", size] = group.create_array(
                f"depth_{size}",
                dtype="uint16",
                compressors=(BloscCodec(cname="zstd", clevel=3, shuffle="bitshuffle", typesize=2), Crc32cCodec()),
                attributes={"units": "m", "scale_factor": 0.001, "_FillValue": 0, "long_name": "planar depth"},
                **common,
            )
            arrays["floor", size] = group.create_array(
                f"floor_{size}",
                dtype="uint8",
                compressors=(ZstdCodec(level=3, checksum=True),),
                attributes={"long_name": "where the floor is seen, 0 or 255"},
                **common,
            )
        records: list[RoomRecord] = []
        for number, (name, (fov_deg, fov_from)) in enumerate(_told(zip(names, views, strict=True), len(names))):
            try:
                found = depth_of(number)
            except DsgenError as error:
                errors.append(error)
                continue
            focal = focal_px(fov_deg, found.depth_m.shape[1])
            floor = find_floor(found.depth_m, focal)
            record: dict[str, Any] = {
                "name": name,
                "depth_from": found.depth_from,
                "depth_sha256": found.sha256,
                "fov_deg": fov_deg,
                "fov_from": fov_from,
                "margin_permille": found.margin_permille,
            }
            if floor is not None:
                normal = [round(value, 6) for value in floor.normal.tolist()]
                record["floor"] = {"normal": normal, "height_m": round(floor.height_m, 4)}
            records.append(check_as(RoomRecord, record, name))
            for size in sizes:
                arrays["depth", size][number] = to_millimetres(found.depth_m, size)
                seen = np.zeros(found.depth_m.shape, bool) if floor is None else _closed(found, floor, focal)
                arrays["floor", size][number] = np.where(_nearest(seen, size), 255, 0)
        raise_all(errors)
        files = {
            file.relative_to(unfinished).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
            for file in sorted(unfinished.rglob("*"))
            if file.is_file() and file != unfinished / _ROOT
        }
        attributes: dict[str, Any] = {"rooms": records, "files_sha256": files}
        if heights_m is not None:
            attributes["heights_m"] = list(heights_m)
        group.attrs.update(attributes | {"sha256": _hash(attributes)})


def _closed(found: RoomDepth, floor: Floor, focal: float) -> np.ndarray:
    """Return where the floor is seen (h,w) bool, with its small holes closed where their depth may be the floor's."""
    side = found.depth_m.shape[0]
    kernel = np.ones((2 * (side // _HOLE) + 3,) * 2, np.uint8)
    closed = cv2.morphologyEx(floor.mask.astype(np.uint8), cv2.MORPH_CLOSE, kernel) > 0
    plane_m = floor.depth_m(focal)
    near = np.abs(found.depth_m - plane_m) <= found.margin_permille / 1000 * plane_m
    return floor.mask | (closed & near & np.isfinite(plane_m))


def _told(items: Iterable[T], count: int) -> Iterator[T]:
    """Yield items, telling how far they are."""
    with progress("rooms", count) as advance:
        for item in items:
            yield item
            advance(1)


def _hash(attributes: Any) -> str:
    content = {name: value for name, value in attributes.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def to_millimetres(depth_m: np.ndarray, size: int) -> np.ndarray:
    """Return a square depth map (h,h) f4 in metres as (S,S) u2 millimetres, of its nearest pixels: edges stay sharp."""
    depth = _nearest(depth_m, size) * 1000.0
    known = np.isfinite(depth) & (depth > 0)
    return np.where(known, np.clip(np.rint(np.where(known, depth, 0)), 1, _MOST_MM), 0).astype(np.uint16)


def _nearest(values: np.ndarray, size: int) -> np.ndarray:
    rows, columns = ((2 * np.arange(size) + 1) * side // (2 * size) for side in values.shape)
    return values[rows[:, None], columns]


class DepthFolder:
    """A folder of depth maps of backgrounds: NAME.png, 16 bits in millimetres, or NAME.npy, metres; 0 = not known."""

    def __init__(self, folder: Path, depth_from: str = FILE):
        self.folder, self.depth_from = folder, depth_from
        if not folder.is_dir():
            reason = f"{folder} is no folder, expected one with depth maps, NAME.png or NAME.npy"
            raise NotFoundError("--background-depths", reason, "check the path")
        self._files: dict[str, list[Path]] = {}
        for path in sorted(folder.iterdir()):
            if path.suffix.lower() in (".png", ".npy"):
                self._files.setdefault(match_key(path.stem), []).append(path)

    def has(self, name: str) -> bool:
        """Whether there is a depth map of a background."""
        return match_key(name) in self._files

    def read(self, name: str, picture: tuple[int, ...] | None) -> RoomDepth:
        """Read the depth map of the background of this name; `picture` has (height, width) of its picture, if known.

        Raises `DamagedError` for one that cannot be read, has other proportions, or knows no depth.
        """
        paths = self._files[match_key(name)]
        if len(paths) > 1:
            names = " and ".join(path.name for path in paths)
            raise DsgenError(self.folder, f"{names} are depth maps of the same background", "remove one")
        path = paths[0]
        if path.suffix.lower() == ".png":
            millimetres = images.read_depth_png(path)
            if millimetres.dtype.itemsize == 1:  # a view of depth, whose numbers are no millimetres
                raise DamagedError(path, "a PNG of 8 bits, expected one of 16 bits in millimetres", "replace it")
            depth_m = millimetres.astype(np.float32) / np.float32(1000)
        else:
            depth_m = read_npy(path)
        if depth_m.ndim != 2 or depth_m.dtype.kind not in "fiu":
            reason = f"{depth_m.dtype} {'x'.join(map(str, depth_m.shape))}, expected a map of metres, (height, width)"
            raise DamagedError(path, reason, "replace it")
        height, width = depth_m.shape
        if picture is not None and abs(height * picture[1] - width * picture[0]) > max(height, width, *picture):
            reason = f"{width}x{height} pixels, expected the proportions of its picture, {picture[1]}x{picture[0]}"
            raise DamagedError(path, reason, "replace it")
        square = images.centre_square(depth_m.astype(np.float32))
        square = np.where(np.isfinite(square) & (square > 0), square, np.float32(0))
        if not square.any():
            raise DamagedError(path, "no depth anywhere, expected metres above 0", "replace it")
        return RoomDepth(square, self.depth_from, hashlib.sha256(path.read_bytes()).hexdigest())


class DepthSource:
    """Where the depth of a corpus' backgrounds is from: a folder of the user's, what is bundled, or an estimate.

    `files` and `views` are those of the backgrounds, in order; `picture` returns one of them, (h,w,3) u1, whole or as
    `square` the centre square. Raises `DsgenError` where the folder lacks any.
    """

    def __init__(
        self,
        files: Sequence[SourceFile],
        views: Sequence[tuple[float, str]],
        picture: Callable[[int], np.ndarray],
        folder: Path | None,
        estimate: Estimator | None,
        *,
        square: bool = False,
    ):
        self._files, self._views, self._picture = files, views, picture
        self._estimate, self._square = estimate, square
        self._given = None if folder is None else DepthFolder(folder)
        if self._given is not None:
            lacking = [file.name for file in files if not self._given.has(file.name)]
            if lacking:
                count = f"{len(lacking):,} of the {len(files):,} backgrounds"
                reason = f"lacks the depth of {count} ({names_in_words(lacking)}), expected NAME.png or NAME.npy"
                raise DsgenError(
                    self._given.folder, reason, "add them, or leave out the option to have depth estimated"
                )

    @cached_property
    def _bundled(self) -> tuple[DepthFolder, dict[str, str]]:
        """The bundled depth maps, and the hashes of the pictures they belong to, by name."""
        pictures = asset("backgrounds")
        hashes = {path.stem: hashlib.sha256(path.read_bytes()).hexdigest() for path in pictures.glob("*.jpg")}
        return DepthFolder(asset("backgrounds_depth"), BUNDLED), hashes

    def read(self, number: int) -> RoomDepth:
        """Return the depth of a background.

        Raises as `DepthFolder.read`, and `DsgenError` where the depth is not given and nothing estimates it.
        """
        file = self._files[number]
        folder, hashes = (self._given, {file.name: file.sha256}) if self._given is not None else self._bundled
        if hashes.get(file.name) == file.sha256:
            return folder.read(file.name, None if self._square else self._picture(number).shape[:2])
        if self._estimate is None:
            raise DsgenError(file.file, "its depth is not known", "give background_depths or estimate_depth")
        return self._estimate(images.centre_square(self._picture(number)), self._views[number][0])
