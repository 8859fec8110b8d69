"""Read the chunks of a store ahead of the batches that need them, in threads.

A chunk is decoded once, in memory that stays in the processor's cache. From there each of its samples is copied to its
place in its batch, so a batch is complete when the last of the chunks with samples for it has been read.
"""

import os
import sys
import threading
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import torch

from dsgen.compiled.memory import address
from dsgen.store.arena import DTYPES, Arena, Arrays, Batch
from dsgen.store.batch import as_floats
from dsgen.store.reader import Store
from dsgen.store.sample_places import Places
from dsgen.store.visits import Visits

_THREAD = "dsgen-read"
T = TypeVar("T")


class _OpenBatch:
    """A batch that is being filled: its rows, its samples, its backgrounds, and how many samples are missing."""

    def __init__(self, rows: np.ndarray, samples: Arrays):
        self.rows, self.samples, self.missing = rows, samples, len(rows)
        self.starts = {field: address(array) for field, array in samples.items()}
        self.backgrounds: list[np.ndarray | None] = [None] * len(rows)
        self.made: Future[Batch] = Future()


class Reading:
    """One pass over batches of a split.

    `rows` are the rows of its samples, `batches` the samples of every batch, `visits` the reading that they need.
    `ahead` batches are made before they are asked for, by `workers` threads, or without any by the caller; at most
    `most_open` are begun at a time.
    """

    def __init__(
        self,
        store: Store,
        rows: np.ndarray,
        batches: list[np.ndarray],
        visits: Visits,
        arena: Arena,
        *,
        fields: tuple[str, ...],
        workers: int,
        ahead: int,
        most_open: int,
        device: torch.device | None,
        floats: bool,
    ):
        self._store, self._rows, self._batches, self._visits, self._arena = store, rows, batches, visits, arena
        self._fields, self._workers, self._ahead, self._most_open = fields, workers, ahead, most_open
        self._device, self._floats = device, floats
        self._pool: ThreadPoolExecutor | _CallingThread = (
            ThreadPoolExecutor(workers, _THREAD) if workers else _CallingThread()
        )
        samples = [field for field in fields if field != "background"]
        self._stored = [field for field in samples if store.shards[0].stores(field)]
        self._drawn = [field for field in samples if field not in self._stored]
        self._started = 0
        self._open: dict[int, _OpenBatch] = {}
        self._counting = threading.Lock()
        # held for what takes many short steps, at each of which threads would wait for each other
        self._small_steps = threading.Lock()

    def run(self, release: Callable[[Arena | None], None]) -> Generator[Batch, None, None]:
        """Yield the batches, reading ahead as far as there is room; call `release` with the arena at the end.

        What is read when depends on the order alone.
        """
        process = os.getpid()
        finalizing = sys.is_finalizing  # bound here, as the names of this module may be gone when it is needed
        try:
            for b in range(len(self._batches)):
                self._start_visits(b)
                batch = self._open[b].made.result()
                del self._open[b]
                if self._workers and b + 1 < len(self._batches):
                    self._start_visits(b + 1)
                yield batch
        finally:
            # an iterator that outlives the program ends with the interpreter, whose threads and modules are gone
            if not finalizing() and process == os.getpid():
                # the garbage collector may end an iterator in one of its own threads, which cannot wait for itself
                own_thread = threading.current_thread().name.startswith(_THREAD)
                self._pool.shutdown(wait=not own_thread, cancel_futures=True)
                self._open.clear()
                release(None if own_thread else self._arena)

    def _start_visits(self, next_batch: int) -> None:
        """Start to read what the next batch needs, and as far ahead as there is room."""
        visits = self._visits
        needed = visits.started_by[next_batch]
        ahead = visits.started_by[min(next_batch + self._ahead, len(self._batches) - 1)]
        most = min(ahead + 2 * self._workers, len(visits.samples))  # so that no thread is idle
        while self._started < most:
            v = self._started
            if v >= needed and visits.last[v] >= next_batch + self._most_open:
                return
            numbers, counts = (found.tolist() for found in np.unique(visits.batch[v], return_counts=True))
            for b in numbers:
                if b not in self._open:
                    rows = self._rows[self._batches[b]]
                    self._open[b] = _OpenBatch(rows, self._arena.samples(len(rows)))
            self._started += 1
            self._pool.submit(self._visit, v, {b: self._open[b] for b in numbers}, counts)

    def _visit(self, v: int, batches: dict[int, _OpenBatch], counts: list[int]) -> None:
        """Read a chunk and hand out its samples, so many for each batch; what fails, fails the batches that wait."""
        try:
            self._expect(v + 2 * max(1, self._workers))
            self._hand_out(v, batches)
            with self._counting:
                for batch, count in zip(batches.values(), counts, strict=True):
                    batch.missing -= count
                complete = [batch for batch in batches.values() if not batch.missing]
            for batch in complete:
                batch.made.set_result(self._finish(batch))
        except BaseException as error:
            for batch in batches.values():
                if not batch.made.done():
                    batch.made.set_exception(error)

    def _expect(self, v: int) -> None:
        """Have the disk begin with what a visit will read."""
        if v < len(self._visits.samples):
            k, sample = self._store.locate(int(self._rows[self._visits.samples[v][0]]))
            self._store.shards[k].expect(sample, self._stored)

    def _hand_out(self, v: int, batches: dict[int, _OpenBatch]) -> None:
        """Decode the samples of a visit, and copy each to its place."""
        visits, store = self._visits, self._store
        rows = self._rows[visits.samples[v]]
        filled = [batches[b] for b in visits.batch[v].tolist()]
        places = Places([batch.samples for batch in filled], [batch.starts for batch in filled], visits.place[v])
        k, first = store.locate(int(rows[0]))
        shard, positions = store.shards[k], rows - rows[0]
        if self._drawn:
            shard.draw_to(first + positions, self._drawn, places, self._small_steps)
        with self._arena.decoding() as memory:
            for field in self._stored:
                shard.place(field, first, positions, places, memory.arrays([field])[field], self._small_steps)
        if "background" in self._fields:
            for batch, place, background in zip(filled, visits.place[v].tolist(), store.backgrounds(rows), strict=True):
                batch.backgrounds[place] = background

    def _finish(self, batch: _OpenBatch) -> Batch:
        """Return a batch whose samples are all there, and let go of its memory."""
        arrays = batch.samples
        if "background" in self._fields:
            arrays["background"] = self._arena.backgrounds(len(batch.rows))
            for into, background in zip(arrays["background"], batch.backgrounds, strict=True):
                into[:] = background
        batch.samples, batch.backgrounds = {}, []
        made = {field: self._as_tensor(field, arrays[field]) for field in self._fields}
        made["row"] = torch.from_numpy(batch.rows)
        return as_floats(made) if self._floats and self._device is None else made

    def _as_tensor(self, field: str, values: np.ndarray) -> torch.Tensor:
        """Return an array as a tensor, copied to pinned memory if it is to go to a GPU."""
        tensor = torch.from_numpy(values)
        if self._device is None or self._device.type != "cuda":
            return tensor
        with torch.cuda.device(self._device):  # torch caches pinned memory, and knows when it is free
            return torch.empty(values.shape, dtype=getattr(torch, DTYPES[field]), pin_memory=True).copy_(tensor)


class _CallingThread:
    """An executor that runs what is submitted at once, in the calling thread."""

    def submit(self, work: Callable[..., T], *arguments: Any) -> "Future[T]":
        """Run the work, and return a future that is done."""
        future: Future[T] = Future()
        future.set_result(work(*arguments))
        return future

    def shutdown(self, **_: bool) -> None:
        """Do nothing: there is nothing to wait for."""
