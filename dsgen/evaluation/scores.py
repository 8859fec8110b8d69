"""The scores of every row: of the network's answers, and of trivial answers to compare them with.

Memory grows by a few numbers per row, not with the pictures.
"""

import math
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dsgen import metrics as depth_metrics
from dsgen.evaluation.background_depth import BackgroundDepth
from dsgen.parallel.progress import progress
from dsgen.store.loader import Loader
from dsgen.store.reader import Store
from dsgen.training import metrics
from dsgen.training.batches import prepare, shrink_depth, take
from dsgen.training.checkpoint import DEPTH, MASK, Trained
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
BOUNDARY = 0.02  # of the diagonal

Answers = dict[str, dict[str, Tensor]]  # by answer and score: one number per sample


@dataclass(frozen=True)
class RowScores:
    """The scores of some rows of a store, in order of `rows`, their numbers within it.

    `mask_share` is the fraction of each row's pixels inside the true mask, nan where there is no mask. `scores` has,
    by answer and score, one number per row, nan where a score is undefined. `output_size` is the side in pixels of the
    network's answers, at which they are scored. `mean_depth_m` is the trivial answer of that name, None without depth,
    and `median_rows` counts the rows behind the backgrounds' depth.
    """

    rows: np.ndarray
    mask_share: np.ndarray
    scores: dict[str, dict[str, np.ndarray]]
    output_size: int
    mean_depth_m: float | None
    median_rows: dict[str, int] | None

    @property
    def network(self) -> dict[str, np.ndarray]:
        """The scores of the network's answers."""
        return self.scores[NETWORK]


