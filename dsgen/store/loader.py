"""Feed shuffled batches of a store to PyTorch.

The order of an epoch is computed before anything is read (`order`), and is one sequence for everyone who takes part:
each process of a distributed run takes every n-th sample of it, each worker of a `DataLoader` every n-th batch. From
the order follows which chunk is read when (`visits`): each is decoded once, shortly before its first sample is needed,
and kept as it was decoded until its last sample has been handed out (`reading`, `arena`). Batches are copied together
from these chunks. So the disk reads whole chunks, a batch mixes many backgrounds and foregrounds, and resuming in the
middle of an epoch reads only what is still to come.
"""

import logging
import os
import sys
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch.utils.data import IterableDataset, default_collate, get_worker_info

from dsgen.errors import ConflictError, DsgenError, InvalidValueError, check_rules, find_differences
from dsgen.parallel.devices import pick_device
from dsgen.store.arena import Arena, Batch
from dsgen.store.batch import as_floats, move_batches
from dsgen.store.memory import MemoryModel
from dsgen.store.order import LANES, epoch_order
from dsgen.store.position import Position
from dsgen.store.reader import Store, StoreHandle
from dsgen.store.reading import Reading
from dsgen.store.visits import Visits, chunk_edges, plan_visits

__all__ = ["Loader", "as_floats"]

log = logging.getLogger("dsgen")


