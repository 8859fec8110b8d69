"""Drawing, one pixel at a time in integers of Python, written from the docstrings of what it is compared with."""

import math
from fractions import Fraction

import numpy as np

from dsgen.corpus.figures import UNIT, Figure, Window
from dsgen.corpus.scene import Room


def some_cutout(seed: int, height: int, width: int) -> np.ndarray:
    """Noise with opaque, transparent and half-transparent pixels up to all edges, (h,w,4) u1."""
    rng = np.random.default_rng(seed)
    rgba = rng.integers(0, 256, (height, width, 4), np.uint8)
    choice = rng.random((height, width))
    rgba[..., 3] = np.where(choice < 0.5, 255, np.where(choice < 0.7, 0, rgba[..., 3]))
    return rgba


def slow_levels(rgba: np.ndarray) -> list[list[list[list[int]]]]:
    """All levels of a cut-out as lists of rows of pixels."""
    level = [
        [[(2 * int(c) * int(a) + 255) // 510 for c in colour] + [int(a)] for *colour, a in row] for row in rgba.tolist()
    ]
    levels = [level]
    while min(len(level), len(level[0])) >= 8:

        def at(y: int, x: int, channel: int, level: list = level) -> int:
            return level[y][x][channel] if y < len(level) and x < len(level[0]) else 0

        half = range(-(-len(level) // 2)), range(-(-len(level[0]) // 2))
        level = [
            [
                [(sum(at(2 * y + j, 2 * x + i, c) for j in (0, 1) for i in (0, 1)) + 2) // 4 for c in range(4)]
                for x in half[1]
            ]
            for y in half[0]
        ]
        levels.append(level)
    return levels


def slow_draw(
    rgba: np.ndarray, window: Window, height: int, top: int, left: int, tilt: int = 0, scale: int = 1
) -> np.ndarray:
    """A drawn cut-out, premultiplied, by the docstring of `dsgen.corpus.figures`."""
    levels = slow_levels(rgba)
    h0, w0 = rgba.shape[:2]
    drawn = height * scale
    number = max(n for n in range(len(levels)) if n == 0 or unrounded(h0, n) >= drawn / UNIT)
    level = levels[number]
    cosine, sine = (round(65536 * each(math.radians(tilt / 100))) for each in (math.cos, math.sin))
    out = np.zeros((window.bottom - window.top, window.right - window.left, 4), np.uint8)
    for i, j in np.ndindex(out.shape[:2]):
        x = 32 * (2 * (window.left + j) + 1) - scale * left
        y = 32 * (2 * (window.top + i) + 1) - scale * top
        one = 1
        if tilt:
            middle = drawn * w0 // (2 * h0)
            across, along, one = x - middle, y - drawn, 65536
            x = across * cosine + along * sine + middle * one
            y = along * cosine - across * sine + drawn * one
        u = 256 * h0 * x // (2**number * drawn * one) - 128
        v = 256 * h0 * y // (2**number * drawn * one) - 128

        def at(row: int, column: int, channel: int) -> int:
            inside = 0 <= row < len(level) and 0 <= column < len(level[0])
            return level[row][column][channel] if inside else 0

        for c in range(4):
            row, column = v // 256, u // 256
            a, b = (
                (at(row, column + k, c) * (256 - v % 256) + at(row + 1, column + k, c) * (v % 256) + 128) // 256
                for k in (0, 1)
            )
            out[i, j, c] = (a * (256 - u % 256) + b * (u % 256) + 128) // 256
    return out


def unrounded(length: int, level: int) -> float:
    """The height of a level, not rounded: exact, as powers of two are."""
    return length / 2**level


def slow_div255(x: int) -> int:
    """x / 255 to the nearest; ties do not occur."""
    return (2 * x + 255) // 510


def slow_visible(room: Room, distance: int, bottom64: int) -> np.ndarray:
    """How far the room leaves in view who stands at a distance, the feet at this height, (S,S) ints of 0..255."""
    side = len(room.image)
    out = np.full((side, side), 255)
    if not distance or room.depth is None or room.floor is None:
        return out

    def hides(y: int, x: int) -> bool:
        z = distance + math.floor(Fraction(distance * room.lean * (bottom64 - 64 * y - 32), 2**26 * side))
        margin = z * room.margin_permille // 1000 + 30
        inside = 0 <= y < side and 0 <= x < side
        return inside and not room.floor[y, x] and 0 < int(room.depth[y, x]) < z - margin

    for y, x in np.ndindex(side, side):
        n = sum(not hides(y + j, x + i) for j in (-1, 0, 1) for i in (-1, 0, 1))
        out[y, x] = (255 * n + 4) // 9
    return out


def slow_scene(
    row: np.void,
    room: Room,
    cutouts: dict[tuple[int, int], np.ndarray],
    size: int,
    scale: int = 1,
    depths: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """Draw a row whose people have no looks; `cutouts[foreground, flip]` are straight RGBA."""
    side = size * scale
    image = room.image.astype(int)
    mask, instance = np.zeros((side, side), int), np.zeros((side, side), int)
    depth = np.zeros((side, side), int) if room.depth is None else room.depth.astype(int)
    slots = [slot for slot, person in enumerate(row["people"]) if person["height"] > 0]
    # the farthest first; who stands nowhere comes last, the first slot in front of all
    slots.sort(key=lambda slot: (int(row["people"][slot]["distance"]) or -1, slot), reverse=True)
    for slot in slots:
        person = row["people"][slot]
        foreground, flip, _, height, top, left, distance, tilt = person.tolist()
        rgba = cutouts[foreground, flip]
        window = Figure(rgba).window(height, top, left, tilt, size, scale)  # contains all: see the tests of figures
        if window.empty:
            continue
        drawn = slow_draw(rgba, window, height, top, left, tilt, scale)
        visible = slow_visible(room, distance, (top + height) * scale)
        told = distance if depths is None else int(depths[slot])
        for i, j in np.ndindex(drawn.shape[:2]):
            y, x = window.top + i, window.left + j
            *colour, alpha = (slow_div255(int(value) * int(visible[y, x])) for value in drawn[i, j])
            for c in range(3):
                image[y, x, c] = slow_div255(image[y, x, c] * (255 - alpha)) + colour[c]
            if alpha >= 128:
                mask[y, x], instance[y, x], depth[y, x] = 255, slot + 1, told
    return {"image": image, "mask": mask, "instance": instance, "depth": depth}
