"""Stage four: a store in, a trained two-headed U-Net out.

A run is a folder. After every epoch it holds, each written atomically,

    checkpoints/epoch-003.pt   network and its average, optimizer, scheduler, settings, store hash, history
    checkpoints/best.pt        the epoch with the best validation mask IoU at the largest picture size so far
    checkpoints/last.pt        where the run goes on; written after all else
    metrics.csv                one line an epoch
    curves.png                 the same, drawn
    predictions.png            fixed validation samples: background, composite, masks and depths, true and predicted

An epoch is a pure function of the checkpoint before it: the order of the samples and every random number follow from
the seed and the epoch's number. So a run killed and resumed equals one left alone, on the CPU bit for bit.
"""

import csv
import io
import logging
import math
import time
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.optim.swa_utils import AveragedModel

from dsgen import layout, metrics
from dsgen.devices import pick_device
from dsgen.errors import DsgenError
from dsgen.jobs import progress
from dsgen.losses import depth_loss, mask_loss
from dsgen.networks import MAX_DEPTH_M
from dsgen.unet import UNet, unet_metres

log = logging.getLogger("dsgen")

FORMAT = "dsgen-unet-1"
SMALLEST = 32
PREDICTIONS = 6
_MASK_SCORES = ("iou", "zero_iou", "dice", "zero_dice", "bce", "blind_bce")
_DEPTH_SCORES = ("abs_rel", "rmse_m", "delta1", "ssim")
_SCORES = (*_MASK_SCORES, *_DEPTH_SCORES)
_COLUMNS = ("epoch", "size", "samples", "seconds", "learning_rate", "train_loss", "validation_loss", *_SCORES)
_BLANK_MARGIN = 0.01
_SLOWER = 0.5


