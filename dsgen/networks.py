"""The networks: DenseDepth, which labels, and the original two-headed U-Net, which is trained.

Inside torch a picture is BCHW float32 RGB in 0..1 and a mask or depth map is B1HW float32.
"""

from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsgen.errors import DsgenError

MAX_DEPTH_M = 10.0
MIN_DEPTH_M = 0.1


class UpBlock(nn.Module):
    """Enlarge to the skip's size, concatenate, and convolve twice.

    Published DenseDepth has neither batch norms nor an activation between its two convolutions. A decoder trained
    from random weights needs both to converge (`norm=True`).
    """

    def __init__(self, channels: int, skip: int, out: int, norm: bool):
        super().__init__()
        self.conv_a = nn.Conv2d(channels + skip, out, 3, padding=1, bias=not norm)
        self.conv_b = nn.Conv2d(out, out, 3, padding=1, bias=not norm)
        self.after_a: nn.Module = nn.Sequential(nn.BatchNorm2d(out), nn.LeakyReLU(0.2)) if norm else nn.Identity()
        self.after_b: nn.Module = nn.Sequential(nn.BatchNorm2d(out), nn.LeakyReLU(0.2)) if norm else nn.LeakyReLU(0.2)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Map (B,C,h,w) and a skip (B,K,H,W) to (B,out,H,W)."""
        x = F.interpolate(x, size=skip.shape[-2:], mode="bilinear", align_corners=True)
        x = torch.cat([x, skip], dim=1)
        return self.after_b(self.conv_b(self.after_a(self.conv_a(x))))


class DenseDepth(nn.Module):
    """Monocular depth: a timm feature encoder under DenseDepth's decoder (arXiv 1812.11941).

    The decoder starts at `width` channels (the encoder's deepest by default) and halves at every skip. The answer
    has the size of the shallowest feature, for most encoders half the input. `output` says what the number is:
    "reciprocal" is DenseDepth's 10 / metres, "log" is ln(metres). `input_size` is the shorter side in pixels that
    pictures are scaled to before they are fed, by whoever feeds them; None means as they come.
    """

    def __init__(
        self,
        encoder: str = "mobilenetv4_conv_small",
        width: int | None = None,
        norm: bool = False,
        output: str = "reciprocal",
        input_size: int | None = None,
    ):
        super().__init__()
        if output not in ("reciprocal", "log"):
            raise DsgenError(f"depth network: got output {output!r}, expected 'reciprocal' or 'log'")
        import timm

        try:
            self.encoder = timm.create_model(encoder, pretrained=False, features_only=True)
        except (RuntimeError, AttributeError, TypeError, ValueError) as error:
            raise DsgenError(
                f"encoder {encoder!r}: timm has no feature encoder of that name ({error}); "
                "list them with timm.list_models()"
            ) from error
        feature_info: Any = self.encoder.feature_info
        *skips, deepest = feature_info.channels()
        width = width or deepest
        self.config: dict[str, Any] = {
            "encoder": encoder,
            "width": width,
            "norm": norm,
            "output": output,
            "input_size": input_size,
        }
        self.bottom = nn.Conv2d(deepest, width, 1)
        self.up = nn.ModuleList()
        for skip in reversed(skips):
            self.up.append(UpBlock(width, skip, width // 2, norm))
            width //= 2
        self.head = nn.Conv2d(width, 1, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        """Map pictures (B,3,H,W) in 0..1 to raw answers (B,1,H/2,W/2); see `depth_m` for metres."""
        *skips, x = self.encoder(image)
        x = self.bottom(x)
        for block, skip in zip(self.up, reversed(skips), strict=True):
            x = block(x, skip)
        return self.head(x)

    def depth_m(self, image: Tensor) -> Tensor:
        """Estimate depth in metres (B,1,H/2,W/2), clipped to 0.1..10, for pictures (B,3,H,W) in 0..1."""
        return to_metres(self(image).float(), self.config["output"])


def to_metres(raw: Tensor, output: str) -> Tensor:
    """Turn a depth network's raw answer into metres, clipped to 0.1..10; what is not a number stays so.

    A reciprocal answer at or below zero has no depth; as in the published post-processing,
    clip(1000 / y, 10, 1000) / 100, a negative one becomes the minimum.
    """
    metres = raw.exp() if output == "log" else 10.0 / raw
    return metres.clamp(MIN_DEPTH_M, MAX_DEPTH_M)


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
    """The rest of a U-Net after its first block: four levels down, four up, one map out.

    The fourth level down widens no further, and the first convolution of every level up halves what it gets. Halving
    rounds up, and enlarging goes to the skip's size, so any size works.
    """

    def __init__(self, width: int, dropout: float = 0.0):
        super().__init__()
        widths = [width, 2 * width, 4 * width, 8 * width, 8 * width]
        self.down = nn.ModuleList(DoubleConv(channels, out, dropout=dropout) for channels, out in pairwise(widths))
        self.up = nn.ModuleList(
            DoubleConv(2 * skip, out, middle=skip, dropout=dropout)
            for skip, out in ((8 * width, 4 * width), (4 * width, 2 * width), (2 * width, width), (width, width))
        )
        self.head = nn.Conv2d(width, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map the first block's features (B,width,H,W) to one map (B,1,H,W)."""
        skips = [x]
        for block in self.down:
            skips.append(block(F.max_pool2d(skips[-1], 2, ceil_mode=True)))
        x = skips.pop()
        for block in self.up:
            skip = skips.pop()
            x = F.interpolate(x, size=skip.shape[-2:], mode="bilinear", align_corners=False)
            x = block(torch.cat([skip, x], dim=1))
        return self.head(x)


class UNet(nn.Module):
    """The original two-headed U-Net: a background and a composite in, a mask and a depth map out.

    Both pictures, concatenated, go through one shared block of `width` channels and from there through a mask branch
    and a depth branch that share nothing (2,161,666 parameters at width 16). `dropout` is the share of channels left
    out after every block of the branches.
    """

    def __init__(self, width: int = 16, dropout: float = 0.0):
        super().__init__()
        self.config = {"width": width, "dropout": dropout}
        self.first = DoubleConv(6, width)
        self.mask = UNetBranch(width, dropout)
        self.depth = UNetBranch(width, dropout)

    def forward(self, background: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        """Map two pictures (B,3,H,W) in 0..1 to mask logits and raw depth, both (B,1,H,W).

        A logit above 0 says foreground. Raw depth is in units of 10 metres and not clipped; see `unet_metres`.
        """
        shared = self.first(torch.cat([background, image], dim=1))
        return self.mask(shared), self.depth(shared)


def unet_metres(raw: Tensor) -> Tensor:
    """Turn the U-Net's raw depth into metres, clipped to 0.1..10."""
    return (raw.float() * MAX_DEPTH_M).clamp(MIN_DEPTH_M, MAX_DEPTH_M)
