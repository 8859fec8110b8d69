"""The network that labels: DenseDepth.

Inside torch a picture is BCHW float32 RGB in 0..1 and a mask or depth map is B1HW float32.
"""

import copy
import math
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, NotRequired

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt, Le
from torch import Tensor, fx, nn
from typing_extensions import TypedDict

from dsgen.encoders import Normalise, Statistics, check_encoder
from dsgen.errors import DsgenError, InvalidValueError, reason_of
from dsgen.units import MAX_DEPTH_M, MIN_DEPTH_M

SLOPE = 0.2  # of DenseDepth's leaky activations below zero
KERAS_EPSILON = 1.001e-5  # of the batch norms of Keras' DenseNets; torch's default costs 4e-4 of the depth


MAX_WIDTH = 8192


_Rgb = tuple[float, float, float]
_Positive = Annotated[float, Gt(0)]
_Deviation = tuple[_Positive, _Positive, _Positive]


class DepthConfig(TypedDict):
    """The arguments of a `DenseDepth`, as weights files hold them."""

    encoder: str
    width: NotRequired[Annotated[int, Ge(16), Le(MAX_WIDTH)] | None]
    norm: NotRequired[bool]
    output: NotRequired[Literal["reciprocal", "log"]]
    input_size: NotRequired[Annotated[int, Ge(32), Le(MAX_WIDTH)] | None]
    activations: NotRequired[Literal[1, 2]]
    max_depth_m: NotRequired[float]
    focal_px: NotRequired[Annotated[float, Gt(0)] | None]
    full_size: NotRequired[bool]
    normalise: NotRequired[tuple[_Rgb, _Deviation] | None]


def misfits(make: Callable[[], nn.Module], state: Mapping[str, Any]) -> list[str]:
    """Name the arrays in which a network that `make` makes differs from a state, by their names or else by shape.

    The network is made without memory for its weights, whose size a damaged file may overstate.
    """
    try:
        with torch.device("meta"):
            wanted = make().state_dict()
    except (DsgenError, NotImplementedError, RuntimeError):  # some encoders look at values while they are made
        wanted = make().state_dict()
    shapes = {name: tuple(value.shape) if isinstance(value, Tensor) else None for name, value in state.items()}
    differing = [name for name in wanted if name in shapes and shapes[name] != tuple(wanted[name].shape)]
    return sorted(map(str, wanted.keys() ^ state.keys())) or sorted(differing)


class UpBlock(nn.Module):
    """Enlarge to the skip's size, concatenate, and convolve twice.

    Published DenseDepth has no batch norms, and one activation, after its second convolution; what its authors' later
    source builds has one after each. A decoder trained from random weights needs both to converge (`norm=True`).
    """

    def __init__(self, channels: int, skip: int, out: int, norm: bool, activations: int):
        super().__init__()
        self.conv_a = nn.Conv2d(channels + skip, out, 3, padding=1, bias=not norm)
        self.conv_b = nn.Conv2d(out, out, 3, padding=1, bias=not norm)
        self.after_a: nn.Module = nn.LeakyReLU(SLOPE) if activations == 2 else nn.Identity()
        self.after_b: nn.Module = nn.LeakyReLU(SLOPE)
        if norm:
            self.after_a = nn.Sequential(nn.BatchNorm2d(out), self.after_a)
            self.after_b = nn.Sequential(nn.BatchNorm2d(out), self.after_b)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Map (B,C,h,w) and a skip (B,K,H,W) to (B,out,H,W)."""
        x = F.interpolate(x, size=skip.shape[-2:], mode="bilinear", align_corners=True)
        x = torch.cat([x, skip], dim=1)
        return self.after_b(self.conv_b(self.after_a(self.conv_a(x))))


class ExactConv2d(nn.Conv2d):
    """A convolution in float32 under autocast too: what answers in bfloat16 has steps of 16 mm at 3 m."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (B,C,H,W) of any float to (B,out,H,W) float32."""
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.float())


class DenseNetEncoder(nn.Module):
    """A timm DenseNet without its classifier, tapped where published DenseDepth is, with Keras' batch norms.

    The taps are the stem before its pool, that pool, the first two transitions and the last norm, each after its
    ReLU where it has one; timm's own feature encoder taps the dense blocks before the transitions instead.
    `channels` lists the taps' channels, the shallowest (1/2 of the input) first, the deepest (1/32) last.
    """

    def __init__(self, name: str):
        super().__init__()
        import timm

        model: Any = timm.create_model(name, pretrained=False, num_classes=0)
        self.features: nn.Sequential = model.features
        names = [name for name, _ in self.features.named_children()]
        self.taps = (names[names.index("pool0") - 1], "pool0", "transition1", "transition2", names[-1])
        for module in self.features.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps, module.momentum = KERAS_EPSILON, 0.01
        stem, deepest = (self.features.get_submodule(self.taps[n]).num_features for n in (0, -1))
        transitions: list[Any] = [self.features.get_submodule(name) for name in self.taps[2:4]]
        self.channels: list[int] = [stem, stem, *(transition.conv.out_channels for transition in transitions), deepest]

    def forward(self, image: Tensor) -> list[Tensor]:
        """Map pictures (B,3,H,W), H and W multiples of 32, to the taps at 1/2, 1/4, 1/8, 1/16 and 1/32 of the size."""
        taps, x = [], image
        for name, child in self.features.named_children():
            x = child(x)
            if name in self.taps:
                taps.append(x)
        return taps


