"""Memory that decoded chunks are kept in, reused from chunk to chunk."""

import sys

import numpy as np
import torch
from torch import Tensor

DTYPES = {"image": "uint8", "mask": "uint8", "depth": "uint16", "background": "uint8"}
Batch = dict[str, Tensor]


class Arena:
    """Memory that is used over and over: `regions` for chunks of up to `samples` samples, and batches.

    `chunks` are part -> (regions * samples, ...), of all parts but backgrounds.
    """

    def __init__(self, parts: tuple[str, ...], side: int, regions: int, samples: int, batch_size: int, batches: int):
        self.regions, self.samples, self.batch_size = regions, samples, batch_size
        self._shapes = {part: (side, side, 3) if part in ("image", "background") else (side, side) for part in parts}
        self._batches: list[dict[str, np.ndarray]] = []
        self._most = batches
        self.chunks = self._empty(regions * samples)
        self.chunks.pop("background", None)

    def _empty(self, count: int) -> dict[str, np.ndarray]:
        return {part: np.empty((count, *shape), DTYPES[part]) for part, shape in self._shapes.items()}

    def batch(self, rows: np.ndarray, device: torch.device | None) -> Batch:
        """Make room for a batch: that of an earlier one of which no tensor is left, or new."""
        if device is not None and device.type == "cuda":  # torch keeps what was pinned, and knows when it may be reused
            with torch.cuda.device(device):
                batch = {
                    part: torch.empty((len(rows), *shape), dtype=getattr(torch, DTYPES[part]), pin_memory=True)
                    for part, shape in self._shapes.items()
                }
            return batch | {"row": torch.from_numpy(rows)}
        for room in self._batches:
            if all(sys.getrefcount(room[part]) == _UNUSED for part in room):
                break
        else:
            room = self._empty(self.batch_size)
            if len(self._batches) < self._most:
                self._batches.append(room)
        batch = {part: torch.from_numpy(values[: len(rows)]) for part, values in room.items()}
        return batch | {"row": torch.from_numpy(rows)}


_PROBE = {"part": np.empty(0)}
_UNUSED = sys.getrefcount(_PROBE["part"])  # of an array to which there is but one reference, from a dict
