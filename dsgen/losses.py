"""What training makes small: one objective for the mask, one for the depth, both 0 for a perfect answer."""

import torch
import torch.nn.functional as F
from torch import Tensor

from dsgen.metrics import ssim, valid_depth
from dsgen.networks import MAX_DEPTH_M


def mask_loss(logits: Tensor, truth: Tensor) -> Tensor:
    """Return cross-entropy plus soft Dice, a scalar: BCE(logits, T) + 1 - mean of 2 sum(p T) / (sum(p) + sum(T)).

    Both are (B,1,H,W); truth is 0 or 1. Dice (Milletari, Navab and Ahmadi, 3DV 2016, arXiv 1606.04797, here without
    the squares) counts every sample alike however small its foreground, so a blank mask is never a cheap answer.
    """
    logits, truth = logits.float(), truth.float()
    p = logits.sigmoid().flatten(1)
    t = truth.flatten(1)
    overlap = (2 * (p * t).sum(1) + 1) / (p.sum(1) + t.sum(1) + 1)
    return F.binary_cross_entropy_with_logits(logits, truth) + (1 - overlap).mean()


def depth_loss(raw: Tensor, truth_m: Tensor) -> Tensor:
    """Return L1 plus structural dissimilarity, a scalar: mean |r - T / 10| + (1 - SSIM(r, T / 10)) / 2.

    `raw` (B,1,H,W) is the network's, in units of 10 m; `truth_m` is in metres, and only what `valid_depth` lets count
    counts. A batch without any such pixel costs 0. The pair of terms and the half follow DenseDepth (Alhashim and
    Wonka, arXiv 1812.11941), whose gradient term is left out.
    """
    raw, truth = raw.float(), truth_m / MAX_DEPTH_M
    valid = valid_depth(truth_m)
    if not valid.any():
        return raw.sum() * 0
    l1 = torch.where(valid, (raw - truth).abs(), 0.0).sum() / valid.sum()
    likeness = ssim(raw, truth, data_range=1.0, valid=valid)
    return l1 + (1 - likeness.nanmean()) / 2
