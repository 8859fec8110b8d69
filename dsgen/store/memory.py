"""How much memory a loader takes, and how many chunks and batches fit into a limit."""

from dataclasses import dataclass, replace

import numpy as np

from dsgen.errors import InvalidValueError
from dsgen.store.order import LANES

POOL = 96
_ROW_BYTES = 100  # of the order, and of the visits that follow from it
_FIXED_BYTES = 8 * 10**6  # of threads, and of code that is loaded when it is first used
_POOL_SHARE = 0.6  # of the memory: the most that the default pool may take
_PIXEL_BYTES = {"image": 3, "mask": 1, "depth": 2, "instance": 1, "background": 3}


@dataclass(frozen=True)
class Budget:
    """What is left for the reading: `chunk_bytes` for chunks, and `ahead` batches made before they are asked for."""

    chunk_bytes: int
    ahead: int


@dataclass(frozen=True)
class MemoryModel:
    """What the memory of a loader depends on. `lengths` (chunks,) are the samples of the split in every chunk."""

    size: int
    fields: tuple[str, ...]
    lengths: np.ndarray
    chunk: int
    """Samples of the longest chunk, whether of the split or not."""
    batch_size: int
    ranks: int
    workers: int
    shuffle: bool
    host_floats: bool
    """Whether batches become floats in the memory of the CPU."""
    limit_mb: int
    pool: int = 0

    @property
    def sample_bytes(self) -> int:
        """Bytes of a decoded sample without its background, which samples share."""
        return self.size**2 * sum(_PIXEL_BYTES[field] for field in self.fields if field != "background")

    def region_bytes(self, samples: int) -> int:
        """Return the bytes of this many samples of a chunk, and of the one background that they usually share."""
        background = self.size**2 * _PIXEL_BYTES["background"] * ("background" in self.fields)
        return samples * self.sample_bytes + background

    def default_pool(self, limit_mb: int | None = None) -> int:
        """Return how many chunks are mixed by default.

        It depends on the store and the limit alone, not on ranks or batches, so that all ranks have the same order.
        """
        limit = (self.limit_mb if limit_mb is None else limit_mb) * 10**6
        fit = int(limit * _POOL_SHARE) // (int(self.lengths.max()) * self.sample_bytes)
        return max(LANES, min(POOL, fit // LANES * LANES))

    def _other_bytes(self, ahead: int) -> int:
        """Return the bytes of everything but chunks.

        That is the caller's batch, the caller's next batch, the one being made, those ahead, and the decoding.
        """
        pixel_bytes = sum((1 + 4 * self.host_floats) * _PIXEL_BYTES[field] for field in self.fields)
        batch = self.batch_size * self.size**2 * pixel_bytes
        decoding = max(1, self.workers) * self.chunk * self.sample_bytes
        return (ahead + 3) * batch + decoding + _ROW_BYTES * int(self.lengths.sum()) + _FIXED_BYTES

    def _chunks_bytes(self) -> int:
        """Return the bytes of the chunks that are usually in use at a time."""
        longest, count = int(self.lengths.max()), len(self.lengths)
        mean = int(self.lengths.sum()) / count
        spread = self.batch_size * self.ranks / mean + 1  # chunks over which a batch advances
        regions = min(count, int((self.pool + LANES if self.shuffle else 1) + spread + 1))
        if self.shuffle and LANES % self.ranks == 0:
            regions = -(-regions // self.ranks)
        elif self.ranks > 1:
            longest = min(longest, -(-2 * longest // self.ranks))
        return regions * self.region_bytes(longest)

    def budget(self, fixed_pool: bool) -> Budget:
        """Divide the limit between chunks and batches; raise `InvalidValueError` if it is too low.

        `fixed_pool` says that the caller chose the pool; the default one grows with the memory.
        """
        for ahead in range(2 + self.workers // 4 if self.workers else 0, -1, -1):
            chunk_bytes = self.limit_mb * 10**6 - self._other_bytes(ahead)
            if chunk_bytes >= self._chunks_bytes():
                return Budget(chunk_bytes, ahead)
        for pool in [self.pool] if fixed_pool else range(self.pool, POOL + 1, LANES):
            needed_mb = -(-(replace(self, pool=pool)._chunks_bytes() + self._other_bytes(0)) // 10**6)
            if fixed_pool or self.default_pool(needed_mb) <= pool:
                break
        raise self.too_little(needed_mb)

    def too_little(self, needed_mb: int) -> InvalidValueError:
        """Return the error for a limit that is too low."""
        smaller = f", or a pool smaller than {self.pool}" if self.shuffle and self.pool > LANES else ""
        return InvalidValueError(
            "memory_mb",
            f"got {self.limit_mb}, expected {needed_mb} or more for batches of {self.batch_size} at "
            f"{self.size}x{self.size}",
            f"raise it, or use smaller batches{smaller}",
        )
