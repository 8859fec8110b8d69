"""What labels: pictures in, depth out, on one device, whichever network it is.

A labeller gets pictures (n,H,W,3) u1 RGB and answers (n,H,W) float32 of the size asked for, NaN where the network's
answer is not finite. `kind` says what the numbers are: "metric" is metres; "inverse" is 1 / depth up to an unknown
scale and shift, larger is nearer, and is never called metres.
"""

import hashlib
import inspect
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsgen.corpus.labels import INVERSE, METRIC
from dsgen.depth.networks import fold_batch_norms, to_metres
from dsgen.depth.weights import DepthModel, load_depth_model
from dsgen.errors import DsgenError, InvalidValueError, MissingPackageError
from dsgen.io import images
from dsgen.parallel.devices import PRECISIONS, autocast_dtype

HUGGING_FACE = "hf:"
# what `transformers` does not say in the configuration, by its model_type
_KINDS = {"zoedepth": METRIC, "glpn": METRIC, "depth_pro": METRIC, "dpt": INVERSE}

Size = tuple[int, int]  # height and width in pixels
DepthFunction = Callable[[np.ndarray], "np.ndarray | Tensor"]

log = logging.getLogger(__name__)


class Labeller:
    """The part all labellers share: devices, batches that fit, mirror images.

    `average_flip` answers the mean of the depth and the un-mirrored depth of the mirror image, as the published
    figures of DenseDepth do; `check_flip` measures how far the two disagree. `precision` is one of
    `devices.PRECISIONS`.
    """

    name: str
    sha256: str
    kind = METRIC
    network: nn.Module | None = None
    max_depth_m: float | None = None

    def __init__(
        self, device: torch.device, *, precision: str = "auto", check_flip: bool = False, average_flip: bool = False
    ):
        if precision not in PRECISIONS:
            raise InvalidValueError("--precision", f"got {precision!r}, expected {', '.join(PRECISIONS)}")
        self.device, self.precision = device, precision
        self._half = autocast_dtype(precision, device)
        self.check_flip, self.average_flip = check_flip, average_flip
        self._fits: int | None = None

    def feed_shape(self, height: int, width: int) -> tuple[int, int]:
        """The size at which pictures of a size are fed."""
        return height, width

    def prepare(self, image: np.ndarray) -> Tensor:
        """Bring pictures (n,H,W,3) u1 to what `_answer` takes, on the CPU: work for the thread that draws."""
        return torch.from_numpy(np.ascontiguousarray(image)).permute(0, 3, 1, 2)

    def _answer(self, batch: Tensor, source: Size, shape: Size) -> Tensor:
        """Estimate (n,*shape) float32 of a prepared batch on the device, of pictures of size `source`."""
        raise NotImplementedError

    @torch.inference_mode()
    def __call__(self, batch: Tensor, source: Size, shape: Size) -> tuple[np.ndarray, np.ndarray | None]:
        """Estimate a prepared batch of pictures of size `source`: depth (n,*shape) f4, and (n,) f4 or None.

        The second, with `check_flip`, is how far picture and mirror image disagree: the mean over pixels of
        2 |a - b| / (|a| + |b|), a the depth of the picture and b the un-mirrored depth of its mirror image. Raises
        `DsgenError` where not even one picture fits the memory.
        """
        if self.device.type == "cuda":
            batch = batch.pin_memory().to(self.device, non_blocking=True)
        else:
            batch = batch.to(self.device)
        depth, disagreement = self._estimate(batch, source, shape), None
        if self.check_flip or self.average_flip:
            mirrored = self._estimate(batch.flip(-1), source, shape).flip(-1)
            if self.check_flip:
                apart = 2 * (depth - mirrored).abs() / (depth.abs() + mirrored.abs()).clamp(min=1e-9)
                disagreement = apart.flatten(1).mean(1).cpu().numpy()
            if self.average_flip:
                depth = (depth + mirrored) / 2
        return depth.cpu().numpy(), disagreement

    def _arithmetic(self) -> torch.autocast:
        """In what a network is to work."""
        return torch.autocast(self.device.type, self._half, enabled=self._half is not None)

    def _estimate(self, batch: Tensor, source: Size, shape: Size) -> Tensor:
        """Answer in as few pieces as fit the device's memory; what fits is remembered."""
        parts: list[Tensor] = []
        done = 0
        while done < len(batch):
            most = self._fits or len(batch)
            piece = batch[done : done + most]
            try:
                parts.append(self._answer(piece, source, shape))
            except torch.OutOfMemoryError as error:
                if len(piece) == 1:
                    raise InvalidValueError(
                        f"--device {self.device}",
                        f"one picture of {batch.shape[-1]}x{batch.shape[-2]} does not fit its memory",
                        "free some, or take another device",
                    ) from error
                self._fits = len(piece) // 2
                log.warning("--batch-size: %d do not fit %s, going on with %d", len(piece), self.device, self._fits)
                torch.cuda.empty_cache()
                continue
            except RuntimeError as error:
                if self.device.type == "cpu":
                    raise
                reason = str(error).splitlines()[0]
                raise InvalidValueError(
                    f"--device {self.device}", f"failed ({reason})", "finished blocks are kept, run again to go on"
                ) from error
            done += len(piece)
        return parts[0] if len(parts) == 1 else torch.cat(parts)


