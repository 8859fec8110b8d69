"""The two-headed U-Net: a background and a composite in, a mask and a depth map out.

Images are (B,3,H,W) float32 RGB in 0..1, masks and depth maps (B,1,H,W) float32.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Any, Literal, NotRequired

import torch
import torch.nn.functional as F
from annotated_types import Ge, Le, Len
from torch import Tensor, nn
from typing_extensions import TypedDict

from dsgen.depth.networks import ExactConv2d
from dsgen.encoders import Normalise, check_encoder
from dsgen.errors import InvalidValueError, reason_of
from dsgen.units import MAX_DEPTH_M, MIN_DEPTH_M

COLOURS = ("rgb", "grey")
OUTPUTS = ("full", "half")
BLOCKS = ("shared", "separate")
LUMA = (0.299, 0.587, 0.114)  # of R, G and B, ITU-R BT.601, as Pillow and OpenCV compute grey
_WIDEST = 8  # times `width`: levels below 1/8 of the image size get no wider


MAX_WIDTH = 4096


class UNetConfig(TypedDict):
    """The arguments of a `UNet`, as checkpoints hold them."""

    width: Annotated[int, Ge(1), Le(MAX_WIDTH)]
    dropout: float
    colour: NotRequired[Literal["rgb", "grey"]]
    output: NotRequired[Literal["full", "half"]]
    blocks: NotRequired[Literal["shared", "separate"]]
    encoder: NotRequired[str | None]
    normalise: NotRequired[Annotated[list[Annotated[list[float], Len(3, 3)]], Len(2, 2)]]


class DoubleConv(nn.Sequential):
    """A 3x3 convolution, a batch norm and a ReLU, twice; the size stays. `dropout` drops whole channels at the end."""

    def __init__(self, channels: int, out: int, middle: int | None = None, dropout: float = 0.0):
        middle = middle or out
        super().__init__(
            nn.Conv2d(channels, middle, 3, padding=1),
            nn.BatchNorm2d(middle),
            nn.ReLU(inplace=True),
            nn.Conv2d(middle, out, 3, padding=1),
            nn.BatchNorm2d(out),
            nn.ReLU(inplace=True),
            *([nn.Dropout2d(dropout)] if dropout else []),
        )


class UNetBranch(nn.Module):
    """The part of a U-Net that one output has to itself: levels down unless an encoder has them, levels up, the head.

    `channels` are the channels of the input features, the shallowest first, and `reductions` the factors by which they
    are smaller than the image (1, 2, 4, ...). `downs` more levels are appended, each half the size of the one before.
    The way up ends at the shallowest feature whose reduction is at least `smallest`. Every level up enlarges to the
    size of its skip connection, and halving rounds up, so any image size works.
    """

    def __init__(
        self, channels: list[int], reductions: list[int], width: int, dropout: float, downs: int = 0, smallest: int = 1
    ):
        super().__init__()
        for _ in range(downs):
            channels = [*channels, width * min(2 * reductions[-1], _WIDEST)]
            reductions = [*reductions, 2 * reductions[-1]]
        own = len(channels) - downs
        self.down = nn.ModuleList(DoubleConv(a, b, dropout=dropout) for a, b in pairwise(channels[own - 1 :]))
        self.up = nn.ModuleList()
        middles = [width * min(reduction, _WIDEST) for reduction in reductions]
        x = channels[-1]
        for level in reversed(range(len(channels) - 1)):
            if reductions[level] >= smallest:
                out = middles[max(level - 1, 0)]
                self.up.append(DoubleConv(channels[level] + x, out, middles[level], dropout))
                x = out
        self.head = ExactConv2d(x, 1, 1)

    def forward(self, features: list[Tensor]) -> Tensor:
        """Map features (B,C,h,w), the shallowest first, to one map (B,1,H,W) of the size where the way up ends."""
        for block in self.down:
            features = [*features, block(F.max_pool2d(features[-1], 2, ceil_mode=True))]
        *skips, x = features
        for block, skip in zip(self.up, reversed(skips), strict=False):  # the shallowest skip may be left over
            x = F.interpolate(x, size=skip.shape[-2:], mode="bilinear", align_corners=False)
            x = block(torch.cat([skip, x], dim=1))
        return self.head(x)


class UNet(nn.Module):
    """The original two-headed U-Net and its variants: a background and a composite in, a mask and a depth map out.

    >>> network = UNet(width=16)
    >>> background = image = torch.rand(1, 3, 64, 64)  # (B,3,H,W) in 0..1 each
    >>> logits, raw = network(background, image)
    >>> foreground, depth_m = logits > 0, unet_metres(raw)
    >>> depth_m.shape
    torch.Size([1, 1, 64, 64])

    Both images, concatenated, go through one shared block of `width` channels, and from there through a mask branch and
    a depth branch that share nothing, four levels down and four up (2,161,666 parameters at width 16). `dropout` is the
    share of channels dropped after every block of the branches. The variants:

    `colour="grey"` sees only the luma of the images, see `LUMA`: 2 input channels instead of 6.
    `output="half"` predicts at half the size, rounded up; the last level up is left out.
    `blocks="separate"` has a first block for the background and another for the composite, each with half of `width`,
    whose features are concatenated; nothing after them changes.
    `encoder`, the name of a timm feature encoder, replaces the levels down and is shared by the branches, which are
    then two decoders with skip connections from it. At full output they have another one from the shared block, which
    sees every pixel, as encoders start at 1/2 or 1/4 of the size. The encoder has random weights until
    `dsgen.encoders.load_encoder_weights` gives it pretrained ones.
    `normalise`, the mean and the deviation of R, G and B that a pretrained encoder expects, normalises what the encoder
    sees. Grey pictures take their means over the colours: exact where those are equal, else a slight tint.

    `config` holds the arguments: `UNet(**network.config)` is the same network. Raises `InvalidValueError` for unknown
    options and encoders, and in `forward` for image sizes that the encoder does not support.
    """

    def __init__(
        self,
        width: int = 16,
        dropout: float = 0.0,
        *,
        colour: str = "rgb",
        output: str = "full",
        blocks: str = "shared",
        encoder: str | None = None,
        normalise: Sequence[Sequence[float]] | None = None,
    ):
        super().__init__()
        _check_options(width, dropout, colour, output, blocks, encoder, normalise)
        self.config: dict[str, Any] = {
            "width": width,
            "dropout": dropout,
            "colour": colour,
            "output": output,
            "blocks": blocks,
            "encoder": encoder,
        }
        if normalise:  # left out where there is none, as by networks of earlier versions
            self.config["normalise"] = [list(map(float, each)) for each in normalise]
        image_channels = 1 if colour == "grey" else 3
        smallest = 2 if output == "half" else 1
        channels, reductions = [width], [1]
        self.encoder = _create_encoder(encoder, 2 * image_channels) if encoder else None
        self.normalise = _normalise_pair(normalise, image_channels) if normalise else nn.Identity()
        if self.encoder is not None:
            feature_info: Any = self.encoder.feature_info
            if smallest == 1:
                self.first = DoubleConv(2 * image_channels, width)
            else:
                channels, reductions = [], []
            channels, reductions = channels + feature_info.channels(), reductions + feature_info.reduction()
        elif blocks == "separate":
            self.first_background = DoubleConv(image_channels, width // 2)
            self.first_image = DoubleConv(image_channels, width - width // 2)
        else:
            self.first = DoubleConv(2 * image_channels, width)
        downs = 0 if encoder else 4
        self.mask = UNetBranch(channels, reductions, width, dropout, downs, smallest)
        self.depth = UNetBranch(channels, reductions, width, dropout, downs, smallest)

    def forward(self, background: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        """Map two images (B,3,H,W) in 0..1 to mask logits and raw depth, both (B,1,H,W), or half of H and W.

        A logit above 0 means foreground. Raw depth is in units of 10 metres and not clipped; see `unet_metres`.
        """
        height, width = image.shape[-2:]
        if self.config["colour"] == "grey":
            background, image = luma(background), luma(image)  # (B,1,H,W)
        features: list[Tensor] = []  # the shallowest first
        if self.config["blocks"] == "separate":
            features.append(torch.cat([self.first_background(background), self.first_image(image)], dim=1))
        else:
            pair = torch.cat([background, image], dim=1)  # (B,6,H,W), or (B,2,H,W) of luma
            if self.encoder is None or self.config["output"] == "full":
                features.append(self.first(pair))
            if self.encoder is not None:
                features += self._encode(pair)
        mask, depth = self.mask(features), self.depth(features)
        if self.config["output"] == "half":
            half = (height + 1) // 2, (width + 1) // 2
            if mask.shape[-2:] != half:  # an encoder that starts at 1/4, or does not pad
                mask, depth = (F.interpolate(maps, size=half, mode="bilinear") for maps in (mask, depth))
        return mask, depth

    def _encode(self, pair: Tensor) -> list[Tensor]:
        """Return the encoder's features (B,C,h,w), the shallowest first."""
        assert self.encoder is not None
        try:
            features = self.encoder(self.normalise(pair))
        except torch.OutOfMemoryError:
            raise
        except (AssertionError, RuntimeError, ValueError) as error:
            if "memory" in str(error):  # the CPU's allocator has no error class of its own
                raise
            height, width = pair.shape[-2:]
            raise InvalidValueError(
                f"encoder {self.config['encoder']}",
                f"got {len(pair)} images of {width}x{height} pixels, expected a size it supports ({reason_of(error)})",
                "use another size or encoder",
            ) from error
        info: Any = self.encoder.feature_info
        # some transformers return (B,H,W,C)
        return [
            x if x.shape[1] == channels else x.permute(0, 3, 1, 2)
            for x, channels in zip(features, info.channels(), strict=True)
        ]


