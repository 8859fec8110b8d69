"""Checkpoints: written and restored while training, and opened afterwards to use what was trained."""

import dataclasses
import hashlib
import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NotRequired

import torch
from annotated_types import Ge, Le, Len
from torch import Tensor
from typing_extensions import TypedDict

from dsgen.depth.networks import misfits
from dsgen.encoders import PRETRAINED, load_encoder_weights, weights_sha256
from dsgen.errors import (
    ConflictError,
    DamagedError,
    DsgenError,
    InvalidValueError,
    NotFoundError,
    find_differences,
    is_system_error,
    option,
    reason_of,
)
from dsgen.io.json_files import check_as
from dsgen.io.places import not_a_run
from dsgen.io.torch_files import read_torch
from dsgen.parallel.devices import pick_device
from dsgen.training.unet import UNet, UNetConfig, unet_metres

if TYPE_CHECKING:
    from dsgen.training.trainer import Trainer

FORMAT = "dsgen-unet-1"  # of a checkpoint
MASK, DEPTH = "mask", "depth"
_REMEDY = "copy the newest undamaged epoch over it, or remove the run"

Count = Annotated[int, Ge(0), Le(2**48)]


class _Place(TypedDict):
    """A `Position` as checkpoints hold it."""

    size: Annotated[int, Ge(1), Le(8192)]
    loader: dict[str, Any]
    step: Count
    samples: Count
    loss: float
    rate: float
    seconds: float


class _Settings(TypedDict):
    """Of the settings of a run those that are needed to open its network."""

    sizes: Annotated[list[Annotated[int, Ge(1), Le(8192)]], Len(1)]


class _Epoch(TypedDict):
    """Of an epoch's results those that are needed to open its network."""

    epoch: Count
    size: Annotated[int, Ge(1), Le(8192)]
    iou: int | float
    abs_rel: int | float


class _Checkpoint(TypedDict):
    """Of a checkpoint what is needed to open its network."""

    settings: _Settings
    config: UNetConfig
    network: dict[str, Any]
    history: list[_Epoch]


class _EncoderWeights(TypedDict):
    """Where the encoder's first weights came from."""

    name: str
    sha256: str


class _Resumable(_Checkpoint):
    """All that a checkpoint holds."""

    store_sha256: str | None
    init_sha256: NotRequired[str | None]
    encoder_weights: NotRequired[_EncoderWeights | None]
    training: dict[str, Any]
    optimizer: dict[str, Any]
    scaler: dict[str, Any]
    steps: Count
    place: _Place | None


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
        saved = read_torch(path, _REMEDY)
    except FileNotFoundError as error:
        raise NotFoundError(path, "no such checkpoint", "run dsgen train") from error
    if saved.get("format") != FORMAT:
        raise DamagedError(path, f"not a checkpoint of dsgen train (expected format {FORMAT})", "use another file")
    check_as(_Checkpoint, saved, path, _REMEDY)
    return saved


def load_network(path: Path, device: str = "cpu") -> UNet:
    """Load the trained network of a checkpoint, ready to predict."""
    saved = read_checkpoint(path)
    with _refusing_damage(path):
        if strange := misfits(lambda: UNet(**saved["config"]), saved["network"]):
            raise ValueError(f"{len(strange)} arrays are missing, left over or of another shape, {strange[0][:100]}")
        network = UNet(**saved["config"])
        network.load_state_dict(saved["network"])
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
            "encoder_weights": trainer.encoder_weights,
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
    differences. Of the encoder's first weights a file that is still there is compared by its hash, wherever it is.
    """
    saved = read_checkpoint(path)
    check_as(_Resumable, saved, path, _REMEDY)
    with _refusing_damage(path):
        now = _by_option(trainer.settings.as_dict()) | {"store": trainer.store_sha256}
        was = _by_option(saved["settings"]) | {"store": saved["store_sha256"]}
        if trainer.init_sha256 is not None:
            now["--init"], was["--init"] = trainer.init_sha256, saved.get("init_sha256")
        started_with = saved.get("encoder_weights")
        given = trainer.settings.encoder_weights
        if started_with and given not in (None, PRETRAINED) and Path(given).is_file():
            now["--encoder-weights"], was["--encoder-weights"] = weights_sha256(Path(given)), started_with["sha256"]
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
        _check_optimizer(trainer.optimizer)
        if saved["scaler"] and trainer.scaler.is_enabled():  # empty unless the run was in float16
            trainer.scaler.load_state_dict(saved["scaler"])
        trainer.init_sha256 = saved.get("init_sha256")
        trainer.encoder_weights = started_with
        trainer.steps, trainer.history = saved["steps"], saved["history"]
        trainer.position = saved["place"] and Position(**saved["place"])


def load_initial_weights(trainer: "Trainer", path: Path) -> None:
    """Start a new trainer from a checkpoint's weights; those of another network are a `ConflictError`."""
    saved = read_checkpoint(path)
    with _refusing_damage(path):
        if differences := find_differences(_by_option(trainer.network.config), _by_option(saved["config"])):
            raise ConflictError(
                "--init", f"{path} has another network", "use the same settings", differences, "checkpoint"
            )
        for network in {trainer.network, trainer.averaged}:
            network.load_state_dict(saved["network"])
    trainer.init_sha256 = hashlib.sha256(path.read_bytes()).hexdigest()


def load_pretrained_encoder(trainer: "Trainer") -> None:
    """Start the encoder of a new trainer from the pretrained weights that its settings name, if they name any."""
    source, encoder = trainer.settings.encoder_weights, trainer.network.encoder
    if source is None or encoder is None:
        return
    name, sha256 = load_encoder_weights(encoder, str(trainer.settings.encoder), source)
    if trainer.averaged.encoder is not None:
        trainer.averaged.encoder.load_state_dict(encoder.state_dict())
    trainer.encoder_weights = {"name": name, "sha256": sha256}


def _by_option(settings: dict[str, Any]) -> dict[str, Any]:
    return {option(name): value for name, value in settings.items()}


def _check_optimizer(optimizer: torch.optim.Optimizer) -> None:
    """Raise `ValueError` for a state that does not fit the weights it is of, which only the next step would notice."""
    for weight, state in optimizer.state.items():
        for name, value in state.items():
            if not isinstance(value, Tensor) or (value.ndim and value.shape != weight.shape):
                raise ValueError(f"the optimizer's {name} does not fit a weight of {tuple(weight.shape)}")


@contextmanager
def _refusing_damage(path: Path) -> Iterator[None]:
    """Turn what torch raises for the state of another network or optimizer into a `DamagedError`."""
    try:
        yield
    except ConflictError:
        raise
    except Exception as error:  # torch raises errors of any class
        if is_system_error(error):
            raise
        reason = error.reason if isinstance(error, DsgenError) else reason_of(error, path)
        raise DamagedError(path, f"damaged checkpoint ({reason})", _REMEDY) from error
