"""Runs with a network of random weights, for tests of what is done with a trained one."""

import math
from pathlib import Path

import torch

from dsgen.training.checkpoint import FORMAT
from dsgen.training.unet import UNet


def make_run(
    run: Path, *, size: int = 48, depth: bool = True, name: str = "best", mask_bias: float = 0.0, **options: object
) -> Path:
    """Write a run with one checkpoint of a small network, whose depth is about 3.5 m where it was trained."""
    torch.manual_seed(0)
    network = UNet(**{"width": 4, **options})  # type: ignore[arg-type]
    with torch.no_grad():
        network.depth.head.bias.fill_(0.35)
        network.depth.head.weight.mul_(0.3)
        network.mask.head.bias.fill_(mask_bias)
    (run / "checkpoints").mkdir(parents=True, exist_ok=True)
    past = {"epoch": 1, "size": size, "iou": 0.5, "abs_rel": 0.2 if depth else math.nan}
    torch.save(
        {
            "format": FORMAT,
            "settings": {"sizes": [size]},
            "config": network.config,
            "network": network.state_dict(),
            "history": [past],
        },
        run / f"checkpoints/{name}.pt",
    )
    return run
