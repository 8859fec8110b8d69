"""Exact sums over the pixels of a store, and the means and standard deviations that follow from them.

The sums of an array are a dict: `count` of values counted, `sum` and `squares` a channel. They are whole numbers, so
adding them up in any order gives the same result.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np

Sums = dict[str, Any]


def block_sums(fields: Mapping[str, np.ndarray]) -> dict[str, Sums]:
    """Return the sums of a block's `image`, and of its `mask` and `depth` where there are any."""
    sums = {"image": image_sums(fields["image"])}
    if "mask" in fields:
        sums["mask"] = {"count": fields["mask"].size, "sum": [_count_nonzero(fields["mask"])]}
    if "depth" in fields:
        sums["depth"] = depth_sums(fields["depth"])
    return sums


def image_sums(image: np.ndarray) -> Sums:
    """Count pixels and add up the values and squares of every channel of (n,S,S,3) u1, exactly."""
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


def depth_sums(depth_mm: np.ndarray) -> Sums:
    """Count the valid pixels of (n,S,S) u2 and add up their values and squares, exactly.

    Every sum over a picture is a whole number below 2**53, which floats hold.
    """
    total = squares = 0
    for one in depth_mm:
        wide = one.reshape(-1).astype(np.float64)
        total += int(wide.sum())
        squares += int(wide @ wide)
    return {"count": _count_nonzero(depth_mm), "sum": [total], "squares": [squares]}


def _count_nonzero(pictures: np.ndarray) -> int:
    """Count the pixels of (n,S,S) that are not 0, faster than numpy does."""
    return sum(map(cv2.countNonZero, pictures))


def scale_sums(sums: Sums, times: int) -> Sums:
    """Return the sums of pixels that occur `times` times."""
    return {
        name: [v * times for v in value] if isinstance(value, list) else value * times for name, value in sums.items()
    }


def add_sums(several: Sequence[Sums]) -> Sums:
    """Add up the sums of one array, name by name and channel by channel."""
    return {
        name: [sum(values) for values in zip(*(sums[name] for sums in several), strict=True)]
        if isinstance(several[0][name], list)
        else sum(sums[name] for sums in several)
        for name in several[0]
    }


def add_all_sums(several: Sequence[Mapping[str, Sums]]) -> dict[str, Sums]:
    """Add up the sums of every array, by its name."""
    return {name: add_sums([sums[name] for sums in several]) for name in several[0]}


def mean_and_std(sums: Sums, scale: float) -> dict[str, list[float] | None]:
    """Return mean and standard deviation from exact sums, divided by `scale`; None where nothing was counted."""
    count = sums["count"]
    if not count:
        return {"mean": None, "std": None}
    squares = sums["squares"] if "squares" in sums else sums["sum"]  # the squares of zeros and ones add up to their sum
    return {
        "mean": [total / count / scale for total in sums["sum"]],
        "std": [
            math.sqrt((count * square - total * total) / (count * count)) / scale
            for total, square in zip(sums["sum"], squares, strict=True)
        ],
    }
