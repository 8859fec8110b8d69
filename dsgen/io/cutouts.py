"""What counts of a cut-out: the subject and its soft edge, not what a background remover left elsewhere.

Background removers leave specks or a haze of alpha 1 to 9 all over the frame. If these counted, the subject would be
trimmed too wide and come out too small. The rule, in pixels of the file:

- A pixel is *solid* from alpha 128 on, as in the mask, and *visible* from alpha 10 on. A margin m is 1 % of the longer
  side of the box around all solid pixels, at least 2 pixels.
- Visible pixels form a group if the gaps between them are at most 4 m wide. A group is kept if more than 1 in 1,000 of
  all solid pixels are in it. So loose hair beside the subject stays, and so does a second subject.
- Fainter pixels, alpha 1 to 9, are kept where they are an edge: where a connected patch of them touches kept pixels and
  lies wholly within m of them. A patch that touches none is a speck; one that reaches farther is haze.

All other pixels get alpha 0. If no pixel is solid, nothing is dropped. Pictures above 4,000,000 pixels are judged by
blocks of pixels, each by its largest alpha.
"""

import math

import cv2
import numpy as np

SOLID, VISIBLE = 128, 10
_MARGIN_SHARE, _LEAST_MARGIN = 0.01, 2
_LEAST_SHARE = 0.001
_JUDGED_PIXELS = 4_000_000


def drop_loose_pixels(rgba: np.ndarray) -> int:
    """Set the alpha of pixels that do not count to 0, in an (h,w,4) u1 cut-out; return how many those were."""
    alpha = rgba[..., 3]
    block = max(1, math.ceil(math.sqrt(alpha.size / _JUDGED_PIXELS)))
    loose = _loose(_largest(alpha, block))
    if not loose.any():
        return 0
    dropped = 0
    for row, line in enumerate(loose):  # of blocks, since a whole mask would be as large as the alpha
        band = alpha[row * block : (row + 1) * block]
        spread = np.repeat(line, block)[: alpha.shape[1]]
        dropped += int(np.count_nonzero(band[:, spread]))
        band[:, spread] = 0
    return dropped


def _largest(alpha: np.ndarray, block: int) -> np.ndarray:
    """Return the largest alpha of every block of `block` by `block` pixels."""
    if block == 1:
        return np.ascontiguousarray(alpha)
    rows, columns = (np.arange(0, side, block) for side in alpha.shape)
    return np.maximum.reduceat(np.maximum.reduceat(alpha, rows, axis=0), columns, axis=1)


def _loose(alpha: np.ndarray) -> np.ndarray:
    """Return where an (h,w) u1 alpha is above 0 but does not count, (h,w) bool."""
    solid = alpha >= SOLID
    if not solid.any():
        return np.zeros(alpha.shape, bool)
    margin = max(_LEAST_MARGIN, round(_MARGIN_SHARE * max(_extent(solid, axis) for axis in (0, 1))))
    visible = alpha >= VISIBLE
    count, groups = cv2.connectedComponents(_widen(visible, 2 * margin).astype(np.uint8), connectivity=8)
    solid_pixels = np.bincount(groups[solid], minlength=count)
    kept = visible & (solid_pixels > _LEAST_SHARE * solid_pixels.sum())[groups]
    faint = (alpha > 0) & (alpha < VISIBLE)
    patches = cv2.connectedComponents(faint.astype(np.uint8), connectivity=8)[1]
    far = np.zeros(patches.max() + 1, bool)
    far[patches[faint & ~_widen(kept, margin)]] = True
    touching = np.zeros_like(far)
    touching[patches[faint & _widen(kept, 1)]] = True
    return (visible & ~kept) | (faint & (far | ~touching)[patches])


def _extent(mask: np.ndarray, axis: int) -> int:
    indices = np.flatnonzero(mask.any(axis=axis))
    return int(indices[-1] - indices[0]) + 1


def _widen(mask: np.ndarray, margin: int) -> np.ndarray:
    """Return where a bool mask is set within `margin` pixels in each direction."""
    return cv2.dilate(mask.astype(np.uint8), np.ones((2 * margin + 1, 2 * margin + 1), np.uint8)).astype(bool)
