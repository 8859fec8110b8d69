"""What a run of labelling will cost, told from its first batches: time, and space on the disk."""

import shutil
import threading
import time
from pathlib import Path

import numpy as np
import zarr

from dsgen.errors import DsgenError
from dsgen.parallel.progress import note

_WORTH_TELLING_S = 60.0  # of work left
_MEASURED_S = 2.0  # after the first batch, which prepares kernels and memory


class Forecast:
    """Tells once at what rate the rows that are `left` are labelled, how long that takes and how many GB they become.

    The first batch tells how well labels compress: a disk that cannot hold the rest is refused before a block is
    written. The line is shown only where more than a minute of work is left. Several threads may add batches.
    """

    def __init__(self, array: zarr.Array, path: Path, left: int):
        self._array, self._path, self._left = array, path, left
        self._lock = threading.Lock()
        self._row_bytes: float | None = None
        self._began, self._rows, self._told = 0.0, 0, False

    def add(self, labels: np.ndarray) -> None:
        """Take the labels (n,S,S) of a batch; raise `DsgenError` if the disk has no space for all."""
        with self._lock:
            if self._row_bytes is None:
                self._row_bytes = encoded_bytes(self._array, labels) / len(labels)
                self._check_space(self._row_bytes)
                self._began, self._left = time.monotonic(), self._left - len(labels)
                return
            self._rows, seconds = self._rows + len(labels), time.monotonic() - self._began
            if self._told or seconds < _MEASURED_S:
                return
            self._told = True
            rate = self._rows / seconds
            left_s = (self._left - self._rows) / rate
            if left_s > _WORTH_TELLING_S:
                rows, size = self._left - self._rows, (self._left - self._rows) * self._row_bytes / 1e9
                note(f"depth: {rows:,} rows at {rate:,.3g}/s: about {in_hours(left_s)}, {size:.1f} GB")

    def _check_space(self, row_bytes: float) -> None:
        need, free = int(self._left * row_bytes), shutil.disk_usage(self._path).free
        if need > free:
            raise DsgenError(
                self._path,
                f"labels of {self._left:,} rows need about {need / 1e9:.1f} GB, {free / 1e9:.1f} GB are free",
                "free some space, and run the same command again",
            )


def encoded_bytes(array: zarr.Array, labels: np.ndarray) -> int:
    """Return how many bytes labels (n,S,S) take in chunks like those of an array."""
    chunks = (min(array.chunks[0], len(labels)), *labels.shape[1:])
    store = zarr.storage.MemoryStore()
    made = zarr.create_array(
        store, shape=labels.shape, chunks=chunks, dtype=array.dtype, compressors=array.compressors, fill_value=0
    )
    made[:] = labels
    return made.nbytes_stored()


def in_hours(seconds: float) -> str:
    """Write a time as `3 min` or `1 h 50 min`."""
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
