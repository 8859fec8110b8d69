"""Stage four: a store in, a trained two-headed U-Net out.

A run is a folder. It holds, each file written atomically,

    config.json                what the run was started with, for people to read
    checkpoints/last.pt        where the run goes on: at the end of an epoch, every few minutes, and when interrupted
    checkpoints/epoch-003.pt   the same after every epoch
    checkpoints/best.pt        the epoch with the best validation mask IoU at the largest picture size so far
    metrics.csv                one line an epoch
    curves.png                 the same, drawn
    predictions/epoch-003.png  the same validation samples after every epoch: pictures, true and predicted maps
    tensorboard/               events, if asked for
    bad-batch.npz, .png        the batch whose loss was not a number, if one was

A step is a pure function of the weights before it: the order of the samples and every random number follow from the
seed, the epoch and the number of the step. So a checkpoint holds weights and counters, and a run killed and resumed
equals one left alone, on the CPU bit for bit.
"""

import logging
import math
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from pathlib import Path

import torch

from dsgen.errors import InvalidValueError
from dsgen.io.atomic import write_bytes, write_json
from dsgen.parallel.locks import exclusive_lock
from dsgen.parallel.progress import progress
from dsgen.store.loader import Loader
from dsgen.store.reader import Store
from dsgen.training import metrics
from dsgen.training.batches import Batches
from dsgen.training.checkpoint import find_checkpoint
from dsgen.training.interrupts import Pauses, interrupts
from dsgen.training.ranks import Ranks, join_ranks
from dsgen.training.report import draw_curves, draw_sheet, tensorboard, write_metrics
from dsgen.training.schedule import should_stop_early
from dsgen.training.settings import Settings
from dsgen.training.trainer import DEFAULTS, Trainer

log = logging.getLogger("dsgen")


def train(
    store: Path | str = Path("shards"),
    run: Path = Path("run"),
    settings: Settings = DEFAULTS,
    *,
    epochs: int = 10,
    init: Path | None = None,
    device: str = "auto",
    workers: int = 2,
    save_every: float = 5.0,
    show_in_tensorboard: bool = False,
) -> dict[str, float]:
    """Train the U-Net on a store's training split, or go on with a run, and return the best epoch's scores.

    Pictures grow through the sizes of the settings: every size gets about the same work, so epochs in inverse
    proportion to its pixels, at least one; see `settings.sizes_by_epoch`. What the store lacks of background is fed as
    zeros, and of mask and depth just the one it has is trained. Under torchrun the batches are shared by the processes.

    `init`, a run's folder or a checkpoint, gives the first weights, of a network with the same arguments; in a run
    that is there they have been taken, and it is only compared with what they were taken from.

    A run that is there goes on if store and settings are the same, in mid-epoch too. With more `epochs` it goes on at
    the size reached. Every `save_every` minutes a checkpoint is written, and at Ctrl-C and SIGTERM, upon which
    `KeyboardInterrupt` is raised. Raises `DsgenError` for settings that cannot be or are not the run's, a damaged
    checkpoint, a loss that is not a number, and a batch too large for the memory.
    """
    if not 0 <= save_every < math.inf:
        raise InvalidValueError("--save-every", f"got {save_every}, expected 0 or more minutes")
    with join_ranks(device) as (ranks, target):
        with ranks.together():
            opened = Store(store)
            settings.check(epochs, opened.size, ranks.count)

        def open_batches(split: str, batch_size: int) -> Loader:
            return Loader(
                store,
                split,
                batch_size // ranks.count,
                seed=settings.seed,
                workers=workers,
                rank=ranks.rank,
                ranks=ranks.count,
                device=target,
            )

        statistics = opened.index["statistics"].get("depth", {"mean": None})
        mean_depth_m = statistics["mean"] and statistics["mean"][0]
        return fit(
            open_batches,
            run,
            settings,
            epochs=epochs,
            init=init,
            device=target,
            ranks=ranks,
            mean_depth_m=mean_depth_m,
            save_every=save_every,
            show_in_tensorboard=show_in_tensorboard,
        )


