"""The training loop, in the order in which it happens.

`Trainer.run_epoch` trains for an epoch, validates, and adds the scores to the history. `train_steps` is the loop over
batches: learning rate, step, log, checkpoint. `step` is one of them: augment, forward, loss, backward, update, EMA.
What surrounds an epoch, such as the files it leaves, is in `dsgen.training.fit`.
"""

import copy
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dsgen.averaging import update_ema
from dsgen.errors import InvalidValueError
from dsgen.parallel.devices import autocast_dtype
from dsgen.store.arena import Batch
from dsgen.training import metrics
from dsgen.training.augment import augment
from dsgen.training.batches import Batches, prepare, shrink_depth, shrink_mask, take
from dsgen.training.checkpoint import Position
from dsgen.training.diagnosis import diagnose_bad_loss, diagnose_out_of_memory, is_out_of_memory
from dsgen.training.interrupts import Autosave
from dsgen.training.losses import LOSSES, PerSample, sample_losses
from dsgen.training.ranks import Ranks
from dsgen.training.schedule import learning_rate
from dsgen.training.settings import Settings
from dsgen.training.unet import UNet, unet_metres
from dsgen.training.validation import validate

log = logging.getLogger("dsgen")
_MOMENTUM = 0.9
_NOTED_STEPS = 20  # whose mean the progress display shows


@dataclass(frozen=True)
class Phase:
    """Consecutive epochs at one image size; `sizes` are the image sizes of all epochs of the run."""

    size: int
    batches: Batches
    samples: int  # per epoch
    sizes: Sequence[int]


class Inputs(NamedTuple):
    """What the network sees, (B,3,S,S) in 0..1, and the truth it is compared with, (B,1,S,S), as far as there is any.

    The mask is 0 or 1, the depth in metres.
    """

    background: Tensor
    image: Tensor
    mask: Tensor | None
    depth_m: Tensor | None


class StartedStep(NamedTuple):
    """A step that is queued on the device and may not be finished.

    `report` is (5,): loss, mask IoU and delta1 of the batch, how many ranks were asked to stop, and whether the first
    rank's interval between checkpoints was over. `end` is how many samples of the epoch there were by the end of the
    batch, `loader` the state of the loader then.
    """

    report: Tensor
    batch: Batch
    inputs: Inputs
    end: int
    loader: dict[str, Any]


class Requests(NamedTuple):
    """What is asked for at a step: by any rank to `stop` the run, by the first rank to `save` a checkpoint."""

    stop: bool = False
    save: bool = False