class _Scorer:
    """Scores batches fed at `size` pixels."""

    def __init__(self, trained: Trained, store: Store, size: int):
        self._trained, self._store, self._size = trained, store, size
        self.mean_depth_m: float | None = None
        self.background_depth: BackgroundDepth | None = None
        if store.has_depth:
            mean = store.index["statistics"]["depth"]["mean"]
            self.mean_depth_m = mean[0] if mean else None
            self.background_depth = BackgroundDepth(store)

    def __call__(self, batch: dict[str, Tensor]) -> tuple[Answers, Tensor | None, int]:
        """Return the scores of every answer, the true masks' share, (B,) or None, and the side of the answers."""
        device = self._trained.device
        background, image, _, _ = prepare(batch, self._size, device)
        logits, depth_m = self._trained.answer(background, image)
        output_size = logits.shape[-1]
        _, _, true_mask, truth_m = prepare(batch, output_size, device)
        mask = true_mask if MASK in batch else None
        network: dict[str, Tensor] = {}
        answers: Answers = {NETWORK: network}
        if mask is not None:
            if MASK in self._trained.answers:
                network |= mask_scores(logits, mask)
            answers[BLANK] = mask_scores(torch.full_like(mask, -1), mask)
        if truth_m is not None:
            if DEPTH in self._trained.answers:
                network |= depth_scores(depth_m, truth_m, mask)
            if self.mean_depth_m is not None:
                answers[MEAN] = depth_scores(torch.full_like(truth_m, self.mean_depth_m), truth_m, mask)
            if self.background_depth is not None and "background" in batch:
                answers[BACKGROUND] = self._score_background_depth(batch["row"], truth_m, mask)
        return answers, None if mask is None else mask.flatten(1).mean(1).cpu().double(), output_size

    def _score_background_depth(self, rows: Tensor, truth_m: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        """Score the depth of the rows' backgrounds as an answer; nan where a background has too few rows."""
        assert self.background_depth is not None
        median_m = self.background_depth(self._store.plan["background"][rows.numpy()]).to(truth_m.device)
        median_m = shrink_depth(median_m, truth_m.shape[-1])
        unknown = median_m.isnan().flatten(1).any(1)
        scores = depth_scores(median_m, truth_m, mask)
        return {name: values.masked_fill(unknown, math.nan) for name, values in scores.items()}


def score_rows(trained: Trained, store: Store, loader: Loader, size: int, count: int) -> RowScores:
    """Score `count` rows of a loader, fed at `size` pixels."""
    scorer = _Scorer(trained, store, size)
    pieces: dict[tuple[str, str], list[np.ndarray]] = {}
    rows, shares = [], []
    output_size = size
    with progress("evaluate", count) as advance, closing(take(loader, count)) as batches:
        for batch, _ in batches:
            answers, share, output_size = scorer(batch)
            for answer, scores in answers.items():
                for name, values in scores.items():
                    pieces.setdefault((answer, name), []).append(values.cpu().numpy())
            rows.append(batch["row"].numpy())
            shares.append(np.full(len(rows[-1]), math.nan) if share is None else share.cpu().numpy())
            advance(len(rows[-1]))
    numbers = np.concatenate(rows)
    order = np.argsort(numbers)
    ordered: dict[str, dict[str, np.ndarray]] = {NETWORK: {}}
    for (answer, name), arrays in pieces.items():
        ordered.setdefault(answer, {})[name] = np.concatenate(arrays)[order]
    return RowScores(
        rows=numbers[order],
        mask_share=np.concatenate(shares)[order],
        scores=ordered,
        output_size=output_size,
        mean_depth_m=scorer.mean_depth_m,
        median_rows=None if scorer.background_depth is None else scorer.background_depth.row_counts(),
    )


def mask_scores(logits: Tensor, truth: Tensor) -> dict[str, Tensor]:
    """Score masks (B,1,H,W), as logits, against a truth of 0 or 1 by every formula in `MASK_SCORES`; (B,) each.

    Where both masks are empty every score is 1; where only one is, every score is 0.
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
    """Return the inner edge of masks (B,1,H,W) of 0 and 1: their pixels near the outside or the border.

    Near means within 2 % of the diagonal and at least one pixel, along either axis, as in Boundary IoU (Cheng et al.,
    CVPR 2021, arXiv 2103.16562).
    """
    height, width = mask.shape[-2:]
    reach = max(1, round(BOUNDARY * math.hypot(height, width)))
    window = 2 * reach + 1
    outside = F.pad(1 - mask, (reach, reach, reach, reach), value=1.0)
    return mask * F.max_pool2d(F.max_pool2d(outside, (1, window), stride=1), (window, 1), stride=1)


def depth_scores(depth_m: Tensor, truth_m: Tensor, mask: Tensor | None = None) -> dict[str, Tensor]:
    """Score depth (B,1,H,W) in metres by every formula in `DEPTH_SCORES`, and inside `mask` of 0 and 1; (B,) each.

    Only pixels whose truth lies within 0.1..10 m count, and the depth is clamped to this range. A sample without such
    a pixel scores nan.
    """
    depth_m = depth_m.clamp(MIN_DEPTH_M, MAX_DEPTH_M)
    valid = depth_metrics.valid_depth(truth_m)
    ratio = depth_metrics.depth_ratio(depth_m, truth_m.clamp(MIN_DEPTH_M, MAX_DEPTH_M))
    scores = {
        "abs_rel": metrics.abs_rel(depth_m, truth_m),
        "rmse_m": metrics.rmse(depth_m, truth_m),
        **{
            f"delta{power}": (valid & depth_metrics.within_delta(ratio, power)).flatten(1).sum(1)
            / valid.flatten(1).sum(1)
            for power in (1, 2, 3)
        },
        "ssim": metrics.ssim(depth_m, truth_m, MAX_DEPTH_M, valid),
    }
    if mask is not None:
        inside_m = torch.where(mask > 0.5, truth_m, 0.0)
        scores["foreground_abs_rel"] = metrics.abs_rel(depth_m, inside_m)
        scores["foreground_delta1"] = metrics.delta1(depth_m, inside_m)
    return scores