class Refinement(nn.Module):
    """Detail for a map of half the picture's size, from the picture's own pixels.

    The four pixels of a 2x2 block are channels of one at half the size, and so is what is added to the four pixels of
    the enlarged map (sub-pixel convolution, arXiv 1609.05158): full size at the price of half. It begins with zeros.
    """

    def __init__(self, channels: int, middle: int = 32):
        super().__init__()
        self.conv_a = nn.Conv2d(channels + 12, middle, 3, padding=1, bias=False)
        self.after_a = nn.Sequential(nn.BatchNorm2d(middle), nn.LeakyReLU(SLOPE))
        self.conv_b = ExactConv2d(middle, 4, 3, padding=1)
        nn.init.zeros_(self.conv_b.weight)
        nn.init.zeros_(self.conv_b.bias)  # type: ignore[arg-type]

    def forward(self, raw: Tensor, x: Tensor, image: Tensor) -> Tensor:
        """Map answers (B,1,H/2,W/2), features (B,C,H/2,W/2) and pictures (B,3,H,W) to answers (B,1,H,W)."""
        detail = self.after_a(self.conv_a(torch.cat([x, F.pixel_unshuffle(image, 2).to(x.dtype)], dim=1)))
        return F.interpolate(raw, scale_factor=2.0, mode="bilinear") + F.pixel_shuffle(self.conv_b(detail), 2)


