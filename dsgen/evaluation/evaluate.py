"""How good a trained network is on a split of a store: scores beside those of trivial answers, and where they are bad.

The folder written holds, each file whole or not at all,

    scores.json       protocol, mean scores, breakdowns, the worst rows; written last
    rows.csv          every row with its scores, in order; numbers as in the plan, from 0
    backgrounds.csv   mean scores of the rows on every background, the worst first
    foregrounds.csv   the same by foreground
    worst.png         the worst rows: pictures, masks and depths, true and predicted

Memory does not grow with the pictures, only by some numbers a row.
"""

import csv
import io
import math
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dsgen import __version__
from dsgen import metrics as depth_metrics
from dsgen.corpus import layout
from dsgen.corpus.plan import SPLITS
from dsgen.errors import DsgenError, InvalidValueError
from dsgen.evaluation.background_depth import LEAST_MEDIAN_ROWS, MEDIAN_ROWS, BackgroundDepth
from dsgen.evaluation.worst import draw_worst
from dsgen.io.atomic import write_bytes, write_json
from dsgen.parallel.progress import progress
from dsgen.store.loader import Loader
from dsgen.store.reader import Store
from dsgen.training import metrics
from dsgen.training.batches import prepare, take
from dsgen.training.checkpoint import DEPTH, MASK, Trained, open_trained
from dsgen.units import MAX_DEPTH_M, MIN_DEPTH_M

NETWORK, BLANK, MEAN, BACKGROUND = "network", "all-zero mask", "mean depth", "background's depth"
MASK_SCORES = {
    "iou": "intersection over union, |P and T| / |P or T|",
    "dice": "2 |P and T| / (|P| + |T|)",
    "precision": "|P and T| / |P|",
    "recall": "|P and T| / |T|",
    "boundary_iou": "IoU of the inner edges of P and T, those within 2 % of the picture's diagonal "
    "(Cheng et al., CVPR 2021, arXiv 2103.16562)",
}
DEPTH_SCORES = {
    "abs_rel": "mean of |d - t| / t",
    "rmse_m": "root of the mean of (d - t)^2, in metres",
    "delta1": "share of pixels with max(d / t, t / d) < 1.25",
    "delta2": "share of pixels with max(d / t, t / d) < 1.25^2",
    "delta3": "share of pixels with max(d / t, t / d) < 1.25^3",
    "ssim": "structural similarity, 11x11 Gaussian window of sigma 1.5, range 10 m (Wang et al., IEEE TIP 13(4), 2004)",
}
FOREGROUND_SCORES = {
    "foreground_abs_rel": "abs_rel of the pixels inside the true mask",
    "foreground_delta1": "delta1 of the pixels inside the true mask",
}
SCORES = (*MASK_SCORES, *DEPTH_SCORES, *FOREGROUND_SCORES)
SHARES = (0.0, 0.01, 0.02, 0.04, 0.08, 0.16, 1.0)  # bounds of the mask's share of the picture
BOUNDARY = 0.02  # of the diagonal
WORST = 32
_LISTED = 5  # worst and best pictures named in scores.json
_ALL = "all"


