"""Draw the figure of the corpus README: `python tests/scripts/placement_figure.py CORPUS OUT.png`.

CORPUS is one with people on floors; a row is drawn beside the geometry.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse, FancyArrowPatch

from dsgen.corpus.composed import composed_depth
from dsgen.corpus.corpus import Corpus
from dsgen.corpus.figures import UNIT

ROW = 0.43  # of the plan, as a share


def draw_geometry(axis: Any) -> None:
    """Draw the camera, the floor, a person, and the lengths that belong together, from the side."""
    axis.plot([-0.3, 5.4], [0, 0], color="saddlebrown", lw=3)
    axis.plot([4, 4], [0.04, 1.46], color="tab:blue", lw=5, solid_capstyle="round")
    axis.add_patch(Ellipse((4, 1.62), 0.26, 0.3, color="tab:blue"))
    axis.plot(0, 1.4, marker=(3, 0, -90), color="black", ms=14)
    for height in (0.0, 1.75):
        axis.plot([0, 4], [1.4, height], color="grey", lw=0.9)
    axis.plot([1, 1], [1.4 - 0.35, 1.4 + 0.35 * 0.25], color="black", lw=2.5)
    arrows = (
        ((0.0, 0.0), (0.0, 1.32), "$h$", (-0.24, 0.6)),
        ((4.35, 0.0), (4.35, 1.75), "$H$", (4.45, 0.8)),
        ((0.0, 2.05), (4.0, 2.05), "$Z = h \\, / \\, (-n \\cdot r)$", (1.45, 2.12)),
        ((0.0, 1.75), (1.0, 1.75), "$f$", (0.42, 1.8)),
    )
    for start, end, text, at in arrows:
        axis.add_patch(FancyArrowPatch(start, end, arrowstyle="<->", mutation_scale=9, lw=0.9))
        axis.text(*at, text, fontsize=10)
    axis.text(1.08, 0.98, "picture:\n$f\\,H\\,/\\,Z$ pixels", fontsize=8, va="top")
    axis.text(2.3, 0.1, "floor, normal $n$", fontsize=8, color="saddlebrown")
    axis.text(2.05, 0.52, "ray $r$ to the feet", fontsize=8, color="dimgrey", rotation=-19)
    axis.set(xlim=(-0.5, 5.4), ylim=(-0.35, 2.5), aspect="equal")


def main(corpus: Corpus, out: Path) -> None:
    """Draw the figure."""
    assert corpus.rooms is not None
    rows = corpus.plan[[int(ROW * len(corpus))]]
    row, number = rows[0], int(rows["background"][0])
    image, floor = corpus.background(number), corpus.rooms.read("floor", number, corpus.size)
    below = corpus.plan["people"][list(corpus.rows_of(number))][:600, 0]
    figure = Figure(figsize=(11, 2.75), layout="constrained")
    axes = figure.subplots(1, 4, width_ratios=(1.75, 1, 1, 1.2))
    draw_geometry(axes[0])
    shade = np.where(floor[..., None] > 0, image * 0.55 + np.array([40, 160, 60]) * 0.45, image).astype(np.uint8)
    axes[1].imshow(shade)
    feet_y = (below["top"] + below["height"].astype(int)) / UNIT
    axes[1].scatter(below["left"] / UNIT + 12, feet_y, s=1.5, color="white", linewidths=0)
    axes[2].imshow(corpus.render(rows)[0][0])
    shown = axes[3].imshow(composed_depth(corpus, rows)[0] / 1000, cmap="turbo_r", vmin=0)
    figure.colorbar(shown, ax=axes[3], fraction=0.045)
    people = row["people"][row["people"]["height"] > 0]
    far = ", ".join(f"{distance / 1000:.1f}" for distance in people["distance"].tolist())
    for axis, title in zip(
        axes, ("seen from the side", "floor found, feet drawn", f"people at {far} m", "depth, m"), strict=True
    ):
        axis.set_title(title, fontsize=9)
        axis.set_axis_off()
    figure.set_dpi(110)
    with out.open("wb") as file:
        FigureCanvasAgg(figure).print_png(file)


if __name__ == "__main__":
    main(Corpus(sys.argv[1]), Path(sys.argv[2]))