class Batches(Protocol):
    """What training needs of a loader; batches are as `loader.Loader` says."""

    rows: int
    size: int
    has_depth: bool
    sha256: str

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next pass."""

    def __iter__(self) -> Iterator[dict[str, Tensor]]: ...


def train(
    store: Path = Path("shards"),
    run: Path = Path("run"),
    *,
    epochs: int = 10,
    batch_size: int = 8,
    sizes: tuple[int, ...] = (96, 192),
    device: str = "auto",
    seed: int = 0,
    learning_rate: float = 5e-3,
    workers: int = 2,
    width: int = 16,
    dropout: float = 0.0,
    epoch_samples: int | None = None,
    validation_samples: int | None = 1000,
) -> dict[str, float]:
    """Train the U-Net on a store's training split, or go on with a run, and return the best epoch's scores.

    Pictures grow through `sizes` (pixels): every size gets about the same work, so epochs in inverse proportion to
    its pixels, at least one; see `sizes_by_epoch`. `epoch_samples` ends an epoch after so many samples, drawn anew
    each time, and `validation_samples` scores on so many, always the same ones; None means all. Without depth in the
    store the mask alone is trained.

    A run that is there goes on if its settings are the same; only `epochs`, `device` and `workers` may differ, and
    more epochs go on at the size reached. Raises `DsgenError` for other settings, a damaged checkpoint, sizes the
    store does not reach, and a loss that is not a number.
    """
    from dsgen.loader import Loader

    target = pick_device(device)
    train_batches = Loader(store, "train", batch_size, seed=seed, workers=workers)
    validation_batches = Loader(store, "validation", batch_size, seed=seed, workers=workers)
    settings = {
        "batch_size": batch_size,
        "sizes": list(sizes),
        "seed": seed,
        "learning_rate": learning_rate,
        "width": width,
        "dropout": dropout,
        "epoch_samples": epoch_samples,
        "validation_samples": validation_samples,
    }
    return fit(train_batches, validation_batches, run, epochs=epochs, settings=settings, device=target)


def fit(
    train_batches: Batches,
    validation_batches: Batches,
    run: Path,
    *,
    epochs: int,
    settings: dict[str, Any],
    device: torch.device,
) -> dict[str, float]:
    """Do the work of `train` with loaders, settings and a device at hand."""
    check_settings(settings, epochs, train_batches.size)
    with layout.lock(run):
        return _fit(train_batches, validation_batches, run, epochs, settings, device)


def _fit(
    train_batches: Batches,
    validation_batches: Batches,
    run: Path,
    epochs: int,
    settings: dict[str, Any],
    device: torch.device,
) -> dict[str, float]:
    if not train_batches.has_depth:
        log.warning("the store has no depth: training the mask only")
    trainer = Trainer(settings, train_batches.sha256, device)
    checkpoints = run / "checkpoints"
    checkpoints.mkdir(parents=True, exist_ok=True)
    last = checkpoints / "last.pt"
    if last.exists():
        trainer.restore(last)
        log.info("%s: %d of %d epochs done before", run, trainer.epoch, epochs)

    schedule = sizes_by_epoch(epochs, tuple(settings["sizes"]))
    samples = min(train_batches.rows, settings["epoch_samples"] or train_batches.rows)
    done = min(trainer.epoch, epochs)
    with progress("train", epochs * samples, done * samples) as advance:
        while trainer.epoch < epochs:
            size = max(schedule[trainer.epoch], trainer.size)
            trainer.run_epoch(train_batches, validation_batches, size, samples, advance)
            checkpoint = trainer.checkpoint()
            layout.write_bytes(checkpoints / f"epoch-{trainer.epoch:03d}.pt", checkpoint)
            if trainer.best() is trainer.history[-1]:
                layout.write_bytes(checkpoints / "best.pt", checkpoint)
            write_metrics(run / "metrics.csv", trainer.history)
            draw_curves(run / "curves.png", trainer.history)
            draw_predictions(run / "predictions.png", trainer.averaged, validation_batches, size, device)
            layout.write_bytes(last, checkpoint)
            _alarm(trainer.history[-1])
    best = trainer.best()
    if is_blank(best):
        log.error("%s: NO MASKS WERE LEARNT. %s", run, _blank_words(best))
    return {name: value for name, value in best.items() if not math.isnan(value)}


def check_settings(settings: dict[str, Any], epochs: int, store_size: int) -> None:
    """Raise a `DsgenError` for the first setting that cannot be."""
    sizes = settings["sizes"]
    rules = (
        (epochs >= 1, "epochs", epochs, "1 or more"),
        (settings["batch_size"] >= 1, "batch_size", settings["batch_size"], "1 or more"),
        (
            bool(sizes) and all(a >= SMALLEST for a in sizes) and sizes == sorted(set(sizes)),
            "sizes",
            _words(sizes),
            f"pixels from {SMALLEST} up, each larger than the one before",
        ),
        (
            not sizes or max(sizes) <= store_size,
            "sizes",
            _words(sizes),
            f"at most {store_size}, the side of the store's pictures",
        ),
        (0 < settings["learning_rate"] < 1, "learning_rate", settings["learning_rate"], "above 0 and below 1"),
        (settings["width"] >= 1, "width", settings["width"], "1 or more"),
        (0 <= settings["dropout"] < 1, "dropout", settings["dropout"], "0 to below 1"),
        *(
            (settings[name] is None or settings[name] >= 1, name, settings[name], "1 or more")
            for name in ("epoch_samples", "validation_samples")
        ),
    )
    for holds, name, value, rule in rules:
        if not holds:
            raise DsgenError(f"--{name.replace('_', '-')}: got {value}, expected {rule}")


def _words(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def sizes_by_epoch(epochs: int, sizes: tuple[int, ...]) -> list[int]:
    """Say every epoch's picture size: equal work for each size, one epoch at least while there are enough.

    >>> sizes_by_epoch(10, (96, 192))
    [96, 96, 96, 96, 96, 96, 96, 96, 192, 192]
    """
    sizes = sizes[:epochs]
    share = [size**-2 / sum(other**-2 for other in sizes) for size in sizes]
    later = [max(1, round(epochs * part)) for part in share[1:]]
    while sum(later) >= epochs:
        later[later.index(max(later))] -= 1
    return [size for size, count in zip(sizes, [epochs - sum(later), *later], strict=True) for _ in range(count)]


class Trainer:
    """Network, optimizer and scheduler, what they have been through (`history`), and the step from epoch to epoch.

    The learning rate halves when the validation loss has not improved by a thousandth for more than two epochs, and
    when the pictures grow, at which the count starts afresh, since losses of two sizes do not compare.
    """

    def __init__(self, settings: dict[str, Any], store_sha256: str, device: torch.device):
        self.settings, self.store_sha256, self.device = settings, store_sha256, device
        torch.manual_seed(settings["seed"])
        self.network = UNet(settings["width"], settings["dropout"]).to(device).to(memory_format=torch.channels_last)
        self.average = AveragedModel(self.network, multi_avg_fn=_average, use_buffers=True)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=settings["learning_rate"])
        self.scheduler = self._new_scheduler()
        half = torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float16
        self.half = half if device.type == "cuda" else None
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.half is torch.float16)
        self.history: list[dict[str, float]] = []

    def _new_scheduler(self) -> ReduceLROnPlateau:
        return ReduceLROnPlateau(self.optimizer, factor=_SLOWER, patience=2, threshold=1e-3)

    @property
    def averaged(self) -> UNet:
        """The moving average of weights and batch statistics: what is scored, shown and kept as result."""
        return cast(UNet, self.average.module)

    @property
    def epoch(self) -> int:
        """How many epochs are done."""
        return len(self.history)

    @property
    def size(self) -> int:
        """The picture size of the last epoch done, 0 before the first."""
        return int(self.history[-1]["size"]) if self.history else 0

    def best(self) -> dict[str, float]:
        """Return the epoch with the highest mask IoU, the first of equals, among those at the largest size so far."""
        return max((past for past in self.history if past["size"] == self.size), key=lambda past: past["iou"])

    def run_epoch(self, batches: Batches, validation: Batches, size: int, samples: int, advance: Any) -> None:
        """Train for one epoch, score, and note both in the history."""
        started = time.monotonic()
        if self.size not in (0, size):
            for group in self.optimizer.param_groups:
                group["lr"] *= _SLOWER
            self.scheduler = self._new_scheduler()
        torch.manual_seed(self.settings["seed"] * 1_000_003 + self.epoch + 1)
        dice = torch.Generator().manual_seed(self.settings["seed"] * 1_000_003 + self.epoch + 1)
        batches.set_epoch(self.epoch)
        rate = self.optimizer.param_groups[0]["lr"]
        self.network.train()
        losses = []
        for batch in take(batches, samples):
            losses.append((self._step(batch, size, dice), len(batch["row"])))
            recent = sum(loss for loss, _ in losses[-20:]) / len(losses[-20:])
            known = f" IoU {self.history[-1]['iou']:.3f}" if self.history else ""
            advance(len(batch["row"]), note=f"epoch {self.epoch + 1} at {size} loss {recent:.3f}{known}")
        scores = evaluate(self.averaged, validation, size, self.device, self.settings["validation_samples"], self.half)
        self.scheduler.step(scores["validation_loss"])
        seen = sum(count for _, count in losses)
        self.history.append(
            {
                "epoch": self.epoch + 1,
                "size": size,
                "samples": seen,
                "seconds": round(time.monotonic() - started, 2),
                "learning_rate": rate,
                "train_loss": sum(loss * count for loss, count in losses) / seen,
                **scores,
            }
        )

    def _step(self, batch: dict[str, Tensor], size: int, dice: torch.Generator) -> float:
        background, image, mask, depth_m = jitter(*prepare(batch, size, self.device), dice)
        with torch.autocast(self.device.type, dtype=self.half, enabled=self.half is not None):
            logits, raw = self.network(background, image)
        loss = total_loss(logits, raw, mask, depth_m)
        value = loss.item()
        if not math.isfinite(value):
            rows = ", ".join(map(str, batch["row"].tolist()))
            raise DsgenError(
                f"training: the loss is {value} in epoch {self.epoch + 1}, rows {rows}; check these samples, "
                "or lower --learning-rate"
            )
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.average.update_parameters(self.network)
        return value

    def checkpoint(self) -> bytes:
        """Encode all that the next epoch depends on."""
        buffer = io.BytesIO()
        torch.save(
            {
                "format": FORMAT,
                "settings": self.settings,
                "store_sha256": self.store_sha256,
                "config": self.network.config,
                "network": self.averaged.state_dict(),
                "average": self.average.n_averaged,
                "training": self.network.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "scheduler": self.scheduler.state_dict(),
                "scaler": self.scaler.state_dict(),
                "history": self.history,
            },
            buffer,
        )
        return buffer.getvalue()

    def restore(self, path: Path) -> None:
        """Go back to a checkpoint; other settings or another store are a `DsgenError`."""
        saved = read_checkpoint(path)
        ours = {**self.settings, "store": self.store_sha256}
        theirs = {**saved["settings"], "store": saved["store_sha256"]}
        for name, value in ours.items():
            if theirs.get(name) != value:
                raise DsgenError(
                    f"{path}: this run's {name.replace('_', '-')} was {_words(theirs.get(name))}, now "
                    f"{_words(value)}; use the same, or another --run"
                )
        try:
            self.network.load_state_dict(saved["training"])
            self.averaged.load_state_dict(saved["network"])
            self.average.n_averaged.copy_(saved["average"])
            self.optimizer.load_state_dict(saved["optimizer"])
            self.scheduler.load_state_dict(saved["scheduler"])
            if saved["scaler"]:  # empty unless the run was in float16
                self.scaler.load_state_dict(saved["scaler"])
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            raise _damaged(path, error) from error
        self.history = saved["history"]


@torch.no_grad()
def _average(averages: Sequence[Tensor], values: Sequence[Tensor], updates: Tensor | int) -> None:
    """Move averages towards values: all the way at first, in the end a hundredth a step.

    Single steps of Adam on small batches can leave batch statistics and weights far apart for a moment, and an epoch
    that ended then would score as if nothing were learnt; their average over about a hundred steps does not.
    """
    share = max(0.01, 9 / (float(updates) + 9))
    for average, value in zip(averages, values, strict=True):
        if average.is_floating_point():
            average.lerp_(value, share)
        else:
            average.copy_(value)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a training checkpoint onto the CPU without running any code in it; any other file is a `DsgenError`."""
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise DsgenError(f"{path}: no such checkpoint; run dsgen train") from error
    except Exception as error:  # torch.load raises what it pleases on damaged files
        raise _damaged(path, error) from error
    if not isinstance(saved, dict) or saved.get("format") != FORMAT:
        raise DsgenError(f"{path}: not a checkpoint of dsgen train (expected format {FORMAT}); take another file")
    return saved


