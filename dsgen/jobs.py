"""Run blocks of work in parallel, here or on a dask cluster, divide them among machines, and show how far it is.

A block is a pure function of its arguments that writes its own files and returns the number of samples it made. It may
be run twice, at the same time too: a cluster does that when it has lost sight of a worker.
"""

import logging
import os
import queue
import re
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import uuid4

from dsgen import __version__
from dsgen.errors import DsgenError
from dsgen.locks import LOCK, exclusive_lock, held_locks

if TYPE_CHECKING:
    from distributed import Client

T = TypeVar("T")
log = logging.getLogger("dsgen")

_PATIENCE_S = 10.0


def cores() -> int:
    """Count the cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_jobs(jobs: int | None) -> int:
    """Return the number of workers meant: every core unless told otherwise."""
    if jobs is None:
        return cores()
    if jobs < 1:
        raise DsgenError(f"--jobs: got {jobs}, expected 1 or more; leave it out for one per core")
    return jobs


@dataclass(frozen=True)
class Part:
    """A share of the work: `number` of `count`, from 1 on."""

    number: int
    count: int

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"


def parse_part(text: str) -> Part:
    """Read `3/8`, the third of eight shares."""
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise DsgenError(f"--part: got {text!r}, expected K/N with K from 1 to N, like 3/8")
    return Part(int(number), int(count))


def share(blocks: list[T], part: Part) -> list[T]:
    """Return a part's consecutive blocks; the parts' shares are disjoint, cover all, and differ by one at most."""
    first, last = ((part.number - 1 + k) * len(blocks) // part.count for k in (0, 1))
    return blocks[first:last]


@contextmanager
def alone(folder: Path, stage: str, part: Part | None) -> Iterator[None]:
    """Keep others from doing the same: a second run without parts, the same part twice, or parts of another division.

    A run without parts holds the folder's lock throughout. A part holds one of its own, and takes the folder's only
    for what is done once, see `once`: until it gets that it waits. Lock files stay, after a part that was refused as
    the only ones: another part may wait for them. They are empty, keep nobody out, and make no corpus of the folder.
    """
    ours = rf"{re.escape(LOCK)}-{stage}-\d+-of-\d+"
    if part is None:
        with exclusive_lock(folder):
            busy = held_locks(folder, ours)
            if busy:
                raise DsgenError(f"{folder}: dsgen {_in_words(busy[0])} is at work here; wait for it or stop it")
            yield
        return
    name = f"{LOCK}-{stage}-{part.number}-of-{part.count}"
    with exclusive_lock(folder, name, doing=f"running {_in_words(name)}"):
        with once(folder, part):
            busy = [name for name in held_locks(folder, ours) if not name.endswith(f"-of-{part.count}")]
        if busy:
            raise DsgenError(
                f"{folder}: dsgen {_in_words(busy[0])} is at work here, which divides the work differently from "
                f"--part {part}; wait for it or stop it"
            )
        yield


def _in_words(lock: str) -> str:
    """Turn `.dsgen.lock-depth-3-of-8` into `depth --part 3/8`."""
    stage, number, _, count = lock.removeprefix(f"{LOCK}-").rsplit("-", 3)
    return f"{stage} --part {number}/{count}"


def once(folder: Path, part: Part | None) -> AbstractContextManager[None]:
    """Hold the folder's lock, for which a part waits; a run without parts holds it already."""
    return nullcontext() if part is None else exclusive_lock(folder, wait=True)


def pick_cluster(backend: str, scheduler: str | None) -> str | None:
    """Return the address of the dask scheduler that was asked for, or None for local processes."""
    if backend not in ("local", "dask"):
        raise DsgenError(f"--backend: got {backend!r}, expected local or dask")
    if (backend == "dask") != (scheduler is not None):
        raise DsgenError("--backend dask and --scheduler ADDRESS belong together; give both or neither")
    return scheduler


