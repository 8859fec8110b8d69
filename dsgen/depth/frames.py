"""Folders of RGB-D frames as batches to train a depth network on."""

import hashlib
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from dsgen.errors import DamagedError, DsgenError, NotFoundError
from dsgen.io.csv_files import read_csv

FOCAL = 0.85  # focal length over picture width of a typical frame (61 degrees): what pasted people are scaled by
FOV_DEG = 61.0  # of frames that do not say theirs
STANDING_M = 1.7


class Frames:
    """All frames of a folder in memory: `rgb` (n,S,S,3) u1, `depth_mm` (n,S,S) u2, `room` (n,), `fov_deg`."""

    def __init__(self, folder: Path, jobs: int = 2):
        listing = folder / "frames.csv"
        if not listing.is_file():
            raise NotFoundError(listing, "no such file, expected columns name and room", "see the module's docstring")
        rows = read_csv(listing, ("name", "room"))
        if not rows:
            raise DamagedError(listing, "no frames listed, expected at least one row")
        self.names = [row["name"] for row in rows]
        self.room = np.array([row["room"] for row in rows])
        for name in self.names:
            if not name or Path(name).is_absolute() or ".." in Path(name).parts:
                raise DamagedError(listing, f"got name {name!r}, expected a picture's below rgb/", "correct it")
        self.fov_deg = [_field_of_view(listing, row) for row in rows]
        with ThreadPoolExecutor(jobs) as pool:
            pairs = list(pool.map(lambda name: self._read(folder, name), self.names))
        shapes = {rgb.shape[:2] for rgb, _ in pairs} | {depth.shape for _, depth in pairs}
        if len(shapes) != 1:
            raise DsgenError(folder, f"frames of several sizes {sorted(shapes)}, expected one size for all")
        self.rgb = np.stack([rgb for rgb, _ in pairs])
        self.depth_mm = np.stack([depth for _, depth in pairs])

    @staticmethod
    def _read(folder: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
        path = next((p for p in (folder / "rgb" / f"{name}{end}" for end in (".jpg", ".png")) if p.is_file()), None)
        if path is None:
            raise NotFoundError(f"{folder / 'rgb' / name}", "no .jpg or .png of that name, listed in frames.csv")
        rgb = cv2.imread(str(path), cv2.IMREAD_COLOR)
        depth = cv2.imread(str(folder / "depth" / f"{name}.png"), cv2.IMREAD_UNCHANGED)
        if rgb is None or depth is None or depth.dtype != np.uint16:
            raise DsgenError(folder, f"frame {name} needs a readable picture and a 16-bit depth PNG")
        return cv2.cvtColor(rgb, cv2.COLOR_BGR2RGB), depth

    def split(self, validation_share: float = 0.1) -> tuple[np.ndarray, np.ndarray]:
        """Row numbers for training and validation; a room goes whole to one side, decided by its name alone."""
        held_out = {
            room
            for room in np.unique(self.room)
            if int(hashlib.sha256(room.encode()).hexdigest()[:8], 16) / 2**32 < validation_share
        }
        mask = np.array([room in held_out for room in self.room])
        return np.flatnonzero(~mask), np.flatnonzero(mask)


def _field_of_view(listing: Path, row: dict[str, str]) -> float:
    given = row.get("fov_deg") or str(FOV_DEG)
    try:
        degrees = float(given)
    except ValueError:
        degrees = math.nan
    if not 1 <= degrees <= 179:
        raise DamagedError(listing, f"{row['name']}: got fov_deg {given[:40]}, expected 1 to 179 degrees", "correct it")
    return degrees


def read_people(folder: Path) -> list[tuple[np.ndarray, float]]:
    """Cut-outs (H,W,4) u1 with the height in metres each stands for; `../people.csv` tells who is seated."""
    listing = folder.parent / "people.csv"
    seated = set()
    if listing.is_file():
        seated = {row["name"] for row in read_csv(listing, ("name", "poses")) if "sit" in row["poses"]}
    people = []
    for path in sorted(folder.glob("*.png")):
        rgba = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        if rgba is None or rgba.ndim != 3 or rgba.shape[2] != 4:
            raise DamagedError(path, "no alpha channel, expected an RGBA PNG")
        people.append((cv2.cvtColor(rgba, cv2.COLOR_BGRA2RGBA), 1.3 if path.stem in seated else STANDING_M))
    return people


def augment(
    rgb: np.ndarray,
    depth_m: np.ndarray,
    size: int,
    people: list[tuple[np.ndarray, float]],
    rng: np.random.Generator,
    fov_deg: float = FOV_DEG,
) -> tuple[np.ndarray, np.ndarray]:
    """One training pair (size,size,3) u1 and (size,size) f4 from a frame whose field of view is `fov_deg`.

    Zoom: a crop enlarged looks like the same camera standing nearer, so depth shrinks with it. Crops of 0.6 turn the
    55 to 75 degrees of the rendered rooms into the 45 degrees a depth camera sees upright, less is a thing close by.
    Half the time the camera is turned as well, see `turn_camera`; depth is then 0, so invalid, where it had not looked.
    """
    side = rgb.shape[0]
    crop = round(side * rng.uniform(0.45, 1.0)) if rng.random() < 0.6 else side
    if rng.random() < 0.5:
        angles = rng.normal(0, (8, 8, 5)).clip(-16, 16)
        rgb, depth_m = turn_camera(rgb, depth_m, fov_deg, angles, crop)
    else:
        top, left = rng.integers(0, side - crop + 1, 2)
        rgb, depth_m = rgb[top : top + crop, left : left + crop], depth_m[top : top + crop, left : left + crop]
    shrink = cv2.INTER_AREA if size < crop else cv2.INTER_LINEAR
    rgb = cv2.resize(rgb, (size, size), interpolation=shrink)
    depth_m = cv2.resize(depth_m, (size, size), interpolation=cv2.INTER_NEAREST) * (crop / side)
    if people and rng.random() < 0.4:
        rgb, depth_m = rgb.copy(), depth_m.copy()
        for _ in range(rng.integers(1, 3)):
            paste_person(rgb, depth_m, *people[rng.integers(len(people))], rng)
    if rng.random() < 0.5:
        rgb, depth_m = rgb[:, ::-1], depth_m[:, ::-1]
    return photometric(np.ascontiguousarray(rgb), rng), np.ascontiguousarray(depth_m)


def turn_camera(
    rgb: np.ndarray, depth_m: np.ndarray, fov_deg: float, angles_deg: np.ndarray, crop: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the middle `crop` pixels of a square frame as its camera would see them turned by (pitch, yaw, roll).

    A turn about the camera's centre moves pixels by K R K^-1, whatever the depth (Hartley and Zisserman, Multiple View
    Geometry, 8.4). Planar depth becomes z / (R r)_z, r = K^-1 p the ray of a pixel p of the turned camera, scaled to
    r_z = 1. Depth takes the nearest pixel and is 0 where the frame has none; the picture is mirrored there.
    """
    side = rgb.shape[0]
    focal = side / 2 / math.tan(math.radians(fov_deg) / 2)
    pitch, yaw, roll = np.radians(angles_deg)
    turn = cv2.Rodrigues(np.array([0, 0, roll]))[0] @ cv2.Rodrigues(np.array([pitch, 0, 0]))[0]
    turn = turn @ cv2.Rodrigues(np.array([0, yaw, 0]))[0]
    before, after = (np.array([[focal, 0, n / 2 - 0.5], [0, focal, n / 2 - 0.5], [0, 0, 1]]) for n in (side, crop))
    rays = turn @ np.linalg.inv(after)
    moves = before @ rays
    x = np.arange(crop, dtype=np.float32)
    z = np.float32(rays[2, 0]) * x + np.float32(rays[2, 1]) * x[:, None] + np.float32(rays[2, 2])
    shape, back = (crop, crop), cv2.WARP_INVERSE_MAP
    rgb = cv2.warpPerspective(rgb, moves, shape, flags=cv2.INTER_LINEAR | back, borderMode=cv2.BORDER_REFLECT_101)
    depth_m = cv2.warpPerspective(depth_m, moves, shape, flags=cv2.INTER_NEAREST | back)
    return rgb, np.where(z > 0.1, depth_m / np.maximum(z, 0.1), 0).astype(np.float32)


def paste_person(
    rgb: np.ndarray, depth_m: np.ndarray, person: np.ndarray, height_m: float, rng: np.random.Generator
) -> None:
    """Paste a cut-out anywhere, in place: as far as its height says, but always before what it covers."""
    size = rgb.shape[0]
    height = int(size * rng.uniform(0.3, 0.75))
    width = max(2, round(person.shape[1] * height / person.shape[0]))
    if width >= size:
        return
    person = cv2.resize(person, (width, height), interpolation=cv2.INTER_AREA)
    if rng.random() < 0.5:
        person = person[:, ::-1]
    top, left = rng.integers(0, size - height + 1), rng.integers(0, size - width + 1)
    alpha = person[..., 3:].astype(np.float32) / 255
    window = rgb[top : top + height, left : left + width]
    behind = depth_m[top : top + height, left : left + width]
    solid = alpha[..., 0] >= 0.5
    valid = behind[solid & (behind > 0)]
    if valid.size == 0:
        return
    window[:] = np.rint(window * (1 - alpha) + person[..., :3] * alpha).astype(np.uint8)
    behind[solid] = max(0.4, min(FOCAL * size * height_m / height, 0.95 * float(np.percentile(valid, 10))))


def photometric(rgb: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Change what a camera changes and depth does not: light, exposure, colour, blur, noise, compression."""
    levels = np.linspace(0, 1, 256, dtype=np.float32)
    contrast, bright = rng.uniform(0.7, 1.35), rng.uniform(-0.12, 0.12)
    curves = [
        ((levels ** rng.uniform(0.6, 1.7)) * rng.uniform(0.8, 1.2) - 0.5) * contrast + 0.5 + bright for _ in range(3)
    ]
    gamma = rng.uniform(0.6, 1.6)
    table = np.stack(curves, axis=1).clip(0, 1) ** gamma
    out = cv2.LUT(rgb, np.rint(table * 255).astype(np.uint8)[None])
    # hue and saturation: a turn about the grey axis, and a pull towards it
    turn, pull = rng.uniform(-0.6, 0.6) * (rng.random() < 0.5), rng.uniform(0.0, 1.4)
    if rng.random() < 0.1:
        pull = 0.0
    c, t, k = math.cos(turn), (1 - math.cos(turn)) / 3, math.sin(turn) / math.sqrt(3)
    spin = np.array([[c + t, t - k, t + k], [t + k, c + t, t - k], [t - k, t + k, c + t]])
    matrix = (np.full((3, 3), (1 - pull) / 3) + pull * spin).astype(np.float32)
    out = cv2.transform(out, matrix)
    if rng.random() < 0.3:
        out = cv2.GaussianBlur(out, (0, 0), rng.uniform(0.3, 1.2 * rgb.shape[0] / 224 + 0.3))
    if rng.random() < 0.4:
        size = rgb.shape[:2]
        field = cv2.resize(
            rng.uniform(0.55, 1.35, (3, 3)).astype(np.float32), size[::-1], interpolation=cv2.INTER_CUBIC
        )
        out = np.multiply(out, field[..., None]).clip(0, 255).astype(np.uint8)
    if rng.random() < 0.4:
        noise = rng.standard_normal(out.shape, np.float32) * np.float32(255 * rng.uniform(0.005, 0.05))
        out = (out + noise).clip(0, 255).astype(np.uint8)
    if rng.random() < 0.25:
        _, code = cv2.imencode(".jpg", out, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(30, 95))])
        out = np.asarray(cv2.imdecode(code, cv2.IMREAD_COLOR))
    return out


def batches(
    frames: Frames,
    rows: np.ndarray,
    size: int,
    batch_size: int,
    people: list[tuple[np.ndarray, float]],
    seed: int,
    epoch: int,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Shuffled, augmented batches (B,3,S,S) and (B,1,S,S), made one batch ahead in a thread."""
    order = np.random.default_rng([seed, epoch]).permutation(rows)
    groups = [order[i : i + batch_size] for i in range(0, len(order) - batch_size + 1, batch_size)]

    def make(group: np.ndarray) -> tuple[Tensor, Tensor]:
        pairs = [
            augment(
                frames.rgb[row],
                frames.depth_mm[row].astype(np.float32) / 1000,
                size,
                people,
                np.random.default_rng([seed, epoch, int(row)]),
                frames.fov_deg[row],
            )
            for row in group
        ]
        image = torch.from_numpy(np.stack([pair[0] for pair in pairs])).permute(0, 3, 1, 2)
        return image, torch.from_numpy(np.stack([pair[1] for pair in pairs]))[:, None]

    with ThreadPoolExecutor(1) as pool:
        pending = pool.submit(make, groups[0])
        for group in groups[1:]:
            ready, pending = pending.result(), pool.submit(make, group)
            yield ready
        yield pending.result()
