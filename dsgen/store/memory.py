"""How much memory a loader takes, and how many batches fit into a limit."""

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
    """What the reading may take: `open_batches` begun at a time, `ahead` of them made before they are asked for."""

    open_batches: int
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

    @property
    def batch_bytes(self) -> int:
        """Bytes of the samples of a batch, without their backgrounds."""
        return self.batch_size * self.sample_bytes

    def default_pool(self, limit_mb: int | None = None) -> int:
        """Return how many chunks are mixed by default.

        It depends on the store and the limit alone, not on ranks or batches, so that all ranks have the same order.
        """
        limit = (self.limit_mb if limit_mb is None else limit_mb) * 10**6
        fit = int(limit * _POOL_SHARE) // (int(self.lengths.max()) * self.sample_bytes)
        return max(LANES, min(POOL, fit // LANES * LANES))

    def _other_bytes(self, ahead: int) -> int:
        """Return the bytes of everything but open batches.

        That is the caller's batch, the caller's next batch, the one being made, those ahead, the backgrounds of open
        batches, and the decoding.
        """
        pixel_bytes = sum((1 + 4 * self.host_floats) * _PIXEL_BYTES[field] for field in self.fields)
        batch = self.batch_size * self.size**2 * pixel_bytes
        backgrounds = self._open_chunks() * self.size**2 * _PIXEL_BYTES["background"] * ("background" in self.fields)
        decoding = max(1, self.workers) * 2 * self.chunk * self.sample_bytes
        return (ahead + 3) * batch + backgrounds + decoding + _ROW_BYTES * int(self.lengths.sum()) + _FIXED_BYTES

    def _open_chunks(self) -> int:
        """Return how many chunks have samples in open batches, usually."""
        mean = int(self.lengths.sum()) / len(self.lengths)
        spread = self.batch_size * self.ranks / mean + 1  # chunks over which a batch advances
        return min(len(self.lengths), int((self.pool + LANES if self.shuffle else 1) + spread + 1))

    def _open_bytes(self) -> int:
        """Return the bytes of the batches that are usually open at a time."""
        samples = min(self._open_chunks() * int(self.lengths.max()), int(self.lengths.sum()))
        return (samples // (self.batch_size * self.ranks) + 2) * self.batch_bytes

    def budget(self, fixed_pool: bool) -> Budget:
        """Divide the limit; raise `InvalidValueError` if it is too low.

        `fixed_pool` says that the caller chose the pool; the default one grows with the memory.
        """
        for ahead in range(2 + self.workers // 4 if self.workers else 0, -1, -1):
            open_bytes = self.limit_mb * 10**6 - self._other_bytes(ahead)
            if open_bytes >= self._open_bytes():
                return Budget(open_bytes // self.batch_bytes, ahead)
        for pool in [self.pool] if fixed_pool else range(self.pool, POOL + 1, LANES):
            smaller = replace(self, pool=pool)
            needed_mb = -(-(smaller._open_bytes() + smaller._other_bytes(0)) // 10**6)
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
