"""Store -> shuffled batches for PyTorch.

The order of an epoch is computed before anything is read (`epoch_order`), and is one sequence for all who take part:
processes of a distributed run take every so manieth sample of it, workers of a `DataLoader` every so manieth batch.
Reading follows the order: each chunk is decoded once, shortly before its first sample is wanted, is kept as it came
out of the decoder until its last sample has been handed out, and batches are copied together from the chunks there
are. So the disk sees whole chunks, a batch sees many backgrounds and foregrounds, and going on in mid-epoch reads only
what is still to come.
"""

import contextlib
import logging
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from dsgen.corpus.plan import SPLITS
from dsgen.errors import DamagedError, DsgenError, InvalidValueError
from dsgen.parallel.devices import pick_device
from dsgen.store.arena import Arena, Batch
from dsgen.store.order import LANES, epoch_order
from dsgen.store.reader import Store

log = logging.getLogger("dsgen")
POOL = 96
_ROW_BYTES = 100  # of the order and what follows from it
_OWN_BYTES = 8 * 10**6  # of threads, and of code that is loaded when it is first used
_POOL_SHARE = 0.6  # of the memory, at most, for the pool that is chosen by itself
_BYTES = {"image": 3, "mask": 1, "depth": 2, "background": 3}  # a pixel
_THREAD = "dsgen-read"
T = TypeVar("T")


def as_floats(batch: Batch) -> Batch:
    """Turn a loader's batch into float32, on the device it is on.

    `image` and `background` become (B,3,S,S), 0..1, in channels-last memory, `mask` (B,1,S,S), 0 or 1, `depth`
    (B,1,S,S) metres, 0 invalid; `row` stays.
    """
    floats = {}
    for name, values in batch.items():
        if name in ("image", "background"):
            floats[name] = values.permute(0, 3, 1, 2).float().div_(255)
        elif name == "mask":
            floats[name] = values[:, None].float().div_(255)
        elif name == "depth":
            # by way of int16, as not every operation and device knows uint16
            whole = values.view(torch.int16).to(torch.int32).bitwise_and_(0xFFFF)
            floats[name] = whole[:, None].float().div_(1000)
        else:
            floats[name] = values
    return floats


