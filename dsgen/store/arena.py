"""The memory that chunks are decoded into and batches are made in, reused from chunk to chunk and batch to batch."""

import math
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np
from torch import Tensor

DTYPES = {"image": "uint8", "mask": "uint8", "depth": "uint16", "instance": "uint8", "background": "uint8"}
Batch = dict[str, Tensor]
Arrays = dict[str, np.ndarray]


class Arena:
    """Memory for batches of up to `batch_size` samples, and for chunks of up to `chunk` samples while they are decoded.

    At most `batches` batches are kept for reuse. Backgrounds have memory of their own, as they are added last. Threads
    may share it.
    """

    def __init__(self, fields: tuple[str, ...], size: int, batch_size: int, chunk: int, batches: int):
        self.batch_size, self.chunk, self.batches = batch_size, chunk, batches
        shapes = {field: (size, size, 3) if field in ("image", "background") else (size, size) for field in fields}
        backgrounds = {"background": shapes.pop("background")} if "background" in shapes else {}
        self._samples = _Reused(shapes, batch_size, batches)
        self._backgrounds = _Reused(backgrounds, batch_size, batches)
        self._shapes = shapes
        self._chunks: list[ChunkMemory] = []

    @property
    def nbytes(self) -> int:
        """The memory that is kept."""
        return self._samples.nbytes + self._backgrounds.nbytes + sum(memory.nbytes for memory in self._chunks)

    def samples(self, count: int) -> Arrays:
        """Return memory for so many samples of all fields but the background, of which nobody sees anything."""
        return self._samples.take(count)

    def backgrounds(self, count: int) -> np.ndarray:
        """Return memory for so many backgrounds."""
        return self._backgrounds.take(count)["background"]

    @contextmanager
    def decoding(self) -> Iterator["ChunkMemory"]:
        """Lend memory for a chunk until the end of the block."""
        try:
            memory = self._chunks.pop()
        except IndexError:
            memory = ChunkMemory(self._shapes, self.chunk)
        yield memory
        self._chunks.append(memory)


class ChunkMemory:
    """Memory to decode a chunk of up to `length` samples in; one field after the other, so that it stays in a cache."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], length: int):
        self._shapes, self._length = shapes, length
        self._block = _allocate(shapes, length)

    @property
    def nbytes(self) -> int:
        """Its size."""
        return self._block.nbytes

    def arrays(self, fields: Iterable[str]) -> Arrays:
        """Return arrays for some fields, in place of those that were returned before."""
        return _carve(self._block, {field: self._shapes[field] for field in fields}, self._length)


class _Reused:
    """Memory for sets of arrays of up to `length` samples; sets of which somebody still sees a part are left alone."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], length: int, most: int):
        self._shapes, self._length, self._most = shapes, length, most
        self._blocks: list[np.ndarray] = []
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        return sum(block.nbytes for block in self._blocks)

    def take(self, count: int) -> Arrays:
        """Return arrays of `count` samples in a block of memory that nobody uses, or in a new one."""
        with self._lock:
            for k in range(len(self._blocks)):
                if sys.getrefcount(self._blocks[k]) == _UNUSED:
                    return _carve(self._blocks[k], self._shapes, count)
            block = _allocate(self._shapes, self._length)
            if len(self._blocks) < self._most:
                self._blocks.append(block)
            return _carve(block, self._shapes, count)


def _allocate(shapes: Mapping[str, tuple[int, ...]], count: int) -> np.ndarray:
    """Return one block for arrays of all fields: the kernel maps large blocks in large pages."""
    return np.empty(count * sum(_sample_bytes(shapes).values()), np.uint8)


def _sample_bytes(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    return {field: math.prod(shape) * np.dtype(DTYPES[field]).itemsize for field, shape in shapes.items()}


def _carve(block: np.ndarray, shapes: Mapping[str, tuple[int, ...]], count: int) -> Arrays:
    """Return arrays of `count` samples of every field in a block, which they keep alive."""
    arrays, start = {}, 0
    for field, nbytes in sorted(_sample_bytes(shapes).items(), key=lambda item: -np.dtype(DTYPES[item[0]]).itemsize):
        part = block[start : start + count * nbytes]
        arrays[field] = part.view(DTYPES[field]).reshape(count, *shapes[field])
        start += count * nbytes
    return arrays


_PROBE = [np.empty(0)]
_UNUSED = sys.getrefcount(_PROBE[0])  # of an array with a single reference to it, from a list
