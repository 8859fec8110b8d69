"""Compile a function by numba, and let it read and write arrays that are given as addresses; what loops share."""

from collections.abc import Callable
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


@compiled
def copy_values(source: np.ndarray, out: np.ndarray) -> None:
    """Copy an array (n,) into another of its type."""
    for i in range(len(out)):
        out[i] = source[i]