def fit(
    open_batches: Callable[[str, int], Batches],
    run: Path,
    settings: Settings,
    *,
    epochs: int,
    device: torch.device,
    init: Path | None = None,
    ranks: Ranks = Ranks(),  # noqa: B008 - it is frozen
    mean_depth_m: float | None = None,
    save_every: float = 5.0,
    show_in_tensorboard: bool = False,
) -> dict[str, float]:
    """Do the work of `train` with checked settings and a device at hand.

    `open_batches` gives the batches of a split, of so many samples over all processes. `mean_depth_m` is the answer
    that those of the network are compared with.
    """
    with ExitStack() as stack:
        with ranks.together():
            if ranks.first:
                stack.enter_context(exclusive_lock(run))
            validation = open_batches("validation", max(settings.batch_size))
            trainer = Trainer(settings, validation.parts, validation.sha256, device, ranks, mean_depth_m)
            begun = (run / "checkpoints/last.pt").exists()
            if init is not None:
                trainer.begin_with(find_checkpoint(init) if init.is_dir() else init)
            if begun:
                trainer.restore(run / "checkpoints/last.pt")
                log.info("%s: %d of %d epochs done before", run, trainer.epoch, epochs)
            write_events = stack.enter_context(
                tensorboard(run / "tensorboard", show_in_tensorboard and ranks.first, trainer.epoch)
            )
        if ranks.first:
            (run / "checkpoints").mkdir(exist_ok=True)
            write_json(run / "config.json", trainer.describe(epochs))
        interrupted = stack.enter_context(interrupts(patient=ranks.count > 1))
        pauses = Pauses(interrupted, save_every * 60, lambda: _save(trainer, run), run)
        while trainer.epoch < epochs and not should_stop_early(settings, trainer.history):
            _train_at_one_size(trainer, open_batches, validation, run, epochs, pauses, write_events)
        best = trainer.best()
        if is_blank(best):
            log.error("%s: NO MASKS WERE LEARNT. %s", run, _blank_words(best))
        return {name: value for name, value in best.items() if not math.isnan(value)}


def _train_at_one_size(
    trainer: "Trainer",
    open_batches: Callable[[str, int], Batches],
    validation: Batches,
    run: Path,
    epochs: int,
    pauses: "Pauses",
    write_events: Callable[[dict[str, float], Path], None],
) -> None:
    """Train until the pictures grow or the run is over; after each epoch write what it leaves."""
    settings, ranks = trainer.settings, trainer.ranks
    sizes = trainer.sizes(epochs)
    size = sizes[trainer.epoch]
    batch_size = settings.batch_size_at(size)
    with ranks.together():
        batches = open_batches("train", batch_size)
        samples = min(batches.rows, settings.epoch_samples or batches.rows)
        if samples < batches.rows and 0 < samples % batch_size < ranks.count:
            raise InvalidValueError(
                "--epoch-samples",
                (
                    f"got {samples}, which leaves {samples % batch_size} of a batch of {batch_size} for {ranks.count} "
                    "processes"
                ),
                f"take a multiple of {batch_size}",
            )
    done = sizes[: trainer.epoch].count(size) * samples + (trainer.place["samples"] if trainer.place else 0)
    shown = progress(f"train at {size} px", sizes.count(size) * samples, done) if ranks.first else nullcontext(_unseen)
    with shown as advance:
        while (
            trainer.epoch < epochs and sizes[trainer.epoch] == size and not should_stop_early(settings, trainer.history)
        ):
            trainer.run_epoch(batches, validation, size, samples, epochs, run, pauses, advance)
            if ranks.first:
                _write_epoch(trainer, validation, run, write_events)
            pauses.restart()


def _unseen(count: int, note: str = "") -> None:
    """Show no progress."""


def _save(trainer: "Trainer", run: Path) -> None:
    if trainer.ranks.first:
        write_bytes(run / "checkpoints/last.pt", trainer.checkpoint())


def _write_epoch(
    trainer: "Trainer", validation: Batches, run: Path, write_events: Callable[[dict[str, float], Path], None]
) -> None:
    """Write what an epoch leaves; `last.pt` comes last, so that a kill before it repeats all of this."""
    past = trainer.history[-1]
    checkpoint = trainer.checkpoint()
    write_bytes(run / f"checkpoints/epoch-{trainer.epoch:03d}.pt", checkpoint)
    if trainer.best() is past:
        write_bytes(run / "checkpoints/best.pt", checkpoint)
    write_metrics(run / "metrics.csv", trainer.history)
    draw_curves(run / "curves.png", trainer.history)
    sheet = run / f"predictions/epoch-{trainer.epoch:03d}.png"
    draw_sheet(sheet, trainer.predictions(validation, int(past["size"])))
    write_events(past, sheet)
    write_bytes(run / "checkpoints/last.pt", checkpoint)
    if is_blank(past):
        log.error("epoch %d: THE MASKS ARE BLANK. %s", past["epoch"], _blank_words(past))


def is_blank(scores: dict[str, float]) -> bool:
    """Say whether the masks are no better than all-zero ones; where there are none to compare with they are not."""
    zero = scores.get("zero_iou", math.nan)
    return not math.isnan(zero) and not scores.get("iou", math.nan) > zero + metrics.BLANK_MARGIN


def _blank_words(scores: dict[str, float]) -> str:
    return (
        f"Validation mask IoU {scores['iou']:.3f}, an all-zero mask scores {scores['zero_iou']:.3f}: "
        "train longer, lower --learning-rate, and look at predictions/"
    )
