"""Differences between neighbouring values of a chunk of depth, which compress to 0.6 of the bytes of the values.

A chunk (n,h,w) u2 is stored as each value less the one to its left, and of these each less the one above it, modulo
2^16. It is what the Zarr codecs of `ZARR_CODECS` do. `numcodecs.delta` flattens an array: the first value of a row is
less the last one of the row before, and the first one of a column less the last one of the column before.

A chunk needs two samples, `LEAST_SAMPLES`: numcodecs flattens an array whose axes are reversed in the order of memory,
as a transposed chunk of one sample is, and would take differences along another axis.
"""

from typing import Any

import numpy as np

from dsgen.compiled import find_loops
from dsgen.compiled.memory import addresses

LEAST_SAMPLES = 2
_BLOCK = 16
ZARR_CODECS: list[dict[str, Any]] = [  # before `bytes`
    {"name": "numcodecs.delta", "configuration": {"dtype": "<u2"}},
    {"name": "transpose", "configuration": {"order": [0, 2, 1]}},
    {"name": "numcodecs.delta", "configuration": {"dtype": "<u2"}},
    {"name": "transpose", "configuration": {"order": [0, 2, 1]}},
]


def take(values: np.ndarray) -> np.ndarray:
    """Return the differences (n,h,w) u2 of a chunk (n,h,w) u2."""
    across = np.ascontiguousarray(values)
    across = across - _before(across)
    differences = np.empty_like(across)
    np.subtract(across[:, 1:], across[:, :-1], out=differences[:, 1:])
    np.subtract(across[:, 0], _before(across[:, -1]), out=differences[:, 0])
    return differences


def undo(differences: np.ndarray, out: np.ndarray) -> None:
    """Restore a chunk into `out`, (n,h,w) u2, from its differences, which may be overwritten."""
    loops = find_loops("decoding")
    if loops is not None:
        loops.restore(differences, addresses(out, differences[0].nbytes))
    else:
        undo_by_numpy(differences, out)


def undo_by_numpy(differences: np.ndarray, out: np.ndarray) -> None:
    """Do the same without compiled loops; the differences are overwritten."""
    columns = np.add.reduce(differences, axis=1, dtype=differences.dtype)
    differences[:, 0] += _before(_add_up(columns, np.empty_like(columns)))
    _add_up_rows(differences)
    _add_up(differences, out)


def _add_up(values: np.ndarray, out: np.ndarray) -> np.ndarray:
    """Put into `out` the sum of each value, u2, and all before it; torch takes a third of numpy's time."""
    import torch

    flat, sums = (torch.from_numpy(array.view(np.int16).reshape(-1)) for array in (values, out))
    torch.cumsum(flat, 0, dtype=torch.int16, out=sums)
    return out


def _add_up_rows(pictures: np.ndarray) -> None:
    """Add to each row of pictures (n,h,w) those above it, in few steps: after each of them threads wait for each other.

    Every `_BLOCK` rows are added up at once, then to each block the last row of the block before.
    """
    n, height, width = pictures.shape
    whole = height // _BLOCK * _BLOCK
    blocks = pictures[:, :whole].reshape(n, -1, _BLOCK, width)
    for row in range(1, _BLOCK):
        blocks[:, :, row] += blocks[:, :, row - 1]
    for block in range(1, blocks.shape[1]):
        blocks[:, block] += blocks[:, block - 1, -1:]
    for row in range(max(1, whole), height):
        pictures[:, row] += pictures[:, row - 1]


def _before(values: np.ndarray) -> np.ndarray:
    """Return what comes before each value when they are taken one after the other: 0 before the first."""
    shifted = np.zeros(values.shape, values.dtype)
    shifted.reshape(-1)[1:] = values.reshape(-1)[:-1]
    return shifted
