"""From the scores of rows to means, breakdowns and the worst rows."""

import math
from typing import Any

import numpy as np

from dsgen.corpus import layout
from dsgen.evaluation.scores import BLANK, NETWORK, RowScores
from dsgen.training import metrics

MASK_SHARES = (0.0, 0.01, 0.02, 0.04, 0.08, 0.16, 1.0)  # upper bounds of the classes of the mask's share
WORST = 32
GROUPINGS = ("background", "foreground")
_LISTED = 5  # worst and best groups in scores.json


def summarise(plan: np.ndarray, scored: RowScores) -> dict[str, Any]:
    """Summarise the scores of rows, given with their rows of the plan, as `scores.json` does after the protocol."""
    network = scored.network
    means = {answer: _means(scores) for answer, scores in scored.scores.items()}
    result: dict[str, Any] = {
        "rows": len(scored.rows),
        "rows_with_a_score": {name: int((~np.isnan(values)).sum()) for name, values in network.items()},
        "scores": means,
        "blank": _is_blank(means),
    }
    for kind in GROUPINGS:
        groups = group_means(kind, plan, network)
        result[f"by_{kind}"] = {"count": len(groups), "worst": groups[:_LISTED], "best": groups[: -_LISTED - 1 : -1]}
    if "iou" in network:
        result["by_mask_share"] = _mask_share_means(scored)
    result["worst"] = _worst_rows(plan, scored)
    return result


def group_means(kind: str, plan: np.ndarray, scores: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """Average the scores of the rows with the same background or foreground; the worst group comes first."""
    name = layout.background_name if kind == "background" else lambda number: layout.foreground_name(number, False)
    order = np.argsort(plan[kind], kind="stable")
    numbers, first = np.unique(plan[kind][order], return_index=True)
    groups = [
        {kind: name(number), "rows": len(members), **_means(scores, members)}
        for number, members in zip(numbers.tolist(), np.split(order, first[1:]), strict=True)
    ]
    return sorted(groups, key=_quality)


def _quality(scores: dict[str, Any]) -> float:
    """Return a sort key from bad to good: IoU, or else the relative error; groups without a score come last."""
    if scores.get("iou") is not None:
        return scores["iou"]
    return -scores["abs_rel"] if scores.get("abs_rel") is not None else math.inf


def _means(scores: dict[str, np.ndarray], chosen: np.ndarray | slice = slice(None)) -> dict[str, float | None]:
    return {name: _mean(values[chosen]) for name, values in scores.items()}


def _mean(values: np.ndarray) -> float | None:
    """Average the defined values; None where there are none."""
    defined = values[~np.isnan(values)]
    return float(defined.mean(dtype=np.float64)) if len(defined) else None


def _is_blank(means: dict[str, dict[str, float | None]]) -> bool:
    """Return whether the network's masks are no better than all-zero ones; False where either has no score."""
    network, blank = (means.get(answer, {}).get("iou") for answer in (NETWORK, BLANK))
    return network is not None and blank is not None and not network > blank + metrics.BLANK_MARGIN


def _mask_share_means(scored: RowScores) -> list[dict[str, Any]]:
    """Average the network's scores over classes of the mask's share of the picture."""
    classes = []
    for low, high in zip((-1.0, *MASK_SHARES), MASK_SHARES, strict=False):
        members = np.flatnonzero((scored.mask_share > low) & (scored.mask_share <= high))
        means = _means(scored.network, members)
        classes.append({"above": max(low, 0.0), "up_to": high, "rows": len(members), **means})
    return classes


def _worst_rows(plan: np.ndarray, scored: RowScores) -> list[dict[str, Any]]:
    """List the rows with the lowest IoU, or else the largest relative error, the worst first."""
    network = scored.network
    quality = network["iou"] if "iou" in network else -np.nan_to_num(network["abs_rel"])
    return [
        {
            "row": int(scored.rows[k]),
            "composite": _composite_name(plan[k]),
            "mask_share": _or_none(scored.mask_share[k]),
            **{name: _or_none(values[k]) for name, values in network.items()},
        }
        for k in np.argsort(quality, kind="stable")[:WORST].tolist()
    ]


def _composite_name(row: np.void) -> str:
    return layout.composite_name(
        int(row["background"]), int(row["foreground"]), bool(row["flip"]), int(row["position"])
    )


def _or_none(value: Any) -> float | None:
    """Return a number for JSON, which has no nan."""
    return None if math.isnan(value) else float(value)
