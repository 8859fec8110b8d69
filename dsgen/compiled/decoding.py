"""Loops that put decoded samples where they belong."""

import numba
import numpy as np

from dsgen.compiled.compiler import compiled, copy_values, pointer


@compiled
def copy(samples: np.ndarray, targets: np.ndarray) -> None:
    """Copy samples, (n,bytes) u1, each to an address (n,) i8; one whose address is 0 is left out."""
    for k in range(len(samples)):
        if targets[k]:
            copy_values(samples[k], numba.carray(pointer(targets[k]), (samples.shape[1],), np.uint8))


@compiled
def restore(differences: np.ndarray, targets: np.ndarray) -> None:
    """Undo the differences (n,h,w) u2 of a chunk, see `dsgen.store.differences`, and put each sample at an address.

    A sample whose address is 0 is left out.
    """
    samples, height, width = differences.shape
    column, nowhere = np.zeros(width, np.uint16), np.empty((height, width), np.uint16)
    above = left = np.uint16(0)  # what was restored last, down the columns and along the rows
    for k in range(samples):
        picture = differences[k]
        column[:] = 0
        for y in range(height):
            _add(column, picture[y])
        for x in range(width):  # from the sum of each column to that of the columns before it
            total = column[x]
            column[x] = above
            above = np.uint16(above + total)
        target = numba.carray(pointer(targets[k]), (height, width), np.uint16) if targets[k] else nowhere
        for y in range(height):
            _add(column, picture[y])
            left = _add_up(column, left, target[y])


@compiled
def _add(sums: np.ndarray, values: np.ndarray) -> None:
    for x in range(len(sums)):
        sums[x] += values[x]


@compiled
def _add_up(values: np.ndarray, total: np.uint16, out: np.ndarray) -> np.uint16:
    """Write the running sum of `values` from `total` on, and return the last one."""
    for x in range(len(values)):
        total = np.uint16(total + values[x])
        out[x] = total
    return total
