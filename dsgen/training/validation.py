"""Scores of the network in training on the validation split, beside those of trivial answers."""

import math
from collections.abc import Callable
from contextlib import closing

import torch
from torch import Tensor

from dsgen.training import metrics
from dsgen.training.batches import Batches, prepare, take
from dsgen.training.losses import LOSSES, PerSample, sample_losses
from dsgen.training.ranks import Ranks
from dsgen.training.settings import DEFAULTS, Settings
from dsgen.training.unet import UNet, unet_metres
from dsgen.units import MAX_DEPTH_M

MASK_SCORES = ("iou", "zero_iou", "dice", "zero_dice", "bce", "blind_bce")
DEPTH_SCORES = ("abs_rel", "mean_depth_abs_rel", "rmse_m", "delta1", "mean_depth_delta1", "ssim")
SCORES = ("validation_loss", *MASK_SCORES, *DEPTH_SCORES)


@torch.no_grad()
def validate(
    network: UNet,
    batches: Batches,
    size: int,
    device: torch.device,
    settings: Settings = DEFAULTS,
    *,
    samples: int | None = None,
    autocast_dtype: torch.dtype | None = None,
    mean_depth_m: float | None = None,
    ranks: Ranks = Ranks(),  # noqa: B008 - it is frozen
    before_batch: Callable[[], None] | None = None,
) -> dict[str, float]:
    """Score a network at an image size: the mean over samples of every loss and score, nan where there is no truth.

    Beside the network's scores are those of trivial answers: `zero_iou` and `zero_dice` of an all-zero mask,
    `blind_bce` of the best single probability for all pixels, and `mean_depth_abs_rel` and `mean_depth_delta1` of
    `mean_depth_m` everywhere. `before_batch` is called before each batch.
    """
    network.eval()
    batches.set_epoch(0)
    sums: dict[str, Tensor] = {}  # of each score its sum and the count of its samples, (2,)
    with closing(take(batches, samples, ranks)) as stream:
        for batch, _ in stream:
            if before_batch is not None:
                before_batch()
            background, image, mask, depth_m = prepare(batch, size, device)
            with torch.autocast(device.type, dtype=autocast_dtype, enabled=autocast_dtype is not None):
                logits, raw = network(background, image)
            if logits.shape[-1] != size:  # half output
                _, _, mask, depth_m = prepare(batch, logits.shape[-1], device)
            scores = _score(logits, raw, mask if "mask" in batch else None, depth_m, settings, mean_depth_m)
            for name, (values, has_truth) in scores.items():
                total = torch.stack([torch.where(has_truth, values, 0.0).sum(), has_truth.sum()])
                total = total.cpu().double()  # in this order, as MPS has no float64
                sums[name] = sums.get(name, 0) + total
    names = sorted(sums)
    stacked = torch.stack([sums[name] for name in names])  # several ranks are on CUDA or on CPUs
    totals = ranks.sum(stacked.to(device) if device.type == "cuda" else stacked).tolist()
    means = {name: total / count if count else math.nan for name, (total, count) in zip(names, totals, strict=True)}
    loss = math.fsum(means[name] for name in LOSSES if name in means)
    return {**dict.fromkeys(SCORES, math.nan), **means, "validation_loss": loss}


def _score(
    logits: Tensor,
    raw: Tensor,
    mask: Tensor | None,
    depth_m: Tensor | None,
    settings: Settings,
    mean_depth_m: float | None,
) -> dict[str, PerSample]:
    """Return all losses and scores of a batch's predictions, (B,1,H,W) each, for which there is a truth."""
    scores = sample_losses(logits, raw, mask, depth_m, mask_loss=settings.mask_loss, depth_loss=settings.depth_loss)
    if mask is not None:
        blank, has_mask = torch.full_like(mask, -1.0), scores["mask_loss"].has_truth
        values = {
            "iou": metrics.iou(logits, mask),
            "zero_iou": metrics.iou(blank, mask),
            "dice": metrics.dice(logits, mask),
            "zero_dice": metrics.dice(blank, mask),
            "bce": metrics.bce(logits, mask),
            "blind_bce": metrics.blind_bce(mask),
        }
        scores |= {name: PerSample(value, has_mask) for name, value in values.items()}
    if depth_m is not None:
        predicted_m, has_depth = unet_metres(raw), scores["depth_loss"].has_truth
        values = {
            "abs_rel": metrics.abs_rel(predicted_m, depth_m),
            "rmse_m": metrics.rmse(predicted_m, depth_m),
            "delta1": metrics.delta1(predicted_m, depth_m),
        }
        if mean_depth_m is not None:
            mean_m = torch.full_like(depth_m, mean_depth_m)
            values["mean_depth_abs_rel"] = metrics.abs_rel(mean_m, depth_m)
            values["mean_depth_delta1"] = metrics.delta1(mean_m, depth_m)
        scores |= {name: PerSample(value, has_depth) for name, value in values.items()}
        likeness = metrics.ssim(predicted_m, depth_m, MAX_DEPTH_M, metrics.valid_depth(depth_m))
        scores["ssim"] = PerSample(likeness, ~likeness.isnan())  # nan where no window lies wholly on valid depth
    return scores
