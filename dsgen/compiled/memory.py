"""Where arrays are in memory, for the compiled loops."""

from collections.abc import Sequence

import numpy as np


def address(array: np.ndarray) -> int:
    """Return the address of the first value of an array, for as long as the caller keeps it."""
    start: int = array.__array_interface__["data"][0]
    return start


def addresses(arrays: np.ndarray | Sequence[np.ndarray], nbytes: int) -> np.ndarray:
    """Return the addresses (n,) i8 of the items of an array, or of several arrays, of so many bytes each.

    They hold for as long as the caller keeps the arrays. Raises `ValueError` for an item of another size, or one that
    is not C-contiguous: what is compiled writes to addresses without asking.
    """
    for array in arrays:
        if array.nbytes != nbytes or not array.flags.c_contiguous:
            raise ValueError(f"got {array.nbytes:,} bytes in memory, expected {nbytes:,}, one after the other")
    if isinstance(arrays, np.ndarray):
        return address(arrays) + arrays.strides[0] * np.arange(len(arrays), dtype=np.int64)
    return np.array([address(array) for array in arrays], np.int64)
