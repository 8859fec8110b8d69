"""Train a depth network on folders of RGB-D frames: the command behind the bundled weights.

A folder holds `rgb/NAME.jpg|png`, `depth/NAME.png` (uint16 millimetres, planar, 0 = invalid) of any sizes, and
`frames.csv` with the columns `name`, `room` and, if it is known, `fov_deg`, the horizontal field of view. Rooms, never
frames, are divided into training and validation. Cut-out people, given as a folder of RGBA pictures, are pasted in at
the depth their height in pixels implies.
"""

import io
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from annotated_types import Ge
from torch import Tensor
from typing_extensions import TypedDict

from dsgen import metrics
from dsgen.averaging import fixed_decay
from dsgen.depth.augment import Variety, batches, read_styles
from dsgen.depth.frames import Frame, Frames, Mixture, read_people
from dsgen.depth.labellers import DenseDepthLabeller
from dsgen.depth.networks import DenseDepth
from dsgen.depth.weights import DepthModel, load_depth_model, load_initial, save_depth_network
from dsgen.encoders import PRETRAINED, input_statistics, load_encoder_weights, weights_sha256
from dsgen.errors import (
    ConflictError,
    DamagedError,
    InvalidValueError,
    NotFoundError,
    check_rules,
    find_differences,
    is_system_error,
    reason_of,
)
from dsgen.io.atomic import write_bytes
from dsgen.io.json_files import check_as
from dsgen.io.torch_files import read_torch
from dsgen.parallel.devices import autocast_dtype, pick_device
from dsgen.units import MAX_DEPTH_M

FOCAL_PX = 192.0  # of the canonical camera: a picture of 61 degrees is fed at some 224 pixels

_EMA_DECAY = 0.998


def depth_loss(raw: Tensor, depth_m: Tensor) -> Tensor:
    """L1 of ln(depth), its scale-free part again, and multi-scale gradients (as MiDaS, arXiv 1907.01341, eq. 11).

    `raw` is ln(metres) at the size of `depth_m` or half of it; what is not in 0.1..10 m does not count.
    """
    shrink = depth_m.shape[-1] // raw.shape[-1]
    target, least = depth_m, depth_m
    if shrink > 1:
        target, least = F.avg_pool2d(depth_m, shrink), -F.max_pool2d(-depth_m, shrink)
    valid = ((least > 0.05) & (target < 1.2 * MAX_DEPTH_M)).float()
    error = (raw - target.clamp(0.1, MAX_DEPTH_M).log()) * valid
    count = valid.sum(dim=(1, 2, 3)).clamp(min=1)
    mean = error.sum(dim=(1, 2, 3)) / count
    loss = (error.abs().sum(dim=(1, 2, 3)) / count).mean()
    free = (error - mean[:, None, None, None]) * valid
    loss = loss + 0.5 * (free.abs().sum(dim=(1, 2, 3)) / count).mean()
    for _ in range(4 if shrink > 1 else 5):
        dx = (error[..., 1:] - error[..., :-1]) * valid[..., 1:] * valid[..., :-1]
        dy = (error[..., 1:, :] - error[..., :-1, :]) * valid[..., 1:, :] * valid[..., :-1, :]
        loss = loss + 0.25 * (dx.abs().mean() + dy.abs().mean())
        error, valid = error[..., ::2, ::2], valid[..., ::2, ::2]
    return loss


Scores = dict[str, float]


def score(network: DenseDepth, frames: Frames, rows: np.ndarray) -> Scores:
    """AbsRel, RMSE (m), delta1 metric and after median scaling, of frames fed as `dsgen depth` feeds them.

    Means over the frames of a room, then over rooms; full size, 0.1..10 m, no crop.
    """
    device = next(network.parameters()).device
    labeller = DenseDepthLabeller(DepthModel(network, "", ""), device, precision="float32")
    by_room: dict[str, list[Scores]] = {}
    for row in rows:
        frame = frames[row]
        truth = torch.from_numpy(frame.depth_mm.astype(np.float32) / 1000)
        guess = torch.from_numpy(estimate(labeller, frame))
        valid = metrics.valid_depth(truth)
        if valid.any():
            by_room.setdefault(str(frames.room[row]), []).append(_frame_scores(guess[valid], truth[valid]))
    return _mean([_mean(scores) for scores in by_room.values()])