class Trainer:
    """A network, its optimizer, and how far its training is: `steps`, `history`, and the `position` in mid-epoch.

    `fields` are the arrays of the store. All ranks hold the same, and each gets its samples of every batch. The batch
    of a loss that is not a number is saved in the folder `run`. `network` are the arguments of the U-Net, by default
    those of the settings.
    """

    def __init__(
        self,
        settings: Settings,
        fields: tuple[str, ...],
        store_sha256: str | None,
        device: torch.device,
        ranks: Ranks = Ranks(),  # noqa: B008 - it is frozen
        mean_depth_m: float | None = None,
        run: Path = Path(),
        network: Mapping[str, Any] | None = None,
    ):
        _check_fields(fields)
        self.settings, self.fields, self.store_sha256, self.device = settings, fields, store_sha256, device
        self.ranks, self.mean_depth_m, self.run = ranks, mean_depth_m, run
        torch.manual_seed(settings.seed)
        made = ranks.synchronise(UNet(**(network or settings.network())), device)
        self.network: UNet = made.to(device).to(memory_format=torch.channels_last)  # type: ignore[assignment]
        self.averaged = copy.deepcopy(self.network) if settings.average else self.network
        model = ranks.parallelise(self.network, find_unused=not {"mask", "depth"} <= set(fields))
        self.model = torch.compile(model, dynamic=False) if settings.compile else model
        self.optimizer = _make_optimizer(self.network, settings)
        self.autocast_dtype = autocast_dtype(settings.precision, device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.autocast_dtype is torch.float16)
        self.steps = 0
        self.init_sha256: str | None = None  # of the checkpoint that the first weights come from
        self.encoder_weights: dict[str, str] | None = None  # `name` and `sha256` of the encoder's first weights
        self.history: list[dict[str, float]] = []
        self.position: Position | None = None

    @property
    def epoch(self) -> int:
        """How many epochs are finished."""
        return len(self.history)

    def run_epoch(self, phase: Phase, validation: Batches, autosave: Autosave, advance: Callable[..., None]) -> None:
        """Train for one epoch, or the rest of one in progress; validate; add the results to the history."""
        phase.batches.set_epoch(self.epoch)
        if self.position is None:
            self.position = Position(phase.size, phase.batches.state_dict())
        else:
            phase.batches.load_state_dict(self.position.loader)
        self.train_steps(phase, autosave, advance)

        started = time.monotonic()
        scores = validate(
            self.averaged,
            validation,
            phase.size,
            self.device,
            self.settings,
            samples=self.settings.validation_samples,
            autocast_dtype=self.autocast_dtype,
            mean_depth_m=self.mean_depth_m,
            ranks=self.ranks,
            before_batch=autosave.stop_if_requested if self.ranks.world_size == 1 else None,
        )
        position, self.position = self.position, None
        self.history.append(
            {
                "epoch": self.epoch + 1,
                "size": phase.size,
                "samples": position.samples,
                "seconds": round(position.seconds + time.monotonic() - started, 2),
                "images_per_second": round(position.samples / max(position.seconds, 1e-9), 1),
                "learning_rate": position.rate,
                "train_loss": position.loss / position.samples,
                **scores,
            }
        )

    def train_steps(self, phase: Phase, autosave: Autosave, advance: Callable[..., None]) -> None:
        """Take the steps of an epoch that are left.

        The report of a step is read after the next step has been queued, so that a GPU is never idle. Several ranks
        stop and save only as a report says, which is the same in all of them: if one read a step before the others had
        queued the next, and its loss was not a number, they would wait for it forever.
        """
        assert self.position is not None
        position, alone = self.position, self.ranks.world_size == 1
        step_log = _StepLog(self, position, len(phase.sizes), advance)
        start, stop, save = position.samples, False, False
        unread: StartedStep | None = None
        self.network.train()
        # an exception would keep the stream, and with it the loader's threads, alive unless it is closed
        with closing(take(phase.batches, phase.samples, self.ranks)) as stream:
            for step, (batch, end) in enumerate(stream, position.step):
                share = (start + end) / 2 / phase.samples  # of the epoch, at the middle of the batch
                position.rate = learning_rate(self.settings, self.history, phase.sizes, share)
                requests = Requests(autosave.stop_requested(), self.ranks.first and autosave.due())
                report, inputs = self._try_step(batch, phase.size, step, position.rate, requests)
                started = StartedStep(report, batch, inputs, end, phase.batches.state_dict())
                if unread is not None:
                    stop, save = step_log.read(unread)
                if alone:
                    stop, save = stop or autosave.stop_requested(), autosave.due()
                start, unread = end, started
                if stop or save:
                    # a request that one of several ranks had before this step stops all of them after the next step
                    (stop_next, _), unread = step_log.read(started), None
                    autosave.save(stop=stop)
                    stop, save = stop_next, False
        if unread is not None:
            stop_last, _ = step_log.read(unread)
            stop = stop or stop_last
        if stop:
            autosave.save(stop=True)

    def _try_step(self, batch: Batch, size: int, step: int, rate: float, requests: Requests) -> tuple[Tensor, Inputs]:
        """Take a step; if the memory is too small for it, raise the error that says which batch size fits."""
        try:
            return self.step(batch, size, step, rate, requests)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            reason = str(error).splitlines()[0]
        # outside the except block, as the traceback of the error keeps the tensors of the step alive
        raise diagnose_out_of_memory(self, batch, size, reason)

    def step(
        self,
        batch: Batch,
        size: int,
        step: int,
        rate: float,
        requests: Requests = Requests(),  # noqa: B008 - it is immutable
    ) -> tuple[Tensor, Inputs]:
        """Take one step at an image size; return its report, see `StartedStep`, and the inputs of the network.

        All random numbers follow from the seed, the epoch and the number of the step in it, so that a resumed run
        takes the same steps as an uninterrupted one.
        """
        seed = int(np.random.SeedSequence([self.settings.seed, self.epoch, step]).generate_state(1)[0])
        torch.manual_seed(seed + self.ranks.rank)  # for dropout, which differs by rank
        inputs = self.augmented(batch, size, torch.Generator().manual_seed(seed))
        loss, report = self.forward(inputs, requests)

        self.optimizer.zero_grad(set_to_none=True)
        # this rank's loss is its part of a sum, while gradients are averaged over the ranks
        self.scaler.scale(loss * self.ranks.world_size).backward()
        if self.settings.clip is not None:
            self.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.settings.clip)

        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.steps += 1
        if self.averaged is not self.network:
            update_ema(self.averaged, self.network, self.steps)
        return report, inputs

    def augmented(self, batch: Batch, size: int, generator: torch.Generator) -> Inputs:
        """Move a batch to the device, reduce it to an image size, and augment it."""
        background, image, mask, depth_m = prepare(batch, size, self.device)
        # without a mask any pixel may be foreground
        inside = mask if "mask" in batch else torch.ones_like(mask)
        background, image, inside, depth_m = augment(
            # an edge is cut hard by showing the background again, which zeros would replace by black
            background if "background" in batch else image,
            image,
            inside,
            depth_m,
            generator,
            self.settings.augment,
            rank=self.ranks.rank,
            world_size=self.ranks.world_size,
        )
        if "background" not in batch:
            background = torch.zeros_like(image)
        return Inputs(background, image, inside if "mask" in batch else None, depth_m)

    def forward(
        self,
        inputs: Inputs,
        requests: Requests = Requests(),  # noqa: B008 - it is immutable
    ) -> tuple[Tensor, Tensor]:
        """Return the loss, of several ranks this one's part of it, and the report, which is the same in all ranks."""
        with torch.autocast(self.device.type, dtype=self.autocast_dtype, enabled=self.autocast_dtype is not None):
            logits, raw = self.model(inputs.background, inputs.image)  # (B,1,S,S) each, or half of S
        size = logits.shape[-1]
        mask = None if inputs.mask is None else shrink_mask(inputs.mask, size)
        depth_m = None if inputs.depth_m is None else shrink_depth(inputs.depth_m, size)
        names = {name: getattr(self.settings, name) for name in LOSSES}
        scores = sample_losses(logits, raw, mask, depth_m, **names)
        with torch.no_grad():
            if mask is not None:
                scores["iou"] = PerSample(metrics.iou(logits, mask), scores["mask_loss"].has_truth)
            if depth_m is not None:
                delta1 = metrics.delta1(unet_metres(raw), depth_m)
                scores["delta1"] = PerSample(delta1, scores["depth_loss"].has_truth)
            # a mean is over the samples of all ranks that have a truth
            counts = self.ranks.sum(torch.stack([has_truth.sum() for _, has_truth in scores.values()])).clamp(min=1)
        means = {
            name: torch.where(has_truth, values, 0.0).sum() / count
            for (name, (values, has_truth)), count in zip(scores.items(), counts, strict=True)
        }
        loss = sum((means[name] for name in LOSSES if name in means), torch.zeros(()))
        nan = torch.full((), math.nan)
        report = [
            loss.detach(),
            *(means.get(name, nan) for name in ("iou", "delta1")),
            *(torch.tensor(float(request)) for request in requests),
        ]
        return loss, self.ranks.sum(torch.stack([number.to(self.device) for number in report]))


