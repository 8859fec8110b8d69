"""Folders of RGB-D frames to train a depth network on, and how often each frame is drawn."""

import hashlib
import math
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dsgen.camera import focal_px, is_fov
from dsgen.errors import DamagedError, DsgenError, InvalidValueError, NotFoundError, raise_all
from dsgen.io import images
from dsgen.io.csv_files import read_csv
from dsgen.io.folders import attempt, list_files, match_key
from dsgen.io.people import SEATED_M, STANDING_M

FOV_DEG = 61.0  # of frames that do not say theirs
LAYOUT = (
    "a folder of frames holds rgb/NAME.jpg or .png, depth/NAME.png (16-bit, millimetres) and frames.csv (UTF-8) with "
    "the columns name, room and, if known, fov_deg"
)


@dataclass(frozen=True)
class Frame:
    """A picture (h,w,3) u1, its planar depth (h,w) u2 in millimetres, 0 where it is not known, and its focal length."""

    rgb: np.ndarray
    depth_mm: np.ndarray
    focal_px: float


@dataclass(frozen=True)
class Person:
    """A cut-out (h,w,4) u1 and the height in metres that it stands for."""

    rgba: np.ndarray
    height_m: float


class Frames(Sequence[Frame]):
    """All frames of a folder in memory, of any sizes; `names`, `room` (n,) and `fov_deg` say what the listing says.

    `fov_deg` is the horizontal field of view. Raises `NotFoundError` for a missing listing, `DamagedError` for one that
    cannot be read, and the errors of all frames together.
    """

    def __init__(self, folder: Path, jobs: int = 2):
        self.folder = folder
        listing = folder / "frames.csv"
        if not listing.is_file():
            raise NotFoundError(listing, "no such file, expected columns name and room", LAYOUT)
        rows = read_csv(listing, LAYOUT, ("name", "room"))
        if not rows:
            raise DamagedError(listing, "no frames listed, expected at least one row", "add a row for each frame")
        self.names = [row["name"] for row in rows]
        self.room = np.array([match_key(row["room"]) for row in rows])
        self.fov_deg = [_field_of_view(listing, row) for row in rows]
        pictures, depths = _files_by_name(folder / "rgb", images.SUFFIXES), _files_by_name(folder / "depth", {".png"})
        errors = [
            NotFoundError(
                folder / kind / name, "no picture of that name, listed in frames.csv", "add it, or remove its row"
            )
            for name in self.names
            for kind, files in (("rgb", pictures), ("depth", depths))
            if match_key(name) not in files
        ]
        raise_all(errors)
        pairs = [(pictures[match_key(name)], depths[match_key(name)]) for name in self.names]
        with ThreadPoolExecutor(jobs) as pool:
            read = list(pool.map(_attempt_pair, pairs))
        raise_all(each for pair in read for each in pair if isinstance(each, DsgenError))
        self._pairs = [each for each in read if isinstance(each, tuple)]

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, row: int) -> Frame:  # type: ignore[override]
        rgb, depth_mm = self._pairs[row]
        return Frame(rgb, depth_mm, focal_px(self.fov_deg[row], rgb.shape[1]))

    def split(self, validation_share: float = 0.1) -> tuple[np.ndarray, np.ndarray]:
        """Row numbers for training and validation; a room goes whole to one side, decided by its name alone.

        Either side gets at least one room. Raises `DsgenError` for frames of a single room.
        """
        places = {str(room): place_of_room(str(room)) for room in np.unique(self.room)}
        if len(places) < 2:
            reason = "the frames are of one room, expected two or more: whole rooms are held out to score the network"
            raise DsgenError("frames.csv", reason, "name the rooms in the column room, or add frames of another")
        held_out = {room for room, place in places.items() if place < validation_share}
        by_place = sorted(places, key=places.__getitem__)
        held_out = (held_out or {by_place[0]}) if len(held_out) < len(places) else held_out - {by_place[-1]}
        mask = np.array([room in held_out for room in self.room])
        return np.flatnonzero(~mask), np.flatnonzero(mask)


class Mixture:
    """Several folders of frames, each with its share of what is drawn; without shares, by their numbers of frames.

    Within a folder a room of four times the frames is drawn twice as often, so that a few places with many frames do
    not crowd out the others. Whole rooms are held out of each folder; one of a single room is trained on as it is.
    """

    def __init__(self, folders: Sequence[Frames], shares: Sequence[float] | None = None):
        self.folders = folders
        self.training: list[np.ndarray] = []
        self.held_out: list[np.ndarray] = []
        for frames in folders:
            single = len(folders) > 1 and len(np.unique(frames.room)) == 1
            rows = (np.arange(len(frames)), np.arange(0)) if single else frames.split()
            self.training.append(rows[0])
            self.held_out.append(rows[1])
        counts = [len(rows) for rows in self.training]
        weights = np.array(counts if shares is None else shares, dtype=float)
        self.shares = weights / weights.sum()
        self._weights = [_room_weights(frames.room[rows]) for frames, rows in zip(folders, self.training, strict=True)]

    def __len__(self) -> int:
        """Return the number of frames to train on: what an epoch draws."""
        return sum(map(len, self.training))

    @property
    def held_out_count(self) -> int:
        """The number of frames of held-out rooms."""
        return sum(map(len, self.held_out))

    def draw(self, rng: np.random.Generator) -> list[Frame]:
        """Return the frames of an epoch in random order; none is drawn twice while an equal one is not drawn at all."""
        counts = np.diff(np.rint(np.concatenate([[0], np.cumsum(self.shares)]) * len(self)).astype(int))
        chosen = [
            (folder, row)
            for folder, (rows, weights, count) in enumerate(zip(self.training, self._weights, counts, strict=True))
            for row in rows[_systematic_sample(weights, count, rng)]
        ]
        return [self.folders[folder][row] for folder, row in (chosen[n] for n in rng.permutation(len(chosen)))]


