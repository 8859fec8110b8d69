"""Outline a mask with one polygon, for formats that have no other way to draw an instance.

The polygon follows the edges of the pixels, a little inside of them: filled, it has the mask's pixels, and its bounds
are those of the mask. Parts that do not touch, and holes, are joined to it by bridges that go there and back along the
same line and enclose nothing.
"""

import cv2
import numpy as np

INSET = 1 / 64
"""How far inside the edges it lies, in pixels: readers that cut coordinates to whole pixels keep the mask's."""

_AT_ONCE = 2**20  # distances between points that are in memory at a time


def outline(mask: np.ndarray) -> np.ndarray:
    """Return the polygon of a mask, (h,w) where 0 is outside: (points, 2) f8, x and y in pixels, not closed.

    Pixel (x, y) covers x to x + 1 and y to y + 1. Pixels that touch at a corner are one part. The mask must not be
    empty. There are at least 4 points.
    """
    parts, parents = _trace(mask)
    return _join(parts, parents)


def _trace(mask: np.ndarray) -> tuple[list[np.ndarray], list[int]]:
    """Return the outlines of all parts and holes, and the index of the one that each is to be joined to.

    A hole is joined to its part, a part to the one before it. That comes earlier in the list; the first has none, -1.
    """
    # with every pixel as 2 x 2, the points that OpenCV finds tell which edges of their pixel the outline passes
    doubled = np.repeat(np.repeat((mask != 0).astype(np.uint8), 2, axis=0), 2, axis=1)
    contours, hierarchy = cv2.findContours(doubled, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    around = hierarchy[0][:, 3].tolist()  # of a hole the part that it is in, else -1
    holes: dict[int, list[int]] = {}
    for number, part in enumerate(around):
        holes.setdefault(part, []).append(number)
    parts: list[np.ndarray] = []
    parents: list[int] = []
    before = -1
    for outer in holes[-1]:
        here = len(parts)
        for number in [outer, *holes.get(outer, [])]:
            points = contours[number][:, 0]
            parts.append(np.where(points % 2 == 0, points / 2 + INSET, (points + 1) / 2 - INSET))
            parents.append(before if number == outer else here)
        before = here
    return parts, parents


def _join(parts: list[np.ndarray], parents: list[int]) -> np.ndarray:
    """Join closed polygons to one, each by a bridge between the nearest points of it and its parent."""
    bridges: list[list[tuple[int, int]]] = [[] for _ in parts]  # of every part: at which of its points, to which part
    parts = list(parts)
    for number, parent in enumerate(parents):
        if parent >= 0:
            there, here = _nearest(parts[parent], parts[number])
            parts[number] = np.roll(parts[number], -here, axis=0)  # it starts where the bridge ends
            bridges[parent].append((there, number))
    for number in reversed(range(len(parts))):  # children come after their parents
        part, pieces, start = parts[number], [], 0
        for at, child in sorted(bridges[number]):
            pieces += [part[start : at + 1], parts[child], parts[child][:1]]
            start = at  # back on the other side of the bridge
        parts[number] = np.concatenate([*pieces, part[start:]])
    return parts[0]


def _nearest(first: np.ndarray, second: np.ndarray) -> tuple[int, int]:
    """Return the indices of the two nearest points of two polygons."""
    rows = max(1, _AT_ONCE // len(second))
    best, found = np.inf, (0, 0)
    for start in range(0, len(first), rows):
        squares = ((first[start : start + rows, None] - second[None]) ** 2).sum(axis=2)
        index = int(squares.argmin())
        if squares.flat[index] < best:
            best, found = squares.flat[index], (start + index // len(second), index % len(second))
    return found