def _check_options(
    width: int,
    dropout: float,
    colour: str,
    output: str,
    blocks: str,
    encoder: str | None,
    normalise: Sequence[Sequence[float]] | None,
) -> None:
    smallest_width = 2 if blocks == "separate" else 1
    if not smallest_width <= width <= MAX_WIDTH:
        raise InvalidValueError("U-Net", f"got width {width}, expected {smallest_width} to {MAX_WIDTH}")
    if not 0 <= dropout < 1:
        raise InvalidValueError("U-Net", f"got dropout {dropout}, expected 0 to below 1")
    for name, value, known in (
        ("colour", colour, COLOURS),
        ("output", output, OUTPUTS),
        ("blocks", blocks, BLOCKS),
    ):
        if value not in known:
            raise InvalidValueError("U-Net", f"got {name} {value!r}, expected {' or '.join(known)}")
    if encoder and blocks == "separate":
        raise InvalidValueError(
            "U-Net", f"got separate blocks with encoder {encoder}, expected shared", "leave one of them out"
        )
    if not normalise:
        return
    if not encoder:
        raise InvalidValueError("U-Net", "got normalise without an encoder, expected both", "leave it out")
    usable = [len(each) for each in normalise] == [3, 3]
    if not usable or not all(math.isfinite(x) for each in normalise for x in each) or min(normalise[1]) <= 0:
        rule = "expected the mean and the deviation, above 0, of R, G and B"
        raise InvalidValueError("U-Net", f"got normalise {normalise}, {rule}")


