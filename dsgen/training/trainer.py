"""The training loop: what a run has learnt so far, and the steps that teach it more."""

import copy
import hashlib
import io
import logging
import math
import time
from collections import deque
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dsgen import __version__
from dsgen.errors import ConflictError, DsgenError, find_differences, in_words, option
from dsgen.parallel.devices import autocast_dtype
from dsgen.store.arena import Batch
from dsgen.training import metrics
from dsgen.training.augment import augment
from dsgen.training.batches import Batches, prepare, shrink_depth, shrink_mask, take
from dsgen.training.checkpoint import FORMAT, damaged, read_checkpoint
from dsgen.training.interrupts import Pauses
from dsgen.training.losses import DEPTH_LOSSES, MASK_LOSSES
from dsgen.training.ranks import Ranks
from dsgen.training.report import SCORES, draw_sheet, save_batch
from dsgen.training.schedule import learning_rate, sizes_by_epoch
from dsgen.training.settings import Settings
from dsgen.training.unet import UNet, unet_metres
from dsgen.units import MAX_DEPTH_M

log = logging.getLogger("dsgen")
DEFAULTS = Settings()
PREDICTIONS = 6
_MOMENTUM = 0.9
_RECENT = 20  # steps
Fed = tuple[Tensor, Tensor, Tensor | None, Tensor | None]


class _Launched(NamedTuple):
    """A step under way: its numbers are on the device, and may not be known yet."""

    report: Tensor
    batch: Batch
    fed: Fed
    end: int
    state: dict[str, Any]


