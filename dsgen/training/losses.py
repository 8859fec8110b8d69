"""What training makes small: objectives for the mask and for the depth, one number a sample, 0 for a perfect answer.

Every loss takes the network's answer and the truth, both (B,1,H,W), and returns (B,) float32, also of answers in half
precision. Masks come as logits and a truth of 0 or 1. Depth comes as the network's raw answer, in units of 10 metres,
and a truth in metres, of which only what `metrics.valid_depth` lets count counts; a sample without any such pixel
costs 0.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from dsgen.training import metrics
from dsgen.units import MAX_DEPTH_M

Loss = Callable[[Tensor, Tensor], Tensor]


def bce_dice(logits: Tensor, truth: Tensor) -> Tensor:
    """Cross-entropy plus soft Dice: BCE(logits, T) + 1 - (2 sum(p T) + 1) / (sum(p) + sum(T) + 1), p the probability.

    Dice (Milletari, Navab and Ahmadi, 3DV 2016, arXiv 1606.04797, here without the squares) counts every sample alike
    however small its foreground, so a blank mask is never a cheap answer.
    """
    both, p, t = _overlap(logits, truth)
    return metrics.bce(logits, truth) + 1 - (2 * both + 1) / (p + t + 1)


def soft_iou(logits: Tensor, truth: Tensor) -> Tensor:
    """1 - sum(p T) / sum(p + T - p T), p the probability (Rahman and Wang, ISVC 2016); 0 where both are empty."""
    both, p, t = _overlap(logits, truth)
    either = p + t - both
    return 1 - torch.where(either == 0, 1.0, both / either.clamp(min=1e-6))


def _overlap(logits: Tensor, truth: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return sum(p T), sum(p) and sum(T)."""
    p, t = logits.float().sigmoid().flatten(1), truth.float().flatten(1)
    return (p * t).sum(1), p.sum(1), t.sum(1)


def l1_ssim(raw: Tensor, truth_m: Tensor) -> Tensor:
    """L1 plus structural dissimilarity: mean |r - T / 10| + (1 - SSIM(r, T / 10)) / 2.

    The pair of terms and the half follow DenseDepth (Alhashim and Wonka, arXiv 1812.11941), whose gradient term is
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
