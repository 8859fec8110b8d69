"""The part `unet` of `bench.py`: the U-Net's arithmetic, and what a training step costs beside it.

Forward and backward pass of the network of 2,161,666 parameters in plain float32 as PyTorch has it, channels last, and
as dsgen trains. Then training's own loop on three kinds of batches: from a store through loader and augmentation, one
kept in memory that is augmented anew in each step, and one kept as the network is fed it.

Times are medians over the rounds; a ratio is the median of the rounds' ratios.
"""

import math
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dsgen.corpus.build import Parameters, composite
from dsgen.depth.label_corpus import label_corpus
from dsgen.parallel.devices import autocast_dtype, keep_freed_memory, pick_device, tune_for_training
from dsgen.store.arena import Batch
from dsgen.store.loader import Loader
from dsgen.store.packing import pack
from dsgen.training.augment import augment
from dsgen.training.batches import prepare
from dsgen.training.checkpoint import Position
from dsgen.training.interrupts import Autosave
from dsgen.training.settings import Settings
from dsgen.training.trainer import Phase, Trainer
from dsgen.training.unet import UNet

SIZE, BATCH = 192, 16
BACKGROUNDS, FOREGROUNDS = 10, 25
LEAST_STEPS = 4

Line = tuple[str, str]


class Kept:
    """One batch over and over, as `batches.Batches` asks for it."""

    def __init__(self, batch: Batch, like: Loader):
        self.batch, self.rows, self.size, self.fields, self.sha256 = batch, like.rows, like.size, like.fields, None
        self.epoch, self.samples = 0, 0

    def set_epoch(self, epoch: int) -> None:
        """Start again."""
        self.epoch, self.samples = epoch, 0

    def state_dict(self) -> dict[str, Any]:
        """Say how many samples were handed out."""
        return {"samples": self.samples}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue after that many samples."""
        self.samples = state["samples"]

    def __iter__(self) -> Iterator[Batch]:
        while True:
            self.samples += len(self.batch["row"])
            yield self.batch


def bench_unet(folder: Path, rounds: int, seconds: float) -> Iterator[Line]:
    """Measure on the GPU if there is one; the sides of a ratio take turns, `seconds` each a round. Yield the lines."""
    device = pick_device("auto")
    yield "U-Net, where", f"{_name(device)}, {torch.get_num_threads()} threads, {SIZE} pixels, batches of {BATCH}"
    yield from _arithmetic(device, rounds, seconds)
    yield from _steps(folder, device, rounds, seconds)


def _name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device} ({torch.backends.cpu.get_cpu_capability()})"


def _arithmetic(device: torch.device, rounds: int, seconds: float) -> Iterator[Line]:
    """Forward and backward pass, three ways of reckoning side by side."""
    half = autocast_dtype("auto", device)
    ways: dict[str, Callable[[], object]] = {
        "float32 NCHW": _passes(device, torch.contiguous_format, None),
        "float32, channels last": _passes(device, torch.channels_last, None),
    }
    if half is not None:
        ways[f"{str(half).removeprefix('torch.')}, channels last"] = _passes(device, torch.channels_last, half)
    if device.type == "cpu":
        ways[f"{[*ways][-1]}, freed memory kept"] = [*ways.values()][-1]
    plain, *_, own = ways  # how dsgen trains here comes last

    def measure(name: str) -> float:
        keep_freed_memory(name.endswith("kept"))
        return _seconds_each(ways[name], device, seconds)

    took = _take_turns({name: partial(measure, name) for name in ways}, rounds)
    tune_for_training()
    for name in ways:
        text = f"{1000 * statistics.median(took[name]):,.1f} ms forward and backward"
        yield f"U-Net, {name}", text + (", as dsgen trains here" if name == own else "")
    for name in ways:
        if name != plain:
            yield f"ratio, {plain} to", f"{_ratio(took[plain], took[name])}, {name}"


def _passes(device: torch.device, layout: torch.memory_format, half: torch.dtype | None) -> Callable[[], object]:
    """Make the work: one forward and backward pass of a new network on a batch of noise."""
    torch.manual_seed(0)
    network = UNet().to(device).to(memory_format=layout).train()
    pictures = [torch.rand(BATCH, 3, SIZE, SIZE, device=device).contiguous(memory_format=layout) for _ in range(2)]

    def work() -> None:
        network.zero_grad(set_to_none=True)
        with torch.autocast(device.type, dtype=half, enabled=half is not None):
            logits, raw = network(*pictures)
        (logits.float().square().mean() + raw.float().square().mean()).backward()

    return work


def _steps(folder: Path, device: torch.device, rounds: int, seconds: float) -> Iterator[Line]:
    """Training steps through the loader, with one batch kept, with one batch kept as it is fed; augmentation alone."""
    settings = Settings(sizes=(SIZE,), batch_size=(BATCH,))
    loader = Loader(make_store(folder), "train", BATCH, device=device)
    first = next(iter(loader))
    kept = Kept({name: values.clone() for name, values in first.items()}, loader)
    trainer = Trainer(settings, loader.fields, None, device)
    augmented_inputs = trainer.augmented
    inputs = augmented_inputs(kept.batch, SIZE, torch.Generator().manual_seed(0))
    prepared = prepare(kept.batch, SIZE, device)
    generator = torch.Generator().manual_seed(0)

    _train(trainer, kept, 2, 0)
    each = _train(trainer, kept, LEAST_STEPS, 0)
    steps = min(max(LEAST_STEPS, round(seconds / each)), loader.rows // BATCH)
    epoch = 0

    def whole() -> float:
        nonlocal epoch
        epoch += 1
        return _train(trainer, loader, steps, epoch)

    def bare() -> float:
        trainer.augmented = lambda *_: inputs  # type: ignore[method-assign]
        try:
            return _train(trainer, kept, steps, 0)
        finally:
            trainer.augmented = augmented_inputs  # type: ignore[method-assign]

    def augmented() -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        return augment(*prepared, generator, settings.augment)

    sides: dict[str, Callable[[], float]] = {
        "whole": whole,
        "kept": lambda: _train(trainer, kept, steps, 0),
        "bare": bare,
        "augment": lambda: _seconds_each(augmented, device, seconds / 4, least=LEAST_STEPS),
        "prepare": lambda: _seconds_each(lambda: prepare(kept.batch, SIZE, device), device, seconds / 4),
    }
    took = _take_turns(sides, rounds)
    ms = {name: 1000 * statistics.median(values) for name, values in took.items()}
    yield "step, from the store", f"{ms['whole']:,.1f} ms, {1000 * BATCH / ms['whole']:,.1f} samples/s, {steps} a round"
    yield "step, one batch kept in memory", f"{ms['kept']:,.1f} ms, augmented anew each time"
    yield "step, one batch kept as fed", f"{ms['bare']:,.1f} ms"
    yield "ratio, store to batch in memory", f"{_ratio(took['whole'], took['kept'])}; to be at most 1.05"
    yield "ratio, store to batch as fed", _ratio(took["whole"], took["bare"])
    yield "augmentation alone", f"{ms['augment']:,.1f} ms, {_ratio(took['augment'], took['whole'])} of a step"
    yield "floats and shrinking alone", f"{ms['prepare']:,.1f} ms, {_ratio(took['prepare'], took['whole'])} of a step"


def make_store(folder: Path) -> Path:
    """Pack rows of the bundled pictures, labelled with their grey: 1 m where it is black, 6 m where it is white."""
    corpus = folder / "unet"
    parameters = Parameters(label_size=224)
    composite(corpus, parameters=parameters, max_backgrounds=BACKGROUNDS, max_foregrounds=FOREGROUNDS, pictures=False)
    label_corpus(corpus, model=lambda pictures: 1 + pictures.mean(3, dtype=np.float32) / 51)
    pack(corpus, folder / "unet-shards", shards=2)
    return folder / "unet-shards"


def _train(trainer: Trainer, batches: Loader | Kept, steps: int, epoch: int) -> float:
    """Take the steps of an epoch, from starting the loader to reading the last report; return the seconds of a step."""
    batches.set_epoch(epoch)
    trainer.network.train()
    trainer.position = Position(SIZE, batches.state_dict())
    phase = Phase(SIZE, batches, steps * BATCH, [SIZE])
    autosave = Autosave(lambda: False, math.inf, lambda: None, Path())
    started = time.perf_counter()
    trainer.train_steps(phase, autosave, lambda *_, **__: None)
    return (time.perf_counter() - started) / steps


def _seconds_each(work: Callable[[], object], device: torch.device, seconds: float, least: int = 2) -> float:
    """Repeat work for about `seconds`, after a warm-up; return the mean seconds of one call."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    work()
    wait()
    started, times = time.perf_counter(), 0
    while times < least or time.perf_counter() - started < seconds:
        work()
        wait()
        times += 1
    return (time.perf_counter() - started) / times


def _take_turns(sides: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Measure every side once a round, in turning order, as what comes first may find the machine cooler."""
    took: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds):
        names = list(sides)
        for name in names if number % 2 == 0 else reversed(names):
            took[name].append(sides[name]())
    return took


def _ratio(ours: list[float], theirs: list[float]) -> str:
    """Format the median of the rounds' ratios, and the ratios: what slows both sides of a round cancels out."""
    each = [a / b for a, b in zip(ours, theirs, strict=True)]
    return f"{statistics.median(each):.3f} (rounds {', '.join(f'{ratio:.2f}' for ratio in each)})"
