"""Store -> shuffled batches for PyTorch.

Whole chunks are read in a random order into a pool of samples, and batches are drawn at random from the pool, which
is refilled as it empties. So the disk sees long reads and a batch sees many backgrounds and foregrounds. The order is a
pure function of seed and epoch: neither the number of threads nor their timing changes it.
"""

import contextlib
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from dsgen.errors import DsgenError
from dsgen.plan import SPLITS
from dsgen.store import Store

_BATCHES_AHEAD = 2
_DTYPES = {"image": torch.uint8, "mask": torch.uint8, "depth": torch.uint16}


class Loader:
    """Iterates over the batches of one split of a store, or of all of it; every sample once an epoch.

    A batch is a dict of tensors: `image` (B,S,S,3) and `background` (B,S,S,3) uint8 RGB, `mask` (B,S,S) uint8, 0 or
    255, `depth` (B,S,S) uint16 millimetres, 0 invalid (no such key in a store without depth), `row` (B,) int64.
    `workers` threads read ahead, 0 reads in the calling thread; the pool takes up to `memory_mb`. Call `set_epoch`
    before each epoch, or iterate: every new iterator without it repeats the same order.
    """

    def __init__(
        self,
        store: Path | str,
        split: str | None = "train",
        batch_size: int = 32,
        *,
        seed: int = 0,
        shuffle: bool = True,
        workers: int = 2,
        memory_mb: int = 512,
        drop_last: bool = False,
    ):
        if batch_size < 1:
            raise DsgenError(f"batch size: got {batch_size}, expected 1 or more")
        if workers < 0:
            raise DsgenError(f"workers: got {workers}, expected 0 or more")
        if split is not None and split not in SPLITS:
            raise DsgenError(f"split: got {split!r}, expected one of {', '.join(SPLITS)}, or None for all rows")
        self._store = Store(store)
        self.split, self.batch_size, self.seed, self.shuffle = split, batch_size, seed, shuffle
        self.workers, self.memory_mb, self.drop_last = workers, memory_mb, drop_last
        self.size = self._store.size
        self.has_depth = self._store.has_depth
        self.sha256 = self._store.sha256
        self._pieces = _pieces(self._store, split)
        self.rows = sum(len(rows) for rows in self._pieces)
        if not self.rows:
            counts = ", ".join(f"{n:,} {name}" for name, n in self._store.splits.items())
            raise DsgenError(
                f"{store}: no rows in split {split!r} ({counts}); a row belongs to a split when both its pictures do: "
                f"make the corpus from more pictures, or with a larger share for {split}"
            )
        self._slots, self._ahead = self._budget()
        self._epoch = 0

    def _budget(self) -> tuple[int, int]:
        """Return how many samples the pool has room for, and how many pieces may be on their way into it."""
        longest = max(map(len, self._pieces))
        # a background for each sample is more than is ever kept, and the batches made ahead are outside the pool
        sample = self.size**2 * (3 + 3 + 1 + (2 if self.has_depth else 0))
        batches = (_BATCHES_AHEAD + 2) * self.batch_size
        slots = self.memory_mb * 10**6 // sample - batches
        least = 2 * longest + self.batch_size
        if slots < least:
            need = -(-(least + batches) * sample // 10**6)
            raise DsgenError(
                f"memory_mb: got {self.memory_mb}, expected {need} or more for batches of {self.batch_size} at "
                f"{self.size}x{self.size}; raise it or take smaller batches"
            )
        ahead = max(1, min(16, (slots - self.batch_size) // longest // 3))
        return min(slots, self.rows + longest), ahead

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the iterators made from now on."""
        self._epoch = epoch

    def __len__(self) -> int:
        return self.rows // self.batch_size if self.drop_last else -(-self.rows // self.batch_size)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        if not self.workers:
            return self._batches(self._epoch, _CallingThread())
        return self._batches_ahead(self._epoch)

    def _batches_ahead(self, epoch: int) -> Iterator[dict[str, torch.Tensor]]:
        """Run `_batches` in a thread of its own, a few batches ahead; whatever it raises is raised here."""
        ready: queue.Queue[dict[str, torch.Tensor] | BaseException | None] = queue.Queue(_BATCHES_AHEAD)
        stop = threading.Event()

        def put(item: dict[str, torch.Tensor] | BaseException | None) -> bool:
            while not stop.is_set():
                with contextlib.suppress(queue.Full):
                    ready.put(item, timeout=0.1)
                    return True
            return False

        def produce() -> None:
            pool = ThreadPoolExecutor(self.workers, thread_name_prefix="dsgen-read")
            try:
                for batch in self._batches(epoch, pool):
                    if not put(batch):
                        return
                put(None)
            except BaseException as error:
                put(error)
            finally:
                pool.shutdown(cancel_futures=True)

        thread = threading.Thread(target=produce, name="dsgen-batches", daemon=True)
        thread.start()
        try:
            while (item := ready.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            stop.set()
            thread.join()

    def _batches(self, epoch: int, pool: "ThreadPoolExecutor | _CallingThread") -> Iterator[dict[str, torch.Tensor]]:
        """Yield the batches of an epoch.

        Everything that decides the order happens here, one step after the other, and hangs on counts alone.
        """
        rng = np.random.default_rng([self.seed, epoch])
        order = rng.permutation(len(self._pieces)) if self.shuffle else np.arange(len(self._pieces))
        coming = deque(self._pieces[k] for k in order)
        arriving: deque[tuple[np.ndarray, Future[None]]] = deque()
        slots = _Slots(self._store, self._slots)
        free = np.arange(self._slots)
        there = np.empty(0, np.int64)  # the slots that may be drawn from
        left = self.rows
        while left:
            while coming and len(coming[0]) <= len(free):
                rows = coming.popleft()
                taken, free = free[: len(rows)], free[len(rows) :]
                arriving.append((taken, pool.submit(slots.fill, taken, rows)))
            # the newest pieces are left to arrive while batches are drawn from the others
            while arriving and (len(arriving) > self._ahead or not coming or len(there) < self.batch_size):
                taken, done = arriving.popleft()
                done.result()
                there = np.concatenate([there, taken])
            count = min(self.batch_size, left)
            if count < self.batch_size and self.drop_last:
                return
            pick = rng.choice(len(there), count, replace=False) if self.shuffle else np.arange(count)
            drawn, there = there[pick], np.delete(there, pick)
            left -= count
            yield slots.batch(drawn)
            free = np.concatenate([free, drawn])


class _Slots:
    """Room for a fixed number of samples in memory."""

    def __init__(self, store: Store, count: int):
        self._store = store
        self._parts = {
            part: torch.empty((count, *shape), dtype=_DTYPES[part]).numpy() for part, shape in _shapes(store).items()
        }
        self._row = np.empty(count, np.int64)
        self._background: list[np.ndarray | None] = [None] * count

    def fill(self, slots: np.ndarray, rows: np.ndarray) -> None:
        """Read rows of one chunk into slots."""
        first, last = int(rows[0]), int(rows[-1]) + 1
        k = int(np.searchsorted(self._store.first_rows, first, side="right")) - 1
        shard, start = self._store.shards[k], int(self._store.first_rows[k])
        for part, room in self._parts.items():
            room[slots] = shard.read(part, first - start, last - start)[rows - first]
        self._row[slots] = rows
        for slot, picture in zip(slots.tolist(), self._store.backgrounds(rows), strict=True):
            self._background[slot] = picture

    def batch(self, slots: np.ndarray) -> dict[str, torch.Tensor]:
        """Copy samples out of their slots."""
        batch = {}
        for part, room in self._parts.items():
            batch[part] = torch.empty((len(slots), *room.shape[1:]), dtype=_DTYPES[part])
            np.take(room, slots, axis=0, out=batch[part].numpy(), mode="clip")
        batch["background"] = torch.empty_like(batch["image"])
        into = batch["background"].numpy()
        for i, slot in enumerate(slots.tolist()):
            into[i] = self._background[slot]
            self._background[slot] = None
        batch["row"] = torch.from_numpy(self._row[slots])
        return batch


class _CallingThread:
    """Runs what is submitted at once."""

    def submit(self, work: Callable[..., None], *arguments: object) -> "Future[None]":
        future: Future[None] = Future()
        work(*arguments)
        future.set_result(None)
        return future


def _shapes(store: Store) -> dict[str, tuple[int, ...]]:
    side = store.size
    shapes: dict[str, tuple[int, ...]] = {"image": (side, side, 3), "mask": (side, side)}
    return shapes | ({"depth": (side, side)} if store.has_depth else {})


def _pieces(store: Store, split: str | None) -> list[np.ndarray]:
    """List the rows of a split, in order, cut where chunks and shards end."""
    wanted = np.ones(store.rows, bool) if split is None else store.plan["split"] == SPLITS.index(split)
    pieces = []
    for shard, first in zip(store.shards, store.first_rows.tolist(), strict=False):
        rows = np.flatnonzero(wanted[first : first + shard.rows])
        if len(rows):
            cuts = np.flatnonzero(np.diff(rows // shard.chunk)) + 1
            pieces += [piece + first for piece in np.split(rows, cuts)]
    return pieces
