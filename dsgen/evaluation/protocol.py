"""The protocol of an evaluation: every setting and rule, in words and numbers, for `scores.json`."""

from typing import Any

from dsgen import __version__
from dsgen.evaluation.background_depth import LEAST_MEDIAN_ROWS, MEDIAN_ROWS
from dsgen.evaluation.scores import (
    BACKGROUND,
    BLANK,
    DEPTH_SCORES,
    FOREGROUND_SCORES,
    MASK_SCORES,
    MEAN,
    RowScores,
)
from dsgen.secrets import hide_secrets
from dsgen.store.reader import Store
from dsgen.training.checkpoint import Trained
from dsgen.units import MAX_DEPTH_M, MIN_DEPTH_M

ALL = "all"  # every row of a store, whatever its split
_LIMITS = f"{MIN_DEPTH_M:g}..{MAX_DEPTH_M:g} m"
_SPLITS = {
    ALL: "every row of the store, those trained on among them",
    "train": "rows trained on",
    "unused": "rows of no split: their background or their foreground may have been trained on",
}
_HELD_OUT = "neither background nor foreground was trained on"


def describe_protocol(trained: Trained, store: Store, split: str, size: int, scored: RowScores) -> dict[str, Any]:
    """Return the protocol of rows scored on a split of a store, fed at `size` pixels."""
    network, count = scored.network, len(scored.rows)
    total = store.rows if split == ALL else store.splits[split]
    protocol: dict[str, Any] = {
        "summary": _summary(store, split, size, scored, total),
        "dsgen": __version__,
        "checkpoint": str(trained.path),
        "checkpoint_sha256": trained.sha256,
        "epoch": trained.epoch,
        "network": trained.network.config,
        "store": hide_secrets(str(store.path)),
        "store_sha256": store.sha256,
        "split": split,
        "rows": count,
        "rows_in_split": total,
        "rows_drawn": "all, in order" if count == total else f"{count} at random with seed 0, without repeats",
        "size": size,
        "stored_size": store.size,
        "scored_size": scored.output_size,
        "averaging": "scores per row, then the mean over rows; undefined scores are left out of it",
    }
    if "iou" in network:
        protocol |= {
            "mask_threshold": "a pixel is foreground where its probability is above 0.5, its logit above 0",
            "true_mask": "a shrunk mask's pixel is foreground from one half on",
            "empty_masks": "every mask score is 1 where neither mask has a pixel, 0 where just one has none",
            "mask_scores": MASK_SCORES,
        }
    if "abs_rel" in network:
        protocol |= {
            "depth_labels": store.index["depth"],
            "min_depth_m": MIN_DEPTH_M,
            "max_depth_m": MAX_DEPTH_M,
            "depth_pixels": f"those whose label lies within {_LIMITS}, limits included; answers are clamped to that",
            "alignment": "none: no scale or shift is fitted",
            "depth_scores": DEPTH_SCORES | (FOREGROUND_SCORES if "foreground_abs_rel" in network else {}),
        }
    return protocol | {"trivial_answers": _trivial_answers(scored)}


def _summary(store: Store, split: str, size: int, scored: RowScores, total: int) -> str:
    """Put the protocol into one line."""
    output_size = scored.output_size
    scale = f"pictures fed at {size}x{size}"
    if size != store.size:
        scale += f" (stored at {store.size}x{store.size}; shrunk by antialiased averaging, depth by nearest pixel)"
    if output_size != size:
        scale += f", scored at the network's output, {output_size}x{output_size}, to which the truth is shrunk likewise"
    clauses = [f"split {split} ({_SPLITS.get(split, _HELD_OUT)}): {len(scored.rows):,} of {total:,} rows", scale]
    if "iou" in scored.network:
        clauses.append("mask: probability above 0.5, true masks from one half on")
    if "abs_rel" in scored.network:
        clauses.append(
            f"depth: pixels whose label lies within {_LIMITS}, answers clamped to that, no scale or shift fitted"
        )
    clauses.append("scores per row, then the mean over rows")
    return "; ".join(clauses)


def _trivial_answers(scored: RowScores) -> dict[str, Any]:
    """Say what the trivial answers are."""
    trivial: dict[str, Any] = {}
    if BLANK in scored.scores:
        trivial[BLANK] = "no pixel is foreground"
    if MEAN in scored.scores:
        trivial[MEAN] = {
            "metres": scored.mean_depth_m,
            "is": "one number for every pixel: the mean of the store's labels, of every split, as in index.json",
        }
    if BACKGROUND in scored.scores:
        trivial[BACKGROUND] = {
            **(scored.median_rows or {}),
            "is": f"pixel by pixel, the median of the depth labels of the store's rows on the same background, at most "
            f"{MEDIAN_ROWS} of them spread evenly over all of its rows, whichever their split; labels of 0 left out; "
            f"backgrounds with fewer than {LEAST_MEDIAN_ROWS} rows have none and are left out of this answer's scores",
        }
    return trivial