class DenseDepthLabeller(Labeller):
    """dsgen's own networks: the bundled one, the published Keras files, what `train-depth` makes."""

    def __init__(self, model: DepthModel, device: torch.device, *, compile_network: bool = False, **options: Any):
        super().__init__(device, **options)
        self.name, self.sha256 = model.name, model.sha256
        self.config = model.network.config
        self.max_depth_m = self.config["max_depth_m"]
        self.network = fold_batch_norms(model.network).to(device).to(memory_format=torch.channels_last)
        self._run: Callable[[Tensor], Tensor] = torch.compile(self.network) if compile_network else self.network

    def feed_shape(self, height: int, width: int) -> tuple[int, int]:
        """Multiples of 32, at the network's own size if it has one; proportions kept as far as that allows."""
        size = self.config["input_size"]
        scale = size / min(height, width) if size else 1.0
        return max(32, round(height * scale / 32) * 32), max(32, round(width * scale / 32) * 32)

    def prepare(self, image: np.ndarray) -> Tensor:
        """Scale pictures to the size they are fed at."""
        height, width = self.feed_shape(*image.shape[1:3])
        if (height, width) != image.shape[1:3]:
            image = np.stack([images.resize(picture, height, width) for picture in image])
        return super().prepare(image)

    def _answer(self, batch: Tensor, source: Size, shape: Size) -> Tensor:  # noqa: ARG002
        with self._arithmetic():
            raw = self._run(batch.float().div_(255))
        raw = raw.float()
        shrink = raw.shape[-2] > shape[0] or raw.shape[-1] > shape[1]
        raw = F.interpolate(raw, size=shape, mode="bilinear", antialias=shrink)
        # exp and clip would make an infinity a depth
        metres = to_metres(raw, self.config["output"], self.config["max_depth_m"])
        return torch.where(raw.isfinite(), metres, torch.nan)[:, 0]


class TransformersLabeller(Labeller):
    """Any depth-estimation model of Hugging Face `transformers`, by name or folder, with its own preprocessing."""

    def __init__(self, name: str, device: torch.device, *, kind: str | None = None, **options: Any):
        super().__init__(device, **options)
        try:
            from transformers import AutoImageProcessor, AutoModelForDepthEstimation
        except ImportError as error:
            raise MissingPackageError(
                f"--model {HUGGING_FACE}{name}", "transformers is not installed", "pip install 'dsgen[hf]'"
            ) from error
        try:
            self._processor: Any = AutoImageProcessor.from_pretrained(name)
            network: Any = AutoModelForDepthEstimation.from_pretrained(name)
        except (OSError, ValueError, KeyError) as error:
            reason = " ".join(str(error).split())[:200]
            raise InvalidValueError(
                f"--model {HUGGING_FACE}{name}",
                f"no depth-estimation model can be loaded ({reason})",
                "give a folder, or a name on the hub while it can be reached",
            ) from error
        self.name = HUGGING_FACE + (Path(name).resolve().name if Path(name).is_dir() else name)
        self.sha256 = state_sha256(network)
        self.kind = kind or _kind_of(network.config, name)
        self.network = network.to(device).eval()

    def prepare(self, image: np.ndarray) -> Tensor:
        """Scale and normalise as the model's own processor does."""
        return self._processor(images=super().prepare(image), return_tensors="pt")["pixel_values"]

    def _answer(self, batch: Tensor, source: Size, shape: Size) -> Tensor:
        assert self.network is not None
        with self._arithmetic():
            outputs = self.network(pixel_values=batch)
        outputs.predicted_depth = outputs.predicted_depth.float()
        sizes = [shape] * len(batch)
        config: Any = self.network.config
        sources = {"source_sizes": [source] * len(batch)} if config.model_type == "zoedepth" else {}
        parts = self._processor.post_process_depth_estimation(outputs, target_sizes=sizes, **sources)
        depth = torch.stack([part["predicted_depth"].reshape(shape) for part in parts])
        return torch.where(depth.isfinite(), depth, torch.nan)