def estimate(labeller: DenseDepthLabeller, frame: Frame) -> np.ndarray:
    """Estimate the depth (h,w) f4 of a frame in metres."""
    size = frame.rgb.shape[0], frame.rgb.shape[1]
    fed = labeller.prepare(frame.rgb[None], labeller.feed_shape(*size, frame.focal_px))
    return labeller(fed, size, size, np.array([frame.focal_px]))[0][0]


def _frame_scores(guess: Tensor, truth: Tensor) -> Scores:
    scaled = guess * (truth.median() / guess.median())
    return {
        "abs_rel": metrics.relative_error(guess, truth).mean().item(),
        "rmse_m": metrics.squared_error(guess, truth).mean().sqrt().item(),
        "delta1": metrics.within_delta(metrics.depth_ratio(guess, truth)).float().mean().item(),
        "delta1_median_scaled": metrics.within_delta(metrics.depth_ratio(scaled, truth)).float().mean().item(),
    }


def _mean(scores: Sequence[Scores]) -> Scores:
    return {name: float(np.mean([each[name] for each in scores])) for name in (scores[0] if scores else ())}


@dataclass(frozen=True)
class TrainDepthResult:
    """The result of `train_depth`: the weights written, and their scores on the held-out rooms, see `score`.

    `validation` is the same for the frames that chose the epoch, if there are some.
    """

    out: Path
    scores: Scores
    validation: Scores


