"""Charts and pictures for a page: as addresses that hold their content, so that the page needs no other file.

Charts are SVG. Their text and lines are black on light pages and white on dark ones: the style sheet in the picture
follows the scheme of the page. Pictures are JPEG. The same numbers give the same bytes.
"""

import base64
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from dsgen.io import images
from dsgen.views.preview import PEOPLE_COLOURS

INK, BAR = "#0a0b0c", "#2f7d95"  # the first is replaced by the colour of the page's text
SPLIT_COLOURS = {"train": "#2f7d95", "validation": "#d98e04", "test": "#b5484f", "unused": "#8b949e"}
_STYLE = "<style>svg{color:#1f2328}@media (prefers-color-scheme:dark){svg{color:#e6edf3}}</style>"
_SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "dsgen",
    "svg.image_inline": True,
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "path.simplify": False,
}
_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))
_JPEG_QUALITY = 88
_TILE_SIDE = 224  # at most, of each picture of a row
_GAP = 4
_NO_DEPTH = np.uint8(128)


def draw_bars(edges: np.ndarray, counts: np.ndarray, label: str, counted: str, *, percent: bool = False) -> str:
    """Draw a histogram: `counts` (n,) between `edges` (n + 1,). With `percent` the edges are shares."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    with _chart(5.2, 2.5) as (axes, content):
        axes.stairs(counts, edges, fill=True, color=BAR, linewidth=0)
        axes.set_xlim(edges[0], edges[-1])
        axes.set_xlabel(label)
        axes.set_ylabel(counted)
        axes.yaxis.set_major_formatter(FuncFormatter(_in_short))
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        if percent:
            axes.xaxis.set_major_formatter(FuncFormatter(_in_percent))
    return _encode(content)


def draw_map(values: np.ndarray, label: str, *, percent: bool = False) -> str:
    """Draw a map (h,w) of a square picture in colours with a scale."""
    from matplotlib.ticker import FuncFormatter

    with _chart(4.2, 3.3, left=0.1, right=0.9, bottom=0.05, top=0.05) as (axes, content):
        shown = axes.imshow(
            values, cmap="viridis", vmin=0, vmax=max(float(values.max()), 1e-9), interpolation="nearest"
        )
        axes.set_axis_off()
        bar = axes.figure.colorbar(shown, cax=axes.inset_axes((1.03, 0.04, 0.04, 0.92)), label=label)
        bar.outline.set_linewidth(0.5)
        bar.ax.yaxis.set_major_formatter(FuncFormatter(_in_percent if percent else _in_short))
    return _encode(content)


def draw_use(rows: np.ndarray, splits: Sequence[str], label: str) -> str:
    """Draw how often each picture is used, (pictures, splits), as bars in the order of their numbers."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    with _chart(7.2, 2.2, top=0.3) as (axes, content):
        edges = np.arange(len(rows) + 1) - 0.5
        tops = np.pad(np.cumsum(rows, axis=1), ((0, 1), (1, 0)), mode="edge")  # the last step needs an end
        tops[:, 0] = 0
        for column, split in enumerate(splits):
            if rows[:, column].any():
                bars = {"color": SPLIT_COLOURS[split], "label": split, "linewidth": 0}
                axes.fill_between(edges, tops[:, column], tops[:, column + 1], step="post", **bars)
        axes.set_xlim(edges[0], edges[-1])
        axes.set_ylim(0)
        axes.set_xlabel(label)
        axes.set_ylabel("times used")
        axes.yaxis.set_major_formatter(FuncFormatter(_in_short))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(ncols=4, frameon=False, loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0)
    return _encode(content)


def draw_depth_scale(far_m: float) -> str:
    """Draw the colours of depth from 0 to `far_m` metres."""
    with _chart(4.2, 0.62, left=0.15, bottom=0.44, top=0.03) as (axes, content):
        axes.imshow(np.linspace(0, 1, 256)[None], cmap="turbo_r", aspect="auto", extent=(0, far_m, 0, 1))
        axes.set_yticks([])
        axes.set_xlabel("depth, m")
    return _encode(content)


def draw_row(sample: Mapping[str, np.ndarray], far_m: float | None) -> str:
    """Draw a row side by side: the picture, its mask over it in colours, and its depth in colours up to `far_m`."""
    tiles = [sample["image"]] if "image" in sample else []
    numbers = sample.get("instance", sample.get("mask"))
    if tiles and numbers is not None:
        tiles.append(_overlay(sample["image"], np.minimum(numbers, 1) if "instance" not in sample else numbers))
    if "depth" in sample and far_m is not None:
        tiles.append(colour_depth(sample["depth"], far_m))
    tiles = [_shrink(tile) for tile in tiles]
    gap = np.full((tiles[0].shape[0], _GAP, 3), 255, np.uint8)
    parts = [part for tile in tiles for part in (gap, tile)][1:]
    return _address("image/jpeg", images.encode_jpeg(np.concatenate(parts, axis=1), _JPEG_QUALITY))


def colour_depth(depth_mm: np.ndarray, far_m: float) -> np.ndarray:
    """Colour depth (h,w) u2 in millimetres as `draw_depth_scale` says; grey where there is none."""
    from matplotlib import colormaps

    coloured = colormaps["turbo_r"](depth_mm / (1000 * far_m), bytes=True)[..., :3]
    return np.where(depth_mm[..., None] > 0, coloured, _NO_DEPTH)


def _overlay(image: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Tint a picture where people are, each in a colour of its own, and dim the rest."""
    from matplotlib.colors import to_rgb

    colours = np.array([to_rgb(name) for name in PEOPLE_COLOURS]) * 255
    tint = colours[(numbers.astype(np.int64) - 1) % len(colours)]
    seen = (numbers > 0)[..., None]
    return np.rint(np.where(seen, 0.35 * image + 0.65 * tint, 0.6 * image)).astype(np.uint8)


def _shrink(tile: np.ndarray) -> np.ndarray:
    return images.resize(tile, _TILE_SIDE, _TILE_SIDE) if tile.shape[0] > _TILE_SIDE else tile


def _in_percent(share: float, _: int) -> str:
    return f"{100 * share:g} %"


def _in_short(value: float, _: int) -> str:
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= unit:
            return f"{value / unit:g}{name}"
    return f"{value:g}"


@contextmanager
def _chart(
    width: float, height: float, *, left: float = 0.6, right: float = 0.15, bottom: float = 0.45, top: float = 0.1
) -> Iterator[tuple[Any, io.StringIO]]:
    """Yield the axes of a figure, and where its SVG is written to when the block ends; lengths are inches.

    The margins are given, since to find those that fit takes matplotlib longer than all the rest.
    """
    from matplotlib import rc_context, rcdefaults, rcParams
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    content = io.StringIO()
    with rc_context():
        rcdefaults()  # whatever the user's own settings are
        rcParams.update(_SETTINGS)
        figure = Figure(figsize=(width, height))
        box = left / width, bottom / height, 1 - (left + right) / width, 1 - (bottom + top) / height
        yield figure.add_axes(box), content
        FigureCanvasSVG(figure).print_svg(content, metadata=_METADATA)


def _encode(content: io.StringIO) -> str:
    """Return an SVG as an address; no time, version or random name is in it."""
    text = re.sub(r"<\?xml.*?\?>|<!DOCTYPE.*?>|<!--.*?-->", "", content.getvalue(), flags=re.S)
    text = text.replace(INK, "currentColor").replace("<defs>", _STYLE + "<defs>", 1)
    return _address("image/svg+xml", re.sub(r"\s*\n\s*", "\n", text.strip()).encode())


def _address(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