class Loader(IterableDataset[Batch]):
    """Iterates over the batches of one split of a store, or of all of it; every sample once an epoch.

    A batch is a dict of tensors: `image` (B,S,S,3) and `background` (B,S,S,3) uint8 RGB, `mask` (B,S,S) uint8, 0 or
    255, `depth` (B,S,S) uint16 millimetres, 0 invalid, `row` (B,) int64; what the store lacks is no key. With `floats`
    they are as `as_floats` says. With a CUDA `device` batches are copied there from pinned memory one ahead, and
    turned into floats there; `row` stays on the CPU.

    **Threads.** `workers` threads read ahead, 0 reads in the calling thread; they end with the iterator. It also works
    in `DataLoader(loader, batch_size=None, num_workers=k)`, under fork, spawn and forkserver, and the batches are the
    same for any k. The threads do the work: one DataLoader worker moves it off the main process, more of them decode
    chunks again, each with memory of its own. In those `device` cannot be CUDA.

    **Order.** It depends on the store, split, `seed`, epoch, `shuffle` and `pool`, and on nothing else. `pool` is how
    many chunks are mixed at a time, a multiple of 8; unless given, 96 or as many as fit into 0.6 of `memory_mb`. Call
    `set_epoch` before each epoch, or every iterator repeats the same order.

    **Ranks.** With `ranks` processes `batch_size` is each one's; rank r gets elements r, r + ranks, ... of the global
    batches. Every rank gets the same number of batches and no row is left out or repeated: the last global batch is
    shared evenly, and if it has fewer rows than ranks these go into the one before, which then has one more on some
    ranks. Chunks are read by one rank each where 1, 2, 4 or 8 take part, otherwise, and without `shuffle`, by all.
    `drop_last` leaves the last global batch out if it is not full.

    **Resuming.** `state_dict` says how many samples of the epoch were handed out, over all ranks;
    `load_state_dict` makes the next iterator go on from there, with any number of workers, threads or ranks and any
    batch size, reading only chunks still wanted. Where fewer rows than ranks are left the epoch ends, with a warning.
    `len` is always that of a whole epoch. In a DataLoader with workers the loader of the main process cannot know what
    was handed out: set "samples" to what you have received, and call `set_epoch` before the epoch after.

    **Memory.** `memory_mb` bounds what a process that reads takes for it: what is read ahead, kept and handed out,
    the order, and the caller's current batch, but no others that he keeps. The room is kept for the next iterator. A
    pool, pictures or batches that do not fit are an error that says what would do.
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
    ):
        if seed < 0:
            raise InvalidValueError("seed", f"got {seed}, expected 0 or more")
        if batch_size < 1:
            raise InvalidValueError("batch size", f"got {batch_size}, expected 1 or more")
        if workers < 0:
            raise InvalidValueError("workers", f"got {workers}, expected 0 or more")
        if not 0 <= rank < ranks:
            raise InvalidValueError("rank", f"got {rank} of {ranks} ranks, expected 0 to below the number of ranks")
        if split is not None and split not in SPLITS:
            raise InvalidValueError(
                "split", f"got {split!r}, expected one of {', '.join(SPLITS)}, or None for all rows"
            )
        if pool is not None and (pool < LANES or pool % LANES):
            raise InvalidValueError("pool", f"got {pool}, expected a multiple of {LANES}")
        self.path, self.split, self.batch_size, self.seed = store, split, batch_size, seed
        self.shuffle, self.workers, self.memory_mb, self.drop_last = shuffle, workers, memory_mb, drop_last
        self.rank, self.ranks, self.floats = rank, ranks, floats
        target = None if device is None else pick_device(str(device))
        self.device = None if target is None or target.type == "cpu" else target
        self._opened: tuple[int, Store] | None = None
        self._spare: Arena | None = None
        self.sha256: str | None = None
        opened = self._store
        self.sha256, self.size, self.has_depth, self.parts = opened.sha256, opened.size, opened.has_depth, opened.parts
        self._numbers, self._first = _pieces(opened, split)
        self.rows = len(self._numbers)
        if not self.rows:
            counts = ", ".join(f"{n:,} {name}" for name, n in opened.splits.items())
            raise DamagedError(
                store,
                f"no rows in split {split!r} ({counts})",
                (
                    "a row belongs to a split when both its pictures do: make the corpus from more pictures, or with a "
                    f"larger share for {split}"
                ),
            )
        least = ranks * batch_size if drop_last else ranks
        if self.rows < least:
            reason = f"{self.rows} rows in split {split!r}, expected {least} or more for {ranks} ranks"
            if drop_last:
                raise DsgenError(store, f"{reason} and full batches of {batch_size}", "take smaller batches")
            raise DsgenError(store, reason, "take fewer ranks")
        self.pool = pool or self._fitting_pool(memory_mb)
        self._room, self._ahead = self._budget(pool)
        self._samples = 0
        # epoch, and the sample to begin at; shared, so that DataLoader workers that stay alive are told too
        self._place = torch.zeros(2, dtype=torch.int64)
        with contextlib.suppress(RuntimeError):  # where there is no shared memory
            self._place.share_memory_()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": None, "_spare": None}

    @property
    def _store(self) -> Store:
        """The store, opened anew in every process: neither locks nor connections outlive a fork in good order."""
        if self._opened is None or self._opened[0] != os.getpid():
            store = Store(self.path)
            if self.sha256 not in (None, store.sha256):
                raise DsgenError(self.path, "not the store it was when the loader was made", "make a new loader")
            self._opened = os.getpid(), store
        return self._opened[1]

    def _fitting_pool(self, memory_mb: int) -> int:
        """Say how many chunks are mixed unless told: it hangs on store and memory alone, not on ranks or batches."""
        fit = int(memory_mb * 10**6 * _POOL_SHARE) // (int(np.diff(self._first).max()) * self._sample_bytes())
        return max(LANES, min(POOL, fit // LANES * LANES))

    def _sample_bytes(self) -> int:
        """Bytes of a sample as it is kept; backgrounds are shared."""
        return self.size**2 * sum(_BYTES[part] for part in self.parts if part != "background")

    def _region_bytes(self, samples: int) -> int:
        """Bytes of so many samples of a chunk, and of the one background they have as a rule."""
        return samples * self._sample_bytes() + self.size**2 * _BYTES["background"] * ("background" in self.parts)

    def _other_bytes(self, ahead: int) -> int:
        """Bytes of the caller's batch, his next, the one being made, those ahead, and of all else but chunks."""
        host_floats = self.floats and self.device is None
        batch = self.batch_size * self.size**2 * sum((1 + 4 * host_floats) * _BYTES[part] for part in self.parts)
        decoding = max(1, self.workers) * max(shard.chunk for shard in self._store.shards) * self._sample_bytes()
        return (ahead + 3) * batch + decoding + _ROW_BYTES * self.rows + _OWN_BYTES

    def _chunks_bytes(self, pool: int) -> int:
        """Bytes of the chunks that are in use at a time as a rule."""
        longest, mean = int(np.diff(self._first).max()), self.rows / (len(self._first) - 1)
        spread = self.batch_size * self.ranks / mean + 1  # chunks, over which a batch advances
        regions = min(len(self._first) - 1, int((pool + LANES if self.shuffle else 1) + spread + 1))
        if self.shuffle and LANES % self.ranks == 0:
            regions = -(-regions // self.ranks)
        elif self.ranks > 1:
            longest = min(longest, -(-2 * longest // self.ranks))
        return regions * self._region_bytes(longest)

    def _budget(self, pool: int | None) -> tuple[int, int]:
        """Return the bytes there are for chunks, and how many batches may be under way beside the one being made."""
        for ahead in range(2 + self.workers // 4 if self.workers else 0, -1, -1):
            room = self.memory_mb * 10**6 - self._other_bytes(ahead)
            if room >= self._chunks_bytes(self.pool):
                return room, ahead
        # where the pool grows with the memory, what is enough for that pool
        for larger in [pool] if pool else range(self.pool, POOL + 1, LANES):
            needed = -(-(self._chunks_bytes(larger) + self._other_bytes(0)) // 10**6)
            if pool or self._fitting_pool(needed) <= larger:
                break
        raise self._too_little_memory(needed)

    def _too_little_memory(self, needed_mb: int) -> DsgenError:
        smaller = f", or a pool smaller than {self.pool}" if self.shuffle and self.pool > LANES else ""
        return DsgenError(
            "memory_mb",
            (
                f"got {self.memory_mb}, expected {needed_mb} or more for batches of {self.batch_size} at "
                f"{self.size}x{self.size}"
            ),
            f"raise it or take smaller batches{smaller}",
        )

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the iterators made from now on, which begin at its beginning."""
        self._place.copy_(torch.tensor([epoch, 0]))
        self._samples = 0

    def state_dict(self) -> dict[str, Any]:
        """Say where the newest iterator is: "samples" of the epoch were handed out, over all ranks.

        The rest is what their order depends on.
        """
        return {"seed": self.seed, "epoch": int(self._place[0]), "samples": self._samples, **self._order_depends_on()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Make the next iterator go on where a loader was that gave this state.

        Raises `DsgenError` if the order is not the same in this one: other seed, store, split, `shuffle` or `pool`.
        """
        for name, value in {"seed": self.seed, **self._order_depends_on()}.items():
            if state.get(name, value) != value:
                remedy = "give the same" if name == "pool" else "make the loader with the same"
                raise DsgenError(
                    name, f"got {value!r}, the state to go on from has {state[name]!r}, another order", remedy
                )
        if not 0 <= state["samples"] <= self.rows:
            raise DsgenError(
                "samples", f"got {state['samples']}, expected 0 to {self.rows}", "take this loader's state"
            )
        self._place.copy_(torch.tensor([state["epoch"], state["samples"]]))
        self._samples = state["samples"]

    def _order_depends_on(self) -> dict[str, Any]:
        order = {"store": self.sha256, "split": self.split, "shuffle": self.shuffle}
        return order | ({"pool": self.pool} if self.shuffle else {})

    def __len__(self) -> int:
        return self._count(0)

    def _count(self, start: int) -> int:
        """Say how many batches each rank gets from a sample of the epoch on."""
        full, rest = divmod(self.rows - start, self.ranks * self.batch_size)
        return full if self.drop_last or rest < self.ranks else full + 1

    def __iter__(self) -> Iterator[Batch]:
        epoch, start = self._place.tolist()
        worker = get_worker_info()
        if worker is None:
            self._place[1] = 0
            self._samples = start
            return self._batches(epoch, start, 0, 1)
        return self._batches(epoch, start, worker.id, worker.num_workers)

    def _batches(self, epoch: int, start: int, worker: int, workers: int) -> Iterator[Batch]:
        """Yield batches `worker`, `worker` + `workers`, ... of this rank from sample `start` of the epoch on."""
        if get_worker_info() is not None and self.device is not None and self.device.type == "cuda":
            raise DsgenError(
                "device", f"got {self.device} in a DataLoader worker, expected None", "move batches yourself"
            )
        process = os.getpid()
        count, together = self._count(start), self.ranks * self.batch_size
        if not count and not self.drop_last and start < self.rows:
            log.warning("%d rows left for %d ranks: the epoch ends without them", self.rows - start, self.ranks)
        end = min(start + count * together, self.rows) if self.drop_last or not count else self.rows
        order = np.arange(self.rows)
        if self.shuffle:
            order = epoch_order(np.diff(self._first), self.seed, epoch, self.pool)
        order = order[start:end][self.rank :: self.ranks]
        cuts = [*range(0, count * self.batch_size, self.batch_size), len(order)]
        mine = range(worker, count, workers)
        made = self._read([order[cuts[k] : cuts[k + 1]] for k in mine])
        if self.device is not None:
            made = _moved(made, self.device, self.floats)
        with closing(made):
            for k in mine:
                if os.getpid() != process:
                    raise DsgenError(
                        "loader", "this iterator was made before a fork", "make a new one in the new process"
                    )
                batch = next(made)
                self._samples = end if k == count - 1 else start + (k + 1) * together
                yield batch

    def _read(self, batches: list[np.ndarray]) -> Generator[Batch, None, None]:
        """Yield batches of given samples, reading ahead as far as there is room.

        What is read when hangs on the order alone, and tasks begin in the order they are submitted in: a batch waits
        only for chunks whose reading has begun before.
        """
        if not batches:
            return
        store, process = self._store, os.getpid()
        visits = _visits(batches, self._first)
        arena = self._arena(visits, max(map(len, batches)))
        free = list(range(arena.regions))
        pool = ThreadPoolExecutor(self.workers, _THREAD) if self.workers else _CallingThread()
        begun: list[_Visit] = []
        under_way: deque[Future[Batch]] = deque()
        submitted = handed_out = 0
        ending = sys.is_finalizing  # asked when this module may be empty

        def begin() -> None:
            """Read the next chunk."""
            rows, region = self._numbers[visits.samples[len(begun)]], free.pop()
            begun.append(_Visit(region, pool.submit(_decode, store, rows, arena, region)))

        def submit() -> None:
            """Read and make batches ahead, as far as there is room."""
            nonlocal submitted
            while submitted < len(batches) and len(under_way) <= self._ahead:
                wanted = visits.begun_by[submitted] - len(begun)
                if under_way and wanted > len(free):
                    return
                for _ in range(wanted):
                    begin()
                empty = arena.batch(self._numbers[batches[submitted]], self.device)
                drawn = [begun[v] for v in visits.of[submitted].tolist()]
                under_way.append(pool.submit(self._assemble, empty, arena, drawn, visits.places[submitted]))
                submitted += 1
            # the next chunks, so that no thread is idle
            most = min(visits.begun_by[submitted - 1] + 2 * self.workers, len(visits.samples))
            while len(begun) < most and free:
                begin()

        try:
            while handed_out < len(batches):
                submit()
                batch = under_way.popleft().result()
                free += [begun[v].region for v in visits.ended_by[handed_out]]
                for v in visits.ended_by[handed_out]:
                    begun[v] = _ENDED  # lets go of its backgrounds
                handed_out += 1
                if self.workers:
                    submit()
                yield batch
        finally:
            # an iterator that outlives the program ends with the interpreter, whose threads and modules have ended
            if not ending() and process == os.getpid():
                # the garbage collector may end an iterator in one of its own threads, which cannot wait for itself
                own = threading.current_thread().name.startswith(_THREAD)
                pool.shutdown(wait=not own, cancel_futures=True)
                self._spare = None if own else arena

    def _arena(self, visits: "_Visits", batch_size: int) -> "Arena":
        """Make room for what is to be read, or take that of the iterator before, whose pages are there already."""
        samples = max(map(len, visits.samples))
        fit = self._room // self._region_bytes(samples)
        least = visits.most_at_a_time(0)
        if fit < least:
            raise self._too_little_memory(self.memory_mb - (fit - least) * self._region_bytes(samples) // 10**6)
        regions = min(fit, visits.most_at_a_time(self._ahead) + 2 * self.workers, len(visits.samples))
        spare, self._spare = self._spare, None
        if (
            spare is not None
            and (spare.samples, spare.batch_size) == (samples, batch_size)
            and spare.regions >= regions
        ):
            return spare
        del spare
        return Arena(self.parts, self.size, regions, samples, batch_size, self._ahead + 3)

    def _assemble(self, batch: Batch, arena: "Arena", visits: "list[_Visit]", places: np.ndarray) -> Batch:
        """Copy the samples at `places` of `visits` into a batch."""
        backgrounds = [visit.backgrounds.result() for visit in visits]
        index = np.array([visit.region for visit in visits]) * arena.samples + places
        for part, kept in arena.chunks.items():
            np.take(kept, index, axis=0, out=batch[part].numpy(), mode="clip")
        if "background" in batch:
            into = batch["background"].numpy()
            for i, place in enumerate(places.tolist()):
                into[i] = backgrounds[i][place]
        return as_floats(batch) if self.floats and self.device is None else batch


class _Visit(NamedTuple):
    """Where samples of a chunk lie, and their backgrounds once they do."""

    region: int
    backgrounds: Future[list[np.ndarray]]


_ENDED = _Visit(-1, Future())


class _Visits(NamedTuple):
    """Which chunks are read when. A visit reads, at once, all samples of a chunk that are wanted.

    `samples[v]` are those of visit v; `begun_by[b]` visits are wanted by batches up to b; those of `ended_by[b]` are
    wanted last by batch b; `of[b]` are the visit of each sample of batch b, and `places[b]` its place in that.
    """

    samples: list[np.ndarray]
    begun_by: list[int]
    ended_by: list[list[int]]
    of: list[np.ndarray]
    places: list[np.ndarray]

    def most_at_a_time(self, ahead: int) -> int:
        """Count the visits that are under way together when batches are made `ahead` of the one handed out."""
        ended = np.cumsum([0, *map(len, self.ended_by)])[:-1]
        begun = np.array(self.begun_by)
        return int((begun[np.minimum(np.arange(len(begun)) + ahead, len(begun) - 1)] - ended).max())


def _visits(batches: list[np.ndarray], first: np.ndarray) -> _Visits:
    """Plan the reading of batches of samples, which are numbered through chunks that begin at `first`."""
    sequence = np.concatenate(batches)
    cuts = np.cumsum([len(batch) for batch in batches])
    by_sample = np.argsort(sequence)
    chunk = np.searchsorted(first, sequence[by_sample], side="right")
    begins = np.flatnonzero(np.diff(chunk, prepend=0))
    counts = np.diff(begins, append=len(sequence))
    wanted_first = np.minimum.reduceat(by_sample, begins)
    wanted_last = np.maximum.reduceat(by_sample, begins)
    order = np.argsort(wanted_first)
    number = np.empty_like(order)
    number[order] = np.arange(len(order))
    visit, place = np.empty_like(sequence), np.empty_like(sequence)
    visit[by_sample] = np.repeat(number, counts)
    place[by_sample] = np.arange(len(sequence)) - np.repeat(begins, counts)
    pieces = np.split(sequence[by_sample], begins[1:])
    ended_by: list[list[int]] = [[] for _ in batches]
    for v, b in enumerate(np.searchsorted(cuts, wanted_last[order], side="right").tolist()):
        ended_by[b].append(v)
    return _Visits(
        samples=[pieces[k] for k in order.tolist()],
        begun_by=np.searchsorted(wanted_first[order], cuts).tolist(),
        ended_by=ended_by,
        of=np.split(visit, cuts[:-1]),
        places=np.split(place, cuts[:-1]),
    )


def _decode(store: Store, rows: np.ndarray, arena: Arena, region: int) -> list[np.ndarray]:
    """Read rows of one chunk into a region of the arena and return their backgrounds, if the store has any."""
    first, last = int(rows[0]), int(rows[-1]) + 1
    k = int(np.searchsorted(store.first_rows, first, side="right")) - 1
    start = int(store.first_rows[k])
    begin = region * arena.samples
    out = {part: room[begin : begin + len(rows)] for part, room in arena.chunks.items()}
    read = store.shards[k].samples(first - start, last - start, tuple(out), out if len(rows) == last - first else None)
    for part, values in read.items():
        if not np.shares_memory(values, out[part]):
            out[part][:] = values if len(rows) == last - first else values[rows - first]
    return store.backgrounds(rows) if "background" in store.parts else []


def _moved(batches: Generator[Batch, None, None], device: torch.device, floats: bool) -> Generator[Batch, None, None]:
    """Move batches to a device, with CUDA one ahead and beside what is computed there; `row` stays on the CPU."""
    if device.type != "cuda":
        for batch in batches:
            moved = {name: values if name == "row" else values.to(device) for name, values in batch.items()}
            yield as_floats(moved) if floats else moved
        return
    copying = torch.cuda.Stream(device)
    ahead: deque[tuple[Batch, torch.cuda.Event]] = deque()

    def hand_over() -> Batch:
        moved, done = ahead.popleft()
        using = torch.cuda.current_stream(device)
        using.wait_event(done)
        for name, values in moved.items():
            if name != "row":  # its memory is the copying stream's, and is not to be used again before this one is done
                values.record_stream(using)
        return moved

    for batch in batches:
        with torch.cuda.stream(copying):
            moved = {
                name: values if name == "row" else values.to(device, non_blocking=True)
                for name, values in batch.items()
            }
            ahead.append((as_floats(moved) if floats else moved, copying.record_event()))
        if len(ahead) > 1:
            yield hand_over()
    while ahead:
        yield hand_over()


class _CallingThread:
    """Runs what is submitted at once."""

    def submit(self, work: Callable[..., T], *arguments: Any) -> "Future[T]":
        """Run, and return what is done already."""
        future: Future[T] = Future()
        future.set_result(work(*arguments))
        return future

    def shutdown(self, **_: bool) -> None:
        """There is nothing to wait for."""


def _pieces(store: Store, split: str | None) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows of a split in order, and where each chunk's begin and the last ones end."""
    wanted = np.ones(store.rows, bool) if split is None else store.plan["split"] == SPLITS.index(split)
    rows = np.flatnonzero(wanted)
    first_chunk = 0
    chunk = np.empty(len(rows), np.int64)
    for shard, begin in zip(store.shards, store.first_rows.tolist(), strict=False):
        inside = slice(*np.searchsorted(rows, (begin, begin + shard.rows)))
        chunk[inside] = first_chunk + (rows[inside] - begin) // shard.chunk
        first_chunk += -(-shard.rows // shard.chunk)
    return rows, np.append(np.flatnonzero(np.diff(chunk, prepend=-1)), len(rows))
