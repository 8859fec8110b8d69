"""Stage four: train the two-headed U-Net on a store.

A run is a folder. It holds, each file written atomically,

    config.json                what the run was started with, for people to read
    checkpoints/last.pt        the state to resume from, written after every epoch, every few minutes and at Ctrl-C
    checkpoints/epoch-003.pt   the state after each epoch
    checkpoints/best.pt        the epoch with the best validation mask IoU at the largest image size so far
    metrics.csv                one line per epoch
    curves.png                 the same, drawn
    predictions/epoch-003.png  the same validation samples after every epoch: images, true and predicted maps
    tensorboard/               events, if requested
    bad-batch.npz, .png        the batch whose loss was not a number, if there was one

A step depends only on the weights before it, the seed, the epoch and its number in the epoch: the order of the samples
and every random number follow from these. So a checkpoint holds weights and counters, and a run that was killed and
resumed equals an uninterrupted one, on the CPU bit for bit.
"""

import logging
import math
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dsgen import __version__
from dsgen.encoders import input_statistics
from dsgen.errors import InvalidValueError
from dsgen.io.atomic import write_bytes, write_json
from dsgen.parallel.locks import exclusive_lock
from dsgen.parallel.progress import progress
from dsgen.store.loader import Loader
from dsgen.store.reader import Store
from dsgen.training import metrics
from dsgen.training.batches import Batches
from dsgen.training.checkpoint import (
    encode_checkpoint,
    find_checkpoint,
    load_initial_weights,
    load_pretrained_encoder,
    read_checkpoint,
    restore_checkpoint,
)
from dsgen.training.interrupts import Autosave, catch_signals
from dsgen.training.ranks import Ranks, join_ranks
from dsgen.training.report import Predictions, draw_curves, tensorboard_writer, write_metrics
from dsgen.training.schedule import best_epoch, should_stop_early, sizes_of_run
from dsgen.training.settings import DEFAULTS, Settings
from dsgen.training.trainer import Phase, Trainer

log = logging.getLogger("dsgen")


