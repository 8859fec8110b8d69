"""Train a depth network on a folder of RGB-D frames: the command behind the bundled weights.

The folder holds `rgb/NAME.jpg|png`, `depth/NAME.png` (uint16 millimetres, planar, 0 = invalid) and `frames.csv` with
the columns `name`, `room` and, if it is known, `fov_deg`, the field of view. Rooms, never frames, are divided into
training and validation. Cut-out people, given as a folder of RGBA pictures, are pasted in at the depth their height in
pixels implies.
"""

import hashlib
import io
import time
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
from dsgen.depth.frames import Frames, batches, read_people
from dsgen.depth.networks import DenseDepth, to_metres
from dsgen.depth.weights import load_initial, save_depth_network
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

_EMA_DECAY = 0.998


def depth_loss(raw: Tensor, depth_m: Tensor) -> Tensor:
    """L1 of ln(depth), its scale-free part again, and multi-scale gradients (as MiDaS, arXiv 1907.01341, eq. 11).

    `raw` is ln(metres) at half the size of `depth_m`; what is not in 0.1..10 m does not count.
    """
    target = F.avg_pool2d(depth_m, 2)
    valid = ((F.max_pool2d(-depth_m, 2) < -0.05) & (target < 1.2 * MAX_DEPTH_M)).float()
    error = (raw - target.clamp(0.1, MAX_DEPTH_M).log()) * valid
    count = valid.sum(dim=(1, 2, 3)).clamp(min=1)
    mean = error.sum(dim=(1, 2, 3)) / count
    loss = (error.abs().sum(dim=(1, 2, 3)) / count).mean()
    free = (error - mean[:, None, None, None]) * valid
    loss = loss + 0.5 * (free.abs().sum(dim=(1, 2, 3)) / count).mean()
    for _ in range(4):
        dx = (error[..., 1:] - error[..., :-1]) * valid[..., 1:] * valid[..., :-1]
        dy = (error[..., 1:, :] - error[..., :-1, :]) * valid[..., 1:, :] * valid[..., :-1, :]
        loss = loss + 0.25 * (dx.abs().mean() + dy.abs().mean())
        error, valid = error[..., ::2, ::2], valid[..., ::2, ::2]
    return loss


@torch.inference_mode()
def score(network: DenseDepth, frames: Frames, rows: np.ndarray, size: int, batch_size: int = 16) -> dict[str, float]:
    """Mean over frames of AbsRel, RMSE (m), delta1 metric and after median scaling; full size, 0.1..10 m, no crop."""
    network.eval()
    device = next(network.parameters()).device
    totals: dict[str, list[float]] = {"abs_rel": [], "rmse_m": [], "delta1": [], "delta1_median_scaled": []}
    for start in range(0, len(rows), batch_size):
        group = rows[start : start + batch_size]
        truth = torch.from_numpy(frames.depth_mm[group].astype(np.float32) / 1000)[:, None].to(device)
        image = torch.from_numpy(frames.rgb[group]).to(device).permute(0, 3, 1, 2).float() / 255
        if size != image.shape[-1]:
            image = F.interpolate(image, size=(size, size), mode="bilinear", antialias=True)
        raw = F.interpolate(network(image), size=truth.shape[-2:], mode="bilinear")
        guess = to_metres(raw, network.config["output"])
        for g, t in zip(guess, truth, strict=True):
            valid = metrics.valid_depth(t)
            g, t = g[valid], t[valid]
            totals["abs_rel"].append(metrics.relative_error(g, t).mean().item())
            totals["rmse_m"].append(metrics.squared_error(g, t).mean().sqrt().item())
            totals["delta1"].append(metrics.within_delta(metrics.depth_ratio(g, t)).float().mean().item())
            g = g * (t.median() / g.median())
            totals["delta1_median_scaled"].append(metrics.within_delta(metrics.depth_ratio(g, t)).float().mean().item())
    return {name: float(np.mean(values)) for name, values in totals.items()}


@dataclass(frozen=True)
class TrainDepthResult:
    """The result of `train_depth`: the weights written, and their scores on the held-out rooms, see `score`."""

    out: Path
    scores: dict[str, float]


