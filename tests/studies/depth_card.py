"""What a model card of a depth network needs: its scores and its sheets, by dsgen's own functions.

    python tests/studies/depth_card.py --out card --frames FRAMES --held-out --pictures REAL
    python tests/studies/depth_card.py --out card --backgrounds assets/backgrounds DEPTH --weights depth.safetensors

`--frames` and `--pictures` are folders with `rgb/`, `depth/` (uint16 millimetres, 0 = no depth) and `frames.csv` with
`name` or `id`, and if known `room` or `scene`, and `fov_deg`. The first is scored by room, the second frame by frame.
`--fov` is the assumption where the listing has no field of view. `--rates` measures pictures a second.
"""

import argparse
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from dsgen import metrics
from dsgen.camera import ASSUMED_FOV_DEG, focal_px
from dsgen.depth.edges import edge_scores
from dsgen.depth.frames import place_of_room
from dsgen.depth.labellers import Labeller, LabelOptions, make_labellers
from dsgen.depth.score import median_ratio, scores
from dsgen.io import images
from dsgen.io.cameras import read_cameras
from dsgen.io.colours import drawable
from dsgen.io.csv_files import read_csv
from dsgen.io.folders import match_key

SHEET_ROWS, SHEET_BYTES = 15, 450_000
SHOWN = ("abs_rel", "rmse", "delta1", "delta1_scaled", "edge_f")


@dataclass(frozen=True)
class Frame:
    """A picture with its true depth; `fov_deg` is horizontal."""

    name: str
    room: str
    rgb: Path
    depth: Path
    fov_deg: float


def estimate(labeller: Labeller, image: np.ndarray, length_px: float) -> np.ndarray:
    """Estimate the depth (h,w) f4 in metres of a picture (h,w,3) u1 whose focal length is `length_px`."""
    size = (image.shape[0], image.shape[1])
    fed = labeller.prepare(image[None], labeller.feed_shape(*size, length_px))
    return labeller(fed, size, size, np.array([length_px]))[0][0]


def list_frames(folder: Path, fov_deg: float, *, held_out: bool) -> list[Frame]:
    """Read a folder's `frames.csv`; with `held_out` only the rooms that training by default leaves out."""
    rgb, depth = _files(folder / "rgb"), _files(folder / "depth")
    found = []
    for row in read_csv(folder / "frames.csv", "write it"):
        name = row.get("name") or row["id"]
        room = row.get("room") or row.get("scene") or name
        if not held_out or place_of_room(match_key(room)) < 0.1:
            key = match_key(name)
            found.append(Frame(name, room, rgb[key], depth[key], float(row.get("fov_deg") or fov_deg)))
    return found


def list_backgrounds(folder: Path, depths: Path, fov_deg: float) -> list[Frame]:
    """List the backgrounds whose depth is there, with the fields of view that dsgen finds for them."""
    rgb, depth = _files(folder), _files(depths)
    names = sorted(rgb.keys() & depth.keys())
    cameras = read_cameras(folder, [rgb[name] for name in names], fov_deg, workers=2, known=rgb.values())
    return [
        Frame(name, name, rgb[name], depth[name], camera.fov_deg)
        for name, camera in zip(names, cameras, strict=True)
        if camera is not None
    ]


def _files(folder: Path) -> dict[str, Path]:
    return {match_key(path.stem): path for path in sorted(folder.iterdir()) if path.is_file()}


def score_frame(labeller: Labeller, frame: Frame) -> tuple[dict[str, Any], list[np.ndarray]]:
    """Return the scores of a frame, and its picture, truth, estimate and scaled estimate."""
    truth = images.read_depth_png(frame.depth) / 1000.0
    image = images.read_picture(frame.rgb)
    if image.shape[:2] != truth.shape:
        image = images.resize(image, *truth.shape)
    found = estimate(labeller, image, focal_px(frame.fov_deg, image.shape[1])).astype(np.float64)
    ratio = median_ratio(found, truth)
    metric, scaled = scores(found, truth), scores(found * ratio, truth)
    row = {"name": frame.name, "room": frame.room, **{name: metric[name] for name in ("abs_rel", "rmse", "delta1")}}
    row |= {"delta1_scaled": scaled["delta1"], **edge_scores(found, truth, metrics.valid_depth(truth))}
    return row, [image, truth, found, found * ratio]


def mean_of(rows: list[dict[str, Any]]) -> dict[str, float | None]:
    """Return the means of the shown scores over the frames that have a value."""
    means: dict[str, float | None] = {}
    for name in SHOWN:
        values = [row[name] for row in rows if row[name] is not None and math.isfinite(row[name])]
        means[name] = float(np.mean(values)) if values else None
    return means


