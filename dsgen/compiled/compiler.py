"""Compile a function by numba, and let it read and write arrays that are given as addresses."""

from collections.abc import Callable, Sequence
from typing import Any

import numba
import numpy as np
from numba.core import cgutils, types
from numba.extending import intrinsic


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function when it is first called; it runs without Python's lock.

    The machine code is kept beside the module or in the cache folder of the user; if neither is writable, in memory.
    """
    try:
        return numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:  # there is nowhere to keep it
        return numba.njit(nogil=True)(function)


def _turn_into_pointer(_: Any, address: Any) -> Any:
    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(address), generate


pointer: Any = intrinsic(_turn_into_pointer)
"""Turn an address, i8, into a pointer that `numba.carray` takes."""


def addresses(arrays: np.ndarray | Sequence[np.ndarray], nbytes: int) -> np.ndarray:
    """Return the addresses (n,) i8 of the items of an array, or of several arrays, of so many bytes each.

    They hold for as long as the caller keeps the arrays. Raises `ValueError` for an item of another size, or one that
    is not C-contiguous: what is compiled writes to addresses without asking.
    """
    for array in arrays:
        if array.nbytes != nbytes or not array.flags.c_contiguous:
            raise ValueError(f"got {array.nbytes:,} bytes in memory, expected {nbytes:,}, one after the other")
    if isinstance(arrays, np.ndarray):
        start, step = arrays.__array_interface__["data"][0], arrays.strides[0]
        return start + step * np.arange(len(arrays), dtype=np.int64)
    return np.array([array.__array_interface__["data"][0] for array in arrays], np.int64)