def _room_weights(rooms: np.ndarray) -> np.ndarray:
    """Return the weight of each frame, so that a room weighs as much as the square root of its number of frames."""
    _, room, counts = np.unique(rooms, return_inverse=True, return_counts=True)
    return 1 / np.sqrt(counts[room])


def _systematic_sample(weights: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Draw `count` numbers, each as often as its weight says, up to rounding up or down."""
    order = rng.permutation(len(weights))
    ends = np.cumsum(weights[order])
    ticks = (np.arange(count) + rng.random()) * (ends[-1] / max(count, 1))
    return order[np.searchsorted(ends, ticks, side="right").clip(max=len(weights) - 1)]


def parse_shares(texts: Sequence[str]) -> tuple[list[Path], list[float] | None]:
    """Parse `FOLDER` or `FOLDER:SHARE` each; raise `InvalidValueError` where only some have shares, or bad ones."""
    parts = [_parse_share(text) for text in texts]
    given = [share for _, share in parts if share is not None]
    if given and len(given) < len(parts):
        bare = next(folder for folder, share in parts if share is None)
        reason = f"{bare} has no share, but others have, expected one for each folder, or none at all"
        raise InvalidValueError("frames", reason, f"write {bare}:0.5, say")
    return [folder for folder, _ in parts], given or None


def _parse_share(text: str) -> tuple[Path, float | None]:
    folder, colon, number = text.rpartition(":")
    if not colon or Path(text).is_dir():
        return Path(text), None
    try:
        share = float(number)
    except ValueError:
        return Path(text), None
    if not 0 < share < math.inf:
        raise InvalidValueError("frames", f"the share of {folder} is {number}, expected a number above 0")
    return Path(folder), share


def place_of_room(room: str) -> float:
    """Return a room's place in 0..1, by its name; those of the lowest tenth are held out."""
    return int(hashlib.sha256(room.encode()).hexdigest()[:8], 16) / 2**32


def _field_of_view(listing: Path, row: dict[str, str]) -> float:
    text = row.get("fov_deg") or str(FOV_DEG)
    try:
        degrees = float(text)
    except ValueError:
        degrees = math.nan
    if not is_fov(degrees):
        reason = f"fov_deg of frame {row['name']} is {text}, expected degrees above 0 and below 180"
        raise DamagedError(listing, reason, "correct it, or leave it empty")
    return degrees


def _files_by_name(folder: Path, suffixes: Collection[str]) -> dict[str, Path]:
    """Return the files of a folder by name without ending, in the form in which names match."""
    if not folder.is_dir():
        raise NotFoundError(folder, "no such folder", LAYOUT)
    found: dict[str, Path] = {}
    errors = []
    for path in list_files(folder, suffixes):
        other = found.setdefault(match_key(path.stem), path)
        if other != path:
            errors.append(DsgenError(path, f"has the same name as {other.name} except for the ending", "remove one"))
    raise_all(errors)
    return found


def _attempt_pair(paths: tuple[Path, Path]) -> tuple[np.ndarray, np.ndarray] | list[DsgenError]:
    """Read a picture and its depth map (h,w) u2 millimetres; return the errors, so that all can be listed together."""
    pair = [attempt(paths[0]), _attempt_depth(paths[1])]
    errors = [each for each in pair if isinstance(each, DsgenError)]
    if errors:
        return errors
    rgb, depth_mm = (each for each in pair if isinstance(each, np.ndarray))
    if rgb.shape[:2] != depth_mm.shape:
        (high, wide), (height, width) = rgb.shape[:2], depth_mm.shape
        reason = f"{width}x{height} pixels, but its picture has {wide}x{high}, expected the same size"
        return [DsgenError(paths[1], reason, "scale the depth map to the picture, by nearest neighbours")]
    return rgb, depth_mm


def _attempt_depth(path: Path) -> np.ndarray | DsgenError:
    try:
        depth_mm = images.read_depth_png(path)
    except DsgenError as error:
        return error
    if depth_mm.ndim != 2 or depth_mm.dtype != np.uint16:
        return DsgenError(path, "no 16-bit grey PNG, expected depth in millimetres", "save it as uint16")
    return depth_mm


def read_people(folder: Path) -> list[Person]:
    """Read the cut-outs of a folder; `../people.csv` tells who is seated."""
    if not folder.is_dir():
        raise NotFoundError("--people", f"{folder} is no folder, expected one with cut-outs", "check the path")
    listing = folder.parent / "people.csv"
    seated = set()
    if listing.is_file():
        rows = read_csv(listing, "save it as UTF-8, with the columns name and poses", ("name", "poses"))
        seated = {match_key(row["name"]) for row in rows if "sit" in row["poses"]}
    errors: list[DsgenError] = []
    people: list[Person] = []
    for path in list_files(folder, {".png"}):
        try:
            height_m = SEATED_M if match_key(path.stem) in seated else STANDING_M
            people.append(Person(images.read_cutout(path), height_m))
        except DsgenError as error:
            errors.append(error)
    raise_all(errors)
    if not people:
        raise NotFoundError("--people", f"{folder} has no PNG files, expected cut-outs", "check the path")
    return people
