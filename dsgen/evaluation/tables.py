"""Scores as tables: CSV files, and text for a terminal."""

import math
from typing import Any

import numpy as np

from dsgen.evaluation.scores import BLANK, MEAN, NETWORK, SCORES, RowScores
from dsgen.evaluation.summary import GROUPINGS
from dsgen.io.csv_files import encode_csv

_PLAN_COLUMNS = ("background", "foreground", "flip", "position")


def rows_csv(plan: np.ndarray, scored: RowScores) -> bytes:
    """Encode the network's scores of rows, given with their rows of the plan, as CSV."""
    lines = []
    for k, row in enumerate(scored.rows.tolist()):
        numbers = (scored.mask_share[k], *(values[k] for values in scored.network.values()))
        lines.append((row, *(plan[name][k] for name in _PLAN_COLUMNS), *map(_cell, numbers)))
    return encode_csv(("row", *_PLAN_COLUMNS, "mask_share", *scored.network), lines)


def groups_csv(kind: str, groups: list[dict[str, Any]]) -> bytes:
    """Encode the mean scores of backgrounds or foregrounds as CSV."""
    names = list(groups[0])
    lines = ((group[kind], group["rows"], *(_cell(group[name]) for name in names[2:])) for group in groups)
    return encode_csv(names, lines)


def _cell(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else f"{value:.6g}"


def format_scores(scores: dict[str, Any]) -> str:
    """Format what `scores.json` says as text: means of all answers, means by mask share, warnings, the protocol."""
    names = [name for name in SCORES if name in scores["scores"][NETWORK]]
    headings = [name.replace("foreground", "fg").removesuffix("_m").replace("_", " ") for name in names]
    lines = _lines(scores)
    first = max(len(title) for title, _ in lines)
    widths = [max(len(heading), 6) + 2 for heading in headings]
    text = [" " * first + "".join(f"{heading:>{width}}" for heading, width in zip(headings, widths, strict=True))]
    for title, means in lines:
        cells = ("-" if means.get(name) is None else f"{means[name]:.4f}" for name in names)
        text.append(f"{title:<{first}}" + "".join(f"{cell:>{w}}" for cell, w in zip(cells, widths, strict=True)))
    return "\n".join([*text, *_warnings(scores), f"protocol: {scores['protocol']['summary']}"])


def _lines(scores: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """List the titles and means of the table's lines."""
    lines: list[tuple[str, dict[str, Any]]] = []
    for answer, means in scores["scores"].items():
        title = answer
        if answer == MEAN:
            title += f", {scores['protocol']['trivial_answers'][MEAN]['metres']:.2f} m"
        lines.append((title, means))
    for entry in scores.get("by_mask_share", ()):
        if entry["rows"]:
            bounds = "mask empty" if entry["up_to"] == 0 else f"mask {entry['above']:.0%} to {entry['up_to']:.0%}"
            lines.append((f"{bounds}, {entry['rows']:,} rows", entry))
    for kind in GROUPINGS:
        groups = scores[f"by_{kind}"]
        worst = groups["worst"][0]
        if groups["count"] > 1:
            lines.append((f"worst of {groups['count']:,} {kind}s: {worst[kind]}", worst))
    return lines


def _warnings(scores: dict[str, Any]) -> list[str]:
    """Warn of a network whose masks or depths are no better than a trivial answer."""
    means, warnings = scores["scores"], []
    if scores["blank"]:
        network, blank = (means[answer]["iou"] for answer in (NETWORK, BLANK))
        warnings.append(f"the masks are blank: IoU {network:.3f}, all-zero masks have {blank:.3f}; train longer")
    network, trivial = (means.get(answer, {}).get("abs_rel") for answer in (NETWORK, MEAN))
    if network is not None and trivial is not None and not network < trivial:
        warnings.append(
            f"the depth is no better than its mean: abs rel {network:.3f}, the mean depth has {trivial:.3f}"
        )
    return warnings
