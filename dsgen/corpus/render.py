"""Render rows of the plan: pure functions of arrays, with the same bits on every machine.

    image = (background * (255 - alpha) + foreground * alpha) / 255, rounded to nearest
    mask  = 255 where alpha >= 128, else 0

All in integers. Ties cannot occur, since 255 is odd.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Pictures = np.ndarray | Sequence[np.ndarray]
_BLENDED_VALUES = 2**17  # at once, so that they stay in the nearest caches


@dataclass(frozen=True)
class Cutout:
    """A foreground prepared for pasting.

    `weighted` is colour * alpha + 128 and `through` is 255 - alpha, both (h,w,3) u2; `mask` is (h,w) u1, 0 or 255. The
    128 is the first step of the division in `blend`, done in advance.
    """

    weighted: np.ndarray
    through: np.ndarray
    mask: np.ndarray

    @classmethod
    def from_rgba(cls, rgba: np.ndarray) -> "Cutout":
        """Prepare an (h,w,4) u1 image with straight alpha."""
        alpha = rgba[..., 3:].astype(np.uint16)
        return cls(
            weighted=rgba[..., :3] * alpha + 128,
            through=np.repeat(255 - alpha, 3, axis=2),
            mask=np.where(rgba[..., 3] >= 128, 255, 0).astype(np.uint8),
        )

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return self.weighted.nbytes + self.through.nbytes + self.mask.nbytes

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.mask.shape


def blend(background: np.ndarray, cutout: Cutout) -> np.ndarray:
    """Blend a cut-out over backgrounds of the same shape, (h,w,3) or (n,h,w,3) u1; return as many."""
    mixed = background * cutout.through
    mixed += cutout.weighted
    # x / 255 rounded, exact for every x that can occur (0..65025): (x + 128 + (x + 128) / 256) / 256
    mixed += mixed >> 8
    mixed >>= 8
    return mixed.astype(np.uint8)


def render(
    rows: np.ndarray,
    backgrounds: Mapping[int, np.ndarray],
    cutouts: Mapping[tuple[int, int], Cutout],
    size: int,
    scale: int = 1,
    out: Mapping[str, Pictures] | None = None,
) -> tuple[Any, Any]:
    """Render rows of the plan: images (n,S,S,3) u1 RGB and masks (n,S,S) u1, 0 or 255, with S = `size` * `scale`.

    `backgrounds[background]` is (S,S,3) u1 and `cutouts[foreground, flip]` a foreground, both at `scale` times the
    size that the plan's locations refer to. They are drawn into `image` and `mask` of `out`, if it has them, and these
    are returned: an array each, or a list with one for each row.
    """
    side = size * scale
    given = {} if out is None else out
    images = given["image"] if "image" in given else np.empty((len(rows), side, side, 3), np.uint8)
    masks = given["mask"] if "mask" in given else np.empty((len(rows), side, side), np.uint8)
    for image, background in zip(images, rows["background"].tolist(), strict=True):
        image[...] = backgrounds[background]
    pairs = rows[["foreground", "flip"]].tolist()
    corners = list(zip((rows["top"] * np.intp(scale)).tolist(), (rows["left"] * np.intp(scale)).tolist(), strict=True))
    start = 0
    while start < len(rows):
        cutout = cutouts[pairs[start]]
        stop = start + 1
        most = start + max(1, _BLENDED_VALUES // (3 * cutout.mask.size))
        while stop < min(most, len(rows)) and pairs[stop] == pairs[start]:
            stop += 1
        _paste(cutout, images[start:stop], masks[start:stop], corners[start:stop])
        start = stop
    return images, masks


def _paste(cutout: Cutout, images: Pictures, masks: Pictures, corners: list[tuple[int, int]]) -> None:
    """Paste a cut-out on several pictures at once, its top left corner at `corners`, and draw their masks."""
    height, width = cutout.shape
    places = [(slice(top, top + height), slice(left, left + width)) for top, left in corners]
    windows = [image[place] for image, place in zip(images, places, strict=True)]
    for window, blended in zip(windows, blend(np.stack(windows), cutout), strict=True):
        window[...] = blended
    for mask, place in zip(masks, places, strict=True):
        mask[...] = 0
        mask[place] = cutout.mask
