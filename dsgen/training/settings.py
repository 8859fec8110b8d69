"""How a network is trained: every setting that its weights depend on, what they may be, and what follows by the epoch.

Beside these a run's weights depend on the store, on how many epochs it has, and on the kind of device.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from dsgen.errors import check_rules
from dsgen.parallel.devices import PRECISIONS
from dsgen.training.losses import DEPTH_LOSSES, MASK_LOSSES
from dsgen.training.unet import BLOCKS, COLOURS, OUTPUTS

SMALLEST = 32
OPTIMIZERS = ("adam", "adamw", "sgd")
SCHEDULES = ("plateau", "cosine", "constant")


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
        check_rules(rules)

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
