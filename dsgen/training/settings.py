"""The settings of a training run: their names, defaults, rules and help texts.

Besides these settings, the weights of a run depend on the store, on the number of epochs, and on the kind of device.
"""

import dataclasses
import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self, get_args, get_origin, get_type_hints

from dsgen.errors import DsgenError, InvalidValueError, check_rules, raise_all
from dsgen.parallel.devices import PRECISIONS
from dsgen.training.losses import DEPTH_LOSSES, MASK_LOSSES
from dsgen.training.unet import BLOCKS, COLOURS, MAX_WIDTH, OUTPUTS

SMALLEST_SIZE = 32
OPTIMIZERS = ("adam", "adamw", "sgd")
SCHEDULES = ("plateau", "cosine", "constant")

Rule = tuple[bool, str, Any, str]  # holds, setting, value, what is expected


@dataclass(frozen=True)
class Settings:
    """What `dsgen train` can be told, by the names of its options; the metadata of each field holds its help text.

    >>> Settings(sizes=(64,)).network()["width"]
    16
    """

    seed: int = field(default=0, metadata={"help": "Seed of the first weights, sample order and augmentation."})
    sizes: tuple[int, ...] = field(
        default=(96, 192), metadata={"help": "Image sizes to train at, one after the other, in pixels, ascending."}
    )
    batch_size: tuple[int, ...] = field(
        default=(8,), metadata={"help": "Samples per step over all processes: one number, or one for each size."}
    )
    epoch_samples: int | None = field(
        default=20_000, metadata={"help": "Most samples to train on per epoch, drawn anew for each epoch."}
    )
    validation_samples: int | None = field(
        default=1000, metadata={"help": "Most samples to validate on, the same after every epoch."}
    )
    width: int = field(default=16, metadata={"help": "Channels of the U-Net's first block."})
    dropout: float = field(default=0.0, metadata={"help": "Share of channels dropped after each block."})
    colour: str = field(default="rgb", metadata={"help": f"What the U-Net sees: {' or '.join(COLOURS)}."})
    output: str = field(
        default="full", metadata={"help": f"Size of the predictions: {' or '.join(OUTPUTS)} size of the images."}
    )
    blocks: str = field(
        default="shared", metadata={"help": f"First blocks for background and composite: {' or '.join(BLOCKS)}."}
    )
    encoder: str | None = field(
        default=None, metadata={"help": "A timm feature encoder that replaces the U-Net's own levels down."}
    )
    encoder_weights: str | None = field(
        default=None,
        metadata={
            "help": "Pretrained weights of --encoder: a .pth or safetensors file that fits it, or pretrained "
            "for those that timm downloads."
        },
    )
    mask_loss: str = field(default="bce-dice", metadata={"help": f"Loss of the mask: {', '.join(MASK_LOSSES)}."})
    depth_loss: str = field(default="l1-ssim", metadata={"help": f"Loss of the depth: {', '.join(DEPTH_LOSSES)}."})
    optimizer: str = field(default="adam", metadata={"help": "adam, adamw, or sgd with momentum 0.9."})
    learning_rate: float = field(default=5e-3, metadata={"help": "Peak learning rate."})
    schedule: str = field(
        default="plateau",
        metadata={"help": "Learning rate schedule: plateau (halve it on a plateau), cosine or constant."},
    )
    warm_up: float = field(
        default=0.0, metadata={"help": "Epochs of linear learning rate warm-up; may be a fraction of one."}
    )
    weight_decay: float = field(
        default=0.0, metadata={"help": "Weight decay of convolutions; with adam it is an L2 penalty."}
    )
    clip: float | None = field(default=None, metadata={"help": "Clip the norm of the gradient to this value."})
    early_stop: int | None = field(
        default=None, metadata={"help": "Stop after this many epochs without improvement at the last size."}
    )
    augment: float = field(default=1.0, metadata={"help": "Strength of the augmentation; 0 only mirrors."})
    average: bool = field(
        default=True, metadata={"help": "Keep a moving average of the weights, which is the trained network."}
    )
    precision: str = field(
        default="auto",
        metadata={
            "help": f"Arithmetic: {', '.join(PRECISIONS)}; auto is bf16 on CUDA and on processors with AMX, "
            "elsewhere float32."
        },
    )
    compile: bool = field(default=False, metadata={"help": "Compile the network with torch.compile."})

    def check(self, epochs: int, store_size: int | None, processes: int = 1) -> None:
        """Raise an `InvalidValueError` for every setting that breaks a rule, all in one pass.

        `store_size` is the size of the images in pixels, None before the store is opened; `processes` how many train.
        """
        check_rules([*self._number_rules(epochs, store_size, processes), *self._choice_rules()])

    def _number_rules(self, epochs: int, store_size: int | None, processes: int) -> list[Rule]:
        sizes, batches = self.sizes, self.batch_size
        ascending = bool(sizes) and sizes[0] >= SMALLEST_SIZE and list(sizes) == sorted(set(sizes))
        smallest_batch = f"{processes} or more" + (", a multiple of the processes" if processes > 1 else "")
        rules: list[Rule] = [
            (epochs >= 1, "epochs", epochs, "1 or more"),
            (self.seed >= 0, "seed", self.seed, "0 or more"),
            (ascending, "sizes", sizes, f"pixels from {SMALLEST_SIZE} up, each larger than the one before"),
            (
                store_size is None or max(sizes, default=0) <= store_size,
                "sizes",
                sizes,
                f"at most {store_size}, the size of the store's images",
            ),
            (len(batches) in (1, len(sizes)), "batch_size", batches, "one number, or one for each size"),
            (all(n >= 1 and n % processes == 0 for n in batches), "batch_size", batches, smallest_batch),
            (1 <= self.width <= MAX_WIDTH, "width", self.width, f"1 to {MAX_WIDTH}"),
            (0 <= self.dropout < 1, "dropout", self.dropout, "0 to below 1"),
            (0 < self.learning_rate < 10, "learning_rate", self.learning_rate, "above 0 and below 10"),
            (0 <= self.warm_up < math.inf, "warm_up", self.warm_up, "0 or more epochs"),
            (0 <= self.weight_decay < 1, "weight_decay", self.weight_decay, "0 to below 1"),
            (
                self.encoder_weights is None or self.encoder is not None,
                "encoder_weights",
                self.encoder_weights,
                "it with --encoder, whose weights they are",
            ),
            (self.clip is None or 0 < self.clip < math.inf, "clip", self.clip, "above 0"),
            (0 <= self.augment <= 4, "augment", self.augment, "0 to 4"),
        ]
        for name in ("epoch_samples", "validation_samples", "early_stop"):
            value = getattr(self, name)
            rules.append((value is None or value >= 1, name, value, "1 or more"))
        return rules

    def _choice_rules(self) -> list[Rule]:
        choices: dict[str, tuple[str, ...]] = {
            "colour": COLOURS,
            "output": OUTPUTS,
            "blocks": BLOCKS,
            "mask_loss": tuple(MASK_LOSSES),
            "depth_loss": tuple(DEPTH_LOSSES),
            "optimizer": OPTIMIZERS,
            "schedule": SCHEDULES,
            "precision": PRECISIONS,
        }
        values = {name: getattr(self, name) for name in choices}
        return [
            (values[name] in known, name, values[name], f"one of {', '.join(known)}") for name, known in choices.items()
        ]

    def network(self) -> dict[str, Any]:
        """Return the arguments of the `UNet` to train."""
        return {name: getattr(self, name) for name in ("width", "dropout", "colour", "output", "blocks", "encoder")}

    def batch_size_at(self, size: int) -> int:
        """Return the samples per step at an image size, over all processes."""
        return dict(zip(self.sizes, self.batch_size, strict=False)).get(size, self.batch_size[-1])

    def as_dict(self) -> dict[str, Any]:
        """Return all settings by name, of types that JSON and checkpoints can hold."""
        return {
            name: list(value) if isinstance(value, tuple) else value for name, value in dataclasses.asdict(self).items()
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Return the settings that `as_dict` returned, such as those under `settings` in a run's config.json.

        Lists may stand for tuples and integers for floats; settings left out have their defaults. Unknown names and
        values of a wrong type are an `InvalidValueError` each, all found in one pass. `check` checks the values.

        >>> Settings.from_dict({"sizes": [64, 128], "learning_rate": 1}).learning_rate
        1.0
        """
        kinds, known = get_type_hints(cls), [each.name for each in dataclasses.fields(cls)]
        settings: dict[str, Any] = {}
        errors: list[DsgenError] = []
        for name, value in values.items():
            if name not in known:
                near = difflib.get_close_matches(str(name).replace("-", "_"), known, n=1)
                remedy = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
                errors.append(InvalidValueError(name, "no such setting", remedy))
                continue
            try:
                settings[name] = _convert(value, kinds[name])
            except TypeError as error:
                errors.append(InvalidValueError.expected(name, repr(value), str(error)))
        raise_all(errors)
        return cls(**settings)


DEFAULTS = Settings()


def _convert(value: Any, kind: Any) -> Any:
    """Return a value as a field's type has it; a `TypeError` says what was expected."""
    if get_origin(kind) is tuple:
        if not isinstance(value, list | tuple):
            raise TypeError("a list of integers")
        return tuple(_convert(each, get_args(kind)[0]) for each in value)
    if type(None) in get_args(kind):
        if value is None:
            return None
        (kind,) = (each for each in get_args(kind) if each is not type(None))
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:  # not isinstance: a bool is an int to Python
        raise TypeError({int: "an integer", float: "a number", str: "a text", bool: "true or false"}[kind])
    return value