class _StepLog:
    """Reads the reports of steps: checks the loss, moves the position, and shows the means of the last steps."""

    def __init__(self, trainer: Trainer, position: Position, epochs: int, advance: Callable[..., None]):
        self._trainer, self._position, self._epochs, self._advance = trainer, position, epochs, advance
        self._recent: deque[tuple[float, float, float]] = deque(maxlen=_NOTED_STEPS)
        self._read_at = time.monotonic()

    def read(self, started: StartedStep) -> Requests:
        """Wait for a step to finish and read its report; return what was asked for before it, the same in all ranks."""
        position = self._position
        loss, iou, delta1, stops, saves = started.report.tolist()
        if not math.isfinite(loss):
            raise diagnose_bad_loss(self._trainer, started, loss)
        count, now = started.end - position.samples, time.monotonic()
        position.step += 1
        position.samples += count
        position.loss += loss * count
        position.seconds += now - self._read_at
        position.loader = started.loader
        self._read_at = now
        self._recent.append((loss, iou, delta1))
        self._advance(count, note=self._note())
        return Requests(stops > 0, saves > 0)

    def _note(self) -> str:
        means = [sum(values) / len(self._recent) for values in zip(*self._recent, strict=True)]
        named = zip(("loss", "IoU", "delta1"), means, strict=True)
        scores = " ".join(f"{name} {mean:.3f}" for name, mean in named if not math.isnan(mean))
        return f"epoch {self._trainer.epoch + 1} of {self._epochs} {scores}"


def _check_fields(fields: tuple[str, ...]) -> None:
    """Refuse a store without any truth; say what is left out if a store lacks something."""
    if not {"mask", "depth"} & set(fields):
        raise InvalidValueError(
            "store", "got neither masks nor depth, expected one of them to train", "use another store"
        )
    missing = {"background", "mask", "depth"} - set(fields)
    if missing:
        consequences = [f"only the {'depth' if 'mask' in missing else 'mask'} is trained"] * (missing != {"background"})
        consequences += ["the network sees zeros for the background"] * ("background" in missing)
        log.warning("the store has no %s: %s", " and no ".join(sorted(missing)), ", ".join(consequences))


def _make_optimizer(network: UNet, settings: Settings) -> torch.optim.Optimizer:
    """Make the optimizer; weight decay leaves out biases and batch norms."""
    parameters = list(network.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=settings.learning_rate, momentum=_MOMENTUM)
    kind = torch.optim.AdamW if settings.optimizer == "adamw" else torch.optim.Adam
    return kind(groups, lr=settings.learning_rate)