def evaluate(
    run: Path = Path("run"),
    store: Path | str = Path("shards"),
    *,
    split: str = "validation",
    size: int | None = None,
    checkpoint: str = "best",
    out: Path | None = None,
    samples: int | None = None,
    batch_size: int = 16,
    device: str = "auto",
    workers: int = 2,
) -> dict[str, Any]:
    """Score a run's network on a split of a store, write the scores to a folder, and return what `scores.json` says.

    `split` is one of the plan's or `all`; `size` the side in pixels at which pictures are fed, by default that of the
    run's largest pictures; `samples` the number of rows, drawn at random but always the same ones, None for all.
    What the store has no truth of, and what the network was not trained to answer, is left out. `blank` in the result
    says that the masks are no better than all-zero ones. Raises `DsgenError` for a run without the checkpoint, an
    unfinished store, a split without rows, and a size the store does not reach.
    """
    if split not in (*SPLITS, _ALL):
        raise InvalidValueError("--split", f"got {split}, expected one of {', '.join((*SPLITS, _ALL))}")
    if samples is not None and samples < 1:
        raise InvalidValueError("--samples", f"got {samples}, expected 1 or more", "leave it out for all")
    trained = open_trained(run, checkpoint, device)
    opened = Store(store)
    side = trained.size if size is None else size
    if not 32 <= side <= opened.size:
        meant = "," if size is not None else ", the run's,"
        raise InvalidValueError(
            "--size",
            f"got {side}{meant} expected 32 to {opened.size}, the side of the pictures in {store}",
            "give another",
        )
    loader = Loader(
        store, None if split == _ALL else split, batch_size, shuffle=samples is not None, workers=workers, seed=0
    )
    count = min(samples or loader.rows, loader.rows)
    if out is None:
        name = f"evaluation-{split}-{side}" + ("" if checkpoint == "best" else f"-{trained.path.stem}")
        out = run / name
    found = _score_rows(trained, opened, loader, side, count)
    rows, scores = found["rows"], found["scores"]
    if not scores[NETWORK]:
        raise DsgenError(
            store,
            (f"nothing to score, the network answers {' and '.join(trained.answers)}, of which the store has no truth"),
            "take another store or run",
        )
    plan = opened.plan[rows]
    result = _summarise(rows, plan, found["share"], scores)
    result = {"protocol": _protocol(trained, opened, store, split, side, found, rows), **result}

    out.mkdir(parents=True, exist_ok=True)
    network = scores[NETWORK]
    write_bytes(out / "rows.csv", _rows_csv(rows, plan, found["share"], network))
    for kind in ("background", "foreground"):
        write_bytes(out / f"{kind}s.csv", _groups_csv(kind, _groups(kind, plan, network)))
    draw_worst(out / "worst.png", trained, opened, result["worst"], side)
    write_json(out / "scores.json", result)
    return {"out": str(out), **result}


def _score_rows(trained: Trained, store: Store, loader: Loader, side: int, count: int) -> dict[str, Any]:
    """Score `count` rows: their numbers, in order, the masks' shares, and (rows,) of every score of every answer."""
    device = trained.device
    mean = store.index["statistics"]["depth"]["mean"] if store.has_depth else None
    known = BackgroundDepth(store) if store.has_depth else None
    pieces: dict[tuple[str, str], list[np.ndarray]] = {}
    rows, shares = [], []
    output = side
    with progress("evaluate", count) as advance, closing(take(loader, count)) as given:
        for batch, _ in given:
            background, image, _, _ = prepare(batch, side, device)
            logits, depth_m = trained.answer(background, image)
            output = logits.shape[-1]
            _, _, true_mask, truth_m = prepare(batch, output, device)
            mask = true_mask if MASK in batch else None
            answers: dict[str, dict[str, Tensor]] = {
                NETWORK: {
                    **(mask_scores(logits, mask) if mask is not None and MASK in trained.answers else {}),
                    **(
                        depth_scores(depth_m, truth_m, mask) if truth_m is not None and DEPTH in trained.answers else {}
                    ),
                }
            }
            if mask is not None:
                answers[BLANK] = mask_scores(torch.full_like(mask, -1), mask)
            if truth_m is not None and mean is not None and mean[0] is not None:
                answers[MEAN] = depth_scores(torch.full_like(truth_m, mean[0]), truth_m, mask)
            if truth_m is not None and known is not None and "background" in batch:
                median_m = known(store.plan["background"][batch["row"].numpy()]).to(device)
                median_m = F.interpolate(median_m, size=(output, output), mode="nearest-exact")  # as `prepare` does
                none = median_m.isnan().flatten(1).any(1)
                answers[BACKGROUND] = {
                    name: values.masked_fill(none, math.nan)
                    for name, values in depth_scores(median_m, truth_m, mask).items()
                }
            for answer, values in answers.items():
                for name, value in values.items():
                    pieces.setdefault((answer, name), []).append(value.cpu().numpy())
            rows.append(batch["row"].numpy())
            shares.append(
                np.full(len(rows[-1]), math.nan) if mask is None else mask.flatten(1).mean(1).double().cpu().numpy()
            )
            advance(len(rows[-1]))
    numbers = np.concatenate(rows)
    order = np.argsort(numbers)
    scores: dict[str, dict[str, np.ndarray]] = {NETWORK: {}}
    for (answer, name), parts in pieces.items():
        scores.setdefault(answer, {})[name] = np.concatenate(parts)[order]
    return {
        "rows": numbers[order],
        "share": np.concatenate(shares)[order],
        "scores": scores,
        "output": output,
        "mean_depth_m": mean[0] if mean else None,
        "median_rows": None if known is None else known.row_counts(),
    }


