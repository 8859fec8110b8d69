"""How far off are people placed by estimated depth? Floors and sizes, against the exact depth of the same rooms.

    python tests/studies/study_estimated_floor.py BACKGROUNDS DEPTH --work bench/floors

BACKGROUNDS is a folder of pictures, BACKGROUNDS.csv beside it has their `fov_deg`, and DEPTH has their exact planar
depth, 16-bit PNG in millimetres. The network labels the pictures; then the floor is found in both depth maps of each.

- The camera's height is compared with that over the exact floor.
- A person's height in pixels is f H / Z; so its error is the ratio of the exact depth to the one that is used, less 1.
  Feet are at pixels of the exact floor, drawn uniformly over the pixels or over the square metres. The depth used is
  the estimate at that pixel, or that of the plane fitted to it.
- Where the estimated floor is drawn from, "on the floor" is the share of its pixels that the exact floor has too.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from dsgen.camera import focal_px
from dsgen.corpus.floor import Floor, find_floor
from dsgen.depth.label_folder import label_folder
from dsgen.io import images
from dsgen.io.atomic import write_bytes
from dsgen.io.cameras import read_cameras
from dsgen.io.folders import list_files
from dsgen.io.npy_files import read_npy

FEET, PERSON_M = 500, 1.7  # feet drawn in each room


@dataclass(frozen=True)
class Room:
    """What was measured in a room; of a room whose floor was not found in the estimate, only its name.

    `errors` has those of a person's size, by how feet were drawn, which depth was used, and the unit.
    """

    name: str
    height_error_m: float = np.nan
    tilt_deg: float = np.nan
    on_floor: float = np.nan
    person_px: float = np.nan
    errors: dict[str, np.ndarray] | None = None


def measure(name: str, exact_m: np.ndarray, estimate_m: np.ndarray, length_px: float) -> Room | None:
    """Compare the floor of a room's estimated depth with that of its exact depth; None without an exact floor."""
    exact, found = find_floor(exact_m, length_px), find_floor(estimate_m, length_px)
    if exact is None:
        return None
    if found is None:
        return Room(name)
    errors: dict[str, np.ndarray] = {}
    plane_m = found.depth_m(length_px)
    for drawn, weights in (("pixels", exact.mask), ("metres", exact.areas_m2(length_px))):
        feet = draw_feet(weights)
        person_px = length_px * PERSON_M / exact_m.flat[feet]
        for used, depth_m in (("estimate", estimate_m), ("plane", plane_m)):
            error = np.abs(exact_m.flat[feet] / depth_m.flat[feet] - 1)
            name_of = f"size of a person, feet by {drawn}, depth of the {used}"
            errors |= {f"{name_of}, %": error * 100, f"{name_of}, pixels": error * person_px}
    return Room(
        name,
        found.height_m - exact.height_m,
        float(np.degrees(np.arccos(np.clip(found.normal @ exact.normal, -1, 1)))),
        float((exact.mask & found.mask).sum() / found.mask.sum()),
        float(np.median(length_px * PERSON_M / exact_m[exact.mask])),
        errors,
    )


def draw_feet(weights: np.ndarray) -> np.ndarray:
    """Draw the numbers of pixels, each as likely as its weight."""
    shares = weights.ravel() / weights.sum()
    return np.random.default_rng(0).choice(shares.size, FEET, p=shares)


def draw_sheet(path: Path, shown: list[tuple[np.ndarray, Floor | None]]) -> None:
    """Write a JPEG of pictures with their floors in green, those without one darkened."""
    tiles = []
    for picture, floor in shown:
        tile = picture * 0.4 if floor is None else np.where(floor.mask[..., None], picture * 0.5 + [0, 110, 0], picture)
        tiles.append(cv2.resize(tile.clip(0, 255).astype(np.uint8), (224, 224), interpolation=cv2.INTER_AREA))
    tiles += [np.zeros_like(tiles[0])] * (-len(tiles) % 5)
    sheet = np.concatenate([np.concatenate(tiles[first : first + 5], axis=1) for first in range(0, len(tiles), 5)])
    write_bytes(path, cv2.imencode(".jpg", sheet[..., ::-1])[1].tobytes())


def report(rooms: list[Room]) -> list[str]:
    """Return the lines of a table: medians and 90th percentiles over rooms, or over all feet in all rooms."""
    found = [room for room in rooms if room.errors is not None]
    lines = [f"{len(rooms)} rooms with a floor in the exact depth; {len(found)} of them with one in the estimate", ""]
    heights_m = np.array([room.height_error_m for room in found])
    rows = {
        "height of the camera, cm": np.abs(heights_m) * 100,
        "direction of the floor, degrees": np.array([room.tilt_deg for room in found]),
        "pixels of the estimated floor that are none, %": np.array([100 * (1 - room.on_floor) for room in found]),
    }
    for name in found[0].errors or {}:
        rows[name] = np.concatenate([(room.errors or {})[name] for room in found])
    lines += ["| error, absolute | median | 90th percentile |", "|---|---|---|"]
    lines += [f"| {name} | {np.median(v):.1f} | {np.percentile(v, 90):.1f} |" for name, v in rows.items()]
    lines += ["", f"height of the camera: median error {np.median(heights_m) * 100:+.1f} cm"]
    lines += [f"height of a person in pixels: median {np.median([room.person_px for room in found]):.0f}"]
    few = [room.name for room in found if room.on_floor < 0.6]
    return [*lines, f"less than 60 % of the estimated floor on the exact one: {', '.join(few) or 'none'}"]


def main() -> None:
    """Label, find, compare, and write a table and a sheet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pictures", type=Path)
    parser.add_argument("depth", type=Path, nargs="?", help="exact; without it only the sheet of floors is drawn")
    parser.add_argument("--weights", type=Path, help="of the network; the bundled one by default")
    parser.add_argument("--work", type=Path, default=Path("bench/floors"))
    arguments = parser.parse_args()
    paths = list_files(arguments.pictures)
    labels = arguments.work / "labels"
    label_folder(arguments.pictures, labels, weights=arguments.weights, device="cpu", file_format="npy")
    rooms, shown = [], []
    for path, camera in zip(paths, read_cameras(arguments.pictures, paths, None, 2), strict=True):
        if camera is None:
            continue
        length_px = focal_px(camera.fov_deg, camera.width)
        estimate_m = read_npy(labels / f"{path.stem}.npy")
        shown.append((images.read_picture(path), find_floor(estimate_m, length_px)))
        if arguments.depth:
            exact_m = images.read_depth_png(arguments.depth / f"{path.stem}.png").astype(np.float32) / 1000
            room = measure(path.stem, exact_m, estimate_m, length_px)
            rooms += [room] if room else []
    draw_sheet(arguments.work / "floors.jpg", shown)
    print(f"{sum(floor is not None for _, floor in shown)} of {len(shown)} pictures have a floor in the estimate")
    if rooms:
        text = "\n".join(report(rooms))
        print(text)
        write_bytes(arguments.work / "floors.md", (text + "\n").encode())


if __name__ == "__main__":
    main()
