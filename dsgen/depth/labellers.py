"""Labellers: images in, depth out, on one device, whichever the network.

A labeller takes images (n,H,W,3) u1 RGB and returns (n,h,w) f4 of the requested size, NaN where the network's answer
is not finite. `kind` says what the numbers are: "metric" is metres; "inverse" is 1 / depth up to an unknown scale and
shift, where larger is nearer, and is never called metres.
"""

import hashlib
import inspect
import logging
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsgen.corpus.labels import INVERSE, METRIC
from dsgen.depth.hub import HUGGING_FACE, load_from_hub
from dsgen.depth.networks import fold_batch_norms, to_metres
from dsgen.depth.weights import DepthModel, load_depth_model
from dsgen.errors import DsgenError, InvalidValueError, MissingPackageError, reason_of
from dsgen.io import images
from dsgen.io.cameras import check_fov
from dsgen.parallel.arithmetic import FLOAT32, faster_precision
from dsgen.parallel.devices import (
    PRECISIONS,
    autocast_dtype,
    is_device_failure,
    is_out_of_memory,
    resolve_precision,
)
from dsgen.units import MAX_DEPTH_MM

BUNDLED_REFERENCE = "bundled"
# kinds that the configuration of a `transformers` model does not state, by its model_type
_KINDS = {"zoedepth": METRIC, "glpn": METRIC, "depth_pro": METRIC, "dpt": INVERSE}

MOST_FED_PIXELS = 2048 * 2048  # of a picture as it is fed; 0.7 GB in the bundled network, 2 GB in DenseNet-169
_USUALLY_ELONGATED = 8  # up to here the shorter side is fed at the network's own size, however long the other one
_STRIDE = 32  # by which DenseDepth halves a picture: fed sides are multiples of it
_MOST_ELONGATED = MOST_FED_PIXELS // _STRIDE**2  # longer over shorter side of a picture that DenseDepth can be fed
_LEAST_SIDE, _MOST_PIXELS = 128, 640 * 480  # as fed to a network with a canonical camera, whatever the focal length
_SCALE_WEIGHT = 0.5  # of an error of the size in which such a network is fed, against one of its proportions
_MOST_ELONGATED_FOREIGN = 32  # the same for models whose preprocessing may enlarge the shorter side

