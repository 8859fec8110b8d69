"""The depth of a store's backgrounds, estimated from the labels of the composites on them."""

import math
from functools import partial

import numpy as np
import torch
from torch import Tensor

from dsgen.io.cache import Cache
from dsgen.store.reader import Store

MEDIAN_ROWS = 63  # most rows that a background's depth is the median of
LEAST_MEDIAN_ROWS = 8
_CACHED_BYTES = 2**26


class BackgroundDepth:
    """The depth of every background of a store.

    It is the per-pixel median of the depth labels of rows on the background: at most `MEDIAN_ROWS` of them, spread
    evenly over all its rows of any split, without the labels of 0. Foregrounds stand somewhere else in every row, so
    they leave no trace. A background with fewer than `LEAST_MEDIAN_ROWS` rows has no such depth; it is nan.
    """

    def __init__(self, store: Store):
        self._store = store
        numbers = store.plan["background"]
        self._order = np.argsort(numbers, kind="stable")
        self._numbers, self._first, self._counts = np.unique(
            numbers[self._order], return_index=True, return_counts=True
        )
        self._cache = Cache(_CACHED_BYTES)
        self._used: dict[int, int] = {}  # by background: rows of its median, 0 where there are too few

    def __call__(self, numbers: np.ndarray) -> Tensor:
        """Return the depth of backgrounds, by number, as (B,1,S,S) float32 metres; 0 where there is no label."""
        medians = [self._cache.get(number, partial(self._median, number)) for number in numbers.tolist()]
        return torch.from_numpy(np.stack(medians))[:, None]

    def row_counts(self) -> dict[str, int]:
        """Return how many backgrounds were asked for, and the fewest and most rows that their medians were taken of."""
        taken = [count for count in self._used.values() if count]
        return {
            "backgrounds": len(taken),
            "backgrounds_with_too_few_rows": len(self._used) - len(taken),
            "fewest_rows": min(taken, default=0),
            "most_rows": max(taken, default=0),
        }

    def _median(self, number: int) -> np.ndarray:
        """Return the depth of one background, (S,S) f4 metres."""
        k = int(np.searchsorted(self._numbers, number))
        rows = self._order[self._first[k] : self._first[k] + self._counts[k]]
        if len(rows) < LEAST_MEDIAN_ROWS:
            self._used[number] = 0
            return np.full((self._store.size, self._store.size), math.nan, np.float32)
        rows = rows[np.unique(np.linspace(0, len(rows) - 1, MEDIAN_ROWS).round().astype(int))]
        self._used[number] = len(rows)
        labels_mm = np.stack([self._read_depth_mm(int(row)) for row in rows])
        return (median_of_labels(labels_mm) / 1000).astype(np.float32)

    def _read_depth_mm(self, row: int) -> np.ndarray:
        shard, first = self._store.locate(row)
        return self._store.shards[shard].read("depth", first, first + 1)[0]


def median_of_labels(labels: np.ndarray) -> np.ndarray:
    """Return the per-pixel median of labels (n,h,w) u2 without those of 0, (h,w) f8; 0 where all are 0."""
    ordered = np.sort(labels, axis=0)
    zeros = (labels == 0).sum(axis=0)
    last = len(labels) - 1
    lower, upper = (zeros + last) // 2, (zeros + last + 1) // 2
    middle = [np.take_along_axis(ordered, rank.clip(0, last)[None], axis=0)[0] for rank in (lower, upper)]
    return (middle[0].astype(np.float64) + middle[1]) / 2
