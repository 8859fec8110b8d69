"""The depth of a store's backgrounds as its labels have it where no person stands."""

import math
from collections import OrderedDict

import numpy as np
import torch
from torch import Tensor

from dsgen.store.reader import Store

MEDIAN_ROWS = 63  # most rows a background's depth is the median of
LEAST_MEDIAN_ROWS = 8
_CACHED_BYTES = 2**26


class BackgroundDepth:
    """The depth of every background of a store, from the labels of the rows on it.

    It is the median, pixel by pixel, of the depth labels of rows on it: of at most `MEDIAN_ROWS`,
    spread evenly over all its rows whichever their split, without the labels of 0. Persons stand somewhere else in
    every row, so they leave no trace. A background with fewer than `LEAST_MEDIAN_ROWS` has none, which is nan.
    """

    def __init__(self, store: Store):
        self._store = store
        numbers = store.plan["background"]
        self._order = np.argsort(numbers, kind="stable")
        self._numbers, self._first, self._counts = np.unique(
            numbers[self._order], return_index=True, return_counts=True
        )
        self._kept: OrderedDict[int, np.ndarray] = OrderedDict()
        self._used: dict[int, int] = {}

    def __call__(self, numbers: np.ndarray) -> Tensor:
        """Return the depth of backgrounds, by number, as (B,1,S,S) float32 metres; 0 where there is no label."""
        return torch.from_numpy(np.stack([self._median(int(number)) for number in numbers]))[:, None]

    def row_counts(self) -> dict[str, int]:
        """Say of how many rows the medians asked for were taken, the fewest and the most, and how many there were."""
        taken = [count for count in self._used.values() if count]
        return {
            "backgrounds": len(taken),
            "backgrounds_with_too_few_rows": len(self._used) - len(taken),
            "fewest_rows": min(taken, default=0),
            "most_rows": max(taken, default=0),
        }

    def _median(self, number: int) -> np.ndarray:
        if number in self._kept:
            self._kept.move_to_end(number)
            return self._kept[number]
        k = int(np.searchsorted(self._numbers, number))
        rows = self._order[self._first[k] : self._first[k] + self._counts[k]]
        side = self._store.size
        if len(rows) < LEAST_MEDIAN_ROWS:
            self._used[number] = 0
            median_m = np.full((side, side), math.nan, np.float32)
        else:
            rows = rows[np.unique(np.linspace(0, len(rows) - 1, MEDIAN_ROWS).round().astype(int))]
            self._used[number] = len(rows)
            median_m = (median_of_labels(np.stack([self._depth_mm(int(row)) for row in rows])) / 1000).astype(
                np.float32
            )
        self._kept[number] = median_m
        while len(self._kept) * median_m.nbytes > max(_CACHED_BYTES, median_m.nbytes):
            self._kept.popitem(last=False)
        return median_m

    def _depth_mm(self, row: int) -> np.ndarray:
        shard = int(np.searchsorted(self._store.first_rows, row, side="right")) - 1
        place = row - int(self._store.first_rows[shard])
        return self._store.shards[shard].read("depth", place, place + 1)[0]


def median_of_labels(labels: np.ndarray) -> np.ndarray:
    """Take the median of labels (n,h,w), pixel by pixel, without those of 0; (h,w) f8, 0 where all are 0."""
    ordered = np.sort(labels, axis=0)
    zeros = (labels == 0).sum(axis=0)
    last = len(labels) - 1
    lower, upper = (zeros + last) // 2, (zeros + last + 1) // 2
    middle = [np.take_along_axis(ordered, place.clip(0, last)[None], axis=0)[0] for place in (lower, upper)]
    return (middle[0].astype(np.float64) + middle[1]) / 2
