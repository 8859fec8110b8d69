"""Outline a mask with one polygon, for formats that have no other way to draw an instance.

The polygon follows the edges of the pixels, a little inside of them: filled, it has the mask's pixels, and its bounds
are those of the mask. Parts that do not touch, and holes, are joined to it by bridges that go there and back along the
same line and enclose nothing.
"""

import cv2
import numpy as np

INSET = 1 / 64
"""How far inside the edges it lies, in pixels: readers that cut coordinates to whole pixels keep the mask's."""

_JOINED_TO = 16  # parts that others are joined to
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

    A hole is joined to its part, and a part to a near one. That comes earlier in the list; the first has none, -1.
    """
    # with every pixel as 2 x 2, the points that OpenCV finds tell which edges of their pixel the outline passes
    doubled = np.repeat(np.repeat((mask != 0).astype(np.uint8), 2, axis=0), 2, axis=1)
    contours, hierarchy = cv2.findContours(doubled, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    outlines = [_follow_edges(contour[:, 0]) for contour in contours]
    holes: dict[int, list[int]] = {}
    for number, part in enumerate(hierarchy[0][:, 3].tolist()):  # of a hole the part that it is in, else -1
        holes.setdefault(part, []).append(number)
    parts: list[np.ndarray] = []
    parents: list[int] = []
    places: dict[int, int] = {-1: -1}  # of every part in the list, by its number
    for outer, near in _order([outlines[number] for number in holes[-1]]):
        number = holes[-1][outer]
        places[outer] = len(parts)
        for one in [number, *holes.get(number, [])]:
            parts.append(outlines[one])
            parents.append(places[near] if one == number else places[outer])
    return parts, parents


def _follow_edges(points: np.ndarray) -> np.ndarray:
    """Move points of a mask of doubled size to the edges of the pixels that they are in, but for the inset."""
    return np.where(points % 2 == 0, points / 2 + INSET, (points + 1) / 2 - INSET)


def _order(outlines: list[np.ndarray]) -> list[tuple[int, int]]:
    """Order parts so that each can be joined to an earlier one: index, and that of the earlier one, -1 for the first.

    The next is always the nearest (Prim's spanning tree), so that bridges are short. Of very many parts the later ones
    are joined to the nearest of the first few.
    """
    last = max(range(len(outlines)), key=lambda number: len(outlines[number]))
    ordered, joined = [(last, -1)], {last}
    nearest, to = np.full(len(outlines), np.inf), np.zeros(len(outlines), int)
    while len(joined) < len(outlines):
        if len(joined) <= _JOINED_TO:
            for number, points in enumerate(outlines):
                if number not in joined and (square := _nearest(outlines[last], points)[2]) < nearest[number]:
                    nearest[number], to[number] = square, last
        last = int(nearest.argmin())
        ordered.append((last, int(to[last])))
        joined.add(last)
        nearest[last] = np.inf
    return ordered


def _join(parts: list[np.ndarray], parents: list[int]) -> np.ndarray:
    """Join closed polygons to one, each by a bridge between the nearest points of it and its parent."""
    bridges: list[list[tuple[int, int]]] = [[] for _ in parts]  # of every part: at which of its points, to which part
    parts = list(parts)
    for number, parent in enumerate(parents):
        if parent >= 0:
            there, here, _ = _nearest(parts[parent], parts[number])
            parts[number] = np.roll(parts[number], -here, axis=0)  # it starts where the bridge ends
            bridges[parent].append((there, number))
    for number in reversed(range(len(parts))):  # children come after their parents
        part, pieces, start = parts[number], [], 0
        for at, child in sorted(bridges[number]):
            pieces += [part[start : at + 1], parts[child], parts[child][:1]]
            start = at  # back on the other side of the bridge
        parts[number] = np.concatenate([*pieces, part[start:]])
    return parts[0]


def _nearest(first: np.ndarray, second: np.ndarray) -> tuple[int, int, float]:
    """Return the indices of the two nearest points of two polygons, and the square of their distance."""
    rows = max(1, _AT_ONCE // len(second))
    found = 0, 0, np.inf
    for start in range(0, len(first), rows):
        across, down = (np.subtract.outer(first[start : start + rows, axis], second[:, axis]) for axis in (0, 1))
        squares = across**2 + down**2
        index = int(squares.argmin())
        if squares.flat[index] < found[2]:
            found = start + index // len(second), index % len(second), float(squares.flat[index])
    return found