def _damaged(path: Path, error: Exception) -> DsgenError:
    reason = (str(error) or type(error).__name__).splitlines()[0]
    return DsgenError(f"{path}: damaged checkpoint ({reason}); copy the newest whole epoch over it, or remove the run")


def load_network(path: Path, device: str = "cpu") -> UNet:
    """Load the trained network out of a checkpoint, ready to predict."""
    saved = read_checkpoint(path)
    try:
        network = UNet(**saved["config"])
        network.load_state_dict(saved["network"])
    except (RuntimeError, KeyError, TypeError) as error:
        raise _damaged(path, error) from error
    return network.to(pick_device(device)).to(memory_format=torch.channels_last).eval()


def take(batches: Batches, samples: int | None) -> Iterator[dict[str, Tensor]]:
    """Yield batches until there have been `samples`, cutting the last one; None means all."""
    if samples is None:
        yield from batches
        return
    left = samples
    for batch in batches:
        yield {name: values[:left] for name, values in batch.items()}
        left -= len(batch["row"])
        if left <= 0:
            return


def prepare(batch: dict[str, Tensor], size: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Turn a loader's batch into background and image (B,3,S,S) in 0..1, mask (B,1,S,S) 0 or 1, depth (B,1,S,S) metres.

    Pictures and masks shrink by antialiased averaging, after which a mask pixel counts from one half on. Depth takes
    the nearest pixel: an average of two surfaces would be the depth of neither, and 0 stays the mark of none.
    """

    def shrink(pictures: Tensor) -> Tensor:
        pictures = pictures.float().div_(255)
        if pictures.shape[-1] == size:
            return pictures
        return F.interpolate(pictures, size=(size, size), mode="bilinear", antialias=True)

    background, image = (
        shrink(batch[name].to(device).permute(0, 3, 1, 2)).contiguous(memory_format=torch.channels_last)
        for name in ("background", "image")
    )
    mask = (shrink(batch["mask"].to(device)[:, None]) >= 0.5).float()
    if "depth" not in batch:
        return background, image, mask, None
    depth_m = batch["depth"].to(torch.int32).to(device)[:, None].float() / 1000
    return background, image, mask, F.interpolate(depth_m, size=(size, size), mode="nearest-exact")


def jitter(
    background: Tensor, image: Tensor, mask: Tensor, depth_m: Tensor | None, dice: torch.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Vary light and colour of background and image alike, and mirror half the samples, all from `dice`.

    Per sample and channel a gain of 0.7..1.3, per sample an offset of -0.1..0.1. What differs between background and
    image is the foreground alone, before and after.
    """
    count = len(image)
    gain = torch.empty(count, 3, 1, 1).uniform_(0.7, 1.3, generator=dice).to(image.device)
    offset = torch.empty(count, 1, 1, 1).uniform_(-0.1, 0.1, generator=dice).to(image.device)
    mirrored = (torch.rand(count, 1, 1, 1, generator=dice) < 0.5).to(image.device)

    def mirror(maps: Tensor) -> Tensor:
        return torch.where(mirrored, maps.flip(3), maps)

    background, image = (
        mirror((picture * gain + offset).clamp(0, 1)).contiguous(memory_format=torch.channels_last)
        for picture in (background, image)
    )
    return background, image, mirror(mask), None if depth_m is None else mirror(depth_m)


def total_loss(logits: Tensor, raw: Tensor, mask: Tensor, depth_m: Tensor | None) -> Tensor:
    """Add up the losses of the two heads; without a true depth the mask's stands alone."""
    loss = mask_loss(logits, mask)
    return loss if depth_m is None else loss + depth_loss(raw, depth_m)


@torch.no_grad()
def evaluate(
    network: UNet,
    batches: Batches,
    size: int,
    device: torch.device,
    samples: int | None = None,
    half: torch.dtype | None = None,
) -> dict[str, float]:
    """Score a network: means over samples of the loss and of every score; nan for depth where there is none.

    `zero_iou` and `zero_dice` are what an all-zero mask gets, `blind_bce` the least one answer for all pixels gets.
    """
    network.eval()
    batches.set_epoch(0)
    found: dict[str, list[Tensor]] = {name: [] for name in ("validation_loss", *_SCORES)}
    for batch in take(batches, samples):
        background, image, mask, depth_m = prepare(batch, size, device)
        with torch.autocast(device.type, dtype=half, enabled=half is not None):
            logits, raw = network(background, image)
        logits = logits.float()
        nothing = torch.full_like(logits, -1.0)
        per_sample = {
            "validation_loss": total_loss(logits, raw, mask, depth_m).expand(len(mask)),
            "iou": metrics.iou(logits, mask),
            "zero_iou": metrics.iou(nothing, mask),
            "dice": metrics.dice(logits, mask),
            "zero_dice": metrics.dice(nothing, mask),
            "bce": metrics.bce(logits, mask),
            "blind_bce": metrics.blind_bce(mask),
        }
        if depth_m is not None:
            metres = unet_metres(raw)
            per_sample |= {
                "abs_rel": metrics.abs_rel(metres, depth_m),
                "rmse_m": metrics.rmse(metres, depth_m),
                "delta1": metrics.delta1(metres, depth_m),
                "ssim": metrics.ssim(metres, depth_m, MAX_DEPTH_M, metrics.valid_depth(depth_m)),
            }
        for name, values in per_sample.items():
            found[name].append(values.cpu())
    return {name: torch.cat(values).nanmean().item() if values else math.nan for name, values in found.items()}


def is_blank(scores: dict[str, float]) -> bool:
    """Say whether the masks are no better than all-zero ones."""
    return not scores["iou"] > scores["zero_iou"] + _BLANK_MARGIN


def _blank_words(scores: dict[str, float]) -> str:
    return (
        f"Validation mask IoU {scores['iou']:.3f}, an all-zero mask scores {scores['zero_iou']:.3f}: "
        "train longer, lower --learning-rate, and look at predictions.png"
    )


def _alarm(scores: dict[str, float]) -> None:
    if is_blank(scores):
        log.error("epoch %d: THE MASKS ARE BLANK. %s", scores["epoch"], _blank_words(scores))


def write_metrics(path: Path, history: list[dict[str, float]]) -> None:
    """Write one line an epoch; a score there is none of is empty."""
    text = io.StringIO(newline="")
    table = csv.writer(text, lineterminator="\n")
    table.writerow(_COLUMNS)
    for past in history:
        table.writerow("" if math.isnan(past[name]) else f"{past[name]:.6g}" for name in _COLUMNS)
    layout.write_bytes(path, text.getvalue().encode())


def draw_curves(path: Path, history: list[dict[str, float]]) -> None:
    """Draw losses and scores by epoch as a PNG; a dotted line marks where the pictures grow."""
    from matplotlib.figure import Figure

    panels = (
        ("loss", ("train_loss", "validation_loss")),
        ("mask", ("iou", "dice", "zero_iou")),
        ("cross-entropy", ("bce", "blind_bce")),
        ("depth error", ("abs_rel", "rmse_m")),
        ("depth agreement", ("delta1", "ssim")),
    )
    figure = Figure(figsize=(4 * len(panels), 3.4))
    figure.subplots_adjust(left=0.03, right=0.99, bottom=0.15, top=0.9, wspace=0.2)
    epochs = [past["epoch"] for past in history]
    for axes, (title, names) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        for name in names:
            axes.plot(epochs, [past[name] for past in history], marker="o", markersize=3, label=name)
        for before, after in pairwise(history):
            if before["size"] != after["size"]:
                axes.axvline(after["epoch"] - 0.5, color="grey", linestyle=":")
        axes.set_title(title)
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend(fontsize="small")
    _write_figure(path, figure)


def _write_figure(path: Path, figure: Any) -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    layout.write_bytes(path, buffer.getvalue())


@torch.no_grad()
def draw_predictions(path: Path, network: UNet, batches: Batches, size: int, device: torch.device) -> None:
    """Draw the first few validation samples, always the same, as a PNG with one row a sample."""
    from matplotlib.figure import Figure

    network.eval()
    batches.set_epoch(0)
    parts = [prepare(batch, size, device) for batch in take(batches, PREDICTIONS)]
    background, image, mask = (torch.cat([part[k] for part in parts]) for k in range(3))  # type: ignore[misc]
    logits, raw = network(background, image)
    columns: dict[str, Tensor] = {
        "background": background,
        "composite": image,
        "mask": mask,
        "predicted mask": logits.sigmoid(),
    }
    if parts[0][3] is not None:
        columns["depth, 0 to 10 m"] = torch.cat([part[3] for part in parts])  # type: ignore[misc]
        columns["predicted depth"] = unet_metres(raw)
    pixels = np.concatenate([_shown(title, maps) for title, maps in columns.items()], axis=2)
    height = 2 * len(mask)
    figure = Figure(figsize=(2 * len(columns), height + 0.4))
    axes = figure.add_axes((0, 0, 1, height / (height + 0.4)))
    axes.imshow(pixels.reshape(-1, *pixels.shape[2:]), aspect="auto")
    axes.axis("off")
    for k, title in enumerate(columns):
        axes.text((k + 0.5) / len(columns), 1.02, title, transform=axes.transAxes, ha="center")
    _write_figure(path, figure)


def _shown(title: str, maps: Tensor) -> np.ndarray:
    """Colour maps (B,C,H,W) for people to look at: (B,H,W,3) in 0..1 with a white edge on two sides."""
    from matplotlib import colormaps

    shown = maps.float().permute(0, 2, 3, 1).cpu().numpy()
    if "depth" in title:
        shown = colormaps["turbo"](shown[..., 0] / MAX_DEPTH_M)[..., :3]
    # averaging may leave a picture's white a rounding error above 1
    shown = np.repeat(shown, 3 // shown.shape[3], axis=3).clip(0, 1)
    return np.pad(shown, ((0, 0), (0, 2), (0, 2), (0, 0)), constant_values=1)
