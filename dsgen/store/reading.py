"""Read the chunks of a store ahead of the batches that need them, in threads."""

import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch

from dsgen.store.arena import Arena, Batch
from dsgen.store.batch import as_floats
from dsgen.store.reader import Store
from dsgen.store.visits import Visits

_THREAD = "dsgen-read"
T = TypeVar("T")


class _Visit(NamedTuple):
    """A chunk being read: the region of the arena it is decoded into, and its backgrounds once that is done."""

    region: int
    backgrounds: Future[list[np.ndarray]]


_ENDED = _Visit(-1, Future())


class Reading:
    """One pass over batches of a split.

    `rows` are the rows of its samples, `batches` the samples of every batch, `visits` the reading that they need.
    `ahead` batches are made before they are asked for, by `workers` threads, or without any by the caller.
    """

    def __init__(
        self,
        store: Store,
        rows: np.ndarray,
        batches: list[np.ndarray],
        visits: Visits,
        arena: Arena,
        *,
        workers: int,
        ahead: int,
        device: torch.device | None,
        floats: bool,
    ):
        self._store, self._rows, self._batches, self._visits, self._arena = store, rows, batches, visits, arena
        self._workers, self._ahead, self._device, self._floats = workers, ahead, device, floats
        self._free = list(range(arena.regions))
        self._pool: ThreadPoolExecutor | _CallingThread = (
            ThreadPoolExecutor(workers, _THREAD) if workers else _CallingThread()
        )
        self._started: list[_Visit] = []
        self._pending: deque[Future[Batch]] = deque()
        self._submitted = 0

    def run(self, release: Callable[[Arena | None], None]) -> Generator[Batch, None, None]:
        """Yield the batches, reading ahead as far as there is room; call `release` with the arena at the end.

        What is read when depends on the order alone, and tasks start in the order they are submitted in. So a batch
        waits only for chunks whose reading has started before.
        """
        process = os.getpid()
        finalizing = sys.is_finalizing  # bound here, as the names of this module may be gone when it is needed
        try:
            for handed_out in range(len(self._batches)):
                self._submit()
                batch = self._pending.popleft().result()
                ended = self._visits.ended_by[handed_out]
                self._free += [self._started[v].region for v in ended]
                for v in ended:
                    self._started[v] = _ENDED  # releases its backgrounds
                if self._workers:
                    self._submit()
                yield batch
        finally:
            # an iterator that outlives the program ends with the interpreter, whose threads and modules are gone
            if not finalizing() and process == os.getpid():
                # the garbage collector may end an iterator in one of its own threads, which cannot wait for itself
                own_thread = threading.current_thread().name.startswith(_THREAD)
                self._pool.shutdown(wait=not own_thread, cancel_futures=True)
                release(None if own_thread else self._arena)

    def _submit(self) -> None:
        """Start to read and make batches, as far ahead as there is room."""
        visits, started, free = self._visits, self._started, self._free
        while self._submitted < len(self._batches) and len(self._pending) <= self._ahead:
            b = self._submitted
            needed = visits.started_by[b] - len(started)
            if self._pending and needed > len(free):
                return
            for _ in range(needed):
                self._start_visit()
            empty = self._arena.batch(self._rows[self._batches[b]], self._device)
            drawn = [started[v] for v in visits.visit[b].tolist()]
            self._pending.append(self._pool.submit(self._assemble, empty, drawn, visits.position[b]))
            self._submitted += 1
        # the next chunks, so that no thread is idle
        most = min(visits.started_by[self._submitted - 1] + 2 * self._workers, len(visits.samples))
        while len(started) < most and free:
            self._start_visit()

    def _start_visit(self) -> None:
        rows, region = self._rows[self._visits.samples[len(self._started)]], self._free.pop()
        self._started.append(_Visit(region, self._pool.submit(_decode, self._store, rows, self._arena, region)))

    def _assemble(self, batch: Batch, visits: list[_Visit], positions: np.ndarray) -> Batch:
        """Copy samples, each by its visit and its position in that, into a batch."""
        backgrounds = [visit.backgrounds.result() for visit in visits]
        index = np.array([visit.region for visit in visits]) * self._arena.samples + positions
        for field, decoded in self._arena.chunks.items():
            np.take(decoded, index, axis=0, out=batch[field].numpy(), mode="clip")
        if "background" in batch:
            into = batch["background"].numpy()
            for i, position in enumerate(positions.tolist()):
                into[i] = backgrounds[i][position]
        return as_floats(batch) if self._floats and self._device is None else batch


def _decode(store: Store, rows: np.ndarray, arena: Arena, region: int) -> list[np.ndarray]:
    """Read rows of one chunk into a region of the arena, and return their backgrounds if the store has any."""
    first, last = int(rows[0]), int(rows[-1]) + 1
    k = int(np.searchsorted(store.first_rows, first, side="right")) - 1
    shard_start = int(store.first_rows[k])
    start = region * arena.samples
    out = {field: decoded[start : start + len(rows)] for field, decoded in arena.chunks.items()}
    consecutive = len(rows) == last - first
    samples = store.shards[k].samples(first - shard_start, last - shard_start, tuple(out), out if consecutive else None)
    for field, values in samples.items():
        if not np.shares_memory(values, out[field]):
            out[field][:] = values if consecutive else values[rows - first]
    return store.backgrounds(rows) if "background" in store.fields else []


class _CallingThread:
    """An executor that runs what is submitted at once, in the calling thread."""

    def submit(self, work: Callable[..., T], *arguments: Any) -> "Future[T]":
        """Run the work, and return a future that is done."""
        future: Future[T] = Future()
        future.set_result(work(*arguments))
        return future

    def shutdown(self, **_: bool) -> None:
        """Do nothing: there is nothing to wait for."""
