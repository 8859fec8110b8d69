"""The losses of mask and depth: one number per sample, 0 for a perfect prediction.

Every loss takes the network's prediction and the truth, both (B,1,H,W), and returns (B,) float32, also for
predictions in half precision. Masks are predicted as logits, and their truth is 0 or 1. Depth is predicted raw, in
units of 10 metres, and its truth is in metres; only pixels for which `metrics.valid_depth` holds count. A sample
without any such pixel has a loss of 0.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from dsgen.training import metrics
from dsgen.units import MAX_DEPTH_M

Loss = Callable[[Tensor, Tensor], Tensor]


def bce_dice(logits: Tensor, truth: Tensor) -> Tensor:
    """Cross-entropy plus soft Dice: BCE(logits, T) + 1 - (2 sum(p T) + 1) / (sum(p) + sum(T) + 1), p the probability.

    Dice (Milletari, Navab and Ahmadi, 3DV 2016, arXiv 1606.04797, here without the squares) weighs every sample alike
    however small its foreground, so a blank mask is never a cheap answer.
    """
    overlap, p, t = _soft_sums(logits, truth)
    return metrics.bce(logits, truth) + 1 - (2 * overlap + 1) / (p + t + 1)


def soft_iou(logits: Tensor, truth: Tensor) -> Tensor:
    """1 - sum(p T) / sum(p + T - p T), p the probability (Rahman and Wang, ISVC 2016); 0 where both are empty."""
    overlap, p, t = _soft_sums(logits, truth)
    union = p + t - overlap
    return 1 - torch.where(union == 0, 1.0, overlap / union.clamp(min=1e-6))


def _soft_sums(logits: Tensor, truth: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return sum(p T), sum(p) and sum(T), each (B,)."""
    p, t = logits.float().sigmoid().flatten(1), truth.float().flatten(1)  # (B,H*W)
    return (p * t).sum(1), p.sum(1), t.sum(1)


def l1_ssim(raw: Tensor, truth_m: Tensor) -> Tensor:
    """L1 plus structural dissimilarity: mean |r - T / 10| + (1 - SSIM(r, T / 10)) / 2.

    The two terms and the factor 1/2 follow DenseDepth (Alhashim and Wonka, arXiv 1812.11941), whose gradient term is
    left out.
    """
    valid = metrics.valid_depth(truth_m)
    error = torch.where(valid, (raw.float() - truth_m / MAX_DEPTH_M).abs(), 0.0).flatten(1).sum(1)
    return error / valid.flatten(1).sum(1).clamp(min=1) + dissimilarity(raw, truth_m) / 2


def dissimilarity(raw: Tensor, truth_m: Tensor) -> Tensor:
    """1 - SSIM(r, T / 10), between 0 and 2; see `metrics.ssim`."""
    likeness = metrics.ssim(raw, truth_m / MAX_DEPTH_M, data_range=1.0, valid=metrics.valid_depth(truth_m))
    edge = metrics.SSIM_WINDOW // 2
    windows = metrics.valid_depth(truth_m)[..., edge:-edge, edge:-edge].flatten(1).any(1)
    return torch.where(windows, 1 - likeness, 0.0)


MASK_LOSSES: dict[str, Loss] = {"bce-dice": bce_dice, "bce": metrics.bce, "iou": soft_iou}
DEPTH_LOSSES: dict[str, Loss] = {"l1-ssim": l1_ssim, "ssim": dissimilarity}
LOSSES = ("mask_loss", "depth_loss")  # what training minimises is their sum


class PerSample(NamedTuple):
    """A loss or score of every sample (B,), and which samples have a truth to compare with (B,) bool."""

    values: Tensor
    has_truth: Tensor


def sample_losses(
    logits: Tensor, raw: Tensor, mask: Tensor | None, depth_m: Tensor | None, *, mask_loss: str, depth_loss: str
) -> dict[str, PerSample]:
    """Return `mask_loss` and `depth_loss` of every sample, each if there is a truth for it.

    Predictions and truths are (B,1,H,W); the names of the losses are keys of `MASK_LOSSES` and `DEPTH_LOSSES`.
    """
    losses = {}
    if mask is not None:
        every_sample = torch.ones_like(mask[:, 0, 0, 0]).bool()
        losses["mask_loss"] = PerSample(MASK_LOSSES[mask_loss](logits, mask), every_sample)
    if depth_m is not None:
        has_depth = metrics.valid_depth(depth_m).flatten(1).any(1)
        losses["depth_loss"] = PerSample(DEPTH_LOSSES[depth_loss](raw, depth_m), has_depth)
    return losses