class Loader(IterableDataset[Batch]):
    """Iterate over the batches of a split of a store, or of the whole store; an epoch has every sample once.

    >>> loader = Loader("shards", "train", batch_size=64, floats=True)  # doctest: +SKIP
    >>> for epoch in range(10):  # doctest: +SKIP
    ...     loader.set_epoch(epoch)
    ...     for batch in loader:
    ...         train_on(batch["image"], batch["mask"], batch["depth"])

    A batch is a dict of tensors: `image` and `background` (B,S,S,3) uint8 RGB, `mask` (B,S,S) uint8, 0 or 255, `depth`
    (B,S,S) uint16 millimetres, 0 = no depth, `row` (B,) int64. A field that the store does not have is absent. With
    `floats`, batches are as `as_floats` returns them: float32, channels first, depth in metres. With a CUDA `device`
    they are copied there from pinned memory, one batch ahead, and turned into floats there; `row` stays on the CPU.
    `fields` names those that are wanted, all by default; others are neither read nor decoded.

    **DataLoader.** None is needed: `workers` threads read ahead (0 reads in the calling thread), and end with the
    iterator. To move the work out of the main process use `DataLoader(loader, batch_size=None, num_workers=1)`, under
    fork, spawn or forkserver. `batch_size=None` because the loader makes the batches. They are the same for any number
    of workers, but more than one decode some chunks twice, each with memory of its own. In workers `device` cannot be
    CUDA.

    **Order.** It depends on the store, split, `seed`, epoch, `shuffle` and `pool`, and on nothing else. `pool` is how
    many chunks are mixed at a time, a multiple of 8; the default is 96, or as many as fit into 0.6 of `memory_mb`. Call
    `set_epoch` before each epoch, otherwise every iterator repeats the same order.

    **Ranks.** In a distributed run of `ranks` processes, `batch_size` is that of each one. Rank r gets elements r,
    r + ranks, ... of the global batches. Every rank gets the same number of batches, and no row is left out or
    repeated: the last global batch is divided evenly. If it has fewer rows than there are ranks, its rows join the
    batch before, which then has one row more on some ranks. With 1, 2, 4 or 8 ranks each chunk is read by one rank,
    apart from a few; otherwise, and without `shuffle`, by all. `drop_last` drops the last global batch unless it is
    full.

    **Resuming.** `state_dict` says how many samples of the epoch were handed out, over all ranks. `load_state_dict`
    makes the next iterator continue from there, with any number of workers, threads or ranks and any batch size, and
    reads only the chunks that are still needed. If fewer rows than ranks are left, the epoch ends with a warning.
    `len` is always that of a whole epoch. With DataLoader workers, the loader of the main process does not know what
    was handed out: use `StatefulDataLoader(loader, batch_size=None, num_workers=n)` of torchdata, whose own state
    resumes exactly, with the same number of workers and batch size; or set "samples" of the state to the number of
    samples you received. Call `set_epoch` before the next epoch.

    **Memory.** `memory_mb` limits what a process needs for reading: the chunks read ahead and kept, the batches made
    and handed out, the order, and your current batch, but no other batches that you keep. The memory is kept for the
    next iterator.

    Raises `NotFoundError` or `DamagedError` for a store that cannot be read, `InvalidValueError` for arguments out of
    range, too little memory among them, and names what would do.
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
        memory_mb: int = 1000,
        pool: int | None = None,
        drop_last: bool = False,
        rank: int = 0,
        ranks: int = 1,
        floats: bool = False,
        device: str | torch.device | None = None,
        fields: Sequence[str] | None = None,
    ):
        check_rules(
            [
                (seed >= 0, "seed", seed, "0 or more"),
                (batch_size >= 1, "batch_size", batch_size, "1 or more"),
                (workers >= 0, "workers", workers, "0 or more"),
                (0 <= rank < ranks, "rank", f"{rank} of {ranks} ranks", "0 or more, and less than the number of ranks"),
                (pool is None or (pool >= LANES and pool % LANES == 0), "pool", pool, f"a multiple of {LANES}"),
            ]
        )
        self.path, self.split, self.batch_size, self.seed = store, split, batch_size, seed
        self.shuffle, self.workers, self.memory_mb, self.drop_last = shuffle, workers, memory_mb, drop_last
        self.rank, self.ranks, self.floats = rank, ranks, floats
        target = None if device is None else pick_device(str(device))
        self.device = None if target is None or target.type == "cpu" else target
        self._handle = StoreHandle(store)
        opened = self._store
        self.sha256: str | None = self._handle.sha256
        self.size, self.fields = opened.size, _choose_fields(opened, fields)
        self.has_depth = "depth" in self.fields
        self._row_numbers = opened.rows_of(split)
        self._edges = chunk_edges(opened, self._row_numbers)
        self.rows = len(self._row_numbers)
        self._check_ranks()
        memory = self._memory_model(opened)
        self.pool = pool or memory.default_pool()
        self._memory = replace(memory, pool=self.pool)
        self._budget = self._memory.budget(fixed_pool=pool is not None)
        self._arena: Arena | None = None
        self._samples = 0  # handed out by the newest iterator
        self._position = Position()
        self._next_start: tuple[int, int] | None = None  # epoch and sample, of a worker's next iterator alone
        self._replaced = (0, 0)  # epoch and sample before the newest state was loaded

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_arena": None, "_next_start": None}

    @property
    def _store(self) -> Store:
        return self._handle.open()

    def _check_ranks(self) -> None:
        """Raise `InvalidValueError` if some rank would get no batch."""
        least = self.ranks * self.batch_size if self.drop_last else self.ranks
        if self.rows < least:
            reason = f"{self.rows} rows in split {self.split!r}, expected {least} or more for {self.ranks} ranks"
            if self.drop_last:
                reason += f" and full batches of {self.batch_size}"
            remedy = "use smaller batches" if self.drop_last else "use fewer ranks"
            raise InvalidValueError(self.path, reason, remedy)

    def _memory_model(self, store: Store) -> MemoryModel:
        return MemoryModel(
            size=self.size,
            fields=self.fields,
            lengths=np.diff(self._edges),
            chunk=max(shard.chunk for shard in store.shards),
            batch_size=self.batch_size,
            ranks=self.ranks,
            workers=self.workers,
            shuffle=self.shuffle,
            host_floats=self.floats and self.device is None,
            limit_mb=self.memory_mb,
        )

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the iterators made from now on; they start at the beginning of the epoch."""
        self._position.set(epoch, 0)
        self._samples = 0

    def state_dict(self) -> dict[str, Any]:
        """Return where the newest iterator is: "samples" of the epoch were handed out, over all ranks.

        The other entries are what the order depends on.
        """
        return {"seed": self.seed, "epoch": self._position.epoch, "samples": self._samples, **self._order_inputs()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Make the next iterator continue where the loader was whose state this is.

        In a DataLoader worker it holds for the worker's own next iterator. Raises `ConflictError` if that loader had
        another order: another seed, store, split, `shuffle` or `pool`.
        """
        self._check_state({"seed": self.seed, **self._order_inputs()}, state)
        if not 0 <= state["samples"] <= self.rows:
            raise InvalidValueError(
                "samples", f"got {state['samples']}, expected 0 to {self.rows}", "use a state of this loader"
            )
        if get_worker_info() is not None:  # the position is shared with the other workers
            self._next_start = state["epoch"], state["samples"]
            return
        self._replaced = self._position.epoch, self._position.start
        self._position.set(state["epoch"], state["samples"])
        self._samples = state["samples"]

    def _check_state(self, now: dict[str, Any], state: dict[str, Any]) -> None:
        """Raise `ConflictError` where a state differs from what is so now."""
        known = {name: value for name, value in now.items() if name in state}
        differences = find_differences(known, {name: state[name] for name in known})
        if differences:
            raise ConflictError(
                self.path, "the state is of another order", "make the loader as it was", differences, "state"
            )

    def _order_inputs(self) -> dict[str, Any]:
        inputs = {"store": self.sha256, "split": self.split, "shuffle": self.shuffle}
        return inputs | ({"pool": self.pool} if self.shuffle else {})

    def __len__(self) -> int:
        return self._batch_count(0)

    def _batch_count(self, start: int) -> int:
        """Return how many batches each rank gets from sample `start` of the epoch on."""
        full, rest = divmod(self.rows - start, self.ranks * self.batch_size)
        return full if self.drop_last or rest < self.ranks else full + 1

    def __iter__(self) -> Iterator[Batch]:
        _refuse_batching(sys._getframe(1))
        epoch, start = self._position.epoch, self._position.start
        worker = get_worker_info()
        if worker is not None:
            epoch, start = self._next_start or (epoch, start)
            self._next_start = None
            return LoaderIterator(self, epoch, start, worker.id, worker.num_workers)
        self._position.set(epoch, 0)
        self._samples = start
        return LoaderIterator(self, epoch, start, 0, 1)

    def _batches(self, epoch: int, start: int) -> list[np.ndarray]:
        """Return the samples of every batch of this rank from sample `start` of the epoch on."""
        count = self._batch_count(start)
        if not count and not self.drop_last and start < self.rows:
            log.warning("%d rows left for %d ranks: the epoch ends without them", self.rows - start, self.ranks)
        order = np.arange(self.rows)
        if self.shuffle:
            order = epoch_order(np.diff(self._edges), self.seed, epoch, self.pool)
        order = order[start : self._end(start, count)][self.rank :: self.ranks]
        cuts = [*range(0, count * self.batch_size, self.batch_size), len(order)]
        return [order[cuts[k] : cuts[k + 1]] for k in range(count)]

    def _end(self, start: int, count: int) -> int:
        """Return the sample of the epoch at which `count` batches end that begin at `start`."""
        if self.drop_last or not count:
            return min(start + count * self.ranks * self.batch_size, self.rows)
        return self.rows

    def _handed_out(self, start: int, batches: int) -> int:
        """Return the sample of the epoch at which the first `batches` batches end of those from `start` on."""
        count = self._batch_count(start)
        return self._end(start, count) if batches == count else start + batches * self.ranks * self.batch_size

    def _read(self, epoch: int, start: int, mine: range) -> Generator[Batch, None, None]:
        """Yield the batches of these numbers of this rank from sample `start` of the epoch on."""
        if get_worker_info() is not None and self.device is not None and self.device.type == "cuda":
            raise InvalidValueError(
                "device", f"got {self.device} in a DataLoader worker, expected None", "move the batches yourself"
            )
        process = os.getpid()
        batches = self._batches(epoch, start)
        made = self._read_batches([batches[k] for k in mine])
        if self.device is not None:
            made = move_batches(made, self.device, self.floats)
        with closing(made):
            for k in mine:
                if os.getpid() != process:
                    raise DsgenError(
                        "loader", "this iterator was made before a fork", "make a new one in the new process"
                    )
                batch = next(made)
                self._samples = self._handed_out(start, k + 1)
                yield batch

    def _read_batches(self, batches: list[np.ndarray]) -> Generator[Batch, None, None]:
        """Yield batches of given samples."""
        if not batches:
            return
        visits = plan_visits(batches, self._edges)
        most_open = self._most_open(visits)
        reading = Reading(
            self._store,
            self._row_numbers,
            batches,
            visits,
            self._take_arena(max(map(len, batches)), most_open),
            workers=self.workers,
            fields=self.fields,
            ahead=self._budget.ahead,
            most_open=most_open,
            device=self.device,
            floats=self.floats,
        )
        yield from reading.run(self._keep_arena)

    def _keep_arena(self, arena: Arena | None) -> None:
        self._arena = arena

    def _most_open(self, visits: Visits) -> int:
        """Return how many batches may be begun at a time: as many as are of use, if memory allows."""
        fit, least = self._budget.open_batches, visits.most_open(0)
        if fit < least:
            raise self._memory.too_little(self.memory_mb + -(-(least - fit) * self._memory.batch_bytes // 10**6))
        return min(fit, visits.most_open(self._budget.ahead) + 1)

    def _take_arena(self, batch_size: int, most_open: int) -> Arena:
        """Return an arena: that of the iterator before if it fits, as its pages are mapped already, or a new one."""
        batches = most_open + 3  # the caller's, the caller's next, and one being converted
        kept, self._arena = self._arena, None
        if kept is not None and kept.batch_size == batch_size and kept.batches >= batches:
            return kept
        del kept  # before the new one is allocated
        return Arena(self.fields, self.size, batch_size, self._memory.chunk, batches)


def _choose_fields(store: Store, fields: Sequence[str] | None) -> tuple[str, ...]:
    """Return the chosen fields in the order of the store; raise `InvalidValueError` for one that it does not have."""
    chosen = store.fields if fields is None else tuple(fields)
    for field in chosen:
        if field not in store.fields:
            raise InvalidValueError.expected("fields", field, f"some of {', '.join(store.fields)}")
    if not chosen:
        raise InvalidValueError.expected("fields", chosen, f"some of {', '.join(store.fields)}")
    return tuple(field for field in store.fields if field in chosen)


class LoaderIterator(Iterator[Batch]):
    """Batches `worker`, `worker` + `workers`, ... of an epoch from sample `start` on.

    Its state is for torchdata's `StatefulDataLoader`, which keeps that of the iterator of every worker.
    """

    def __init__(self, loader: Loader, epoch: int, start: int, worker: int, workers: int):
        self._loader, self._epoch, self._start, self._worker, self._workers = loader, epoch, start, worker, workers
        self._done = 0  # batches handed out
        self._batches: Generator[Batch, None, None] | None = None

    def __next__(self) -> Batch:
        if self._batches is None:
            first = self._worker + self._done * self._workers
            mine = range(first, self._loader._batch_count(self._start), self._workers)
            self._batches = self._loader._read(self._epoch, self._start, mine)
        batch = next(self._batches)
        self._done += 1
        return batch

    def close(self) -> None:
        """End it, and the threads that read for it."""
        if self._batches is not None:
            self._batches.close()

    def state_dict(self) -> dict[str, Any]:
        """Return how many batches it has handed out, and what they depend on."""
        return {"epoch": self._epoch, "start": self._start, "done": self._done, **self._inputs()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue, before the first batch, where the iterator was whose state this is.

        Raises `ConflictError` if its batches were others: other workers, ranks or batch size, or another order.
        """
        self._loader._check_state(self._inputs(), state)
        self._epoch, self._start, self._done = state["epoch"], state["start"], state["done"]
        if get_worker_info() is not None:
            return
        loader = self._loader
        loader._samples = loader._handed_out(self._start, self._done)
        # torchdata loads the state when it begins to iterate, after a set_epoch for the epoch after a finished one
        finished = self._done == loader._batch_count(self._start)
        loader._position.set(*(loader._replaced if finished else (self._epoch, 0)))

    def _inputs(self) -> dict[str, Any]:
        loader = self._loader
        num_workers = 0 if get_worker_info() is None else self._workers
        made_of = {"batch_size": loader.batch_size, "drop_last": loader.drop_last, "ranks": loader.ranks}
        return {"seed": loader.seed, **loader._order_inputs(), **made_of, "num_workers": num_workers}


def _refuse_batching(caller: FrameType) -> None:
    """Raise `InvalidValueError` if a DataLoader asks for an iterator to make batches of batches.

    torch would fail on them with a message that does not say why. A `collate_fn` of the user's is left alone.
    """
    # no other frame's locals are looked at: in Python before 3.13 that would keep them alive, batches among them
    if not caller.f_globals.get("__name__", "").startswith("torch.utils.data."):
        return
    fetcher = caller.f_locals.get("self")
    if getattr(fetcher, "auto_collation", False) and getattr(fetcher, "collate_fn", None) is default_collate:
        raise InvalidValueError(
            "DataLoader",
            "got a batch_size, but the loader already yields batches",
            "use DataLoader(loader, batch_size=None, num_workers=1) and set the batch size of the loader, "
            "or use StoreDataset, which yields samples",
        )
