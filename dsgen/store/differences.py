"""Differences between neighbouring values of a chunk of depth, which compress to 0.7 of the bytes of the values.

A chunk (n,h,w) u2 is stored as (h,n,w): each value less the one above it in its picture, modulo 2^16. It is what the
Zarr codecs of `ZARR_CODECS` do. `numcodecs.delta` flattens an array, so the first value of a column is less the last
one of the column before. `undo` does in one pass over a chunk what other readers do in three.

A chunk needs two samples, `LEAST_SAMPLES`: numcodecs flattens an array whose axes are reversed in the order of memory,
as a transposed chunk of one sample is, and would take differences along another axis.
"""

from itertools import pairwise
from typing import Any

import numpy as np

LEAST_SAMPLES = 2
_BLOCK = 16
ZARR_CODECS: list[dict[str, Any]] = [  # before `bytes`
    {"name": "transpose", "configuration": {"order": [0, 2, 1]}},
    {"name": "numcodecs.delta", "configuration": {"dtype": "<u2"}},
    {"name": "transpose", "configuration": {"order": [2, 0, 1]}},
]


def take(values: np.ndarray) -> np.ndarray:
    """Return the differences (h,n,w) u2 of a chunk (n,h,w) u2."""
    rows = np.ascontiguousarray(values.transpose(1, 0, 2))
    differences = np.empty_like(rows)
    np.subtract(rows[1:], rows[:-1], out=differences[1:])
    np.subtract(rows[0], _before(rows[-1]), out=differences[0])
    return differences


def undo(differences: np.ndarray, out: np.ndarray) -> None:
    """Restore a chunk into `out`, (n,h,w) u2, from its differences (h,n,w) u2, which are overwritten."""
    sums = differences
    _add_up_rows(sums.reshape(len(sums), -1))
    columns = np.cumsum(sums[-1], dtype=sums.dtype).reshape(sums.shape[1:])  # what each adds to those after it
    np.add(sums.transpose(1, 0, 2), _before(columns)[:, None], out=out)


def _add_up_rows(rows: np.ndarray) -> None:
    """Add to each row, (h,m), the sum of those above it, in few steps: after each of them threads wait for each other.

    Every `_BLOCK` rows are added up at once, then to each block the last row of the block before.
    """
    whole = len(rows) // _BLOCK * _BLOCK
    blocks = rows[:whole].reshape(-1, _BLOCK, rows.shape[1])
    for row in range(1, _BLOCK):
        np.add(blocks[:, row - 1], blocks[:, row], out=blocks[:, row])
    for before, block in pairwise(blocks):
        block += before[-1]
    for row in range(max(1, whole), len(rows)):
        rows[row] += rows[row - 1]


def _before(values: np.ndarray) -> np.ndarray:
    """Return what comes before each value when they are taken one after the other: 0 before the first."""
    shifted = np.zeros(values.shape, values.dtype)
    shifted.reshape(-1)[1:] = values.reshape(-1)[:-1]
    return shifted
