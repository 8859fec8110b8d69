"""A run opened to be used: which of its checkpoints, the network in it, and what that network has learnt."""

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dsgen.errors import DsgenError
from dsgen.train import load_network, read_checkpoint
from dsgen.unet import UNet, unet_metres

MASK, DEPTH = "mask", "depth"


@dataclass(frozen=True)
class Trained:
    """The network of a checkpoint, ready to predict.

    `size` is the side in pixels of the largest pictures it was trained on, `answers` says which of its two heads,
    `mask` and `depth`, have been trained, and `epoch` after how many epochs the checkpoint was written.
    """

    path: Path
    sha256: str
    network: UNet
    size: int
    epoch: int
    answers: tuple[str, ...]

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.network.parameters()).device

    @torch.no_grad()
    def answer(self, background: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        """Map pictures (B,3,H,W) in 0..1 to mask logits and depth in metres, 0.1..10, both (B,1,H,W) or half of it."""
        logits, raw = self.network(background, image)
        return logits.float(), unet_metres(raw)


def open_trained(run: Path, checkpoint: str = "best", device: str = "cpu") -> Trained:
    """Open `run`/checkpoints/`checkpoint`.pt on a device; a run without it, and a damaged file, are a `DsgenError`."""
    folder = run / "checkpoints"
    path = folder / f"{checkpoint.removesuffix('.pt')}.pt"
    if not path.is_file():
        there = sorted(file.stem for file in folder.glob("*.pt"))
        if not there:
            raise DsgenError(f"{run}: no run (no checkpoints in {folder}); run dsgen train --run {run}")
        raise DsgenError(f"--checkpoint: got {checkpoint}, expected one of {', '.join(there)}, which {folder} has")
    saved = read_checkpoint(path)
    history = saved["history"]
    unlearnt = {MASK: "iou", DEPTH: "abs_rel"}  # scores that were never a number where there was no truth to learn from
    return Trained(
        path=path,
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        network=load_network(path, device),
        size=int(max([past["size"] for past in history] or saved["settings"]["sizes"])),
        epoch=len(history),
        answers=tuple(
            answer
            for answer, score in unlearnt.items()
            if not history or any(not math.isnan(past[score]) for past in history)
        ),
    )


def complete(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Add what a loader's batch lacks of background and mask, all zero: what a network is trained with without them."""
    image = batch["image"]
    return {"background": torch.zeros_like(image), MASK: torch.zeros_like(image[..., 0]), **batch}