class DenseDepth(nn.Module):
    """Monocular depth: a timm feature encoder under DenseDepth's decoder (arXiv 1812.11941).

    With densenet169, no `width` and no `norm` it is the published network, layer for layer.

    The decoder starts at `width` channels (the encoder's deepest by default) and halves at every skip. The answer
    has the size of the shallowest feature, for most encoders half the input; with `full_size`, which is for those, it
    has the size of the picture, see `Refinement`. `output` says what the number is:
    "reciprocal" is DenseDepth's `max_depth_m` / metres (10, for KITTI 80), "log" is ln(metres). `activations` is how
    many leaky activations an up block has: 1, or 2, which `norm` always means. `input_size` is the shorter side in
    pixels that pictures are scaled to before they are fed, by whoever feeds them; None means as they come.

    `focal_px` is the canonical camera (as in Metric3D, arXiv 2307.10984): answers are for pictures whose focal length
    is so many pixels as they are fed. Of a picture fed at f pixels the metres are the answer times f / `focal_px`. None
    means that answers are metres whatever the camera.

    `normalise` is the mean and the deviation of R, G and B that the encoder expects, see `dsgen.encoders`; without it
    the encoder sees 0..1.
    """

    def __init__(
        self,
        encoder: str = "mobilenetv4_conv_small",
        width: int | None = None,
        norm: bool = False,
        output: str = "reciprocal",
        input_size: int | None = None,
        activations: int = 1,
        max_depth_m: float = MAX_DEPTH_M,
        focal_px: float | None = None,
        full_size: bool = False,
        normalise: Statistics | None = None,
    ):
        super().__init__()
        if output not in ("reciprocal", "log"):
            raise InvalidValueError("depth network", f"got output {output!r}, expected 'reciprocal' or 'log'")
        if activations not in (1, 2):
            raise InvalidValueError("depth network", f"got activations {activations!r}, expected 1 or 2 in an up block")
        if width is not None and not 16 <= width <= MAX_WIDTH:
            raise InvalidValueError("depth network", f"got width {width!r}, expected 16 to {MAX_WIDTH}")
        if focal_px is not None and not 0 < focal_px < math.inf:
            raise InvalidValueError("depth network", f"got focal_px {focal_px!r}, expected pixels above 0")
        check_max_depth(max_depth_m)
        check_encoder(encoder)
        import timm

        self.encoder: nn.Module
        try:
            if encoder.startswith("densenet"):
                self.encoder = DenseNetEncoder(encoder)
                *skips, deepest = self.encoder.channels
            else:
                self.encoder = timm.create_model(encoder, pretrained=False, features_only=True)
                feature_info: Any = self.encoder.feature_info
                *skips, deepest = feature_info.channels()
        except (RuntimeError, AttributeError, TypeError, ValueError, LookupError, AssertionError) as error:
            raise DsgenError(
                f"encoder {encoder!r}",
                f"timm cannot make a feature encoder from it ({reason_of(error)})",
                "list them with timm.list_models()",
            ) from error
        width = width or deepest
        activations = 2 if norm else activations
        self.config: dict[str, Any] = {
            "encoder": encoder,
            "width": width,
            "norm": norm,
            "output": output,
            "input_size": input_size,
            "activations": activations,
            "max_depth_m": float(max_depth_m),
            "focal_px": focal_px,
            "full_size": full_size,
            "normalise": normalise and tuple(map(tuple, normalise)),  # JSON has lists
        }
        self.normalise = Normalise(*normalise) if normalise else nn.Identity()
        self.bottom = nn.Conv2d(deepest, width, 1)
        self.up = nn.ModuleList()
        for skip in reversed(skips):
            self.up.append(UpBlock(width, skip, width // 2, norm, activations))
            width //= 2
        self.head = ExactConv2d(width, 1, 3, padding=1)
        self.refine = Refinement(width) if full_size else None

    def forward(self, image: Tensor) -> Tensor:
        """Map pictures (B,3,H,W) in 0..1 to raw answers (B,1,h,w) of half or full size; see `depth_m` for metres."""
        *skips, x = self.encoder(self.normalise(image))
        x = self.bottom(x)
        for block, skip in zip(self.up, reversed(skips), strict=True):
            x = block(x, skip)
        raw = self.head(x)
        return raw if self.refine is None else self.refine(raw, x, image)

    def depth_m(self, image: Tensor) -> Tensor:
        """Estimate depth in metres (B,1,h,w), clipped to 0.1..`max_depth_m`, for pictures (B,3,H,W) in 0..1."""
        return to_metres(self(image).float(), self.config["output"], self.config["max_depth_m"])


def check_max_depth(max_depth_m: float) -> None:
    """Raise `DsgenError` for what is no largest depth in metres: a finite number above the smallest."""
    number = isinstance(max_depth_m, int | float) and not isinstance(max_depth_m, bool)
    if not number or not MIN_DEPTH_M < max_depth_m < math.inf:
        raise InvalidValueError(
            "depth network", f"got max_depth_m {max_depth_m!r}, expected metres above {MIN_DEPTH_M}"
        )


def to_metres(raw: Tensor, output: str, max_depth_m: float = MAX_DEPTH_M, scale: Tensor | None = None) -> Tensor:
    """Turn a depth network's raw answer into metres, clipped to 0.1..`max_depth_m`; what is not a number stays so.

    A reciprocal answer is `max_depth_m` / metres. At or below zero it has no depth; as in the published
    post-processing, for 10 metres clip(1000 / y, 10, 1000) / 100, a negative one becomes the minimum. Metres are
    multiplied with `scale`, of a shape that fits `raw`, before they are clipped: it is that of the camera.
    """
    metres = raw.exp() if output == "log" else max_depth_m / raw
    if scale is not None:
        metres = metres * scale
    return metres.clamp(MIN_DEPTH_M, max_depth_m)


class _BatchNormTracer(fx.Tracer):
    """Sees a batch norm as one step, also timm's, which brings its activation along, and an exact convolution."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Look into everything but torch's own layers, batch norms and exact convolutions."""
        return isinstance(m, nn.BatchNorm2d | ExactConv2d) or super().is_leaf_module(m, module_qualified_name)


def fold_batch_norms(network: nn.Module) -> nn.Module:
    """Return the network, in evaluation mode, with every batch norm that follows a convolution folded into it.

    The answers agree to rounding and come a little sooner (`make bench`). `network` is left as it is; one whose steps
    depend on its input cannot be traced and is returned itself.
    """
    copied = copy.deepcopy(network).eval()
    try:
        traced = fx.GraphModule(copied, _BatchNormTracer().trace(copied))
    except Exception:  # a tracer raises what the traced code raises
        return network.eval()
    layers = dict(traced.named_modules())
    for node in traced.graph.nodes:
        norm = layers.get(str(node.target)) if node.op == "call_module" else None
        if not isinstance(norm, nn.BatchNorm2d) or norm.running_mean is None or norm.running_var is None:
            continue
        before: Any = node.args[0]
        conv = layers.get(str(before.target)) if before.op == "call_module" else None
        if not isinstance(conv, nn.Conv2d) or len(before.users) > 1:
            continue
        conv.weight, conv.bias = torch.nn.utils.fuse_conv_bn_weights(
            conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        )
        parent, _, name = str(node.target).rpartition(".")
        setattr(layers[parent], name, getattr(norm, "act", nn.Identity()))
    return traced
