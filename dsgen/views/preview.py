"""Preview a corpus or a store: a contact sheet of random rows, drawn with matplotlib.

A row shows the composite, its mask and its depth. Of several people each has a colour in the mask. Depth is coloured on
one scale in metres for the whole sheet; where there are no labels, composed depth is shown if it is known.
"""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dsgen.corpus import layout
from dsgen.corpus.composed import composed_depth
from dsgen.corpus.corpus import Corpus
from dsgen.corpus.plan import MAX_PEOPLE
from dsgen.errors import InvalidValueError, NotFoundError, check_rules
from dsgen.io.atomic import write_bytes
from dsgen.io.colours import drawable
from dsgen.secrets import hide_secrets
from dsgen.store.kind import is_store
from dsgen.units import MIN_DEPTH_M

_MASK: dict[str, Any] = {"cmap": "gray", "vmin": 0, "vmax": 255}
PEOPLE_COLOURS = (
    "gold",
    "deepskyblue",
    "tomato",
    "limegreen",
    "violet",
    "orange",
    "turquoise",
    "white",
)  # of people, by slot


@dataclass(frozen=True)
class PreviewResult:
    """The result of `preview`: the file written, and the numbers of the rows it shows."""

    out: Path
    rows: tuple[int, ...]


@dataclass(frozen=True)
class Sample:
    """Rows to draw: images (n,S,S,3) u1, masks (n,S,S) u1 and depth (n,S,S) metres, None where there are none.

    `titles` has one title per row. `several` says that masks are 1 + the slot of the person that is seen.
    """

    rows: np.ndarray
    image: np.ndarray
    mask: np.ndarray | None
    depth_m: np.ndarray | None
    titles: list[str]
    several: bool = False


def preview(path: Path | str, out: Path = Path("preview.png"), *, count: int = 12, seed: int = 0) -> PreviewResult:
    """Write a contact sheet of `count` rows of a corpus or a store, chosen at random by `seed`, as PNG.

    Raises `InvalidValueError` for a count below 1 and a name that does not end in .png, and `NotFoundError` where there
    is neither corpus nor store.

    >>> preview("shards", Path("preview.png"), count=6)  # doctest: +SKIP
    PreviewResult(out=PosixPath('preview.png'), rows=(85, 290, 407, 511, 639, 850))
    """
    check_rules([(count >= 1, "count", count, "1 or more")])
    if out.suffix.lower() != ".png":
        raise InvalidValueError("--out", f"got {out}, expected a name ending in .png")
    if not out.absolute().parent.is_dir():
        raise NotFoundError(out.parent, f"no such folder, expected the one for {out.name}", "make it, or change --out")
    sample = _read_store(path, count, seed) if is_store(path) else _read_corpus(Path(path), count, seed)
    draw_sheet(out, sample, title=hide_secrets(str(path)))
    return PreviewResult(out, tuple(sample.rows.tolist()))


def _choose(rows: int, count: int, seed: int) -> np.ndarray:
    return np.sort(np.random.default_rng(seed).choice(rows, min(count, rows), replace=False))


def _read_corpus(path: Path, count: int, seed: int) -> Sample:
    corpus = Corpus(path)
    rows = _choose(len(corpus), count, seed)
    image, mask = corpus.render(corpus.plan[rows])
    if corpus.people > 1:
        mask = corpus.draw(corpus.plan[rows], ("instance",))["instance"]
    labels = None if corpus.depth is None else corpus.labels
    depth_m = None if labels is None else labels.read_rows(rows) / 1000
    if corpus.labels is None and corpus.rooms is not None:
        depth_m = composed_depth(corpus, corpus.plan[rows]) / 1000
    titles = [layout.composite_name(b, f, bool(flip), p) for b, f, flip, p, *_ in corpus.plan[rows].tolist()]
    return Sample(rows, image, mask, depth_m, titles, corpus.people > 1)


def _read_store(path: Path | str, count: int, seed: int) -> Sample:
    from dsgen.store.reader import Store

    store = Store(path)
    rows = _choose(store.rows, count, seed)
    samples = [store.read(row, row + 1) for row in rows.tolist()]
    fields = {name: np.concatenate([sample[name] for sample in samples]) for name in samples[0]}
    depth_m = fields["depth"] / 1000 if "depth" in fields else None
    titles = [f"row {row}" for row in rows.tolist()]
    mask = fields.get("instance", fields.get("mask"))
    return Sample(rows, fields["image"], mask, depth_m, titles, "instance" in fields)


def draw_sheet(out: Path, sample: Sample, title: str) -> None:
    """Draw rows as a PNG, two per line: the image and, where there are, the mask and the depth."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure

    mask, depth_m = sample.mask, sample.depth_m
    panels = 1 + (mask is not None) + (depth_m is not None)
    across = 1 if len(sample.rows) < 3 else 2
    lines = -(-len(sample.rows) // across)
    figure = Figure(figsize=(1.75 * panels * across + 0.8, 1.9 * lines + 0.6), layout="constrained")
    axes = figure.subplots(lines, panels * across, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    far_m = max(MIN_DEPTH_M, float(np.percentile(depth_m, 99.5))) if depth_m is not None else None
    shown = None
    several = ListedColormap(["black", *(PEOPLE_COLOURS[slot % len(PEOPLE_COLOURS)] for slot in range(MAX_PEOPLE))])
    people: dict[str, Any] = {"cmap": several, "vmin": 0, "vmax": MAX_PEOPLE, "interpolation": "nearest"}
    for number, name in enumerate(sample.titles):
        line, first = number // across, panels * (number % across)
        axes[line, first].imshow(sample.image[number])
        axes[line, first].set_title(drawable(name), fontsize=7, loc="left", parse_math=False)
        if mask is not None:
            axes[line, first + 1].imshow(mask[number], **(people if sample.several else _MASK))
        if depth_m is not None:
            known = np.ma.masked_equal(depth_m[number], 0)
            shown = axes[line, first + panels - 1].imshow(known, cmap="turbo_r", vmin=0, vmax=far_m)
    if shown is not None:
        figure.colorbar(shown, ax=axes, label="depth, m", fraction=0.02, aspect=40)
    figure.suptitle(drawable(title), fontsize=9, parse_math=False)
    content = io.BytesIO()
    FigureCanvasAgg(figure).print_png(content)
    write_bytes(out, content.getvalue())
