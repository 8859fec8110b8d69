"""Rows -> pixels, pure: numbers in, arrays out, the same bits on every machine.

    image = (background * (255 - alpha) + foreground * alpha) / 255, rounded to nearest
    mask  = 255 where alpha >= 128, else 0

in integers. Ties cannot occur, since 255 is odd.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Cutout:
    """A foreground ready to paste: `weighted` = colour * alpha + 128 and `through` = 255 - alpha, both (h,w,3) u2.

    The 128 is the first step of the division in `blend`, taken ahead.
    """

    weighted: np.ndarray
    through: np.ndarray
    mask: np.ndarray

    @classmethod
    def from_rgba(cls, rgba: np.ndarray) -> "Cutout":
        """Prepare an (h,w,4) u1 picture with straight alpha."""
        alpha = rgba[..., 3:].astype(np.uint16)
        return cls(
            weighted=rgba[..., :3] * alpha + 128,
            through=np.repeat(255 - alpha, 3, axis=2),
            mask=np.where(rgba[..., 3] >= 128, 255, 0).astype(np.uint8),
        )

    @property
    def nbytes(self) -> int:
        """Bytes it takes in memory."""
        return self.weighted.nbytes + self.through.nbytes + self.mask.nbytes

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.mask.shape


def blend(background: np.ndarray, cutout: Cutout) -> np.ndarray:
    """Blend a cut-out over a window of a background of its size: (h,w,3) u1."""
    mixed = background * cutout.through
    mixed += cutout.weighted
    # x / 255 rounded, exact for every x a blend can give (0..65025): (x + 128 + (x + 128) / 256) / 256
    mixed += mixed >> 8
    mixed >>= 8
    return mixed.astype(np.uint8)


def render(
    rows: np.ndarray,
    backgrounds: Mapping[int, np.ndarray],
    cutouts: Mapping[tuple[int, int], Cutout],
    size: int,
    scale: int = 1,
) -> tuple[np.ndarray, np.ndarray]:
    """Draw plan rows: images (n,S,S,3) u1 RGB and masks (n,S,S) u1, 0 or 255, with S = `size` * `scale`.

    `backgrounds[background]` is (S,S,3) u1 and `cutouts[foreground, flip]` a foreground, both at `scale` times the
    size the plan's places are counted in.
    """
    side = size * scale
    image = np.empty((len(rows), side, side, 3), np.uint8)
    mask = np.zeros((len(rows), side, side), np.uint8)
    columns = (rows[name].tolist() for name in ("background", "foreground", "flip", "top", "left"))
    for i, (background, foreground, flip, top, left) in enumerate(zip(*columns, strict=True)):
        cutout = cutouts[foreground, flip]
        height, width = cutout.shape
        top, left = top * scale, left * scale
        image[i] = backgrounds[background]
        window = image[i, top : top + height, left : left + width]
        window[...] = blend(window, cutout)
        mask[i, top : top + height, left : left + width] = cutout.mask
    return image, mask