def run_blocks(
    work: Callable[..., int],
    blocks: list[tuple[Any, ...]],
    *,
    jobs: int,
    title: str,
    total: int,
    done: int = 0,
    cluster: str | None = None,
    shared: Sequence[Path] = (),
) -> int:
    """Call `work(*block)` for every block in `jobs` processes; return the sum of what the calls return.

    `total` and `done` count samples, for the progress display. The first error stops the run. `cluster` is the address
    of a dask scheduler, whose workers then do it, as many blocks at a time as they have threads; each must see the
    folders `shared`, whose paths, like all paths in the blocks, should be absolute: workers run in folders of their
    own.
    """
    made = 0
    with progress(title, total, done) as advance:
        results = (
            _results(work, blocks, min(jobs, len(blocks)))
            if cluster is None
            else _cluster_results(work, blocks, cluster, shared)
        )
        for count in results:
            made += count
            advance(count)
    return made


def _results(work: Callable[..., int], blocks: list[tuple[Any, ...]], jobs: int) -> Iterable[int]:
    if jobs <= 1:
        return (work(*block) for block in blocks)
    from joblib import Parallel, delayed

    return Parallel(n_jobs=jobs, return_as="generator_unordered", pre_dispatch="2*n_jobs")(
        delayed(work)(*block) for block in blocks
    )


def cluster_workers(address: str) -> int:
    """Count the workers of a dask cluster."""
    with _connect(address) as client:
        return len(client.nthreads())


def _cluster_results(
    work: Callable[..., int], blocks: list[tuple[Any, ...]], address: str, shared: Sequence[Path]
) -> Iterator[int]:
    """Yield the results of all blocks as they come; dask runs the blocks of a worker that dies on others.

    Not with joblib's dask backend: that of joblib 1.6 waits for ever for a block that dask has given up because every
    worker that tried it died.
    """
    from concurrent.futures import CancelledError

    if not blocks:
        return
    with _connect(address) as client:
        from distributed import Future, KilledWorker

        _check_workers(client, shared)
        finished: queue.SimpleQueue[Future] = queue.SimpleQueue()
        # a result that was fetched is let go of: else, should the worker that holds it die, it would be made again
        waiting = {future.key: future for future in client.map(work, *zip(*blocks, strict=True), pure=False)}
        for future in waiting.values():
            future.add_done_callback(finished.put)
        try:
            while waiting:
                try:
                    future = waiting.pop(finished.get(timeout=_PATIENCE_S).key)
                except queue.Empty:
                    if client.status == "running" and not client.nthreads():
                        log.warning("%s: no worker is left, waiting for one", address)
                    continue
                yield future.result()
        except KilledWorker as error:
            raise DsgenError(
                f"{address}: {error.task}: every worker that tried it died, the last on {error.last_worker.host}; "
                "look into the workers' logs, most often memory runs out: fewer workers a machine need less"
            ) from error
        except ModuleNotFoundError as error:
            raise DsgenError(f"{address}: a worker cannot import {error.name}; install it there too") from error
        except (CancelledError, OSError) as error:
            if client.status == "running":
                raise
            # it would report, with a traceback, that it cannot connect again
            logging.getLogger("distributed.client").setLevel(logging.CRITICAL)
            raise DsgenError(
                f"{address}: the scheduler is gone; start it again and repeat the command to go on"
            ) from error


@contextmanager
def _connect(address: str) -> Iterator["Client"]:
    """Connect to a dask scheduler that has workers, for the length of a `with` block."""
    try:
        from distributed import Client
        from distributed.comm import get_address_host_port
    except ImportError as error:
        raise DsgenError("distributed: not installed; pip install 'dsgen[dask]'") from error
    try:
        get_address_host_port(address)  # what is no address a client that is never closed would stumble on
        client = Client(address, timeout=_PATIENCE_S, set_as_default=False)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise DsgenError(
            f"--scheduler: got {address}, expected the address of a running dask scheduler, like tcp://HOST:8786 "
            f"({reason}); start one with: dask scheduler"
        ) from error
    with client:
        try:
            client.wait_for_workers(1, timeout=_PATIENCE_S)
        except TimeoutError as error:
            raise DsgenError(
                f"{address}: the scheduler has no workers; start some with: dask worker {address} --nthreads 1"
            ) from error
        yield client


