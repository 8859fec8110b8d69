"""What was trained: reading checkpoints, and a run opened to be used, which is a network and what that has learnt."""

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dsgen.errors import DamagedError, DsgenError, InvalidValueError, NotFoundError
from dsgen.parallel.devices import pick_device
from dsgen.training.unet import UNet, unet_metres

FORMAT = "dsgen-unet-1"  # of a checkpoint
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
    path = find_checkpoint(run, checkpoint)
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


def find_checkpoint(run: Path, checkpoint: str = "best") -> Path:
    """Return `run`/checkpoints/`checkpoint`.pt; where it is not, a `DsgenError` says what is there."""
    folder = run / "checkpoints"
    path = folder / f"{checkpoint.removesuffix('.pt')}.pt"
    if not path.is_file():
        there = sorted(file.stem for file in folder.glob("*.pt"))
        if not there:
            raise NotFoundError(run, f"no run (no checkpoints in {folder})", f"run dsgen train --run {run}")
        raise InvalidValueError(
            "--checkpoint", f"got {checkpoint}, expected one of {', '.join(there)}, which {folder} has"
        )
    return path


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a training checkpoint onto the CPU without running any code in it; any other file is a `DsgenError`."""
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise NotFoundError(path, "no such checkpoint", "run dsgen train") from error
    except Exception as error:  # torch.load raises what it pleases on damaged files
        raise damaged(path, error) from error
    if not isinstance(saved, dict) or saved.get("format") != FORMAT:
        raise DamagedError(path, f"not a checkpoint of dsgen train (expected format {FORMAT})", "take another file")
    return saved


def damaged(path: Path, error: Exception) -> DsgenError:
    """Make the error that says a checkpoint is not whole."""
    reason = (str(error) or type(error).__name__).splitlines()[0]
    return DamagedError(
        path, f"damaged checkpoint ({reason})", "copy the newest whole epoch over it, or remove the run"
    )


def load_network(path: Path, device: str = "cpu") -> UNet:
    """Load the trained network out of a checkpoint, ready to predict."""
    saved = read_checkpoint(path)
    try:
        network = UNet(**saved["config"])
        network.load_state_dict(saved["network"])
    except (RuntimeError, KeyError, TypeError) as error:
        raise damaged(path, error) from error
    return network.to(pick_device(device)).to(memory_format=torch.channels_last).eval()
