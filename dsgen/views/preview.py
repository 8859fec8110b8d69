"""Look at a corpus or a store: a contact sheet of random rows, drawn with matplotlib.

A row shows the composite, its mask and its depth; depth is coloured on one scale in metres for the whole sheet.
"""

import io
from pathlib import Path

import numpy as np

from dsgen.corpus import layout
from dsgen.corpus.corpus import Corpus
from dsgen.errors import InvalidValueError, NotFoundError
from dsgen.io.atomic import write_bytes
from dsgen.io.filesystem import is_url
from dsgen.store.layout import INDEX_JSON


def preview(place: Path | str, out: Path = Path("preview.png"), *, count: int = 12, seed: int = 0) -> Path:
    """Write a contact sheet of `count` random rows of a corpus or a store as PNG; return its path."""
    if count < 1:
        raise InvalidValueError("--count", f"got {count}, expected 1 or more")
    if out.suffix.lower() != ".png":
        raise InvalidValueError("--out", f"got {out}, expected a name ending in .png")
    path = Path(place)
    if is_url(place) or (path / INDEX_JSON).exists():
        draw_sheet(out, *_read_store(place, count, seed), title=str(place))
        return out
    if not path.is_dir():
        raise NotFoundError(path, "no such folder, expected a corpus or a store", "run dsgen composite")
    draw_sheet(out, *_read_corpus(path, count, seed), title=str(path))
    return out


def _pick(rows: int, count: int, seed: int) -> np.ndarray:
    return np.sort(np.random.default_rng(seed).choice(rows, min(count, rows), replace=False))


def _read_corpus(path: Path, count: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, list[str]]:
    corpus = Corpus(path)
    rows = _pick(len(corpus), count, seed)
    image, mask = corpus.render(corpus.plan[rows])
    depth = None if corpus.depth is None else np.stack([corpus.depth[int(row)] for row in rows]) / 1000
    names = [layout.composite_name(b, f, bool(flip), p) for b, f, flip, p, *_ in corpus.plan[rows].tolist()]
    return image, mask, depth, names


def _read_store(
    place: Path | str, count: int, seed: int
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None, list[str]]:
    from dsgen.store.reader import Store

    store = Store(place)
    samples = [store.read(int(row), int(row) + 1) for row in _pick(store.rows, count, seed)]
    depth = np.concatenate([sample["depth"] for sample in samples]) / 1000 if store.has_depth else None
    names = [f"row {int(sample['row'][0])}" for sample in samples]
    return (
        np.concatenate([sample["image"] for sample in samples]),
        np.concatenate([sample["mask"] for sample in samples]) if "mask" in store.parts else None,
        depth,
        names,
    )


def draw_sheet(
    out: Path, image: np.ndarray, mask: np.ndarray | None, depth_m: np.ndarray | None, names: list[str], title: str
) -> None:
    """Draw pictures (n,S,S,3), and, unless None, masks (n,S,S) and depth (n,S,S) in metres, two samples a line."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    parts = 1 + (mask is not None) + (depth_m is not None)
    across = 1 if len(image) < 3 else 2
    lines = -(-len(image) // across)
    figure = Figure(figsize=(1.75 * parts * across + 0.8, 1.9 * lines + 0.6), layout="constrained")
    axes = figure.subplots(lines, parts * across, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    shown = None
    far = max(0.1, float(np.percentile(depth_m, 99.5))) if depth_m is not None else None
    for number, name in enumerate(names):
        line, first = number // across, parts * (number % across)
        axes[line, first].imshow(image[number])
        axes[line, first].set_title(name, fontsize=7, loc="left")
        if mask is not None:
            axes[line, first + 1].imshow(mask[number], cmap="gray", vmin=0, vmax=255)
        if depth_m is not None:
            known = np.ma.masked_equal(depth_m[number], 0)
            shown = axes[line, first + parts - 1].imshow(known, cmap="turbo_r", vmin=0, vmax=far)
    if shown is not None:
        figure.colorbar(shown, ax=axes, label="depth, m", fraction=0.02, aspect=40)
    figure.suptitle(title, fontsize=9)
    picture = io.BytesIO()
    FigureCanvasAgg(figure).print_png(picture)
    write_bytes(out, picture.getvalue())