def _check_workers(client: "Client", shared: Sequence[Path]) -> None:
    """Refuse to start unless all workers have this dsgen and see the shared folders; name those that do not."""

    def lacking(version: str, marks: list[str]) -> str | None:
        """Say what a worker lacks; it may lack dsgen, so this refers to nothing of it."""
        import os

        try:
            import dsgen
        except ImportError as error:
            return f"cannot import dsgen ({error}); install it there"
        if dsgen.__version__ != version:
            return f"has dsgen {dsgen.__version__}, expected {version} as here; install the same"
        unseen = [os.path.dirname(mark) for mark in marks if not os.path.exists(mark)]
        if unseen:
            return f"does not see the folder {unseen[0]}; use a folder on a file system that all machines share"
        return None

    marks = [folder.absolute() / f"{LOCK}-seen-{uuid4().hex}" for folder in shared]
    try:
        for mark in marks:
            mark.touch()
        answers = client.run(lacking, __version__, [str(mark) for mark in marks], on_error="return")
    finally:
        for mark in marks:
            mark.unlink(missing_ok=True)
    problems = [f"worker {worker}: {answer}" for worker, answer in answers.items() if answer is not None]
    if problems:
        more = f" (and {len(problems) - 1} more workers)" if len(problems) > 1 else ""
        raise DsgenError(f"{problems[0]}{more}")


def ahead(items: Iterable[T], most: int) -> Iterator[T]:
    """Yield the items, made in a thread of their own, at most `most` before they are wanted.

    An error in making one is raised where it would have been yielded; leaving early stops the thread.
    """
    ready: queue.Queue[tuple[bool, Any]] = queue.Queue(maxsize=most)
    stop = threading.Event()

    def put(entry: tuple[bool, Any]) -> None:
        while not stop.is_set():
            try:
                ready.put(entry, timeout=0.1)
                return
            except queue.Full:
                continue

    def make() -> None:
        try:
            for item in items:
                put((True, item))
                if stop.is_set():
                    return
            put((False, None))
        except BaseException as error:
            put((False, error))

    thread = threading.Thread(target=make, daemon=True)
    thread.start()
    try:
        while True:
            good, value = ready.get()
            if good:
                yield value
            elif value is None:
                return
            else:
                raise value
    finally:
        stop.set()
        thread.join()


@contextmanager
def progress(title: str, total: int, done: int = 0) -> Iterator[Callable[..., None]]:
    """Yield `advance(count, note="")`; count, rate and time left go to stderr.

    On a terminal a live bar, elsewhere a line now and then, so that a log file stays readable.
    """
    if not sys.stderr.isatty():
        yield _LineProgress(title, total, done)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    started, made = time.monotonic(), 0
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=total, completed=done, rate="", note="")

        def advance(count: int, note: str = "") -> None:
            nonlocal made
            made += count
            rate = f"{made / max(time.monotonic() - started, 1e-9):,.0f}/s"
            bar.update(task, advance=count, rate=rate, note=note)

        yield advance


class _LineProgress:
    """One line to stderr every ten seconds and at the end."""

    def __init__(self, title: str, total: int, done: int):
        self._title, self._total, self._done, self._made = title, total, done, 0
        self._started = self._spoke = time.monotonic()

    def __call__(self, count: int, note: str = "") -> None:
        self._made += count
        self._done += count
        now = time.monotonic()
        if now - self._spoke < 10 and self._done < self._total:
            return
        self._spoke = now
        rate = self._made / max(now - self._started, 1e-9)
        left = (self._total - self._done) / rate if rate else float("inf")
        print(
            f"{self._title}: {self._done:,} of {self._total:,}, {rate:,.0f}/s, {left:,.0f} s left {note}".rstrip(),
            file=sys.stderr,
            flush=True,
        )
