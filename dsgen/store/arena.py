"""The memory that chunks are decoded into and batches are made in, reused from chunk to chunk and batch to batch."""

import sys

import numpy as np
import torch
from torch import Tensor

DTYPES = {"image": "uint8", "mask": "uint8", "depth": "uint16", "instance": "uint8", "background": "uint8"}
Batch = dict[str, Tensor]


class Arena:
    """`regions` for chunks of up to `samples` samples each, and room for batches.

    `chunks` holds, by field, an array (regions * samples, ...) of every field but the background. At most `batches`
    batches are kept for reuse.
    """

    def __init__(self, fields: tuple[str, ...], size: int, regions: int, samples: int, batch_size: int, batches: int):
        self.regions, self.samples, self.batch_size = regions, samples, batch_size
        self._shapes = {
            field: (size, size, 3) if field in ("image", "background") else (size, size) for field in fields
        }
        self._batches: list[dict[str, np.ndarray]] = []
        self._max_batches = batches
        self.chunks = self._allocate(regions * samples)
        self.chunks.pop("background", None)

    def _allocate(self, count: int) -> dict[str, np.ndarray]:
        return {field: np.empty((count, *shape), DTYPES[field]) for field, shape in self._shapes.items()}

    def batch(self, rows: np.ndarray, device: torch.device | None) -> Batch:
        """Return an empty batch: the memory of an earlier batch of which no tensor is left, or new memory."""
        if device is not None and device.type == "cuda":  # torch caches pinned memory, and knows when it is free
            with torch.cuda.device(device):
                batch = {
                    field: torch.empty((len(rows), *shape), dtype=getattr(torch, DTYPES[field]), pin_memory=True)
                    for field, shape in self._shapes.items()
                }
            return batch | {"row": torch.from_numpy(rows)}
        for arrays in self._batches:
            if all(sys.getrefcount(arrays[field]) == _UNUSED for field in arrays):
                break
        else:
            arrays = self._allocate(self.batch_size)
            if len(self._batches) < self._max_batches:
                self._batches.append(arrays)
        batch = {field: torch.from_numpy(values[: len(rows)]) for field, values in arrays.items()}
        return batch | {"row": torch.from_numpy(rows)}


_PROBE = {"field": np.empty(0)}
_UNUSED = sys.getrefcount(_PROBE["field"])  # of an array with a single reference to it, from a dict