class Trainer:
    """Network, optimizer, what they have been through (`history`), and the way from epoch to epoch.

    Amid an epoch `place` says where in it: its size, the loader's state, the steps, samples and seconds done, the sum
    of the losses, and the last learning rate. Several processes hold the same, and get their parts of each batch.
    """

    def __init__(
        self,
        settings: Settings,
        parts: tuple[str, ...],
        store_sha256: str | None,
        device: torch.device,
        ranks: Ranks = Ranks(),  # noqa: B008 - it is frozen
        mean_depth_m: float | None = None,
    ):
        if not {"mask", "depth"} & set(parts):
            raise DsgenError(
                "store", "got neither masks nor depth, expected one of them to train", "take another store"
            )
        if missing := {"background", "mask", "depth"} - set(parts):
            log.warning("the store has no %s: %s", " and no ".join(sorted(missing)), _without(missing))
        self.settings, self.parts, self.store_sha256, self.device = settings, parts, store_sha256, device
        self.ranks, self.mean_depth_m = ranks, mean_depth_m
        torch.manual_seed(settings.seed)
        network = ranks.synchronise(UNet(**settings.network()), device)
        self.network: UNet = network.to(device).to(memory_format=torch.channels_last)  # type: ignore[assignment]
        self.averaged = copy.deepcopy(self.network) if settings.average else self.network
        model = ranks.parallel(self.network, unused=not {"mask", "depth"} <= set(parts))
        self.model = torch.compile(model, dynamic=False) if settings.compile else model
        self.optimizer = _make_optimizer(self.network, settings)
        self.half = autocast_dtype(settings.precision, device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.half is torch.float16)
        self.steps = 0
        self.init_sha256: str | None = None
        self.history: list[dict[str, float]] = []
        self.place: dict[str, Any] | None = None
        self._shown: Batch | None = None

    @property
    def epoch(self) -> int:
        """How many epochs are done."""
        return len(self.history)

    @property
    def size(self) -> int:
        """The picture size of the last epoch done, 0 before the first."""
        return int(self.history[-1]["size"]) if self.history else 0

    def sizes(self, epochs: int) -> list[int]:
        """Return the picture size of every epoch, done or to come; pictures never shrink."""
        sizes = [int(past["size"]) for past in self.history]
        for size in sizes_by_epoch(epochs, self.settings.sizes)[self.epoch :]:
            sizes.append(max(size, *sizes[-1:], self.place["size"] if self.place else 0))
        return sizes

    def best(self) -> dict[str, float]:
        """Return the best epoch, the first of equals, among those at the largest size so far.

        It has the highest mask IoU, or where there are no masks the lowest loss.
        """
        score = "iou" if "mask" in self.parts else "validation_loss"
        sign = 1 if "mask" in self.parts else -1
        return max((past for past in self.history if past["size"] == self.size), key=lambda past: sign * past[score])

    def describe(self, epochs: int) -> dict[str, Any]:
        """Return what the run was started with, for people to read."""
        return {
            "dsgen": __version__,
            "torch": torch.__version__,
            "settings": self.settings.as_dict(),
            "epochs": epochs,
            "sizes_by_epoch": self.sizes(epochs),
            "device": str(self.device),
            "processes": self.ranks.count,
            "arithmetic": str(self.half or torch.float32).removeprefix("torch."),
            "parameters": sum(parameter.numel() for parameter in self.network.parameters()),
            "store_sha256": self.store_sha256,
            "store_parts": list(self.parts),
            "init_sha256": self.init_sha256,
        }

    def run_epoch(
        self,
        batches: Batches,
        validation: Batches,
        size: int,
        samples: int,
        epochs: int,
        run: Path,
        pauses: "Pauses",
        advance: Callable[..., None],
    ) -> None:
        """Train for one epoch, or what is left of it, score, and note both in the history."""
        batches.set_epoch(self.epoch)
        if self.place is None:
            self.place = {"size": size, "loader": batches.state_dict(), "step": 0, "samples": 0}
            self.place |= {"loss": 0.0, "rate": math.nan, "seconds": 0.0}
        else:
            batches.load_state_dict(self.place["loader"])
        self.network.train()
        self._train(batches, size, samples, epochs, run, pauses, advance)
        started = time.monotonic()
        scores = evaluate(
            self.averaged,
            validation,
            size,
            self.device,
            self.settings,
            samples=self.settings.validation_samples,
            half=self.half,
            mean_depth_m=self.mean_depth_m,
            ranks=self.ranks,
            between=pauses.stop_if_asked if self.ranks.count == 1 else None,
        )
        place, self.place = self.place, None
        self.history.append(
            {
                "epoch": self.epoch + 1,
                "size": size,
                "samples": place["samples"],
                "seconds": round(place["seconds"] + time.monotonic() - started, 2),
                "images_per_second": round(place["samples"] / max(place["seconds"], 1e-9), 1),
                "learning_rate": place["rate"],
                "train_loss": place["loss"] / place["samples"],
                **scores,
            }
        )

    def _train(
        self,
        batches: Batches,
        size: int,
        samples: int,
        epochs: int,
        run: Path,
        pauses: "Pauses",
        advance: Callable[..., None],
    ) -> None:
        """Do the steps of an epoch, or those that are left.

        Numbers of a step are looked at when the next one has been launched, so a device with a queue is never idle.
        """
        assert self.place is not None
        place = self.place
        recent: deque[tuple[float, float, float]] = deque(maxlen=_RECENT)
        clock = time.monotonic()

        def settle(launched: _Launched) -> bool:
            """Take note of a step's numbers; say whether any process was asked to stop before it."""
            nonlocal clock
            loss, iou, delta1, stops = launched.report.tolist()
            if not math.isfinite(loss):
                raise self._not_a_number(loss, launched, run)
            count, now = launched.end - place["samples"], time.monotonic()
            place["step"] += 1
            place["samples"] += count
            place["loss"] += loss * count
            place["seconds"] += now - clock
            place["loader"] = launched.state
            clock = now
            recent.append((loss, iou, delta1))
            advance(count, note=_note(self.epoch + 1, epochs, recent))
            return stops > 0

        begin, asked, sizes = place["samples"], False, self.sizes(epochs)
        pending: _Launched | None = None
        with closing(take(batches, samples, self.ranks)) as given:  # what is raised would keep its threads
            for step, (batch, end) in enumerate(given, place["step"]):
                share = (begin + end) / 2 / samples
                place["rate"] = learning_rate(self.settings, self.history, sizes, share)
                report, fed = self._launch(batch, size, step, place["rate"], pauses.asked())
                launched = _Launched(report, batch, fed, end, batches.state_dict())
                asked = asked or (pending is not None and settle(pending)) or (self.ranks.count == 1 and pauses.asked())
                pending, begin = launched, end
                if asked or pauses.due():
                    # of several processes, who asks in this very step is heard in the next one, by all alike
                    asked_now, pending = settle(launched), None
                    pauses.save(stop=asked)
                    asked = asked_now
        asked = asked or (pending is not None and settle(pending))
        if asked:
            pauses.save(stop=True)

    def _launch(self, batch: Batch, size: int, step: int, rate: float, asked: bool) -> tuple[Tensor, Fed]:
        """Begin a step; return its report (loss, IoU, delta1, processes asked to stop) and what was fed."""
        reason = None
        try:
            return self._step(batch, size, step, rate, asked)
        except RuntimeError as error:
            if not _is_out_of_memory(error):
                raise
            # as long as the error lives its traceback keeps the tensors
            reason = str(error).splitlines()[0]
        raise self._too_large(batch, size, reason)

    def _step(self, batch: Batch, size: int, step: int, rate: float, asked: bool) -> tuple[Tensor, Fed]:
        seed = int(np.random.SeedSequence([self.settings.seed, self.epoch, step]).generate_state(1)[0])
        torch.manual_seed(seed + self.ranks.rank)  # for dropout, which differs by process
        fed = self._feed(batch, size, torch.Generator().manual_seed(seed))
        loss, report = self._forward(fed, asked)
        self.optimizer.zero_grad(set_to_none=True)
        # gradients are averaged over processes, losses are parts of a sum
        self.scaler.scale(loss * self.ranks.count).backward()
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
        return report, fed

    def _feed(self, batch: Batch, size: int, dice: torch.Generator) -> Fed:
        """Prepare and augment a batch."""
        background, image, mask, depth_m = prepare(batch, size, self.device)
        # of pictures without a mask nothing is known to be background
        inside = mask if "mask" in batch else torch.ones_like(mask)
        strength, ranks = self.settings.augment, self.ranks
        background, image, inside, depth_m = augment(
            background, image, inside, depth_m, dice, strength, rank=ranks.rank, ranks=ranks.count
        )
        if "background" not in batch:
            background = torch.zeros_like(image)
        return background, image, inside if "mask" in batch else None, depth_m

    def _forward(self, fed: Fed, asked: bool = False) -> tuple[Tensor, Tensor]:
        """Return the loss, of several processes this one's part of it, and the report, which is on all."""
        background, image, mask, depth_m = fed
        with torch.autocast(self.device.type, dtype=self.half, enabled=self.half is not None):
            logits, raw = self.model(background, image)
        mask = None if mask is None else shrink_mask(mask, logits.shape[-1])
        depth_m = None if depth_m is None else shrink_depth(depth_m, logits.shape[-1])
        values = sample_losses(self.settings, logits, raw, mask, depth_m)
        with torch.no_grad():
            if mask is not None:
                values["iou"] = metrics.iou(logits, mask), values["mask_loss"][1]
            if depth_m is not None:
                values["delta1"] = metrics.delta1(unet_metres(raw), depth_m), values["depth_loss"][1]
            counts = self.ranks.sum(torch.stack([known.sum() for _, known in values.values()])).clamp(min=1)
        means = {
            name: torch.where(known, value, 0.0).sum() / count
            for (name, (value, known)), count in zip(values.items(), counts, strict=True)
        }
        loss = sum((means[name] for name in ("mask_loss", "depth_loss") if name in means), torch.zeros(()))
        none = torch.full((), math.nan)
        numbers = [loss.detach(), *(means.get(name, none) for name in ("iou", "delta1")), torch.tensor(float(asked))]
        return loss, self.ranks.sum(torch.stack([number.to(self.device) for number in numbers]))

    def _not_a_number(self, loss: float, launched: _Launched, run: Path) -> DsgenError:
        """Save a step's batch, of all processes, and make the error that names it."""
        parts = self.ranks.gather({name: values.cpu() for name, values in launched.batch.items()})
        batch = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        if self.ranks.first:
            save_batch(run / "bad-batch.npz", batch)
            background, image, mask, depth_m = launched.fed
            maps = {"background": background, "composite": image, "mask": mask, "depth": depth_m}
            draw_sheet(run / "bad-batch.png", {name: value for name, value in maps.items() if value is not None})
        rows = ", ".join(map(str, batch["row"].tolist()))
        assert self.place is not None
        return DsgenError(
            "training",
            f"the loss is {loss} in epoch {self.epoch + 1}, step {self.place['step'] + 1}, rows {rows}",
            f"check {run / 'bad-batch.npz'} and .png, which hold them, or lower --learning-rate",
        )

    def _too_large(self, batch: Batch, size: int, reason: str) -> DsgenError:
        """Find out how large a batch fits, and make the error that says it. The trainer is of no use after that."""
        given = len(batch["row"]) * self.ranks.count
        asked = in_words(self.settings.batch_size)
        what, text = "--batch-size", f"got {asked}, too large at {size} px for the memory of {self.device} ({reason})"
        if self.ranks.count > 1:  # a trial needs all of them
            return DsgenError(what, text, f"try {max(self.ranks.count, given // 2)}")
        fit = given
        while fit > 1:
            fit //= 2
            if self._fits({name: values[:fit] for name, values in batch.items()}, size):
                return DsgenError(what, text, f"a step of {fit} fits")
        remedy = "not even one sample fits, take smaller --sizes or --width, or another device"
        return DsgenError(what, text, remedy)

    def _fits(self, batch: Batch, size: int) -> bool:
        self.optimizer.zero_grad(set_to_none=True)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        try:
            loss, _ = self._forward(self._feed(batch, size, torch.Generator().manual_seed(0)))
            loss.backward()
        except RuntimeError as error:
            if not _is_out_of_memory(error):
                raise
            return False
        return True

    @torch.no_grad()
    def predictions(self, validation: Batches, size: int) -> dict[str, Tensor]:
        """Answer the first few validation samples, always the same; return titled maps for `draw_sheet`."""
        if self._shown is None:
            validation.set_epoch(0)
            batches = [batch for batch, _ in take(validation, PREDICTIONS * self.ranks.count, self.ranks)]
            self._shown = {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}
        background, image, mask, depth_m = prepare(self._shown, size, self.device)
        logits, raw = self.averaged.eval()(background, image)
        maps = {
            "background": background if "background" in self.parts else None,
            "composite": image,
            "mask": mask if "mask" in self.parts else None,
            "predicted mask": logits.sigmoid() if "mask" in self.parts else None,
            "depth": depth_m,
            "predicted depth": unet_metres(raw) if depth_m is not None else None,
        }
        return {title: values for title, values in maps.items() if values is not None}

    def checkpoint(self) -> bytes:
        """Encode all that the next step depends on."""
        buffer = io.BytesIO()
        torch.save(
            {
                "format": FORMAT,
                "settings": self.settings.as_dict(),
                "store_sha256": self.store_sha256,
                "init_sha256": self.init_sha256,
                "config": self.network.config,
                "network": self.averaged.state_dict(),
                "training": self.network.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict(),
                "steps": self.steps,
                "history": self.history,
                "place": self.place,
            },
            buffer,
        )
        return buffer.getvalue()

    def begin_with(self, path: Path) -> None:
        """Take a checkpoint's weights to begin with; those of another network are a `DsgenError`."""
        saved = read_checkpoint(path)
        try:
            differences = find_differences(_as_options(self.network.config), _as_options(saved["config"]))
            if differences:
                raise ConflictError(
                    "--init", f"{path} is of another network", "give the same", differences, "checkpoint"
                )
            for network in {self.network, self.averaged}:
                network.load_state_dict(saved["network"])
        except (RuntimeError, KeyError, TypeError, AttributeError) as error:
            raise damaged(path, error) from error
        self.init_sha256 = hashlib.sha256(path.read_bytes()).hexdigest()

    def restore(self, path: Path) -> None:
        """Go back to a checkpoint.

        Other settings, another store and, if one was begun with, another checkpoint to begin with are a `DsgenError`
        that names all differences.
        """
        saved = read_checkpoint(path)
        try:
            now = {**self.settings.as_dict(), "store": self.store_sha256}
            was = {**saved["settings"], "store": saved["store_sha256"]}
            if self.init_sha256 is not None:
                now["init"], was["init"] = self.init_sha256, saved.get("init_sha256")
            differences = find_differences(_as_options(now), _as_options(was))
            if differences:
                remedy = "give the same, or another --run"
                raise ConflictError(path.parent.parent, "begun with other settings", remedy, differences, "run")
            self.network.load_state_dict(saved["training"])
            self.averaged.load_state_dict(saved["network"])
            self.optimizer.load_state_dict(saved["optimizer"])
            if saved["scaler"] and self.scaler.is_enabled():  # empty unless the run was in float16
                self.scaler.load_state_dict(saved["scaler"])
            self.init_sha256 = saved.get("init_sha256")
            self.steps, self.history, self.place = saved["steps"], saved["history"], saved["place"]
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            raise damaged(path, error) from error


