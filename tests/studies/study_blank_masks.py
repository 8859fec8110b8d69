"""Why did the original's network predict blank masks? Train with its known settings, then change one thing at a time.

    dsgen composite --positions 1 --no-pictures; dsgen depth; dsgen pack
    python tests/studies/study_blank_masks.py shards --out study.md

Every line is a separate training from the same initial weights on the same samples. It is scored on unseen backgrounds
and foregrounds, twice: in evaluation mode, as a network is used, and with the statistics of the current batch in place
of batch norm's running statistics. That tells a network that has learnt nothing from one whose statistics are off.
Lines already in the file named by --out are kept, so a study that was stopped continues.
"""

import argparse
import copy
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsgen.io.atomic import write_bytes
from dsgen.store.loader import Loader
from dsgen.training import metrics
from dsgen.training.losses import bce_dice, dissimilarity, l1_ssim
from dsgen.training.trainer import update_ema
from dsgen.training.unet import UNet, unet_metres

COLUMNS = ("settings", "mask IoU", "white predicted", "IoU, batch statistics", "depth delta1", "SSIM", "minutes")


def bce(logits: Tensor, mask: Tensor) -> Tensor:
    """Mean cross-entropy over all pixels, of which some 5 % are white."""
    return F.binary_cross_entropy_with_logits(logits, mask)


def soft_iou(logits: Tensor, mask: Tensor) -> Tensor:
    """One minus the soft intersection over union of the whole batch."""
    p = logits.sigmoid()
    both = (p * mask).sum()
    return 1 - (both + 1) / (p.sum() + mask.sum() - both + 1)


@dataclass(frozen=True)
class Recipe:
    """What a training depends on beside samples and first weights."""

    mask: Callable[[Tensor, Tensor], Tensor] = bce
    depth: Callable[[Tensor, Tensor], Tensor] = dissimilarity
    dropout: float = 0.2
    optimizer: str = "sgd"
    learning_rate: float = 0.01
    jpeg_masks: bool = True
    grey: bool = False
    average: bool = False


ORIGINAL = Recipe()
OURS = Recipe(bce_dice, l1_ssim, 0.0, "adam", 3e-3, jpeg_masks=False, average=True)
VARIANTS = {
    "the original's, as known: BCE + SSIM, dropout 0.2, SGD 0.01, JPEG masks": ORIGINAL,
    "... with grey pictures": replace(ORIGINAL, grey=True),
    "... IoU loss in place of BCE": replace(ORIGINAL, mask=soft_iou),
    "... cross-entropy + Dice in place of BCE": replace(ORIGINAL, mask=bce_dice),
    "... without dropout": replace(ORIGINAL, dropout=0.0),
    "... PNG masks": replace(ORIGINAL, jpeg_masks=False),
    "... L1 + SSIM for the depth": replace(ORIGINAL, depth=l1_ssim),
    "... Adam, 0.001": replace(ORIGINAL, optimizer="adam", learning_rate=1e-3),
    "... Adam, 0.003": replace(ORIGINAL, optimizer="adam", learning_rate=3e-3),
    "... Adam, 0.003, without dropout": replace(ORIGINAL, optimizer="adam", learning_rate=3e-3, dropout=0.0),
    "ours: cross-entropy + Dice, L1 + SSIM, no dropout, Adam 0.003, PNG masks, weights averaged": OURS,
    "... weights not averaged": replace(OURS, average=False),
    "... with dropout 0.2": replace(OURS, dropout=0.2),
    "... BCE": replace(OURS, mask=bce),
    "... SGD, 0.01": replace(OURS, optimizer="sgd", learning_rate=0.01),
}


def shrunk(batch: dict[str, Tensor], size: int, recipe: Recipe) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Scale a batch to `size`: two pictures (B,3,S,S), mask (B,1,S,S) of 0..1, depth (B,1,S,S) in metres."""
    pictures = []
    for name in ("background", "image"):
        picture = batch[name].permute(0, 3, 1, 2).float() / 255
        picture = F.interpolate(picture, size=(size, size), mode="bilinear", antialias=True)
        pictures.append(picture.mean(1, keepdim=True).expand(-1, 3, -1, -1) if recipe.grey else picture)
    mask = F.interpolate(batch["mask"][:, None].float(), size=(size, size), mode="bilinear", antialias=True)
    depth = F.interpolate(batch["depth"].to(torch.int32)[:, None].float() / 1000, size=(size, size), mode="nearest")
    return pictures[0], pictures[1], mask / 255, depth


def as_jpeg(mask: Tensor) -> Tensor:
    """Send masks (B,1,S,S) through JPEG of quality 75, as a notebook's default would."""
    coded = [cv2.imencode(".jpg", one, [cv2.IMWRITE_JPEG_QUALITY, 75])[1] for one in (mask[:, 0] * 255).byte().numpy()]
    return torch.from_numpy(np.stack([cv2.imdecode(code, 0) for code in coded]))[:, None].float() / 255


