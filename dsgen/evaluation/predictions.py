"""A folder of predictions: its parameters, its table, the files of answers, and which of them are up to date."""

import io
from pathlib import Path
from typing import Any

import numpy as np

from dsgen import __version__
from dsgen.evaluation.pairs import Pair
from dsgen.io import images
from dsgen.io.atomic import write_bytes, write_json
from dsgen.io.colours import drawable, view_height
from dsgen.io.csv_files import encode_csv, read_csv
from dsgen.io.folders import PREDICTIONS_JSON as JSON
from dsgen.io.json_files import read_as
from dsgen.training.checkpoint import DEPTH, MASK, Trained
from dsgen.units import MAX_DEPTH_M, MIN_DEPTH_M

CSV = "predictions.csv"
VIEW = "view"
_VIEW_PIXELS = 640  # most along the longer side of a view
_COLUMNS = (
    "picture",
    "background",
    "width",
    "height",
    "fed_width",
    "fed_height",
    "foreground_share",
    "min_m",
    "median_m",
    "max_m",
    "foreground_median_m",
    "seconds",
    "error",
)

Entry = dict[str, str]  # a line of the table, by column


def update_parameters(out: Path, trained: Trained, size: int, file_format: str) -> None:
    """Write what the answers are made with, unless the file says so; a new file outdates all older answers."""
    parameters = {
        "dsgen": __version__,
        "checkpoint_sha256": trained.sha256,
        "size": size,
        "answers": list(trained.answers),
        "mask_threshold": 0.5,
        "depth_format": file_format,
        "depth_units": {"png": "mm", "npy": "m"}[file_format],
        "depth_range_m": [MIN_DEPTH_M, MAX_DEPTH_M],
    }
    path = out / JSON
    if not path.is_file() or read_as(dict[str, Any], path, "remove it to predict all pictures again") != parameters:
        write_json(path, parameters)


def read_table(out: Path) -> dict[str, Entry]:
    """Read the entries of an earlier run, by picture, except those of failed pictures."""
    path = out / CSV
    if not path.is_file():
        return {}
    rows = read_csv(path, "remove it; dsgen predict writes it again", ("picture", "background"))
    return {row["picture"]: row for row in rows if not row.get("error")}


def write_table(out: Path, entries: dict[str, Entry]) -> None:
    """Write the entries, in order of picture."""
    rows = ([entries[title].get(column, "") for column in _COLUMNS] for title in sorted(entries))
    write_bytes(out / CSV, encode_csv(_COLUMNS, rows))


def is_current(pair: Pair, entry: Entry | None, out: Path) -> bool:
    """Return whether a pair's answers exist, are of the same background, and newer than pictures and parameters."""
    if entry is None or entry["background"] != str(pair.background or ""):
        return False
    if not all(path.is_file() for path in pair.files.values()):
        return False
    sources = [path for path in (pair.picture, pair.background, out / JSON) if path is not None]
    newest = max(path.stat().st_mtime_ns for path in sources)
    return min(path.stat().st_mtime_ns for path in pair.files.values()) >= newest


def write_answers(pair: Pair, picture: np.ndarray, mask: np.ndarray, depth_m: np.ndarray) -> None:
    """Write a pair's files: the mask (h,w) u1 of 0 or 255, the depth (h,w) f4 metres, and the view."""
    for path in pair.files.values():
        path.parent.mkdir(parents=True, exist_ok=True)
    if MASK in pair.files:
        write_bytes(pair.files[MASK], images.encode_png(mask, runs=True))
    if DEPTH in pair.files:
        write_bytes(pair.files[DEPTH], _encode_depth(depth_m, pair.files[DEPTH].suffix))
    if VIEW in pair.files:
        shown_mask, shown_depth_m = mask if MASK in pair.files else None, depth_m if DEPTH in pair.files else None
        draw_view(pair.files[VIEW], picture, pair.title, shown_mask, shown_depth_m)


def describe_answers(pair: Pair, mask: np.ndarray, depth_m: np.ndarray) -> Entry:
    """Return what the table says of a pair's answers."""
    entry: Entry = {}
    if MASK in pair.files:
        entry["foreground_share"] = f"{(mask > 0).mean():.6f}"
    if DEPTH in pair.files:
        for name, value in (("min_m", depth_m.min()), ("median_m", np.median(depth_m)), ("max_m", depth_m.max())):
            entry[name] = f"{value:.4f}"
    if MASK in pair.files and DEPTH in pair.files and mask.any():
        entry["foreground_median_m"] = f"{np.median(depth_m[mask > 0]):.4f}"
    return entry


def _encode_depth(depth_m: np.ndarray, ending: str) -> bytes:
    if ending == ".png":
        return images.encode_png(np.rint(depth_m * 1000).astype(np.uint16))
    content = io.BytesIO()
    np.save(content, depth_m)
    return content.getvalue()


def draw_view(
    out: Path, picture: np.ndarray, title: str, mask: np.ndarray | None = None, depth_m: np.ndarray | None = None
) -> None:
    """Draw a picture (h,w,3) with what is outside the mask (h,w) greyed, and the depth (h,w) in colours, as a JPEG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    height, width = picture.shape[:2]
    step = max(1, round(max(height, width) / _VIEW_PIXELS))
    picture = picture[::step, ::step]
    panels = 1 + (depth_m is not None)
    figure = Figure(figsize=(4.5 * panels, view_height(height, width)), dpi=100, layout="constrained")
    axes = figure.subplots(1, panels, squeeze=False)[0]
    for axis in axes:
        axis.set_axis_off()
    if mask is not None:
        inside = mask[::step, ::step] > 0
        grey = picture.mean(axis=2, keepdims=True) * 0.5
        axes[0].imshow(np.where(inside[..., None], picture, grey).astype(np.uint8))
        if inside.any() and not inside.all():
            axes[0].contour(inside, levels=[0.5], colors="magenta", linewidths=0.8)
    else:
        axes[0].imshow(picture)
    axes[0].set_title(drawable(title), fontsize=8, loc="left", parse_math=False)
    if depth_m is not None:
        far_m = max(MIN_DEPTH_M, float(np.percentile(depth_m, 99.5)))
        shown = axes[1].imshow(depth_m[::step, ::step], cmap="turbo_r", vmin=0, vmax=far_m)
        figure.colorbar(shown, ax=axes[1], label="depth, m", fraction=0.05)
    content = io.BytesIO()
    FigureCanvasAgg(figure).print_jpg(content)
    write_bytes(out, content.getvalue())