def _note(epoch: int, epochs: int, recent: deque[tuple[float, float, float]]) -> str:
    """Say for the progress display how the last steps went."""
    means = [sum(values) / len(recent) for values in zip(*recent, strict=True)]
    scores = zip(("loss", "IoU", "delta1"), means, strict=True)
    return f"epoch {epoch} of {epochs} " + " ".join(f"{name} {mean:.3f}" for name, mean in scores if mean == mean)


def _as_options(settings: dict[str, Any]) -> dict[str, str]:
    """Write settings as options."""
    return {"store" if name == "store" else option(name): in_words(settings[name]) for name in settings}


def _without(missing: set[str]) -> str:
    """Say what is done without parts of a store."""
    if missing == {"background"}:
        return "the network is shown none"
    trained = "depth" if "mask" in missing else "mask"
    return f"training the {trained} only" + (", the network is shown no background" if "background" in missing else "")


def _make_optimizer(network: UNet, settings: Settings) -> torch.optim.Optimizer:
    """Make the optimizer; biases and batch norms do not decay."""
    parameters = list(network.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=settings.learning_rate, momentum=_MOMENTUM)
    kind = torch.optim.AdamW if settings.optimizer == "adamw" else torch.optim.Adam
    return kind(groups, lr=settings.learning_rate)


