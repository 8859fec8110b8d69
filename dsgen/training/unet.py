"""The two-headed U-Net, which is trained: a background and a composite in, a mask and a depth map out.

Inside torch a picture is BCHW float32 RGB in 0..1 and a mask or depth map is B1HW float32.
"""

import difflib
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsgen.depth.networks import ExactConv2d
from dsgen.errors import DsgenError, InvalidValueError
from dsgen.units import MAX_DEPTH_M, MIN_DEPTH_M

COLOURS = ("rgb", "grey")
OUTPUTS = ("full", "half")
BLOCKS = ("shared", "separate")
LUMA = (0.299, 0.587, 0.114)  # of R, G and B, ITU-R BT.601: what Pillow and OpenCV call grey
_WIDEST = 8  # times `width`: levels below 1/8 of the size widen no further


class DoubleConv(nn.Sequential):
    """Twice a 3x3 convolution, a batch norm and a ReLU; size kept. `dropout` leaves out whole channels at the end."""

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
    """All of a U-Net that one answer has to itself: levels down, where no encoder does that, levels up, one map out.

    `channels` are those of the features it gets, of which the shallowest comes first, and `reductions` their sizes as
    parts of the picture's (1, 2, 4, ...). `downs` appends that many levels of its own, each half the size of the one
    before. The way up ends at the shallowest feature of which `reductions` is at least `smallest`. Every level up
    enlarges to the skip's size and halving rounds up, so any size works.
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
        """Map features (B,C,h,w), the shallowest first, to one map (B,1,H,W) of the size at which the way up ends."""
        for block in self.down:
            features = [*features, block(F.max_pool2d(features[-1], 2, ceil_mode=True))]
        *skips, x = features
        for block, skip in zip(self.up, reversed(skips), strict=False):  # the shallowest skip may be left over
            x = F.interpolate(x, size=skip.shape[-2:], mode="bilinear", align_corners=False)
            x = block(torch.cat([skip, x], dim=1))
        return self.head(x)


class UNet(nn.Module):
    """The original two-headed U-Net and its variants: a background and a composite in, a mask and a depth map out.

    Both pictures, concatenated, go through one shared block of `width` channels and from there through a mask branch
    and a depth branch that share nothing, four levels down and four up (2,161,666 parameters at width 16). `dropout`
    is the share of channels left out after every block of the branches. The variants:

    `colour="grey"` looks at the pictures' luma alone, see `LUMA`: 2 channels in instead of 6.
    `output="half"` answers at half the size, rounded up; the last level up is left out.
    `blocks="separate"` gives background and composite first blocks of their own, whose features, concatenated, are
    what the branches go on from; each has half of `width`, so nothing behind it changes.
    `encoder`, the name of a feature encoder in timm, takes the place of the levels down and is shared by the
    branches, which are two decoders with skips from it and, at full output, from the shared block, which sees every
    pixel where encoders start at 1/2 or 1/4. It starts from random weights.

    `config` holds the arguments: `UNet(**network.config)` is the same network. Raises `DsgenError` for unknown
    options and encoders, and in `forward` for picture sizes that the encoder does not take.
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
    ):
        super().__init__()
        _check_options(width, dropout, colour, output, blocks, encoder)
        self.config: dict[str, Any] = {
            "width": width,
            "dropout": dropout,
            "colour": colour,
            "output": output,
            "blocks": blocks,
            "encoder": encoder,
        }
        each = 1 if colour == "grey" else 3
        smallest = 2 if output == "half" else 1
        channels, reductions = [width], [1]
        self.encoder = _create_encoder(encoder, 2 * each) if encoder else None
        if self.encoder is not None:
            feature_info: Any = self.encoder.feature_info
            if smallest == 1:
                self.first = DoubleConv(2 * each, width)
            else:
                channels, reductions = [], []
            channels, reductions = channels + feature_info.channels(), reductions + feature_info.reduction()
        elif blocks == "separate":
            self.first_background = DoubleConv(each, width // 2)
            self.first_image = DoubleConv(each, width - width // 2)
        else:
            self.first = DoubleConv(2 * each, width)
        downs = 0 if encoder else 4
        self.mask = UNetBranch(channels, reductions, width, dropout, downs, smallest)
        self.depth = UNetBranch(channels, reductions, width, dropout, downs, smallest)

    def forward(self, background: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        """Map two pictures (B,3,H,W) in 0..1 to mask logits and raw depth, both (B,1,H,W), or half of H and W.

        A logit above 0 says foreground. Raw depth is in units of 10 metres and not clipped; see `unet_metres`.
        """
        height, width = image.shape[-2:]
        if self.config["colour"] == "grey":
            background, image = luma(background), luma(image)
        features: list[Tensor] = []
        if self.config["blocks"] == "separate":
            features.append(torch.cat([self.first_background(background), self.first_image(image)], dim=1))
        else:
            pair = torch.cat([background, image], dim=1)
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
        assert self.encoder is not None
        try:
            features = self.encoder(pair)
        except torch.OutOfMemoryError:
            raise
        except (AssertionError, RuntimeError, ValueError) as error:
            if "memory" in str(error):  # how the CPU's allocator says that there is none left
                raise
            height, width = pair.shape[-2:]
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise DsgenError(
                f"encoder {self.config['encoder']}",
                f"got {len(pair)} pictures of {width}x{height} pixels, expected what it takes ({reason})",
                "choose another size or encoder",
            ) from error
        info: Any = self.encoder.feature_info
        # some transformers answer BHWC
        return [
            x if x.shape[1] == channels else x.permute(0, 3, 1, 2)
            for x, channels in zip(features, info.channels(), strict=True)
        ]


def _check_options(width: int, dropout: float, colour: str, output: str, blocks: str, encoder: str | None) -> None:
    least = 2 if blocks == "separate" else 1
    if width < least:
        raise InvalidValueError("U-Net", f"got width {width}, expected {least} or more")
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


def _create_encoder(name: str, channels: int) -> nn.Module:
    """Create timm's feature encoder of that name with random weights for pictures of `channels`."""
    import timm

    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=4, cutoff=0.5)
        like = f"like {', '.join(near)}" if near else "listed by timm.list_models()"
        raise InvalidValueError(
            f"encoder {name}", f"got a name timm does not know, expected one {like}", "choose another"
        )
    try:
        return timm.create_model(name, pretrained=False, features_only=True, in_chans=channels)
    except (RuntimeError, AttributeError, TypeError, ValueError, AssertionError) as error:
        raise InvalidValueError(
            f"encoder {name}",
            f"got no feature encoder for {channels} channels from timm ({error}), expected one",
            "choose another",
        ) from error


def luma(picture: Tensor) -> Tensor:
    """Turn pictures (B,3,H,W) into grey ones (B,1,H,W) of the same range, 0.299 R + 0.587 G + 0.114 B (BT.601)."""
    weights = torch.tensor(LUMA, dtype=picture.dtype, device=picture.device)
    return (picture * weights.view(1, 3, 1, 1)).sum(1, keepdim=True)


def unet_metres(raw: Tensor) -> Tensor:
    """Turn the U-Net's raw depth into metres, clipped to 0.1..10."""
    return (raw.float() * MAX_DEPTH_M).clamp(MIN_DEPTH_M, MAX_DEPTH_M)
