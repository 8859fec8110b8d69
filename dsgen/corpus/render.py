"""Render rows of the plan: pure functions of arrays, with the same bits on every machine.

    image = (background * (255 - alpha) + foreground * alpha) / 255, rounded to nearest
    mask  = 255 where alpha >= 128, else 0

All in integers. Ties cannot occur, since 255 is odd. A compiled loop draws whole groups of rows if numba is installed,
numpy otherwise.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from dsgen.compiled import find_loops
from dsgen.compiled.memory import addresses

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
            weighted=np.ascontiguousarray(rgba[..., :3] * alpha + 128),
            through=np.repeat(255 - alpha, 3, axis=2),
            mask=np.ascontiguousarray(np.where(rgba[..., 3] >= 128, 255, 0), np.uint8),
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
    loops = find_loops("drawing")
    if loops is not None and has_plain_memory(images, (side, side, 3)) and has_plain_memory(masks, (side, side)):
        targets = {"image": addresses(images, 3 * side**2), "mask": addresses(masks, side**2)}
        draw_rows(rows, backgrounds, cutouts, size, targets, loops, scale=scale)
        return images, masks
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


def draw_rows(
    rows: np.ndarray,
    backgrounds: Mapping[int, np.ndarray],
    cutouts: Mapping[tuple[int, int], Cutout],
    size: int,
    targets: Mapping[str, np.ndarray],
    loops: ModuleType,
    *,
    scale: int = 1,
    rooms: Mapping[int, np.ndarray] | None = None,
    depths: np.ndarray | None = None,
) -> None:
    """Draw rows as `render` does, by the compiled `loops` for drawing, to addresses (n,) i8 in `targets`.

    They may have `image`, `mask`, `instance`, (n,S,S) u1, 1 where the mask is 255, and `depth`, (n,S,S) u2: that of
    `rooms[background]`, (S,S) u2, and where the mask is 255 `depths`, (n,) u2. Raises `ValueError` for a cut-out that
    does not lie within its picture, and unless every row has a target and a depth.
    """
    side = size * scale
    for name, given in {**targets, **({} if depths is None else {"person's depth": depths})}.items():
        if len(given) != len(rows):
            raise ValueError(f"{name} is given for {len(given):,} rows, expected {len(rows):,}")
    numbers = rows["background"].tolist()
    pairs = list(zip(rows["foreground"].tolist(), rows["flip"].tolist(), strict=True))
    # kept here for as long as their addresses are used
    plain = {number: np.ascontiguousarray(backgrounds[number], np.uint8) for number in set(numbers)}
    plain_rooms = {} if rooms is None else {n: np.ascontiguousarray(rooms[n], np.uint16) for n in set(numbers)}
    behind = {number: addresses([picture], 3 * side**2)[0] for number, picture in plain.items()}
    far = {number: addresses([room], 2 * side**2)[0] for number, room in plain_rooms.items()}
    index = {pair: k for k, pair in enumerate(set(pairs))}
    layouts = np.array([_layout(cutouts[pair]) for pair in index], np.int64).reshape(-1, 5)
    table = np.zeros((len(rows), 9), np.int64)
    for column, field in enumerate(("image", "mask", "depth", "instance")):
        if field in targets:
            table[:, column] = targets[field]
    table[:, 4] = [behind[number] for number in numbers]
    table[:, 5] = [far.get(number, 0) for number in numbers]
    table[:, 6] = [index[pair] for pair in pairs]
    table[:, 7:] = np.stack([rows["top"], rows["left"]], axis=1) * np.int64(scale)
    if table[:, 7:].min(initial=0) < 0 or (table[:, 7:] + layouts[table[:, 6], 3:] > side).any():
        raise ValueError("a foreground lies partly outside its picture")
    loops.draw(side, table, layouts, np.zeros(len(rows), np.uint16) if depths is None else depths)


def has_plain_memory(pictures: Pictures, shape: tuple[int, ...], dtype: type = np.uint8) -> bool:
    """Return whether the compiled loop can draw into pictures; numpy draws into others, or refuses them."""
    return all(p.flags.carray and p.dtype == dtype and p.shape == shape for p in pictures)


def _layout(cutout: Cutout) -> tuple[int, ...]:
    """Return the addresses of `weighted`, `through` and `mask`, and their height and width, for the compiled loop."""
    height, width = cutout.shape
    weighted, through = addresses([cutout.weighted, cutout.through], 6 * height * width).tolist()
    return weighted, through, addresses([cutout.mask], height * width).item(), height, width


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