def _is_out_of_memory(error: RuntimeError) -> bool:
    """Tell an allocation that failed from other errors; the CPU's allocator has no error of its own."""
    words = "not enough memory", "can't allocate memory", "Cannot allocate memory"
    return isinstance(error, torch.OutOfMemoryError) or any(text in str(error) for text in words)


@torch.no_grad()
def update_ema(averaged: torch.nn.Module, network: torch.nn.Module, steps: int) -> None:
    """Move averages of weights and batch statistics: all the way at first, in the end a hundredth a step.

    Single steps of Adam on small batches can leave batch statistics and weights far apart for a moment, and an epoch
    that ended then would score as if nothing were learnt; their average over about a hundred steps does not.
    """
    share = max(0.01, 9 / (steps + 8))
    pairs = list(zip(averaged.state_dict().values(), network.state_dict().values(), strict=True))
    floats = [pair for pair in pairs if pair[0].is_floating_point()]
    torch._foreach_lerp_([average for average, _ in floats], [value for _, value in floats], share)
    for average, value in pairs:
        if not average.is_floating_point():
            average.copy_(value)


def sample_losses(
    settings: Settings, logits: Tensor, raw: Tensor, mask: Tensor | None, depth_m: Tensor | None
) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the losses of mask and depth where there is a truth: each sample's, and which samples have it, (B,)."""
    values = {}
    if mask is not None:
        values["mask_loss"] = MASK_LOSSES[settings.mask_loss](logits, mask), torch.ones_like(mask[:, 0, 0, 0]).bool()
    if depth_m is not None:
        known = metrics.valid_depth(depth_m).flatten(1).any(1)
        values["depth_loss"] = DEPTH_LOSSES[settings.depth_loss](raw, depth_m), known
    return values