def train_depth(
    folders: Path | Sequence[Path],
    out: Path,
    people_folder: Path | None = None,
    init: Path | None = None,
    *,
    shares: Sequence[float] | None = None,
    validation_folder: Path | None = None,
    styles_folder: Path | None = None,
    encoder: str = "mobilenetv4_conv_small",
    encoder_weights: str | Path | None = None,
    width: int = 256,
    focal_px: float = FOCAL_PX,
    full_size: bool = True,
    sizes: tuple[int, ...] = (128, 192, 224),
    epochs: tuple[int, ...] = (16, 8, 4),
    batch_size: int = 16,
    learning_rate: float = 2e-3,
    seed: int = 0,
    device: str = "auto",
) -> TrainDepthResult:
    """Train a depth network and write the moving average of its weights as safetensors after every epoch.

    `folders` are one or several folders of frames, `shares` how much of each is drawn, see `Mixture`. `epochs[k]`
    epochs run at `sizes[k]` pixels; the learning rate warms up and then falls along one cosine. `init` is a weights
    file of the same network to start from; without it the weights are random, but those of the encoder are
    `encoder_weights`, if given: a file, or the word "pretrained", see `dsgen.encoders`. With `validation_folder`,
    frames that are not trained on, the weights written are those of the epoch with the best median-scaled delta1 there.
    `styles_folder` holds photographs whose colours some pictures are given. A checkpoint beside `out` is written after
    every epoch. The same call resumes from it after a kill and ends with the same weights; at the end it is removed.
    The scores are those of the weights written, fed as `dsgen depth` feeds them: at a focal length of `focal_px`.

    Raises `InvalidValueError` for numbers of sizes and epochs that differ, for a batch of more frames than there are to
    train on, and for weights of another network, `ConflictError` for a checkpoint of other settings, and `DsgenError`
    for frames that cannot be used.

    >>> train_depth(Path("frames"), Path("depth.safetensors")).scores["delta1"]  # doctest: +SKIP
    0.711
    """
    if len(sizes) != len(epochs):
        raise InvalidValueError(
            "--epochs", f"got {len(epochs)} numbers, expected {len(sizes)}, one for each of --sizes", "give as many"
        )
    check_rules(
        [
            (batch_size >= 1, "batch_size", batch_size, "1 or more"),
            (all(size >= 32 for size in sizes), "sizes", sizes, "32 pixels or more each"),
            (all(count >= 0 for count in epochs) and sum(epochs) > 0, "epochs", epochs, "0 or more each, and 1 in all"),
            (16 <= focal_px <= 4096, "focal_px", focal_px, "16 to 4096 pixels"),
        ]
    )
    if init is not None and encoder_weights is not None:
        reason = f"got {encoder_weights}, but --init {init} has the weights of the encoder too"
        raise InvalidValueError("--encoder-weights", reason, "leave one of them out")
    if init is not None and not init.is_file():
        raise NotFoundError("--init", f"{init} does not exist, expected weights of dsgen train-depth", "check the path")
    folders = [folders] if isinstance(folders, Path) else list(folders)
    target = pick_device(device)
    settings = {
        "folders": list(map(str, folders)),
        "shares": None if shares is None else list(shares),
        "validation": str(validation_folder),
        "styles": str(styles_folder),
        "people": str(people_folder),
        "init": init and weights_sha256(init),
        "encoder": encoder,
        "encoder_weights": _identify(encoder_weights),
        "width": width,
        "focal_px": focal_px,
        "full_size": full_size,
        "sizes": list(sizes),
        "epochs": list(epochs),
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "seed": seed,
    }
    checkpoint = out.with_name(out.name + ".checkpoint")
    before = _read_checkpoint(checkpoint, settings)
    torch.manual_seed(seed)
    torch.set_flush_denormal(True)  # random weights make many, and each costs a hundred ordinary numbers
    mixture = Mixture([Frames(folder) for folder in folders], shares)
    validation = Frames(validation_folder) if validation_folder else None
    variety = Variety(
        people=read_people(people_folder) if people_folder else (),
        styles=read_styles(styles_folder) if styles_folder else (),
    )
    if len(mixture) < batch_size:
        rule = f"at most {len(mixture)}, the frames to train on ({mixture.held_out_count} are held out)"
        raise InvalidValueError.expected("batch_size", batch_size, rule, "make it smaller, or add frames")
    steps = (len(mixture) // batch_size) * sum(epochs)
    config: dict[str, Any] = {
        "encoder": encoder,
        "width": width,
        "norm": True,
        "output": "log",
        "input_size": sizes[-1],
        "focal_px": focal_px,
        "full_size": full_size,
        "normalise": None if encoder_weights is None else input_statistics(encoder),
    }
    network = DenseDepth(**config)
    if init:
        load_initial(network, init)
    if encoder_weights is not None and not before:
        load_encoder_weights(network.encoder, encoder, encoder_weights)
    learner = _Learner(network, learning_rate, steps, target)
    print(
        f"{len(mixture)} frames to train on, {mixture.held_out_count} of held-out rooms, "
        f"{0 if validation is None else len(validation)} choose the epoch, {steps} steps",
        flush=True,
    )
    done, minutes, best = 0, 0.0, -1.0
    if before:
        try:
            learner.load_state_dict(before)
        except Exception as error:  # torch raises errors of any class for the state of another network
            if is_system_error(error):
                raise
            raise DamagedError(checkpoint, f"damaged ({reason_of(error)})", "remove it to begin again") from error
        done, minutes, best = before["done"], before["minutes"], before["best"]
        print(f"resuming after epoch {done}", flush=True)

    started = time.monotonic() - 60 * minutes
    size_of_epoch = [size for size, count in zip(sizes, epochs, strict=True) for _ in range(count)]
    for epoch, size in list(enumerate(size_of_epoch))[done:]:
        focal = focal_px * size / sizes[-1]  # the same view at every size
        losses = [
            learner.step(image, depth_m)
            for image, depth_m in batches(mixture, size, focal, batch_size, variety, seed, epoch)
        ]
        scores = {} if validation is None else score(learner.averaged, validation, np.arange(len(validation)))
        minutes = (time.monotonic() - started) / 60
        print(
            f"epoch {epoch + 1} size {size} loss {np.mean(losses):.4f} minutes {minutes:.1f} {_in_words(scores)}",
            flush=True,
        )
        steering = scores.get("delta1_median_scaled", 0.0)
        if validation is None or steering >= best:
            best = steering
            save_depth_network(learner.averaged, out)
        content = io.BytesIO()
        progress = {"settings": settings, "done": epoch + 1, "minutes": minutes, "best": best}
        torch.save(learner.state_dict() | progress, content)
        write_bytes(checkpoint, content.getvalue())

    written = load_depth_model(out).network.to(target)
    scores = _score_held_out(written, mixture)
    chosen = {} if validation is None else score(written, validation, np.arange(len(validation)))
    print(f"held-out rooms: {_in_words(scores)}", flush=True)
    checkpoint.unlink(missing_ok=True)
    return TrainDepthResult(out, scores, chosen)


def _identify(encoder_weights: str | Path | None) -> str | None:
    """Return what tells encoder weights from others: the word for timm's own, or the hash of a file."""
    if encoder_weights is None or str(encoder_weights) == PRETRAINED:
        return None if encoder_weights is None else PRETRAINED
    path = Path(encoder_weights)
    if not path.is_file():
        rule = f"expected a file of weights, or the word {PRETRAINED}"
        raise NotFoundError("--encoder-weights", f"{path} does not exist, {rule}", "check the path")
    return weights_sha256(path)


def _score_held_out(network: DenseDepth, mixture: Mixture) -> Scores:
    """Score the held-out rooms of all folders together."""
    pairs = [(frames, rows) for frames, rows in zip(mixture.folders, mixture.held_out, strict=True) if len(rows)]
    rooms = np.array([len(np.unique(frames.room[rows])) for frames, rows in pairs])
    scores = [score(network, frames, rows) for frames, rows in pairs]
    return {name: float(np.average([each[name] for each in scores], weights=rooms)) for name in scores[0]}


def _in_words(scores: dict[str, float]) -> str:
    return " ".join(f"{name} {value:.4f}" for name, value in scores.items())


class _Checkpoint(TypedDict):
    """What is written beside the weights after every epoch."""

    settings: dict[str, Any]
    done: Annotated[int, Ge(0)]
    minutes: Annotated[float, Ge(0)]
    best: float
    network: dict[str, Any]
    average: dict[str, Any]
    optimizer: dict[str, Any]
    schedule: dict[str, Any]


class _Learner:
    """A depth network with its optimizer, learning rate schedule, and the moving average of its weights."""

    def __init__(self, network: DenseDepth, learning_rate: float, steps: int, device: torch.device):
        self.device = device
        self.network = network.to(device).to(memory_format=torch.channels_last)
        average = torch.optim.swa_utils.AveragedModel(
            self.network, multi_avg_fn=fixed_decay(_EMA_DECAY), use_buffers=True
        )
        decayed = [p for p in self.network.parameters() if p.ndim > 1]
        plain = [p for p in self.network.parameters() if p.ndim <= 1]  # biases and batch norms
        optimizer = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": 0.02}, {"params": plain, "weight_decay": 0.0}], lr=learning_rate
        )
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, learning_rate, total_steps=steps + 1, pct_start=0.06, div_factor=20, final_div_factor=50
        )
        self._average, self._optimizer, self._schedule = average, optimizer, schedule
        # float16, the choice for CUDA devices without bfloat16, would need its gradients scaled
        dtype = autocast_dtype("auto", device)
        self._autocast_dtype = None if dtype is torch.float16 else dtype

    @property
    def averaged(self) -> DenseDepth:
        """The network with the averaged weights, which is scored and written."""
        return cast(DenseDepth, self._average.module)

    def step(self, image: Tensor, depth_m: Tensor) -> float:
        """Take one step on images (B,3,S,S) uint8 and depth (B,1,S,S) in metres, on the CPU; return the loss."""
        self.network.train()
        image, depth_m = image.to(self.device), depth_m.to(self.device)
        image = image.float().div_(255).contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, self._autocast_dtype, enabled=self._autocast_dtype is not None):
            raw = self.network(image)
        loss = depth_loss(raw.float(), depth_m)

        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self._optimizer.step()
        self._schedule.step()
        self._average.update_parameters(self.network)
        return loss.item()

    @property
    def _stateful(self) -> dict[str, Any]:
        return {
            "network": self.network,
            "average": self._average,
            "optimizer": self._optimizer,
            "schedule": self._schedule,
        }

    def state_dict(self) -> dict[str, Any]:
        """Return everything that the next step depends on."""
        return {name: each.state_dict() for name, each in self._stateful.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        for name, each in self._stateful.items():
            each.load_state_dict(state[name])


def _read_checkpoint(path: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """Read what an unfinished run left, if anything; refuse that of another run."""
    if not path.is_file():
        return None
    remedy = "remove it to begin again"
    before = read_torch(path, remedy)
    check_as(_Checkpoint, before, path, remedy)
    differences = find_differences(settings, {name: before["settings"].get(name) for name in settings})
    if differences:
        remedy = "use the same, or remove it to begin again"
        raise ConflictError(path, "left by another run", remedy, differences, "checkpoint")
    return before
