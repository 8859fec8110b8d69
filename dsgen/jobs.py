"""Run blocks of work in parallel and show how far it is.

A block is a pure function of its arguments that writes its own files and returns the number of samples it made.
"""

import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from dsgen.errors import DsgenError

T = TypeVar("T")


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
) -> int:
    """Call `work(*block)` for every block in `jobs` processes; return the sum of what the calls return.

    `total` and `done` count samples, for the progress display. The first error stops the run.
    """
    made = 0
    with progress(title, total, done) as advance:
        for count in _results(work, blocks, min(jobs, len(blocks))):
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
