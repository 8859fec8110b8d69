"""Depth maps as colour pictures with a scale."""

import io
from pathlib import Path

import numpy as np

from dsgen.errors import printable
from dsgen.io.atomic import write_bytes

_SHOWN_PIXELS = 640  # of the longer side


def view_height(height: int, width: int) -> float:
    """Return how high a view of a picture is in inches: in proportion, but never so high that it cannot be drawn."""
    return min(max(1.5, 3.9 * height / width), 16.0) + 0.4


def drawable(title: str) -> str:
    """Write a name so that matplotlib draws it in one line: a box for what its font lacks, of which it would warn."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    font = get_font(findfont(FontProperties()))
    return "".join(each if font.get_char_index(ord(each)) else "\u25a1" for each in printable(title))


def draw_depth(out: Path, picture: np.ndarray, depth: np.ndarray, title: str, *, metric: bool) -> None:
    """Write a JPEG with a picture (h,w,3) u1 and its depth (h,w) side by side, with a colour scale.

    `depth` is in metres if `metric`, else the unitless inverse depth of a relative model.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    height, width = depth.shape
    step = max(1, round(max(height, width) / _SHOWN_PIXELS))  # strided views, no copies
    figure = Figure(figsize=(9, view_height(height, width)), dpi=100, layout="constrained")
    left, right = figure.subplots(1, 2)
    for axis in (left, right):
        axis.set_axis_off()
    left.imshow(picture[::step, ::step])
    left.set_title(drawable(title), fontsize=8, loc="left", parse_math=False)
    low, high = np.percentile(depth, [0.5, 99.5])
    limits = (0.0, max(0.1, float(high))) if metric else (float(low), max(float(high), float(low) + 1e-6))
    shown = right.imshow(depth[::step, ::step], cmap="turbo_r" if metric else "turbo", vmin=limits[0], vmax=limits[1])
    figure.colorbar(shown, ax=right, label="depth, m" if metric else "inverse depth, no unit", fraction=0.05)
    content = io.BytesIO()
    FigureCanvasAgg(figure).print_jpg(content)
    write_bytes(out, content.getvalue())