Size = tuple[int, int]  # height and width in pixels
DepthFunction = Callable[[np.ndarray], "np.ndarray | Tensor"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LabelOptions:
    """Which network labels, and how.

    `model` is `hf:NAME_OR_FOLDER`, a Python function (see `FunctionLabeller`), or the timm encoder of `weights` where
    that file does not name it; without both, the bundled network labels. `kind` is the kind of a foreign model's
    answers where the model does not state it. `metric_reference` is `BUNDLED_REFERENCE` or the weights file of a
    metric network to which a relative model's answers are fitted. `device` is one name, or several with commas
    between; `batch_size` is None for the device's default. `fov_deg` is the field of view, along their width, of
    pictures that do not say theirs; it is for networks with a canonical camera, see `check_fov_is_used`.
    """

    model: "str | DepthFunction | None" = None
    weights: Path | None = None
    kind: str | None = None
    max_depth_m: float | None = None
    metric_reference: str | None = None
    device: str = "auto"
    batch_size: int | None = None
    compile_network: bool = False
    precision: str = "auto"
    check_flip: bool = False
    average_flip: bool = False
    fov_deg: float | None = None

    def check(self) -> None:
        """Raise `InvalidValueError` for values that no network can be run with, and for options that contradict."""
        foreign = self.is_foreign
        if self.batch_size is not None and self.batch_size < 1:
            raise InvalidValueError.expected("batch_size", self.batch_size, "1 or more")
        check_fov(self.fov_deg)
        if self.kind not in (None, METRIC, INVERSE):
            raise InvalidValueError("--kind", f"got {self.kind!r}, expected {METRIC} or {INVERSE}")
        if self.precision not in PRECISIONS:
            raise InvalidValueError("--precision", f"got {self.precision!r}, expected {', '.join(PRECISIONS)}")
        if foreign and self.weights is not None:
            raise InvalidValueError(
                "--weights", f"got {self.weights} beside --model, which brings its own", "leave one of them out"
            )
        if not foreign and self.kind is not None:
            raise InvalidValueError(
                "--kind", f"got {self.kind}, but this network answers metres", f"it is for --model {HUGGING_FACE}NAME"
            )
        if foreign and (self.max_depth_m is not None or self.compile_network):
            raise InvalidValueError(
                "--max-depth, --compile", f"not for --model {HUGGING_FACE}NAME or functions", "leave them out"
            )

    @property
    def is_foreign(self) -> bool:
        """Whether the model is not one of dsgen's own networks."""
        return callable(self.model) or (self.model or "").startswith(HUGGING_FACE)

    def absolute(self) -> "LabelOptions":
        """Return the same options for a process that runs in another folder."""
        reference = self.metric_reference
        if reference not in (None, BUNDLED_REFERENCE):
            reference = str(Path(str(reference)).absolute())
        return replace(self, weights=self.weights and self.weights.absolute(), metric_reference=reference)


class PictureError(DsgenError):
    """One picture cannot be labelled; others can."""


@dataclass(frozen=True)
class Answer:
    """What a labeller answers for a batch of n images.

    `labels` (n,h,w) is depth, f4, or what it was turned into; `finite` (n,) tells of each image whether its whole depth
    is finite, and `flip_error` (n,) f4 is None unless it is measured, see `Labeller.__call__`.
    """

    labels: np.ndarray
    finite: np.ndarray
    flip_error: np.ndarray | None


class PendingAnswer:
    """An answer that a device may still be working on.

    On CUDA the answer is copied to pinned memory behind the device's own work, and nothing waits before `result`.
    """

    def __init__(self, device: torch.device, labels: Tensor, finite: Tensor, flip_error: Tensor | None):
        self._device = device
        self._copies = [_copy_to_host(part) for part in (labels, finite, *([] if flip_error is None else [flip_error]))]
        self._copied: torch.cuda.Event | None = None
        if device.type == "cuda":
            self._copied = torch.cuda.Event()
            self._copied.record(torch.cuda.current_stream(device))

    def result(self) -> Answer:
        """Wait for the answer; raise `DsgenError` if the device has failed."""
        if self._copied is not None:
            try:
                self._copied.synchronize()
            except RuntimeError as error:
                raise_device_failure(self._device, error)
                raise
        # pinned memory is scarce: what is kept is a copy
        labels, finite, *flips = (
            copy.numpy() if self._copied is None else copy.numpy().copy() for copy in self._copies
        )
        return Answer(labels, finite, flips[0] if flips else None)


def _copy_to_host(part: Tensor) -> Tensor:
    if part.device.type != "cuda":
        return part.cpu()
    return torch.empty(part.shape, dtype=part.dtype, pin_memory=True).copy_(part, non_blocking=True)


def raise_device_failure(device: torch.device, error: BaseException) -> None:
    """Raise `DsgenError` if an error says that a device other than the CPU has failed."""
    if device.type == "cpu" or not is_device_failure(error):
        return
    other = "use --device cpu" if device.type == "mps" else "run the same command again to resume"
    raise DsgenError(f"--device {device}", f"failed ({reason_of(error)})", f"finished work is kept, {other}") from error


def round_to_millimetres(depth_m: Tensor) -> Tensor:
    """Round metres f4 to millimetres u2 as `units.to_millimetres` does, on the device where they are."""
    return (depth_m * 1000).round_().clamp_(1, MAX_DEPTH_MM).to(torch.uint16)


class Labeller:
    """What all labellers share: moving batches to the device, splitting those that do not fit, mirror images.

    With `average_flip` the depth is the mean of the image's depth and of the un-mirrored depth of its mirror image,
    as in the published figures of DenseDepth. `check_flip` measures how far the two disagree. `precision` is one of
    `devices.PRECISIONS`; `pick_precision` tells what to set in place of "auto". `focal_px` is the focal length, in
    pixels of what is fed, of the camera that the network answers for; None if it answers whatever the camera.
    """

    name: str
    sha256: str
    kind = METRIC
    network: nn.Module | None = None
    max_depth_m: float | None = None
    focal_px: float | None = None

    def __init__(
        self, device: torch.device, *, precision: str = "auto", check_flip: bool = False, average_flip: bool = False
    ):
        self.device, self.precision = device, precision
        self.check_flip, self.average_flip = check_flip, average_flip
        self._largest_batch: int | None = None  # found by running out of memory

    def feed_shape(self, height: int, width: int, focal_px: float | None = None) -> Size:  # noqa: ARG002
        """Return the (height, width) to which images of this size are scaled before they are fed.

        `focal_px` is the images' own focal length, which only networks with a canonical camera look at. Raises
        `PictureError` for images so thin that they cannot be fed.
        """
        return height, width

    def prepare(self, image: np.ndarray, fed: Size | None = None) -> Tensor:  # noqa: ARG002
        """Turn images (n,H,W,3) u1 into the batch that `_answer` takes, on the CPU, in the thread that draws them.

        `fed` is the size at which they are fed, by default what `feed_shape` says of images without a focal length.
        """
        return torch.from_numpy(np.ascontiguousarray(image)).permute(0, 3, 1, 2)  # (n,3,H,W) u1

    def pick_precision(self, height: int, width: int) -> str:
        """Return what the precision "auto" stands for where images of this size are labelled, never "auto" itself.

        On a CPU that is whichever is faster for this network, see `parallel.arithmetic`, and float32 for a function;
        elsewhere it depends on the device alone. Raises `PictureError` for images that cannot be fed.
        """
        if self.device.type != "cpu":
            return resolve_precision("auto", self.device)
        if self.network is None:
            return FLOAT32
        noise = np.random.default_rng(0).integers(0, 256, (1, height, width, 3), np.uint8)
        example = self.prepare(noise)  # (1,3,h,w)

        @torch.inference_mode()
        def run(precision: str, count: int) -> None:
            with torch.autocast("cpu", torch.bfloat16, enabled=precision != FLOAT32):
                self._feed(torch.cat([example] * count))

        return faster_precision(run, f"{self.name} {self.sha256}", tuple(example.shape[1:]))

    def _feed(self, batch: Tensor) -> object:
        """Run the bare network on a prepared batch, to measure it; the answer is of no use."""
        raise NotImplementedError

    def _answer(self, batch: Tensor, source: Size, shape: Size, scale: Tensor | None = None) -> Tensor:
        """Estimate depth (n,*shape) f4 for a prepared batch on the device; `source` is the images' original size.

        `scale` (n,) f4, on the device, is what the metres of the canonical camera are multiplied with.
        """
        raise NotImplementedError

    def __call__(
        self, batch: Tensor, source: Size, shape: Size, focal_px: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Estimate depth (n,*shape) f4 for a prepared batch of images whose size was `source`, and flip errors.

        `focal_px` (n,) are the focal lengths of the images in pixels of `source`, for networks with a canonical
        camera. Without them the answer is what that camera would have seen.

        Flip errors, (n,) f4 with `check_flip` and else None, say how far image and mirror image disagree: the mean
        over pixels of 2 |a - b| / (|a| + |b|), where a is the depth of the image and b the un-mirrored depth of its
        mirror image. Raises `PictureError` if not even one image fits the device's memory, `DsgenError` if the device
        fails.
        """
        answer = self.submit(batch, source, shape, focal_px).result()
        return answer.labels, answer.flip_error

    @property
    def batches_ahead(self) -> int:
        """How many answers to leave pending, so that the device has the next batch when it ends one."""
        return 1 if self.device.type == "cuda" else 0

    def pin(self, batch: Tensor) -> Tensor:
        """Move a prepared batch to memory from which the device copies it without waiting, if it has such."""
        return batch.pin_memory() if self.device.type == "cuda" else batch

    @torch.inference_mode()
    def submit(
        self,
        batch: Tensor,
        source: Size,
        shape: Size,
        focal_px: np.ndarray | None = None,
        turn: Callable[[Tensor], Tensor] | None = None,
    ) -> PendingAnswer:
        """Estimate depth as `__call__` does, but do not wait for a device that works by itself.

        `turn` makes the labels of the depth (n,*shape) f4, on the device. Raises as `__call__`; a device may also fail
        when the result is asked for.
        """
        if self.device.type == "cuda" and not batch.is_pinned():
            batch = self.pin(batch)
        batch = batch.to(self.device, non_blocking=self.device.type == "cuda")
        scale = self._camera_scale(batch, source, focal_px)
        depth, flip_error = self._estimate(batch, source, shape, scale), None  # (n,*shape) f4
        if self.check_flip or self.average_flip:
            mirrored = self._estimate(batch.flip(-1), source, shape, scale).flip(-1)
            if self.check_flip:
                relative = 2 * (depth - mirrored).abs() / (depth.abs() + mirrored.abs()).clamp(min=1e-9)
                flip_error = relative.flatten(1).mean(1)  # (n,)
            if self.average_flip:
                depth = (depth + mirrored) / 2
        if self.device.type == "mps":  # which may lack u2
            depth = depth.cpu()
        # the largest is NaN where there is one, and labellers answer no infinity below zero
        finite = depth.flatten(1).amax(1).isfinite()  # (n,)
        return PendingAnswer(self.device, depth if turn is None else turn(depth), finite, flip_error)

    def _autocast(self) -> torch.autocast:
        """Return the context in which the network runs: autocast to half precision, or nothing for float32."""
        dtype = autocast_dtype(self.precision, self.device)
        return torch.autocast(self.device.type, dtype, enabled=dtype is not None)

    def _camera_scale(self, batch: Tensor, source: Size, focal_px: np.ndarray | None) -> Tensor | None:
        """Return the focal lengths of images as they are fed over the canonical one, (n,) f4 on the device, or None.

        Sides that are scaled by different factors count with their geometric mean.
        """
        if self.focal_px is None or focal_px is None:
            return None
        enlarged = math.sqrt(math.prod(batch.shape[-2:]) / math.prod(source))
        return torch.from_numpy(np.float32(focal_px * (enlarged / self.focal_px))).to(self.device)

    def _estimate(self, batch: Tensor, source: Size, shape: Size, scale: Tensor | None = None) -> Tensor:
        """Estimate a batch in as few pieces as fit the device's memory; the size that fits is remembered."""
        answers: list[Tensor] = []  # (k,*shape) f4 each
        done = 0
        while done < len(batch):
            piece = batch[done : done + (self._largest_batch or len(batch))]
            scales = None if scale is None else scale[done : done + len(piece)]
            try:
                answers.append(self._answer(piece, source, shape, scales))
            except (RuntimeError, MemoryError) as error:
                if is_out_of_memory(error):
                    self._shrink_batches(piece, error)
                    continue
                raise_device_failure(self.device, error)
                raise
            done += len(piece)
        return answers[0] if len(answers) == 1 else torch.cat(answers)

    def _shrink_batches(self, piece: Tensor, error: BaseException) -> None:
        """Halve the batches after one did not fit; raise if it was a single image."""
        if len(piece) == 1:
            raise PictureError(
                f"--device {self.device}",
                f"one picture, fed as {piece.shape[-1]}x{piece.shape[-2]} pixels, does not fit its memory",
                "free some, or use another device",
            ) from error
        self._largest_batch = len(piece) // 2
        log.warning("--batch-size: %d do not fit %s, continuing with %d", len(piece), self.device, self._largest_batch)
        torch.cuda.empty_cache()


class DenseDepthLabeller(Labeller):
    """dsgen's own networks: the bundled one, the published Keras files, and those that `train-depth` trains."""

    def __init__(self, model: DepthModel, device: torch.device, *, compile_network: bool = False, **options: Any):
        super().__init__(device, **options)
        self.name, self.sha256 = model.name, model.sha256
        self.config = model.network.config
        self.max_depth_m, self.focal_px = self.config["max_depth_m"], self.config["focal_px"]
        self.network = fold_batch_norms(model.network).to(device).to(memory_format=torch.channels_last)
        self._run: Callable[[Tensor], Tensor] = torch.compile(self.network) if compile_network else self.network

    def feed_shape(self, height: int, width: int, focal_px: float | None = None) -> Size:
        """Round to multiples of 32, at the network's own input size if it has one, close to the image's proportions.

        An image that would have more than `MOST_FED_PIXELS`, or that is thin and would be enlarged to very many, is
        fed smaller, in the same proportions. One whose focal length is given is fed so that it is nearly the canonical
        one, within 640 x 480 pixels, unless it is thin.
        """
        _check_proportions(height, width, _MOST_ELONGATED)
        thin = max(height, width) > _USUALLY_ELONGATED * min(height, width)
        if self.focal_px is not None and focal_px is not None and not thin:
            return _canonical_shape(height, width, self.focal_px / focal_px)
        size = self.config["input_size"]
        scale = size / min(height, width) if size else 1.0
        fed = [max(_STRIDE, round(side * scale / _STRIDE) * _STRIDE) for side in (height, width)]
        most = min(MOST_FED_PIXELS, _USUALLY_ELONGATED * size * size) if size else MOST_FED_PIXELS
        if math.prod(fed) > most:
            short = max(_STRIDE, _floor(math.sqrt(most * min(height, width) / max(height, width))))
            long = min(
                _floor(MOST_FED_PIXELS / short),
                _STRIDE * round(short * max(height, width) / min(height, width) / _STRIDE),
            )
            fed = [short, long] if height < width else [long, short]
        return fed[0], fed[1]

    def prepare(self, image: np.ndarray, fed: Size | None = None) -> Tensor:
        """Scale images to the size at which they are fed."""
        return super().prepare(_resize(image, fed or self.feed_shape(*image.shape[1:3])))

    def _feed(self, batch: Tensor) -> object:
        assert self.network is not None
        return self.network(batch.float().div_(255))  # not compiled, which takes minutes for both precisions

    def _answer(self, batch: Tensor, source: Size, shape: Size, scale: Tensor | None = None) -> Tensor:  # noqa: ARG002
        with self._autocast():
            raw = self._run(batch.float().div_(255))  # (n,3,H,W) u1 -> (n,1,H/2,W/2)
        raw = raw.float()
        shrink = raw.shape[-2] > shape[0] or raw.shape[-1] > shape[1]
        raw = F.interpolate(raw, size=shape, mode="bilinear", antialias=shrink)  # (n,1,*shape) f4
        scale = None if scale is None else scale[:, None, None, None]
        metres = to_metres(raw, self.config["output"], self.config["max_depth_m"], scale)
        # exp and clamp would turn infinity into a depth; what is not finite less itself is NaN, all else is 0
        return metres.add_(raw.sub_(raw))[:, 0]  # (n,*shape)


def _canonical_shape(height: int, width: int, scale: float) -> Size:
    """Return the sides, multiples of 32, closest to a picture's sides times `scale`, above all in their proportions."""
    aspect = max(height, width) / min(height, width)
    candidates = [
        (short, long)
        for short in range(_LEAST_SIDE, math.isqrt(_MOST_PIXELS) + 1, _STRIDE)
        for long in (_floor(short * aspect), _floor(short * aspect) + _STRIDE)
        if short <= long and short * long <= _MOST_PIXELS
    ]

    def error(sides: Size) -> tuple[float, int]:
        short, long = sides
        enlarged = math.sqrt(short * long / (height * width))
        return abs(math.log(long / short / aspect)) + _SCALE_WEIGHT * abs(math.log(enlarged / scale)), short * long

    short, long = min(candidates, key=error)
    return (short, long) if height < width else (long, short)


def _floor(side: float) -> int:
    return math.floor(side / _STRIDE) * _STRIDE


def _check_proportions(height: int, width: int, most: int) -> None:
    """Raise `PictureError` for an image that is so thin that a network cannot be fed with it in bounded memory."""
    if max(height, width) > most * min(height, width):
        reason = f"{width}x{height} pixels, expected one side to be at most {most:,} times the other"
        raise PictureError("picture", reason, "crop it, or leave it out")


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

        def load(local_only: bool) -> tuple[Any, Any]:
            options = {"local_files_only": local_only, "trust_remote_code": False}  # a model's own code is never run
            processor = AutoImageProcessor.from_pretrained(name, **options)
            return processor, AutoModelForDepthEstimation.from_pretrained(name, **options)

        self._processor, network = load_from_hub(name, load)
        self.name = HUGGING_FACE + (Path(name).resolve().name if Path(name).is_dir() else name)
        self.sha256 = state_sha256(network)
        self.kind = kind or _kind_of(network.config, name)
        self.network = network.to(device).eval()

    def feed_shape(self, height: int, width: int, focal_px: float | None = None) -> Size:  # noqa: ARG002
        """Return the size at which the model's own processor gets images: theirs, or a smaller one of large images."""
        _check_proportions(height, width, _MOST_ELONGATED_FOREIGN)
        scale = min(1.0, math.sqrt(MOST_FED_PIXELS / (height * width)))
        return (height, width) if scale == 1 else (int(height * scale), int(width * scale))

    def prepare(self, image: np.ndarray, fed: Size | None = None) -> Tensor:
        """Scale and normalise images with the model's own processor."""
        image = _resize(image, fed or self.feed_shape(*image.shape[1:3]))
        batch = self._processor(images=super().prepare(image), return_tensors="pt")["pixel_values"]  # (n,3,h,w) f4
        high, wide = batch.shape[-2:]
        if high * wide > MOST_FED_PIXELS:
            reason = f"the model's preprocessing makes it {wide}x{high}, expected at most {MOST_FED_PIXELS:,} pixels"
            raise PictureError("picture", reason, "crop it, or leave it out")
        return batch

    def _feed(self, batch: Tensor) -> Any:
        assert self.network is not None
        return self.network(pixel_values=batch)

    def _answer(self, batch: Tensor, source: Size, shape: Size, scale: Tensor | None = None) -> Tensor:  # noqa: ARG002
        assert self.network is not None
        with self._autocast():
            outputs = self._feed(batch)
        outputs.predicted_depth = outputs.predicted_depth.float()
        sizes = [shape] * len(batch)
        config: Any = self.network.config
        given = self.feed_shape(*source)
        sources = {"source_sizes": [given] * len(batch)} if config.model_type == "zoedepth" else {}
        answers = self._processor.post_process_depth_estimation(outputs, target_sizes=sizes, **sources)
        depth = torch.stack([answer["predicted_depth"].reshape(shape) for answer in answers])  # (n,*shape)
        return torch.where(depth.isfinite(), depth, torch.nan)


def _resize(image: np.ndarray, size: Size) -> np.ndarray:
    """Scale images (n,h,w,3) u1 to a size."""
    if image.shape[1:3] == size:
        return image
    return np.stack([images.resize(one, *size) for one in image])


def _kind_of(config: Any, name: str) -> str:
    """Return the kind of a model's answers: from its configuration, else from its family."""
    stated = {"metric": METRIC, "relative": INVERSE}.get(getattr(config, "depth_estimation_type", ""))
    kind = stated or _KINDS.get(config.model_type)
    if kind is None:
        raise InvalidValueError(
            f"--model {HUGGING_FACE}{name}",
            f"{config.model_type} does not say whether it answers metres",
            f"use --kind {METRIC} or --kind {INVERSE}",
        )
    return kind


class FunctionLabeller(Labeller):
    """A Python function that maps images (n,H,W,3) u1 RGB to depth (n,h,w), an array or a tensor of any size.

    The labels' attributes record the function's qualified name and the hash of its source.
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

    def _answer(self, batch: Tensor, source: Size, shape: Size, scale: Tensor | None = None) -> Tensor:  # noqa: ARG002
        # float32 before it is moved: MPS has no float64
        answer = torch.as_tensor(self.function(batch.permute(0, 2, 3, 1).cpu().numpy())).float().to(self.device)
        # (n,h,w) f4, of any h and w
        if answer.ndim != 3 or len(answer) != len(batch):
            raise DsgenError(
                self.name,
                f"returned shape {tuple(answer.shape)} for {len(batch)} pictures, expected ({len(batch)}, height, "
                "width)",
            )
        if tuple(answer.shape[1:]) != shape:
            answer = F.interpolate(answer[:, None], size=shape, mode="bilinear")[:, 0]  # (n,*shape)
        return torch.where(answer.isfinite(), answer, torch.nan)


def state_sha256(network: nn.Module) -> str:
    """Hash a network's parameters and buffers, in the order of their names."""
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def make_labellers(options: LabelOptions, devices: list[torch.device]) -> list[Labeller]:
    """Make one labeller for each device; raise `DsgenError` for options that contradict or weights that do not load."""
    options.check()
    common: dict[str, Any] = {
        "precision": options.precision,
        "check_flip": options.check_flip,
        "average_flip": options.average_flip,
    }
    model = options.model
    if callable(model):
        return [FunctionLabeller(model, device, kind=options.kind, **common) for device in devices]
    if options.is_foreign:
        name = str(model).removeprefix(HUGGING_FACE)
        return [TransformersLabeller(name, device, kind=options.kind, **common) for device in devices]
    return [
        DenseDepthLabeller(
            load_depth_model(options.weights, model, options.max_depth_m),
            device,
            compile_network=options.compile_network,
            **common,
        )
        for device in devices
    ]


def check_fov_is_used(fov_deg: float | None, labellers: Iterable[Labeller]) -> None:
    """Raise `InvalidValueError` for a `--fov` beside networks none of which has a canonical camera."""
    labellers = list(labellers)
    if fov_deg is not None and all(labeller.focal_px is None for labeller in labellers):
        names = " and ".join(labeller.name for labeller in labellers)
        raise InvalidValueError("--fov", f"not used by {names} (no canonical camera)", "leave it out")


def default_batch_size(device: torch.device) -> int:
    """Return how many images a device is fed at once by default."""
    return 16 if device.type == "cpu" else 64