def draw_sheet(out: Path, drawn: list[tuple[dict[str, Any], list[np.ndarray]]]) -> None:
    """Write a JPEG with a row for each frame: picture, truth, estimate, scaled estimate, in one scale of colours."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 1.9 * len(drawn)), dpi=90, layout="constrained")
    for axes, (row, (image, *depths)) in zip(figure.subplots(len(drawn), 4, squeeze=False), drawn, strict=True):
        edge = "-" if row["edge_f"] is None else f"{row['edge_f']:.2f}"
        titles = (
            drawable(row["name"])[:34],
            "truth",
            f"estimate, delta1 {row['delta1']:.2f}, edge F {edge}",
            f"scaled, delta1 {row['delta1_scaled']:.2f}",
        )
        most = float(np.percentile(depths[0][depths[0] > 0], 99.5)) if depths[0].any() else 10.0
        for axis, title in zip(axes, titles, strict=True):
            axis.set_axis_off()
            axis.set_title(title, fontsize=6, loc="left", parse_math=False)
        axes[0].imshow(image)
        for axis, depth in zip(axes[1:], depths, strict=True):
            shown = axis.imshow(np.ma.masked_equal(depth, 0), cmap="turbo_r", vmin=0, vmax=most)
        figure.colorbar(shown, ax=axes[3], label="m", fraction=0.05)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    rgb = np.asarray(canvas.buffer_rgba())[..., 2::-1]
    for quality in (90, 80, 70, 55, 40):
        content = cv2.imencode(".jpg", rgb, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()
        if len(content) < SHEET_BYTES:
            break
    out.write_bytes(content)


def report(out: Path, title: str, labeller: Labeller, frames: list[Frame], *, by_room: bool) -> dict[str, Any]:
    """Score frames, print the table, and write sheets of evenly spaced frames."""
    rows: list[dict[str, Any]] = []
    drawn = []
    picked = set(np.linspace(0, len(frames) - 1, min(len(frames), SHEET_ROWS)).round().astype(int).tolist())
    for number, frame in enumerate(frames):
        row, maps = score_frame(labeller, frame)
        rows.append(row)
        if number in picked:
            drawn.append((row, maps))
    draw_sheet(out / f"{title}.jpg", drawn)
    key = "room" if by_room else "name"
    groups = {
        group: mean_of([row for row in rows if row[key] == group]) for group in dict.fromkeys(r[key] for r in rows)
    }
    means = mean_of(rows)
    print(f"\n{title}, {len(rows)} frames\n\n| {key} | {' | '.join(SHOWN)} |\n|---|{'---|' * len(SHOWN)}")
    for name, group in [*groups.items(), ("mean", means)]:
        print(f"| {name} | {' | '.join('-' if group[s] is None else f'{group[s]:.3f}' for s in SHOWN)} |")
    return {"mean": means, key: groups, "frames": rows}


def measure_rates(weights: Path | None, size: int = 224, batch: int = 16, seconds: float = 8.0) -> dict[str, float]:
    """Return pictures a second of the network on one repeated batch on the CPU, in both precisions, on all cores."""
    pictures = np.random.default_rng(0).integers(0, 256, (batch, size, size, 3), np.uint8)
    rates = {}
    for precision in ("float32", "bf16"):
        options = LabelOptions(weights=weights, precision=precision, device="cpu")
        labeller = make_labellers(options, [torch.device("cpu")])[0]
        prepared = labeller.prepare(pictures)
        labeller(prepared, (size, size), (size, size))
        start, done = time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            labeller(prepared, (size, size), (size, size))
            done += batch
        rates[precision] = done / (time.perf_counter() - start)
        print(f"{precision}: {rates[precision]:.1f} pictures/s at {size}, {torch.get_num_threads()} threads")
    return rates


def main() -> None:
    """Score what was asked for, and write `card.json` and the sheets."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--weights", type=Path, help="default: the bundled network")
    parser.add_argument("--frames", type=Path, help="scored by room")
    parser.add_argument("--held-out", action="store_true", help="of --frames only the rooms held out by train-depth")
    parser.add_argument("--backgrounds", type=Path, nargs=2, metavar=("PICTURES", "DEPTH"))
    parser.add_argument("--pictures", type=Path, help="scored frame by frame")
    parser.add_argument(
        "--fov", type=float, default=ASSUMED_FOV_DEG, help="horizontal, degrees, where no listing says it"
    )
    parser.add_argument("--rates", action="store_true")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    options = LabelOptions(weights=arguments.weights, precision="float32", device="cpu")
    labeller = make_labellers(options, [torch.device("cpu")])[0]
    card: dict[str, Any] = {"fov_assumed_deg": arguments.fov}
    if arguments.frames:
        frames = list_frames(arguments.frames, arguments.fov, held_out=arguments.held_out)
        card["frames"] = report(arguments.out, "frames", labeller, frames, by_room=True)
    if arguments.backgrounds:
        frames = list_backgrounds(*arguments.backgrounds, fov_deg=arguments.fov)
        card["backgrounds"] = report(arguments.out, "backgrounds", labeller, frames, by_room=False)
    if arguments.pictures:
        frames = list_frames(arguments.pictures, arguments.fov, held_out=False)
        card["pictures"] = report(arguments.out, "pictures", labeller, frames, by_room=False)
    if arguments.rates:
        card["rates"] = measure_rates(arguments.weights)
    (arguments.out / "card.json").write_text(json.dumps(card, indent=1))


if __name__ == "__main__":
    main()