def mask_scores(logits: Tensor, truth: Tensor) -> dict[str, Tensor]:
    """Score masks (B,1,H,W), as logits, against a truth of 0 or 1 by every formula in `MASK_SCORES`; (B,) each.

    Where neither mask has a pixel every score is 1, where just one has none it is 0.
    """
    predicted, true = (logits > 0).flatten(1), (truth > 0.5).flatten(1)
    both, p, t = (maps.sum(1).float() for maps in (predicted & true, predicted, true))
    empty = (p + t == 0).float()
    edges = boundary((logits > 0).float()), boundary((truth > 0.5).float())
    return {
        "iou": metrics.iou(logits, truth),
        "dice": metrics.dice(logits, truth),
        "precision": torch.where(p > 0, both / p.clamp(min=1), empty),
        "recall": torch.where(t > 0, both / t.clamp(min=1), empty),
        "boundary_iou": metrics.iou(*edges),
    }


def boundary(mask: Tensor) -> Tensor:
    """Return the inner edge of masks (B,1,H,W) of 0 and 1: pixels of the mask near one that is not, or the border.

    Near is within 2 % of the diagonal, one pixel at least, along and across, as in Boundary IoU.
    """
    height, width = mask.shape[-2:]
    reach = max(1, round(BOUNDARY * math.hypot(height, width)))
    window = 2 * reach + 1
    outside = F.pad(1 - mask, (reach, reach, reach, reach), value=1.0)
    return mask * F.max_pool2d(F.max_pool2d(outside, (1, window), stride=1), (window, 1), stride=1)


def depth_scores(depth_m: Tensor, truth_m: Tensor, mask: Tensor | None = None) -> dict[str, Tensor]:
    """Score depth (B,1,H,W) in metres by every formula in `DEPTH_SCORES`, and inside `mask` of 0 and 1; (B,) each.

    Pixels whose truth lies within 0.1..10 m count, and depth is clamped to that; a sample without any scores nan.
    """
    depth_m = depth_m.clamp(MIN_DEPTH_M, MAX_DEPTH_M)
    counts = metrics.valid_depth(truth_m)
    true = truth_m.clamp(MIN_DEPTH_M, MAX_DEPTH_M)
    ratio = depth_metrics.depth_ratio(depth_m, true)
    found = {
        "abs_rel": metrics.abs_rel(depth_m, truth_m),
        "rmse_m": metrics.rmse(depth_m, truth_m),
        **{
            f"delta{power}": (counts & depth_metrics.within_delta(ratio, power)).flatten(1).sum(1)
            / counts.flatten(1).sum(1)
            for power in (1, 2, 3)
        },
        "ssim": metrics.ssim(depth_m, truth_m, MAX_DEPTH_M, counts),
    }
    if mask is not None:
        inside_m = torch.where(mask > 0.5, truth_m, 0.0)
        found["foreground_abs_rel"] = metrics.abs_rel(depth_m, inside_m)
        found["foreground_delta1"] = metrics.delta1(depth_m, inside_m)
    return found


def _mean(values: np.ndarray) -> float | None:
    """Average the numbers among the values; None where there are none."""
    numbers = values[~np.isnan(values)]
    return float(numbers.mean(dtype=np.float64)) if len(numbers) else None


def _means(scores: dict[str, np.ndarray], chosen: np.ndarray | slice = slice(None)) -> dict[str, float | None]:
    return {name: _mean(values[chosen]) for name, values in scores.items()}