@dataclass(frozen=True)
class TrainResult:
    """What a run has come to.

    `best` is the best epoch's line of metrics.csv by column, without the scores that have no truth. `learnt_masks` is
    False if its masks are no better than blank ones; it is True for a store without masks, which has none to learn.
    `epochs` is how many epochs the run has finished.
    """

    run: Path
    best: dict[str, float]
    learnt_masks: bool
    epochs: int


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
) -> TrainResult:
    """Train the U-Net on a store's training split, or resume a run.

    >>> result = train("shards", Path("run"), Settings(sizes=(96,)), epochs=20)  # doctest: +SKIP
    >>> result.best["iou"]  # doctest: +SKIP
    0.91

    The image size grows through the sizes of the settings. Every size gets about the same work, so the number of
    epochs is in inverse proportion to its pixels, and at least one; see `schedule.sizes_by_epoch`. If the store has no
    backgrounds, the network sees zeros for them; if it has only masks or only depth, only that is trained. Under
    torchrun the processes share the batches.

    `init`, a run's folder (its best epoch) or a checkpoint, gives the first weights, of a network with the same
    arguments. A run that is resumed has its weights already; `init` is then only compared with what it started from.
    The same holds for the settings' `encoder_weights`.

    A run resumes, in mid-epoch too, if store and settings are the same. With more `epochs` than before it continues at
    the size it has reached. A checkpoint is written every `save_every` minutes, and at Ctrl-C or SIGTERM, after which
    `KeyboardInterrupt` is raised. `workers` is the number of threads that read ahead.

    Raises `InvalidValueError` for settings that break a rule and for a batch too large for the memory, `ConflictError`
    for settings that are not the run's, `DamagedError` for a damaged checkpoint, and `DsgenError` for a loss that is
    not a number.
    """
    if not 0 <= save_every < math.inf:
        raise InvalidValueError.expected("save_every", save_every, "0 or more minutes")
    with join_ranks(device) as (ranks, target):
        with ranks.together():
            _check_run(run)
            settings.check(epochs, None, ranks.world_size)
            opened = Store(store)
            settings.check(epochs, opened.size, ranks.world_size)

        def open_batches(split: str, batch_size: int) -> Loader:
            return Loader(
                store,
                split,
                batch_size // ranks.world_size,
                seed=settings.seed,
                workers=workers,
                rank=ranks.rank,
                ranks=ranks.world_size,
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


def _check_run(run: Path) -> None:
    """Refuse a run's folder that is a file, or holds something else of dsgen's."""
    if run.exists() and not run.is_dir():
        raise InvalidValueError("--run", f"{run} is a file, expected a folder or nothing", "choose another name")
    kinds = {"index.json": "a store", "corpus.json": "a corpus", "export.json": "an export"}
    for name, kind in kinds.items():
        if (run / name).exists():
            raise InvalidValueError(
                "--run", f"{run} holds {kind} ({name}), expected a run or nothing", "choose another folder"
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
) -> TrainResult:
    """Do the work of `train` with checked settings, from batches that need not come from a store.

    `open_batches(split, batch_size)` opens the batches of a split, `batch_size` samples over all ranks.
    `mean_depth_m` is the trivial depth that the network's is compared with.
    """
    if init is not None and settings.encoder_weights is not None:
        reason = f"got {settings.encoder_weights} beside --init {init}, which gives the encoder its weights"
        raise InvalidValueError("--encoder-weights", reason, "leave one of them out, of --config too")
    with ExitStack() as stack:
        with ranks.together():
            if ranks.first:
                stack.enter_context(exclusive_lock(run))
            validation = open_batches("validation", max(settings.batch_size))
            network = _network_arguments(settings, run, init)
            trainer = Trainer(settings, validation.fields, validation.sha256, device, ranks, mean_depth_m, run, network)
            _start_or_resume(trainer, epochs, init)
            write_events = stack.enter_context(
                tensorboard_writer(run / "tensorboard", show_in_tensorboard and ranks.first, trainer.epoch)
            )
        if ranks.first:
            (run / "checkpoints").mkdir(exist_ok=True)
            write_json(run / "config.json", _describe(trainer, epochs))
        stop_requested = stack.enter_context(catch_signals(ignore_repeats=ranks.world_size > 1))
        autosave = Autosave(stop_requested, save_every * 60, lambda: _save(trainer), run)
        writer = _EpochWriter(trainer, validation, write_events)

        while trainer.epoch < epochs and not should_stop_early(settings, trainer.history):
            phase = _open_phase(trainer, open_batches, epochs)
            with _show_progress(trainer, phase) as advance:
                while _in_phase(trainer, phase):
                    trainer.run_epoch(phase, validation, autosave, advance)
                    if ranks.first:
                        writer.write()
                    autosave.restart()

        best = _best(trainer)
        if is_blank(best):
            log.warning(
                "%s: the masks of the best epoch are no better than blank ones (%s); train longer, lower "
                "--learning-rate, and look at predictions/",
                run,
                _compare_with_blank(best),
            )
        scores = {name: value for name, value in best.items() if not math.isnan(value)}
        return TrainResult(run, scores, not is_blank(best), trainer.epoch)


def _last(run: Path) -> Path:
    return run / "checkpoints/last.pt"


def _initial(init: Path) -> Path:
    return find_checkpoint(init) if init.is_dir() else init


def _network_arguments(settings: Settings, run: Path, init: Path | None) -> dict[str, Any]:
    """Return the arguments of the U-Net: those of the settings, and how pictures are normalised for the encoder.

    That is what the checkpoint says that the weights come from, or else what the pretrained encoder expects.
    """
    arguments = settings.network()
    if settings.encoder is None:
        return arguments
    if _last(run).exists():
        normalise = read_checkpoint(_last(run))["config"].get("normalise")
    elif init is not None:
        normalise = read_checkpoint(_initial(init))["config"].get("normalise")
    else:
        normalise = input_statistics(settings.encoder) if settings.encoder_weights else None
    return arguments | {"normalise": normalise}


def _start_or_resume(trainer: Trainer, epochs: int, init: Path | None) -> None:
    """Set a new trainer to the initial weights, if any, and to the run's last checkpoint, if it has one."""
    last = _last(trainer.run)
    resumes = last.exists()
    if init is not None:
        load_initial_weights(trainer, _initial(init))
    if not resumes:
        load_pretrained_encoder(trainer)
    else:
        restore_checkpoint(trainer, last)
        log.info("%s: resuming, %d of %d epochs are done", trainer.run, trainer.epoch, epochs)


def _describe(trainer: Trainer, epochs: int) -> dict[str, Any]:
    """Return what config.json holds."""
    return {
        "dsgen": __version__,
        "torch": torch.__version__,
        "settings": trainer.settings.as_dict(),
        "epochs": epochs,
        "sizes_by_epoch": _sizes(trainer, epochs),
        "device": str(trainer.device),
        "processes": trainer.ranks.world_size,
        "arithmetic": str(trainer.autocast_dtype or torch.float32).removeprefix("torch."),
        "parameters": sum(parameter.numel() for parameter in trainer.network.parameters()),
        "store_sha256": trainer.store_sha256,
        "store_parts": list(trainer.fields),
        "init_sha256": trainer.init_sha256,
        "encoder_weights": trainer.encoder_weights,
    }


def _sizes(trainer: Trainer, epochs: int) -> list[int]:
    size_now = trainer.position.size if trainer.position else 0
    return sizes_of_run(trainer.history, epochs, trainer.settings.sizes, size_now)


def _best(trainer: Trainer) -> dict[str, float]:
    return best_epoch(trainer.history, has_masks="mask" in trainer.fields)


def _open_phase(trainer: Trainer, open_batches: Callable[[str, int], Batches], epochs: int) -> Phase:
    """Open the batches of the next epochs, those until the image size grows."""
    settings, ranks, sizes = trainer.settings, trainer.ranks, _sizes(trainer, epochs)
    size = sizes[trainer.epoch]
    batch_size = settings.batch_size_at(size)
    with ranks.together():
        batches = open_batches("train", batch_size)
        samples = min(batches.rows, settings.epoch_samples or batches.rows)
        last_batch = samples % batch_size
        if samples < batches.rows and 0 < last_batch < ranks.world_size:
            raise InvalidValueError(
                "--epoch-samples",
                f"got {samples}, whose last batch has {last_batch} samples for {ranks.world_size} processes",
                f"use a multiple of {batch_size}",
            )
    return Phase(size, batches, samples, sizes)


def _in_phase(trainer: Trainer, phase: Phase) -> bool:
    """Say whether the next epoch belongs to the phase."""
    epoch = trainer.epoch
    more = epoch < len(phase.sizes) and phase.sizes[epoch] == phase.size
    return more and not should_stop_early(trainer.settings, trainer.history)


def _show_progress(trainer: Trainer, phase: Phase) -> Any:
    """Show the samples of a phase on the first rank; a context manager that gives `advance(count, note="")`."""
    if not trainer.ranks.first:
        return nullcontext(lambda *_, **__: None)
    done = phase.sizes[: trainer.epoch].count(phase.size) * phase.samples
    done += trainer.position.samples if trainer.position else 0
    return progress(f"train at {phase.size} px", phase.sizes.count(phase.size) * phase.samples, done)


def _save(trainer: Trainer) -> None:
    if trainer.ranks.first:
        write_bytes(trainer.run / "checkpoints/last.pt", encode_checkpoint(trainer))


class _EpochWriter:
    """Writes the files that every epoch leaves in the run's folder."""

    def __init__(self, trainer: Trainer, validation: Batches, write_events: Callable[[dict[str, float], Path], None]):
        self._trainer, self._write_events = trainer, write_events
        self._predictions = Predictions(validation, trainer.fields, trainer.device, trainer.ranks)

    def write(self) -> None:
        """Write the files of the epoch just finished; `last.pt` comes last, so that a kill before it repeats all."""
        trainer, run, entry = self._trainer, self._trainer.run, self._trainer.history[-1]
        checkpoint = encode_checkpoint(trainer)
        write_bytes(run / f"checkpoints/epoch-{trainer.epoch:03d}.pt", checkpoint)
        if _best(trainer) is entry:
            write_bytes(run / "checkpoints/best.pt", checkpoint)
        write_metrics(run / "metrics.csv", trainer.history)
        draw_curves(run / "curves.png", trainer.history)
        sheet = run / f"predictions/epoch-{trainer.epoch:03d}.png"
        self._predictions.draw(sheet, trainer.averaged, int(entry["size"]))
        self._write_events(entry, sheet)
        write_bytes(run / "checkpoints/last.pt", checkpoint)
        _log_blank_masks(trainer.history)


def _log_blank_masks(history: list[dict[str, float]]) -> None:
    """Warn after the first epoch whose masks are no better than blank; say when that is over."""
    *before, entry = history
    scores = _compare_with_blank(entry)
    if is_blank(entry) and not any(map(is_blank, before)):
        log.warning("epoch %d: the masks are no better than blank ones so far (%s)", entry["epoch"], scores)
    if not is_blank(entry) and before and is_blank(before[-1]):
        log.info("epoch %d: the masks are now better than blank ones (%s)", entry["epoch"], scores)


def is_blank(scores: dict[str, float]) -> bool:
    """Say whether predicted masks are no better than all-zero ones; False if there is no truth to compare with."""
    zero = scores.get("zero_iou", math.nan)
    return not math.isnan(zero) and not scores.get("iou", math.nan) > zero + metrics.BLANK_MARGIN


def _compare_with_blank(scores: dict[str, float]) -> str:
    return f"validation mask IoU {scores['iou']:.3f}, all-zero masks have {scores['zero_iou']:.3f}"
