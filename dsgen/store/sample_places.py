"""Where the samples of a chunk go, as arrays or as addresses."""

from collections.abc import Mapping, Sequence

import numpy as np


class Places:
    """Where the samples of a chunk go: sample i to place `places[i]` of a batch of which `arrays[i]` are the arrays.

    `starts[i]` are the addresses of these arrays, by field.
    """

    def __init__(
        self, arrays: Sequence[Mapping[str, np.ndarray]], starts: Sequence[Mapping[str, int]], places: np.ndarray
    ):
        self._arrays, self._starts, self._places = arrays, starts, places

    def items(self, field: str) -> list[np.ndarray]:
        """Return an array for each sample."""
        return [arrays[field][place] for arrays, place in zip(self._arrays, self._places.tolist(), strict=True)]

    def addresses(self, field: str, nbytes: int) -> np.ndarray:
        """Return the address (n,) i8 of each sample; raise `ValueError` unless samples have so many bytes."""
        held = self._arrays[0][field][0].nbytes
        if held != nbytes:
            raise ValueError(f"got {nbytes:,} bytes a sample, expected {held:,}")
        return np.array([starts[field] for starts in self._starts], np.int64) + nbytes * self._places
