"""Exact sums over the pixels of a store, and the means and deviations that follow from them."""

import math
from typing import Any

import cv2
import numpy as np


def image_sums(image: np.ndarray) -> dict[str, Any]:
    """Count pixels and add up values and squares of every channel of (n,S,S,3) u1, exactly."""
    side = image.shape[2]
    lines = image.reshape(-1, side, 3)
    step = max(1, 2**24 // side)  # calcHist counts in float32, which holds whole numbers up to 2**24
    histogram = np.zeros((3, 256), np.int64)
    for first in range(0, len(lines), step):
        for channel in range(3):
            counts = cv2.calcHist([lines[first : first + step]], [channel], None, [256], [0, 256])
            histogram[channel] += counts.ravel().astype(np.int64)
    values = np.arange(256)
    return {
        "count": lines.shape[0] * side,
        "sum": (histogram @ values).tolist(),
        "squares": (histogram @ values**2).tolist(),
    }


def depth_sums(depth_mm: np.ndarray) -> dict[str, Any]:
    """Count valid pixels and add up values and squares of (n,S,S) u2, exactly."""
    count = total = squares = 0
    for one in depth_mm:
        wide = one.astype(np.uint32)
        count += int(np.count_nonzero(wide))
        total += int(wide.sum(dtype=np.uint64))
        squares += int(np.square(wide, out=wide).sum(dtype=np.uint64))
    return {"count": count, "sum": [total], "squares": [squares]}


def scale_sums(sums: dict[str, Any], times: int) -> dict[str, Any]:
    """Return the sums of pixels that occur `times` times."""
    return {
        name: [v * times for v in value] if isinstance(value, list) else value * times for name, value in sums.items()
    }


def add_sums(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Add up the sums of one array, name by name and channel by channel."""
    return {
        name: [sum(values) for values in zip(*(part[name] for part in parts), strict=True)]
        if isinstance(parts[0][name], list)
        else sum(part[name] for part in parts)
        for name in parts[0]
    }


def add_all_sums(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Add up the sums of every picture array."""
    return {name: add_sums([part[name] for part in parts]) for name in parts[0]}


def mean_and_std(sums: dict[str, Any], scale: float) -> dict[str, list[float] | None]:
    """Mean and standard deviation of whole-number sums, divided by `scale`; None where nothing was counted."""
    count = sums["count"]
    if not count:
        return {"mean": None, "std": None}
    squares = sums.get("squares", sums["sum"])  # of zeros and ones the sum is the sum of squares
    return {
        "mean": [total / count / scale for total in sums["sum"]],
        "std": [
            math.sqrt((count * square - total * total) / (count * count)) / scale
            for total, square in zip(sums["sum"], squares, strict=True)
        ],
    }