def _kind_of(config: Any, name: str) -> str:
    """Say what a model's answers are: what its configuration says, or what its family is known for."""
    said = {"metric": METRIC, "relative": INVERSE}.get(getattr(config, "depth_estimation_type", ""))
    kind = said or _KINDS.get(config.model_type)
    if kind is None:
        raise InvalidValueError(
            f"--model {HUGGING_FACE}{name}",
            f"{config.model_type} does not say whether it answers metres",
            f"say it with --kind {METRIC} or --kind {INVERSE}",
        )
    return kind


class FunctionLabeller(Labeller):
    """A Python function of a batch (n,H,W,3) u1 RGB that returns depth (n,h,w), an array or a tensor of any size.

    The labels' attributes hold the function's qualified name and the hash of its source.
    """

    def __init__(self, function: DepthFunction, device: torch.device, *, kind: str | None = None, **options: Any):
        super().__init__(device, **options)
        self.function = function
        self.kind = kind or METRIC
        plain: Any = function if hasattr(function, "__qualname__") else type(function)
        self.name = f"function:{plain.__module__}.{plain.__qualname__}"
        try:
            source = inspect.getsource(plain)
        except (OSError, TypeError):
            source = self.name
        self.sha256 = hashlib.sha256(source.encode()).hexdigest()

    def _answer(self, batch: Tensor, source: Size, shape: Size) -> Tensor:  # noqa: ARG002
        answer = torch.as_tensor(self.function(batch.permute(0, 2, 3, 1).cpu().numpy())).to(self.device).float()
        if answer.ndim != 3 or len(answer) != len(batch):
            raise DsgenError(
                self.name,
                (
                    f"returned shape {tuple(answer.shape)} for {len(batch)} pictures, expected ({len(batch)}, height, "
                    "width)"
                ),
            )
        if tuple(answer.shape[1:]) != shape:
            answer = F.interpolate(answer[:, None], size=shape, mode="bilinear")[:, 0]
        return torch.where(answer.isfinite(), answer, torch.nan)


def state_sha256(network: nn.Module) -> str:
    """Hash a network's parameters and buffers, by name."""
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def make_labellers(
    model: str | DepthFunction | None,
    devices: list[torch.device],
    *,
    weights: Path | None = None,
    kind: str | None = None,
    max_depth_m: float | None = None,
    compile_network: bool = False,
    precision: str = "auto",
    check_flip: bool = False,
    average_flip: bool = False,
) -> list[Labeller]:
    """Make one labeller for each device.

    `model` is `hf:NAME_OR_FOLDER`, a Python function, or the timm encoder of `weights` where the file does not say
    it. `kind` says what a foreign model answers where that is not known.
    """
    if kind not in (None, METRIC, INVERSE):
        raise InvalidValueError("--kind", f"got {kind!r}, expected {METRIC} or {INVERSE}")
    options: dict[str, Any] = {"precision": precision, "check_flip": check_flip, "average_flip": average_flip}
    foreign = callable(model) or (model or "").startswith(HUGGING_FACE)
    if foreign and weights is not None:
        raise InvalidValueError(
            "--weights", f"got {weights} beside --model, which brings its own", "leave one of them out"
        )
    if not foreign and kind is not None:
        raise InvalidValueError(
            "--kind", f"got {kind}, but this network answers metres", f"it is for --model {HUGGING_FACE}NAME"
        )
    if (foreign and max_depth_m is not None) or (foreign and compile_network):
        raise InvalidValueError(
            "--max-depth, --compile", f"not for --model {HUGGING_FACE}NAME or functions", "leave them out"
        )
    if callable(model):
        return [FunctionLabeller(model, device, kind=kind, **options) for device in devices]
    if foreign:
        name = str(model).removeprefix(HUGGING_FACE)
        return [TransformersLabeller(name, device, kind=kind, **options) for device in devices]
    return [
        DenseDepthLabeller(
            load_depth_model(weights, model, max_depth_m), device, compile_network=compile_network, **options
        )
        for device in devices
    ]


def default_batch_size(device: torch.device) -> int:
    """How many pictures a device is given at once unless told otherwise."""
    return 16 if device.type == "cpu" else 64


def check_batch_size(batch_size: int | None) -> None:
    """Refuse a batch of nothing."""
    if batch_size is not None and batch_size < 1:
        raise InvalidValueError("--batch-size", f"got {batch_size}, expected 1 or more")