def _normalise_pair(normalise: Sequence[Sequence[float]], channels: int) -> Normalise:
    """Make the layer that normalises a pair of pictures of `channels` channels each."""
    mean, deviation = (each if channels == 3 else [sum(each) / 3] for each in normalise)
    return Normalise((*mean, *mean), (*deviation, *deviation))


def _create_encoder(name: str, channels: int) -> nn.Module:
    """Create a timm feature encoder by name, with random weights, for images of `channels` channels."""
    check_encoder(name)
    import timm

    try:
        return timm.create_model(name, pretrained=False, features_only=True, in_chans=channels)
    except (RuntimeError, AttributeError, TypeError, ValueError, AssertionError) as error:
        raise InvalidValueError(
            f"encoder {name}",
            f"timm cannot make a feature encoder for {channels} channels from it ({reason_of(error)})",
            "use another",
        ) from error


def luma(image: Tensor) -> Tensor:
    """Turn images (B,3,H,W) into grey ones (B,1,H,W) of the same range, 0.299 R + 0.587 G + 0.114 B (BT.601)."""
    weights = torch.tensor(LUMA, dtype=image.dtype, device=image.device)
    return (image * weights.view(1, 3, 1, 1)).sum(1, keepdim=True)


def unet_metres(raw: Tensor) -> Tensor:
    """Turn the U-Net's raw depth, in units of 10 metres, into metres, clipped to 0.1..10."""
    return (raw.float() * MAX_DEPTH_M).clamp(MIN_DEPTH_M, MAX_DEPTH_M)
