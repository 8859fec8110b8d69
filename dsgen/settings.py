"""How a network is trained: every setting that its weights depend on, what they may be, and what follows by the epoch.

Beside these a run's weights depend on the store, on how many epochs it has, and on the kind of device.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dsgen.errors import DsgenError
from dsgen.losses import DEPTH_LOSSES, MASK_LOSSES
from dsgen.parallel.devices import PRECISIONS
from dsgen.unet import BLOCKS, COLOURS, OUTPUTS

SMALLEST = 32
OPTIMIZERS = ("adam", "adamw", "sgd")
SCHEDULES = ("plateau", "cosine", "constant")
SLOWER = 0.5
PATIENCE = 2
GAIN = 1e-3

History = Sequence[dict[str, float]]


@dataclass(frozen=True)
class Settings:
    """What `dsgen train` takes, by the names of its options.

    `sizes` are the sides in pixels that pictures grow through, `batch_size` the samples of a step over all processes,
    one number or one for each size. `epoch_samples` ends an epoch after so many samples, drawn anew each time, and
    `validation_samples` scores on so many, always the same; None means all. `warm_up` is in epochs, and may be a part
    of one. `clip` bounds the norm of the gradient. `early_stop` ends a run after so many epochs, at the last size,
    without gain. `augment` is the strength of `augment.augment`, `average` keeps a moving average of the weights.
    """

    seed: int = 0
    sizes: tuple[int, ...] = (96, 192)
    batch_size: tuple[int, ...] = (8,)
    epoch_samples: int | None = None
    validation_samples: int | None = 1000
    width: int = 16
    dropout: float = 0.0
    colour: str = "rgb"
    output: str = "full"
    blocks: str = "shared"
    encoder: str | None = None
    mask_loss: str = "bce-dice"
    depth_loss: str = "l1-ssim"
    optimizer: str = "adam"
    learning_rate: float = 5e-3
    schedule: str = "plateau"
    warm_up: float = 0.0
    weight_decay: float = 0.0
    clip: float | None = None
    early_stop: int | None = None
    augment: float = 1.0
    average: bool = True
    precision: str = "auto"
    compile: bool = False

    def check(self, epochs: int, store_size: int, processes: int = 1) -> None:
        """Raise a `DsgenError` that names every setting that cannot be."""
        sizes, batches = self.sizes, self.batch_size
        least = f"{processes} or more" + (", a multiple of the processes" if processes > 1 else "")
        rules: list[tuple[bool, str, Any, str]] = [
            (epochs >= 1, "epochs", epochs, "1 or more"),
            (self.seed >= 0, "seed", self.seed, "0 or more"),
            (
                bool(sizes) and sizes[0] >= SMALLEST and list(sizes) == sorted(set(sizes)),
                "sizes",
                sizes,
                f"pixels from {SMALLEST} up, each larger than the one before",
            ),
            (
                max(sizes, default=0) <= store_size,
                "sizes",
                sizes,
                f"at most {store_size}, the side of the store's pictures",
            ),
            (len(batches) in (1, len(sizes)), "batch_size", batches, "one number, or one for each size"),
            (all(n >= 1 and n % processes == 0 for n in batches), "batch_size", batches, least),
            (self.width >= 1, "width", self.width, "1 or more"),
            (0 <= self.dropout < 1, "dropout", self.dropout, "0 to below 1"),
            (0 < self.learning_rate < 10, "learning_rate", self.learning_rate, "above 0 and below 10"),
            (0 <= self.warm_up < math.inf, "warm_up", self.warm_up, "0 or more epochs"),
            (0 <= self.weight_decay < 1, "weight_decay", self.weight_decay, "0 to below 1"),
            (self.clip is None or 0 < self.clip < math.inf, "clip", self.clip, "above 0"),
            (0 <= self.augment <= 4, "augment", self.augment, "0 to 4"),
        ]
        for name in ("epoch_samples", "validation_samples", "early_stop"):
            value = getattr(self, name)
            rules.append((value is None or value >= 1, name, value, "1 or more"))
        for name, known in (
            ("colour", COLOURS),
            ("output", OUTPUTS),
            ("blocks", BLOCKS),
            ("mask_loss", tuple(MASK_LOSSES)),
            ("depth_loss", tuple(DEPTH_LOSSES)),
            ("optimizer", OPTIMIZERS),
            ("schedule", SCHEDULES),
            ("precision", PRECISIONS),
        ):
            value = getattr(self, name)
            rules.append((value in known, name, value, f"one of {', '.join(known)}"))
        problems = [
            f"--{name.replace('_', '-')}: got {in_words(value)}, expected {rule}"
            for holds, name, value, rule in rules
            if not holds
        ]
        if len(problems) == 1:
            raise DsgenError(problems[0])
        if problems:
            lines = "\n".join(f"  {problem}" for problem in problems)
            raise DsgenError(f"{len(problems)} settings that cannot be:\n{lines}")

    def network(self) -> dict[str, Any]:
        """Return the arguments of the `UNet` meant."""
        return {name: getattr(self, name) for name in ("width", "dropout", "colour", "output", "blocks", "encoder")}

    def batch_size_at(self, size: int) -> int:
        """Return the samples of a step at a picture size, over all processes."""
        return dict(zip(self.sizes, self.batch_size, strict=False)).get(size, self.batch_size[-1])

    def as_dict(self) -> dict[str, Any]:
        """Return all settings by name, of types that JSON and checkpoints can hold."""
        return {
            name: list(value) if isinstance(value, tuple) else value for name, value in dataclasses.asdict(self).items()
        }


def in_words(value: Any) -> str:
    """Write a setting as one would on the command line."""
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


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


def learning_rate(settings: Settings, history: History, sizes: Sequence[int], share: float) -> float:
    """Return the rate of a step, `share` of an epoch after those of `history`, of a run whose epochs have these sizes.

    With `plateau` it halves when the validation loss has not improved by a thousandth for more than two epochs, and
    when the pictures grow, at which the count starts afresh, since losses of two sizes do not compare. `cosine` goes
    down to 0 in half a wave over the run's work, an epoch's being its pixels (Loshchilov and Hutter, ICLR 2017, arXiv
    1608.03983, without restarts). A warm-up rises to either in a straight line.
    """
    rate, done = settings.learning_rate, len(history)
    if settings.schedule == "plateau":
        rate *= SLOWER ** _plateaus(history, sizes[done])
    elif settings.schedule == "cosine":
        work = [size**2 for size in sizes]
        rate *= (1 + math.cos(math.pi * (sum(work[:done]) + share * work[done]) / sum(work))) / 2
    return rate * min(1.0, (done + share) / settings.warm_up) if settings.warm_up else rate


def _plateaus(history: History, size: int) -> int:
    """Count after how many epochs the rate was to be lowered."""
    plateaus, best, without_gain = 0, math.inf, 0
    sizes = [*(past["size"] for past in history), size]
    for past, following in zip(history, sizes[1:], strict=True):
        if past["validation_loss"] < best * (1 - GAIN):
            best, without_gain = past["validation_loss"], 0
        else:
            without_gain += 1
        if without_gain > PATIENCE:
            plateaus, without_gain = plateaus + 1, 0
        if following != past["size"]:
            plateaus, best, without_gain = plateaus + 1, math.inf, 0
    return plateaus


def is_over(settings: Settings, history: History) -> bool:
    """Say whether to stop early: no gain of a thousandth in validation loss for so many epochs at the last size."""
    if settings.early_stop is None:
        return False
    losses = [past["validation_loss"] for past in history if past["size"] == settings.sizes[-1]]
    best, since = math.inf, 0
    for loss in losses:
        best, since = (loss, 0) if loss < best * (1 - GAIN) else (best, since + 1)
    return since >= settings.early_stop