def train(recipe: Recipe, store: str, size: int, samples: int, batch_size: int) -> UNet:
    """Train from the same first weights on the same samples, in the order of the store's first epochs."""
    torch.manual_seed(0)
    network = UNet(dropout=recipe.dropout).to(memory_format=torch.channels_last).train()
    parameters = network.parameters()
    optimizer: torch.optim.Optimizer = (
        torch.optim.Adam(parameters, lr=recipe.learning_rate)
        if recipe.optimizer == "adam"
        else torch.optim.SGD(parameters, lr=recipe.learning_rate, momentum=0.9)
    )
    loader = Loader(store, "train", batch_size, drop_last=True)
    averaged = copy.deepcopy(network) if recipe.average else network
    steps, left = 0, samples
    for epoch in itertools.count():
        loader.set_epoch(epoch)
        for batch in loader:
            background, image, mask, depth = shrunk(batch, size, recipe)
            target = as_jpeg(mask) if recipe.jpeg_masks else (mask >= 0.5).float()
            logits, raw = network(background, image)
            loss = recipe.mask(logits, target).mean() + recipe.depth(raw, depth).mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            steps += 1
            if recipe.average:
                update_ema(averaged, network, steps)
            left -= len(image)
            if left <= 0:
                return averaged
    raise AssertionError


@torch.no_grad()
def score(network: UNet, recipe: Recipe, store: str, size: int, samples: int) -> dict[str, float]:
    """Score on unseen backgrounds and foregrounds: means over samples."""
    found: dict[str, list[Tensor]] = {name: [] for name in COLUMNS[1:-1]}
    loader = Loader(store, "validation", 32)
    seen = 0
    for batch in loader:
        background, image, mask, depth = shrunk(batch, size, recipe)
        truth = (mask >= 0.5).float()
        network.eval()
        logits, raw = network(background, image)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.train()
                module.momentum = 0.0  # leaves the running statistics as they are
        again, _ = network(background, image)
        metres = unet_metres(raw)
        found["mask IoU"].append(metrics.iou(logits, truth))
        found["white predicted"].append((logits > 0).float().mean((1, 2, 3)))
        found["IoU, batch statistics"].append(metrics.iou(again, truth))
        found["depth delta1"].append(metrics.delta1(metres, depth))
        found["SSIM"].append(metrics.ssim(metres, depth, 10.0, metrics.valid_depth(depth)))
        seen += len(image)
        if seen >= samples:
            break
    return {name: torch.cat(values).nanmean().item() for name, values in found.items()}


def main() -> None:
    """Train and score every variant; write the table after each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store")
    parser.add_argument("--out", type=Path, default=Path("study.md"))
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--samples", type=int, default=6000)
    parser.add_argument("--batch-size", type=int, default=8)
    arguments = parser.parse_args()
    lines = [" | ".join(("", *COLUMNS, "")).strip(), "|---" * len(COLUMNS) + "|"]
    there = arguments.out.read_text().splitlines() if arguments.out.is_file() else []
    for name, recipe in VARIANTS.items():
        if before := [line for line in there if line.startswith(f"| {name} |")]:
            lines.append(before[0])
            continue
        started = time.monotonic()
        network = train(recipe, arguments.store, arguments.size, arguments.samples, arguments.batch_size)
        scores = score(network, recipe, arguments.store, arguments.size, 500)
        minutes = (time.monotonic() - started) / 60
        cells = [name, *(f"{scores[column]:.3f}" for column in COLUMNS[1:-1]), f"{minutes:.1f}"]
        lines.append("| " + " | ".join(cells) + " |")
        print(lines[-1], flush=True)
        write_bytes(arguments.out, ("\n".join(lines) + "\n").encode())


if __name__ == "__main__":
    main()