def _groups(kind: str, plan: np.ndarray, scores: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """Average the scores of rows with the same background or foreground; the worst group comes first."""
    name = layout.background_name if kind == "background" else lambda number: layout.foreground_name(number, False)
    order = np.argsort(plan[kind], kind="stable")
    numbers, first = np.unique(plan[kind][order], return_index=True)
    groups = [
        {kind: name(number), "rows": len(members), **_means(scores, members)}
        for number, members in zip(numbers.tolist(), np.split(order, first[1:]), strict=True)
    ]
    return sorted(groups, key=lambda group: _badness(group))


def _badness(scores: dict[str, Any]) -> float:
    """Order from bad to good: by IoU, else by relative error, what has no score last."""
    if scores.get("iou") is not None:
        return scores["iou"]
    return -scores["abs_rel"] if scores.get("abs_rel") is not None else math.inf


def _summarise(
    rows: np.ndarray, plan: np.ndarray, share: np.ndarray, scores: dict[str, dict[str, np.ndarray]]
) -> dict[str, Any]:
    """Say how good the answers are in all, group by group, and which rows are worst."""
    network = scores[NETWORK]
    result: dict[str, Any] = {
        "rows": len(rows),
        "rows_with_a_score": {name: int((~np.isnan(values)).sum()) for name, values in network.items()},
        "scores": {answer: _means(values) for answer, values in scores.items()},
    }
    ours, blank = (result["scores"].get(answer, {}).get("iou") for answer in (NETWORK, BLANK))
    result["blank"] = ours is not None and blank is not None and not ours > blank + metrics.BLANK_MARGIN
    for kind in ("background", "foreground"):
        groups = _groups(kind, plan, network)
        result[f"by_{kind}"] = {"count": len(groups), "worst": groups[:_LISTED], "best": groups[: -_LISTED - 1 : -1]}
    if "iou" in network:
        result["by_mask_share"] = []
        for low, high in zip((-1.0, *SHARES), SHARES, strict=False):
            members = np.flatnonzero((share > low) & (share <= high))
            entry = {"above": max(low, 0.0), "up_to": high, "rows": len(members), **_means(network, members)}
            result["by_mask_share"].append(entry)
    badness = network["iou"] if "iou" in network else -np.nan_to_num(network["abs_rel"])
    result["worst"] = [
        {
            "row": int(rows[k]),
            "composite": _composite_name(plan[k]),
            "mask_share": _number(share[k]),
            **{name: _number(values[k]) for name, values in network.items()},
        }
        for k in np.argsort(badness, kind="stable")[:WORST].tolist()
    ]
    return result


def _composite_name(row: np.void) -> str:
    return layout.composite_name(
        int(row["background"]), int(row["foreground"]), bool(row["flip"]), int(row["position"])
    )


def _number(value: Any) -> float | None:
    return None if math.isnan(value) else float(value)


def _protocol(
    trained: Trained, store: Store, place: Path | str, split: str, side: int, found: dict[str, Any], rows: np.ndarray
) -> dict[str, Any]:
    """Spell out every setting and rule, in words and numbers."""
    output, scored = found["output"], found["scores"][NETWORK]
    limits = f"{MIN_DEPTH_M:g}..{MAX_DEPTH_M:g} m"
    total = store.rows if split == _ALL else store.splits[split]
    if split == _ALL:
        held_out = "every row of the store, those trained on among them"
    elif split == "train":
        held_out = "rows trained on"
    elif split == "unused":
        held_out = "rows of no split: their background or their foreground may have been trained on"
    else:
        held_out = "neither background nor foreground was trained on"
    scale = f"pictures fed at {side}x{side}"
    if side != store.size:
        scale += f" (stored at {store.size}x{store.size}; shrunk by antialiased averaging, depth by nearest pixel)"
    if output != side:
        scale += f", scored at the network's output, {output}x{output}, to which the truth is shrunk likewise"
    parts = [f"split {split} ({held_out}): {len(rows):,} of {total:,} rows", scale]
    if "iou" in scored:
        parts.append("mask: probability above 0.5, true masks from one half on")
    if "abs_rel" in scored:
        parts.append(
            f"depth: pixels whose label lies within {limits}, answers clamped to that, no scale or shift fitted"
        )
    parts.append("scores per row, then the mean over rows")
    protocol: dict[str, Any] = {
        "summary": "; ".join(parts),
        "dsgen": __version__,
        "checkpoint": str(trained.path),
        "checkpoint_sha256": trained.sha256,
        "epoch": trained.epoch,
        "network": trained.network.config,
        "store": str(place),
        "store_sha256": store.sha256,
        "split": split,
        "rows": len(rows),
        "rows_in_split": total,
        "rows_drawn": "all, in order" if len(rows) == total else f"{len(rows)} at random with seed 0, without repeats",
        "size": side,
        "stored_size": store.size,
        "scored_size": output,
        "averaging": "scores per row, then the mean over rows; undefined scores are left out of it",
    }
    if "iou" in scored:
        protocol |= {
            "mask_threshold": "a pixel is foreground where its probability is above 0.5, its logit above 0",
            "true_mask": "a shrunk mask's pixel is foreground from one half on",
            "empty_masks": "every mask score is 1 where neither mask has a pixel, 0 where just one has none",
            "mask_scores": MASK_SCORES,
        }
    if "abs_rel" in scored:
        protocol |= {
            "depth_labels": store.index["depth"],
            "min_depth_m": MIN_DEPTH_M,
            "max_depth_m": MAX_DEPTH_M,
            "depth_pixels": f"those whose label lies within {limits}, limits included; answers are clamped to that",
            "alignment": "none: no scale or shift is fitted",
            "depth_scores": DEPTH_SCORES | (FOREGROUND_SCORES if "foreground_abs_rel" in scored else {}),
        }
    trivial: dict[str, Any] = {}
    if BLANK in found["scores"]:
        trivial[BLANK] = "no pixel is foreground"
    if MEAN in found["scores"]:
        trivial[MEAN] = {
            "metres": found["mean_depth_m"],
            "is": "one number for every pixel: the mean of the store's labels, of every split, as in index.json",
        }
    if BACKGROUND in found["scores"]:
        trivial[BACKGROUND] = {
            **found["median_rows"],
            "is": f"pixel by pixel, the median of the depth labels of the store's rows on the same background, at most "
            f"{MEDIAN_ROWS} of them spread evenly over all of its rows, whichever their split; labels of 0 left out; "
            f"backgrounds with fewer than {LEAST_MEDIAN_ROWS} rows have none and are left out of this answer's scores",
        }
    return protocol | {"trivial_answers": trivial}


def _rows_csv(rows: np.ndarray, plan: np.ndarray, share: np.ndarray, scores: dict[str, np.ndarray]) -> bytes:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    columns = ("background", "foreground", "flip", "position")
    table.writerow(("row", *columns, "mask_share", *scores))
    for k, row in enumerate(rows.tolist()):
        numbers = (share[k], *(values[k] for values in scores.values()))
        table.writerow((row, *(plan[name][k] for name in columns), *map(_text, numbers)))
    return text.getvalue().encode()


def _groups_csv(kind: str, groups: list[dict[str, Any]]) -> bytes:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    names = list(groups[0])
    table.writerow(names)
    for group in groups:
        table.writerow((group[kind], group["rows"], *(_text(group[name]) for name in names[2:])))
    return text.getvalue().encode()


def _text(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else f"{value:.6g}"


def table(result: dict[str, Any]) -> str:
    """Lay out what `evaluate` returns as text: mean scores of all answers, those by mask share, the protocol."""
    names = [name for name in SCORES if name in result["scores"][NETWORK]]
    headings = [name.replace("foreground", "fg").removesuffix("_m").replace("_", " ") for name in names]
    lines: list[tuple[str, dict[str, Any]]] = []
    for answer, means in result["scores"].items():
        title = answer
        if answer == MEAN:
            title += f", {result['protocol']['trivial_answers'][MEAN]['metres']:.2f} m"
        lines.append((title, means))
    for entry in result.get("by_mask_share", ()):
        if entry["rows"]:
            bounds = "mask empty" if entry["up_to"] == 0 else f"mask {entry['above']:.0%} to {entry['up_to']:.0%}"
            lines.append((f"{bounds}, {entry['rows']:,} rows", entry))
    for kind in ("background", "foreground"):
        groups = result[f"by_{kind}"]
        worst = groups["worst"][0]
        lines.append((f"worst of {groups['count']:,} {kind}s: {worst[kind]}", worst))
    first = max(len(title) for title, _ in lines)
    widths = [max(len(heading), 6) + 2 for heading in headings]
    text = [" " * first + "".join(f"{heading:>{width}}" for heading, width in zip(headings, widths, strict=True))]
    for title, means in lines:
        cells = ("-" if means.get(name) is None else f"{means[name]:.4f}" for name in names)
        text.append(f"{title:<{first}}" + "".join(f"{cell:>{w}}" for cell, w in zip(cells, widths, strict=True)))
    if result["blank"]:
        ours, blank = (result["scores"][answer]["iou"] for answer in (NETWORK, BLANK))
        text.append(f"THE MASKS ARE BLANK: IoU {ours:.3f}, all-zero masks have {blank:.3f}; train longer, or better")
    ours, trivial = (result["scores"].get(answer, {}).get("abs_rel") for answer in (NETWORK, MEAN))
    if ours is not None and trivial is not None and not ours < trivial:
        text.append(f"THE DEPTH IS NO BETTER THAN ITS MEAN: abs rel {ours:.3f}, the mean depth has {trivial:.3f}")
    return "\n".join([*text, f"protocol: {result['protocol']['summary']}"])
