"""How good masks and depth maps are, one number a sample.

Every score takes (B,1,H,W) tensors and returns (B,) float32, higher precision than the network's where that was half.
Masks come as logits (above 0 means foreground) and a truth of 0 or 1. Depth comes in metres, and only pixels whose
truth lies within 0.1..10 m count, which leaves out 0, the mark of a missing depth; a sample without any such pixel
scores nan.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from dsgen import metrics
from dsgen.units import MIN_DEPTH_M

SSIM_WINDOW = 11
SSIM_SIGMA = 1.5
BLANK_MARGIN = 0.01  # of IoU that a network has to be better than all-zero masks


def iou(logits: Tensor, truth: Tensor) -> Tensor:
    """Intersection over union, |P and T| / |P or T| (Jaccard 1912); 1 where both are empty."""
    both, either = _overlap(logits, truth)
    return torch.where(either > 0, both / either.clamp(min=1), 1.0)


def dice(logits: Tensor, truth: Tensor) -> Tensor:
    """Dice coefficient, 2 |P and T| / (|P| + |T|) (Dice 1945); 1 where both are empty."""
    both, either = _overlap(logits, truth)
    return torch.where(either > 0, 2 * both / (both + either).clamp(min=1), 1.0)


def _overlap(logits: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    predicted, true = (logits > 0).flatten(1), (truth > 0.5).flatten(1)
    return (predicted & true).sum(1).float(), (predicted | true).sum(1).float()


def bce(logits: Tensor, truth: Tensor) -> Tensor:
    """Binary cross-entropy in nats a pixel, -(T ln p + (1 - T) ln(1 - p)) with p = sigmoid(logit)."""
    return F.binary_cross_entropy_with_logits(logits.float(), truth.float(), reduction="none").flatten(1).mean(1)


def blind_bce(truth: Tensor) -> Tensor:
    """The least cross-entropy one answer for all pixels can have: -(s ln s + (1 - s) ln(1 - s)), s the mask's share."""
    share = truth.float().flatten(1).mean(1)
    return -(torch.xlogy(share, share) + torch.xlogy(1 - share, 1 - share))


def valid_depth(truth_m: Tensor) -> Tensor:
    """Say which true depths count: those within 0.1..10 m."""
    return metrics.valid_depth(truth_m)


def abs_rel(depth_m: Tensor, truth_m: Tensor) -> Tensor:
    """Mean of |d - t| / t (Eigen, Puhrsch and Fergus, NIPS 2014, arXiv 1406.2283)."""
    return _mean_where(valid_depth(truth_m), metrics.relative_error(depth_m.float(), truth_m.clamp(min=MIN_DEPTH_M)))


def rmse(depth_m: Tensor, truth_m: Tensor) -> Tensor:
    """Root of the mean of (d - t)^2, in metres (as in arXiv 1406.2283, but per sample)."""
    return _mean_where(valid_depth(truth_m), metrics.squared_error(depth_m.float(), truth_m)).sqrt()


def delta1(depth_m: Tensor, truth_m: Tensor) -> Tensor:
    """Share of pixels with max(d / t, t / d) < 1.25 (Ladicky, Shi and Pollefeys, CVPR 2014; arXiv 1406.2283)."""
    depth, truth = depth_m.float().clamp(min=1e-6), truth_m.clamp(min=MIN_DEPTH_M)
    return _mean_where(valid_depth(truth_m), metrics.within_delta(metrics.depth_ratio(depth, truth)).float())


def _mean_where(counts: Tensor, value: Tensor) -> Tensor:
    counts = counts.flatten(1)
    return torch.where(counts, value.flatten(1), 0.0).sum(1) / counts.sum(1)


def ssim(a: Tensor, b: Tensor, data_range: float, valid: Tensor | None = None) -> Tensor:
    """Mean structural similarity (Wang, Bovik, Sheikh and Simoncelli, IEEE TIP 13(4), 2004); differentiable.

        (2 ma mb + c1) (2 sab + c2) / ((ma^2 + mb^2 + c1) (va + vb + c2)),  c1 = (0.01 L)^2, c2 = (0.03 L)^2

    with means m, variances v and covariance s under an 11x11 Gaussian window of sigma 1.5, L = `data_range`, averaged
    over the places where the window lies wholly inside. Pixels outside `valid` carry no weight in any window, and
    windows centred on one are left out. Sides are at least 11 pixels.
    """
    a, b = a.float(), b.float()
    weight = torch.ones_like(a) if valid is None else valid.float()
    a, b = torch.where(weight > 0, a, 0.0), torch.where(weight > 0, b, 0.0)
    moments = _blur(torch.cat([weight, a, b, a * a, b * b, a * b], dim=1))
    total, moments = moments[:, :1].clamp(min=1e-8), moments[:, 1:]
    mean_a, mean_b, aa, bb, ab = (moments / total).split(1, dim=1)
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    variances = (aa - mean_a**2).clamp(min=0) + (bb - mean_b**2).clamp(min=0)
    likeness = (2 * mean_a * mean_b + c1) * (2 * (ab - mean_a * mean_b) + c2)
    likeness = likeness / ((mean_a**2 + mean_b**2 + c1) * (variances + c2))
    edge = SSIM_WINDOW // 2
    return _mean_where(weight[..., edge:-edge, edge:-edge] > 0, likeness)


def _blur(maps: Tensor) -> Tensor:
    """Convolve every channel with the Gaussian window, along and across, by two matrix products; no padding.

    On a CPU convolutions of one channel are several times slower, and took a third of a training step.
    """
    height, width = maps.shape[-2:]
    return _windows(height, maps) @ maps @ _windows(width, maps).T


def _windows(length: int, like: Tensor) -> Tensor:
    """Return (length - 10, length), a row for every place of the Gaussian window; rows add up to 1."""
    place = torch.arange(length, device=like.device, dtype=like.dtype)
    offset = place - place[: length - SSIM_WINDOW + 1, None] - SSIM_WINDOW // 2
    window = torch.where(offset.abs() <= SSIM_WINDOW // 2, (-(offset**2) / (2 * SSIM_SIGMA**2)).exp(), 0.0)
    return window / window.sum(1, keepdim=True)
