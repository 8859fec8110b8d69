"""The loop that draws rows of the plan with one foreground each; see `dsgen.corpus.render` for what it does."""

import numba
import numpy as np

from dsgen.compiled.compiler import compiled, copy_values, pointer


@compiled
def draw(side: int, rows: np.ndarray, cutouts: np.ndarray, depths: np.ndarray) -> None:
    """Draw pictures (side,side) of a group of rows.

    `rows` (n,9) i8 are, of each row, the addresses of its image, mask, depth and instance, 0 for what is not wanted, of
    its background and of the background's depth; the number of its cut-out; and the top and left of that in pixels.
    `cutouts` (c,5) i8 are the addresses of `weighted`, `through` and `mask` of each, their height and their width.
    `depths` (n,) u2 is that of the person.
    """
    for k in range(len(rows)):
        image, mask, depth, instance, background, room, number, top, left = rows[k]
        weighted, through, shape, height, width = cutouts[number]
        seen = numba.carray(pointer(shape), (height, width), np.uint8)
        if image:
            into = numba.carray(pointer(image), (side, 3 * side), np.uint8)
            copy_values(numba.carray(pointer(background), (side * 3 * side,), np.uint8), into.reshape(side * 3 * side))
            colour = numba.carray(pointer(weighted), (height, 3 * width), np.uint16)
            rest = numba.carray(pointer(through), (height, 3 * width), np.uint16)
            for y in range(height):
                _blend(into[top + y, 3 * left : 3 * (left + width)], colour[y], rest[y])
        if mask:
            _put(numba.carray(pointer(mask), (side, side), np.uint8), seen, top, left, np.uint8(255))
        if instance:
            _put(numba.carray(pointer(instance), (side, side), np.uint8), seen, top, left, np.uint8(1))
        if depth:
            far = numba.carray(pointer(depth), (side, side), np.uint16)
            copy_values(numba.carray(pointer(room), (side * side,), np.uint16), far.reshape(side * side))
            for y in range(height):
                _cover(far[top + y, left : left + width], seen[y], depths[k])


@compiled
def _blend(pixels: np.ndarray, weighted: np.ndarray, through: np.ndarray) -> None:
    """Blend a row of a cut-out over a row of a picture, as `dsgen.corpus.render.blend` does."""
    for i in range(len(pixels)):
        mixed = np.uint16(np.uint16(pixels[i]) * through[i] + weighted[i])
        mixed = np.uint16(mixed + (mixed >> np.uint16(8)))
        pixels[i] = np.uint8(mixed >> np.uint16(8))


@compiled
def _put(out: np.ndarray, seen: np.ndarray, top: int, left: int, value: np.uint8) -> None:
    """Draw a mask (h,w), 0 or 255, at a place of a picture of zeros, those bits of it that `value` has."""
    out[:] = 0
    for y in range(len(seen)):
        _keep_bits(seen[y], out[top + y, left : left + seen.shape[1]], value)


@compiled
def _keep_bits(seen: np.ndarray, out: np.ndarray, value: np.uint8) -> None:
    for x in range(len(out)):
        out[x] = seen[x] & value


@compiled
def _cover(far: np.ndarray, seen: np.ndarray, depth: np.uint16) -> None:
    for x in range(len(far)):
        far[x] = depth if seen[x] else far[x]