@torch.no_grad()
def evaluate(
    network: UNet,
    batches: Batches,
    size: int,
    device: torch.device,
    settings: Settings = DEFAULTS,
    *,
    samples: int | None = None,
    half: torch.dtype | None = None,
    mean_depth_m: float | None = None,
    ranks: Ranks = Ranks(),  # noqa: B008 - it is frozen
    between: Callable[[], None] | None = None,
) -> dict[str, float]:
    """Score a network: means over samples of the loss and of every score; nan where there is no truth.

    `zero_iou` and `zero_dice` are what an all-zero mask gets, `blind_bce` the least one answer for all pixels gets,
    and `mean_depth_abs_rel` and `mean_depth_delta1` what `mean_depth_m` everywhere gets. `between` is called before
    each batch.
    """
    network.eval()
    batches.set_epoch(0)
    sums: dict[str, Tensor] = {}
    with closing(take(batches, samples, ranks)) as given:
        for batch, _ in given:
            if between is not None:
                between()
            background, image, true_mask, depth_m = prepare(batch, size, device)
            with torch.autocast(device.type, dtype=half, enabled=half is not None):
                logits, raw = network(background, image)
            if logits.shape[-1] != size:
                _, _, true_mask, depth_m = prepare(batch, logits.shape[-1], device)
            mask = true_mask if "mask" in batch else None
            values = sample_losses(settings, logits, raw, mask, depth_m)
            if mask is not None:
                nothing, all_known = torch.full_like(mask, -1.0), values["mask_loss"][1]
                values |= {
                    "iou": (metrics.iou(logits, mask), all_known),
                    "zero_iou": (metrics.iou(nothing, mask), all_known),
                    "dice": (metrics.dice(logits, mask), all_known),
                    "zero_dice": (metrics.dice(nothing, mask), all_known),
                    "bce": (metrics.bce(logits, mask), all_known),
                    "blind_bce": (metrics.blind_bce(mask), all_known),
                }
            if depth_m is not None:
                metres, known = unet_metres(raw), values["depth_loss"][1]
                likeness = metrics.ssim(metres, depth_m, MAX_DEPTH_M, metrics.valid_depth(depth_m))
                values |= {
                    "abs_rel": (metrics.abs_rel(metres, depth_m), known),
                    "rmse_m": (metrics.rmse(metres, depth_m), known),
                    "delta1": (metrics.delta1(metres, depth_m), known),
                    "ssim": (likeness, ~likeness.isnan()),
                }
                if mean_depth_m is not None:
                    mean_m = torch.full_like(depth_m, mean_depth_m)
                    values["mean_depth_abs_rel"] = metrics.abs_rel(mean_m, depth_m), known
                    values["mean_depth_delta1"] = metrics.delta1(mean_m, depth_m), known
            for name, (value, counts) in values.items():
                total = torch.stack([torch.where(counts, value, 0.0).sum(), counts.sum()]).double().cpu()
                sums[name] = sums.get(name, 0) + total
    names = sorted(sums)
    totals = ranks.sum(torch.stack([sums[name] for name in names]).to(device)).tolist()
    means = {name: total / count if count else math.nan for name, (total, count) in zip(names, totals, strict=True)}
    losses = [means[name] for name in ("mask_loss", "depth_loss") if name in means]
    return {**dict.fromkeys(SCORES, math.nan), **means, "validation_loss": math.fsum(losses)}
