"""Export a trained network as an ONNX file, compared with ONNX Runtime before it is written.

    background, image   float32 (batch, 3, height, width)   RGB in 0..1, any batch and size
    mask_probability    float32 (batch, 1, height, width)   0..1, foreground above 0.5
    depth_m             float32 (batch, 1, height, width)   metres, 0.1..10

A network with answers at half the size gives them at half the size here too. Outputs it was not trained for are left
out. The file's metadata also say what the numbers mean.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsgen import __version__
from dsgen.errors import DsgenError, InvalidValueError, MissingPackageError, is_system_error, reason_of
from dsgen.io.atomic import write_bytes
from dsgen.training.checkpoint import DEPTH, MASK, Trained, open_trained
from dsgen.training.unet import unet_metres
from dsgen.units import MAX_DEPTH_M, MIN_DEPTH_M

OPSET = 18
INPUTS = ("background", "image")
OUTPUTS = {MASK: "mask_probability", DEPTH: "depth_m"}
LIMITS = {MASK: 1e-4, DEPTH: 1e-3}  # largest difference of ONNX Runtime allowed: in probability, in metres
_NOT_WRITTEN = "nothing was written; try another opset or version of onnxruntime"
_MEANING = {
    MASK: "probability of foreground, 0..1; foreground above 0.5",
    DEPTH: f"depth in metres, {MIN_DEPTH_M:g}..{MAX_DEPTH_M:g}",
}


@dataclass(frozen=True)
class OnnxResult:
    """The result of `export_onnx`.

    `bytes` is the size of the file. `max_difference` has, by output, the largest absolute difference between ONNX
    Runtime and torch, over `compared_on` batches. `torch`, `onnx` and `onnxruntime` are the versions used.
    """

    out: Path
    bytes: int
    opset: int
    checkpoint: Path
    max_difference: dict[str, float]
    compared_on: int
    torch: str
    onnx: str
    onnxruntime: str

    def summary(self) -> str:
        """Say in one line what was written and how close its answers are."""
        differences = ", ".join(f"{name} {value:.2g}" for name, value in self.max_difference.items())
        return (
            f"{self.out}: {self.bytes / 1e6:,.1f} MB, opset {self.opset}, from {self.checkpoint}; differs from torch "
            f"by at most {differences} on {self.compared_on} batches (torch {self.torch}, onnx {self.onnx}, "
            f"onnxruntime {self.onnxruntime})"
        )


class Answers(nn.Module):
    """A U-Net with its answers in plain units: probabilities and metres."""

    def __init__(self, network: nn.Module, answers: tuple[str, ...]):
        super().__init__()
        self.network, self.answers = network, answers

    def forward(self, background: Tensor, image: Tensor) -> tuple[Tensor, ...]:
        """Map backgrounds and images (B,3,H,W) in 0..1 to the chosen answers, (B,1,H,W) each."""
        logits, raw = self.network(background, image)
        outputs = {MASK: logits.sigmoid(), DEPTH: unet_metres(raw)}
        return tuple(outputs[answer] for answer in self.answers)


def export_onnx(run: Path, out: Path, *, checkpoint: str = "best", opset: int = OPSET) -> OnnxResult:
    """Write a run's network as ONNX and return how close ONNX Runtime's answers are to torch's.

    The two are compared on several batches and sizes, odd ones included; where they differ by more than `LIMITS`,
    nothing is written. `out` is a file whose name ends in .onnx.

    Raises `DsgenError` where they differ and where the network cannot be exported, `MissingPackageError` without the
    packages of the extra `onnx`, `NotFoundError` for a run without checkpoints, and `InvalidValueError` for an opset
    or a name that cannot be.

    >>> export_onnx(Path("run"), Path("network.onnx")).max_difference  # doctest: +SKIP
    {'mask_probability': 3e-07, 'depth_m': 1.9e-06}
    """
    if out.suffix.lower() != ".onnx":
        raise InvalidValueError(out, "expected a name that ends in .onnx")
    onnx, runtime = _packages()
    newest = onnx.defs.onnx_opset_version()
    if not OPSET <= opset <= newest:
        raise InvalidValueError("opset", f"got {opset}, expected {OPSET} to {newest}", f"leave it out for {OPSET}")
    trained = open_trained(run, checkpoint, "cpu")
    network = Answers(trained.network, trained.answers).eval()
    names = [OUTPUTS[answer] for answer in trained.answers]
    content = _encode(network, trained, names, onnx, opset, out)
    shapes = parity_shapes(trained.size)
    worst = _compare(network, names, content, shapes, runtime, out)
    for answer, difference in zip(trained.answers, worst, strict=True):
        if not difference <= LIMITS[answer]:
            raise DsgenError(
                out,
                f"{OUTPUTS[answer]} of ONNX Runtime differs by {difference:.2g}, expected at most {LIMITS[answer]:g}",
                _NOT_WRITTEN,
            )
    out.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(out, content)
    return OnnxResult(
        out=out,
        bytes=len(content),
        opset=opset,
        checkpoint=trained.path,
        max_difference=dict(zip(names, worst, strict=True)),
        compared_on=len(shapes),
        torch=torch.__version__,
        onnx=onnx.__version__,
        onnxruntime=runtime.__version__,
    )


def _packages() -> tuple[Any, Any]:
    """Import the packages of the extra `onnx`; raise `MissingPackageError` where one is missing."""
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401  torch's exporter needs it, and fails late without it
    except ImportError as error:
        raise MissingPackageError(error.name, "not installed", "pip install 'dsgen[onnx]'") from error
    return onnx, onnxruntime


def _compare(
    network: nn.Module, names: list[str], content: bytes, shapes: list[tuple[int, int, int]], runtime: Any, out: Path
) -> list[float]:
    """Return, for every output, the largest absolute difference between torch and ONNX Runtime over all shapes."""
    session: Any = None
    differences = []
    for k, shape in enumerate(shapes):
        background, image = random_pictures(*shape, seed=k)
        with torch.no_grad():
            expected = network(background, image)
        try:
            session = session or runtime.InferenceSession(content, providers=["CPUExecutionProvider"])
            found = session.run(names, {"background": background.numpy(), "image": image.numpy()})
        except Exception as error:  # ONNX Runtime raises errors of any class
            if is_system_error(error):
                raise
            raise DsgenError(
                out,
                f"ONNX Runtime fails on {'x'.join(map(str, image.shape))} ({reason_of(error)}), expected any "
                "batch and size",
                _NOT_WRITTEN,
            ) from error
        for name, ours, theirs in zip(names, expected, found, strict=True):
            if ours.shape != theirs.shape:
                raise DsgenError(
                    out,
                    f"{name} of ONNX Runtime is {theirs.shape}, expected {tuple(ours.shape)}",
                    _NOT_WRITTEN,
                )
        differences.append([float(np.abs(a.numpy() - b).max()) for a, b in zip(expected, found, strict=True)])
    return np.max(differences, axis=0).tolist()  # nan stays nan


def parity_shapes(size: int) -> list[tuple[int, int, int]]:
    """List the (batch, height, width) to compare on: the trained size, others, odd ones, one picture and several."""
    half, odd = max(32, size // 2), size + 13
    return [(1, size, size), (3, half, size), (2, odd, half + 5), (1, half + 1, odd)]


def random_pictures(batch: int, height: int, width: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return smooth random backgrounds (B,3,H,W) in 0..1, and images that differ from them inside a box."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(batch, 6, 5, 5, generator=generator)
    background, other = F.interpolate(coarse, size=(height, width), mode="bilinear").split(3, dim=1)
    image = background.clone()
    box = (..., slice(height // 4, 3 * height // 4), slice(width // 3, width // 2))
    image[box] = other[box]
    return background, image


def _encode(network: nn.Module, trained: Trained, names: list[str], onnx: Any, opset: int, out: Path) -> bytes:
    """Export a network with any batch, height and width, and the metadata of the file."""
    sides = {0: "batch", 2: "height", 3: "width"}
    # all different, and none 1: the exporter takes equal sides and a side of 1 for constants
    pictures = random_pictures(2, trained.size, trained.size + 32, seed=0)
    try:
        with _quiet():
            program = torch.onnx.export(
                network,
                pictures,
                dynamo=True,
                opset_version=opset,
                input_names=list(INPUTS),
                output_names=names,
                dynamic_shapes=dict.fromkeys(INPUTS, sides),
                verbose=False,
            )
    except Exception as error:  # the exporter raises errors of any class
        if is_system_error(error):
            raise
        raise DsgenError(
            out,
            f"{trained.path} cannot be exported with opset {opset} ({reason_of(error)})",
            f"try opset {OPSET}, or a network without --encoder",
        ) from error
    assert program is not None
    model = program.model_proto
    made = {entry.domain: entry.version for entry in model.opset_import}[""]
    if made != opset:  # the exporter keeps its own where it cannot convert
        raise DsgenError(out, f"torch {torch.__version__} wrote opset {made}, expected {opset}", f"use opset {made}")
    for node in (*model.graph.node, *(node for function in model.functions for node in function.node)):
        del node.metadata_props[:]  # stack traces with local paths
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, _metadata(trained))
    model.producer_name, model.producer_version = "dsgen", __version__
    return model.SerializeToString()


def _metadata(trained: Trained) -> dict[str, str]:
    """Return what the file says about itself: versions, checkpoint, and what inputs and outputs mean."""
    half_size = trained.network.config["output"] == "half"
    return {
        "dsgen": __version__,
        "torch": torch.__version__,
        "checkpoint_sha256": trained.sha256,
        "trained_size": str(trained.size),
        "inputs": "RGB in 0..1, (batch, 3, height, width); background without the foreground, image with it",
        **{OUTPUTS[answer]: _MEANING[answer] for answer in trained.answers},
        "output_size": "half of the input's, rounded up" if half_size else "the input's",
    }


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide the exporter's log messages and warnings about its own workings; errors are still raised."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
