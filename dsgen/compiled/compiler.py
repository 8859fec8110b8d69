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


@intrinsic
def pointer(_: Any, address: Any) -> Any:
    """Turn an address, i8, into a pointer that `numba.carray` takes."""

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(address), generate


def addresses(arrays: np.ndarray | Sequence[np.ndarray]) -> np.ndarray:
    """Return the addresses (n,) i8 of the items of an array, or of several arrays.

    They hold for as long as the caller keeps the arrays. Raises `ValueError` unless every item is C-contiguous.
    """
    if not all(array.flags.c_contiguous for array in arrays):
        raise ValueError("an item is not C-contiguous")
    if isinstance(arrays, np.ndarray):
        start, step = arrays.__array_interface__["data"][0], arrays.strides[0]
        return start + step * np.arange(len(arrays), dtype=np.int64)
    return np.array([array.__array_interface__["data"][0] for array in arrays], np.int64)