def train_depth(
    folder: Path,
    out: Path,
    people_folder: Path | None = None,
    init: Path | None = None,
    encoder: str = "mobilenetv4_conv_small",
    width: int = 256,
    sizes: tuple[int, ...] = (128, 192, 256),
    epochs: tuple[int, ...] = (16, 8, 4),
    batch_size: int = 16,
    learning_rate: float = 2e-3,
    seed: int = 0,
    device: str = "auto",
) -> TrainDepthResult:
    """Train a depth network and write the moving average of its weights as safetensors after every epoch.

    `epochs[k]` epochs run at `sizes[k]` pixels; the learning rate warms up and then falls along one cosine. `init`
    is a weights file of the same network to start from; without it the weights are random. A checkpoint beside `out`
    is written after every epoch. The same call resumes from it after a kill and ends with the same weights; at the end
    it is removed. The scores are those at the last size, at which the network will be fed.

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
        ]
    )
    if init is not None and not init.is_file():
        raise NotFoundError("--init", f"{init} does not exist, expected weights of dsgen train-depth", "check the path")
    target = pick_device(device)
    settings = {
        "folder": str(folder),
        "people": str(people_folder),
        "init": init and hashlib.sha256(init.read_bytes()).hexdigest(),
        "encoder": encoder,
        "width": width,
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
    frames = Frames(folder)
    people = read_people(people_folder) if people_folder else []
    training, held_out = frames.split()
    if len(training) < batch_size:
        rule = f"at most {len(training)}, the frames to train on ({len(held_out)} are held out)"
        raise InvalidValueError.expected("batch_size", batch_size, rule, "make it smaller, or add frames")
    steps = (len(training) // batch_size) * sum(epochs)
    learner = _Learner(encoder, width, sizes[-1], learning_rate, steps, init, target)
    print(f"{len(training)} frames to train on, {len(held_out)} of held-out rooms, {steps} steps", flush=True)
    done, minutes = 0, 0.0
    if before:
        try:
            learner.load_state_dict(before)
        except Exception as error:  # torch raises errors of any class for the state of another network
            if is_system_error(error):
                raise
            raise DamagedError(checkpoint, f"damaged ({reason_of(error)})", "remove it to begin again") from error
        done, minutes = before["done"], before["minutes"]
        print(f"resuming after epoch {done}", flush=True)

    started = time.monotonic() - 60 * minutes
    size_of_epoch = [size for size, count in zip(sizes, epochs, strict=True) for _ in range(count)]
    for epoch, size in list(enumerate(size_of_epoch))[done:]:
        losses = [
            learner.step(image, depth_m)
            for image, depth_m in batches(frames, training, size, batch_size, people, seed, epoch)
        ]
        scores = score(learner.averaged, frames, held_out, sizes[-1]) if (epoch + 1) % 3 == 0 else {}
        minutes = (time.monotonic() - started) / 60
        print(
            f"epoch {epoch + 1} size {size} loss {np.mean(losses):.4f} minutes {minutes:.1f} {_in_words(scores)}",
            flush=True,
        )
        save_depth_network(learner.averaged, out)
        content = io.BytesIO()
        progress = {"settings": settings, "done": epoch + 1, "minutes": minutes}
        torch.save(learner.state_dict() | progress, content)
        write_bytes(checkpoint, content.getvalue())

    scores = score(learner.averaged, frames, held_out, sizes[-1])
    print(f"held-out rooms: {_in_words(scores)}", flush=True)
    checkpoint.unlink(missing_ok=True)
    return TrainDepthResult(out, scores)


def _in_words(scores: dict[str, float]) -> str:
    return " ".join(f"{name} {value:.4f}" for name, value in scores.items())


class _Checkpoint(TypedDict):
    """What is written beside the weights after every epoch."""

    settings: dict[str, Any]
    done: Annotated[int, Ge(0)]
    minutes: Annotated[float, Ge(0)]
    network: dict[str, Any]
    average: dict[str, Any]
    optimizer: dict[str, Any]
    schedule: dict[str, Any]


class _Learner:
    """A depth network with its optimizer, learning rate schedule, and the moving average of its weights."""

    def __init__(
        self,
        encoder: str,
        width: int,
        size: int,
        learning_rate: float,
        steps: int,
        init: Path | None,
        device: torch.device,
    ):
        network = DenseDepth(encoder, width, norm=True, output="log", input_size=size)
        if init:
            load_initial(network, init)
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
