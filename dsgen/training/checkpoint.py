"""Checkpoints: written and restored while training, and opened afterwards to use what was trained."""

import dataclasses
import hashlib
import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dsgen.errors import (
    ConflictError,
    DamagedError,
    DsgenError,
    InvalidValueError,
    NotFoundError,
    find_differences,
    option,
    reason_of,
)
from dsgen.io.places import not_a_run
from dsgen.parallel.devices import pick_device
from dsgen.training.unet import UNet, unet_metres

if TYPE_CHECKING:
    from dsgen.training.trainer import Trainer

FORMAT = "dsgen-unet-1"  # of a checkpoint
MASK, DEPTH = "mask", "depth"


@dataclass
class Position:
    """How far an epoch in progress is, as checkpoints hold it under `place`.

    `loader` is the state of the loader, `loss` the sum of the losses of the samples so far, and `rate` the last
    learning rate.
    """

    size: int
    loader: dict[str, Any]
    step: int = 0
    samples: int = 0
    loss: float = 0.0
    rate: float = math.nan
    seconds: float = 0.0


@dataclass(frozen=True)
class Trained:
    """The network of a checkpoint, ready to predict.

    `size` is the largest image size in pixels that it was trained at, `answers` says which of its two heads, `mask`
    and `depth`, were trained, and `epoch` after how many epochs the checkpoint was written.
    """

    path: Path
    sha256: str
    network: UNet
    size: int
    epoch: int
    answers: tuple[str, ...]

    @property
    def device(self) -> torch.device:
        """The device the network is on."""
        return next(self.network.parameters()).device

    @torch.no_grad()
    def answer(self, background: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        """Map images (B,3,H,W) in 0..1 to mask logits and depth in metres, 0.1..10, both (B,1,H,W).

        A network with `output="half"` predicts at half of H and W, rounded up.
        """
        logits, raw = self.network(background, image)
        return logits.float(), unet_metres(raw)


def open_trained(run: Path, checkpoint: str = "best", device: str = "cpu") -> Trained:
    """Open `run`/checkpoints/`checkpoint`.pt on a device.

    Raises `NotFoundError` for a folder without checkpoints, `InvalidValueError` for a name it does not have, and
    `DamagedError` for a damaged file.
    """
    path = find_checkpoint(run, checkpoint)
    saved = read_checkpoint(path)
    history = saved["history"]
    # a head that had no truth to learn from has nan for its score after every epoch
    scores = {MASK: "iou", DEPTH: "abs_rel"}
    return Trained(
        path=path,
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        network=load_network(path, device),
        size=int(max([entry["size"] for entry in history] or saved["settings"]["sizes"])),
        epoch=len(history),
        answers=tuple(
            answer
            for answer, score in scores.items()
            if not history or any(not math.isnan(entry[score]) for entry in history)
        ),
    )


def find_checkpoint(run: Path, checkpoint: str = "best") -> Path:
    """Return `run`/checkpoints/`checkpoint`.pt; if it does not exist, the error says which ones do."""
    folder = run / "checkpoints"
    path = folder / f"{checkpoint.removesuffix('.pt')}.pt"
    if not path.is_file():
        names = sorted(file.stem for file in folder.glob("*.pt"))
        if not names:
            raise not_a_run(run)
        raise InvalidValueError(
            "--checkpoint", f"got {checkpoint}, expected one of {', '.join(names)}, which {folder} has"
        )
    return path


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a training checkpoint onto the CPU, without running any code in it.

    Raises `NotFoundError`, and `DamagedError` for a damaged or foreign file.
    """
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise NotFoundError(path, "no such checkpoint", "run dsgen train") from error
    except Exception as error:  # torch.load raises all kinds of errors for damaged files
        raise _damaged(path, error) from error
    if not isinstance(saved, dict) or saved.get("format") != FORMAT:
        raise DamagedError(path, f"not a checkpoint of dsgen train (expected format {FORMAT})", "use another file")
    return saved


def load_network(path: Path, device: str = "cpu") -> UNet:
    """Load the trained network of a checkpoint, ready to predict."""
    saved = read_checkpoint(path)
    try:
        network = UNet(**saved["config"])
        network.load_state_dict(saved["network"])
    except (RuntimeError, KeyError, TypeError) as error:
        raise _damaged(path, error) from error
    return network.to(pick_device(device)).to(memory_format=torch.channels_last).eval()


def encode_checkpoint(trainer: "Trainer") -> bytes:
    """Encode everything that the next step depends on."""
    buffer = io.BytesIO()
    torch.save(
        {
            "format": FORMAT,
            "settings": trainer.settings.as_dict(),
            "store_sha256": trainer.store_sha256,
            "init_sha256": trainer.init_sha256,
            "config": trainer.network.config,
            "network": trainer.averaged.state_dict(),
            "training": trainer.network.state_dict(),
            "optimizer": trainer.optimizer.state_dict(),
            "scaler": trainer.scaler.state_dict(),
            "steps": trainer.steps,
            "history": trainer.history,
            "place": trainer.position and dataclasses.asdict(trainer.position),
        },
        buffer,
    )
    return buffer.getvalue()


def restore_checkpoint(trainer: "Trainer", path: Path) -> None:
    """Set a new trainer to the state of a checkpoint of the same run.

    Other settings, another store and, if it has one, another initial checkpoint are a `ConflictError` that names all
    differences.
    """
    saved = read_checkpoint(path)
    try:
        now = _by_option(trainer.settings.as_dict()) | {"store": trainer.store_sha256}
        was = _by_option(saved["settings"]) | {"store": saved["store_sha256"]}
        if trainer.init_sha256 is not None:
            now["--init"], was["--init"] = trainer.init_sha256, saved.get("init_sha256")
        if differences := find_differences(now, was):
            raise ConflictError(
                path.parent.parent,
                "the run was started with other settings",
                "use the same settings, or another --run",
                differences,
                "run",
            )
        trainer.network.load_state_dict(saved["training"])
        trainer.averaged.load_state_dict(saved["network"])
        trainer.optimizer.load_state_dict(saved["optimizer"])
        if saved["scaler"] and trainer.scaler.is_enabled():  # empty unless the run was in float16
            trainer.scaler.load_state_dict(saved["scaler"])
        trainer.init_sha256 = saved.get("init_sha256")
        trainer.steps, trainer.history = saved["steps"], saved["history"]
        trainer.position = saved["place"] and Position(**saved["place"])
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(path, error) from error


def load_initial_weights(trainer: "Trainer", path: Path) -> None:
    """Start a new trainer from a checkpoint's weights; those of another network are a `ConflictError`."""
    saved = read_checkpoint(path)
    try:
        if differences := find_differences(_by_option(trainer.network.config), _by_option(saved["config"])):
            raise ConflictError(
                "--init", f"{path} has another network", "use the same settings", differences, "checkpoint"
            )
        for network in {trainer.network, trainer.averaged}:
            network.load_state_dict(saved["network"])
    except (RuntimeError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(path, error) from error
    trainer.init_sha256 = hashlib.sha256(path.read_bytes()).hexdigest()


def _by_option(settings: dict[str, Any]) -> dict[str, Any]:
    return {option(name): value for name, value in settings.items()}


def _damaged(path: Path, error: Exception) -> DsgenError:
    return DamagedError(
        path,
        f"damaged checkpoint ({reason_of(error, path)})",
        "copy the newest undamaged epoch over it, or remove the run",
    )
