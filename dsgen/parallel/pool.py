"""Run blocks of work in parallel: in local processes or threads, or on a dask cluster.

A block of work is a call with picklable arguments, independent of all others. A stage's blocks write their own files
and return the number of samples made. Such a block may be run twice, even at the same time: a cluster does that after
losing contact with a worker.
"""

import os
import warnings
from collections.abc import Callable, Generator, Sequence
from contextlib import closing, nullcontext
from functools import partial
from itertools import starmap
from pathlib import Path
from typing import Any, TypeVar

from dsgen.errors import DsgenError, InvalidValueError, reason_of
from dsgen.parallel.dask_cluster import run_on_cluster
from dsgen.parallel.locks import locks_of_this_process, share_locks
from dsgen.parallel.progress import progress
from dsgen.parallel.signals import stopped_by
from dsgen.parallel.workers import block_interrupts, end_with_parent, exit_without_parent

T = TypeVar("T")


def available_cores() -> int:
    """Return the number of cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def worker_count(jobs: int | None) -> int:
    """Return the number of workers: `jobs`, or one per core for None."""
    if jobs is None:
        return available_cores()
    if jobs < 1:
        raise InvalidValueError.expected("jobs", jobs, "1 or more", "leave it out for one per core")
    return jobs


def map_unordered(
    work: Callable[..., T], blocks: Sequence[tuple[Any, ...]], jobs: int, *, threads: bool = False
) -> Generator[T, None, None]:
    """Yield `work(*block)` of every block as each one finishes, from `jobs` processes, or `threads`.

    With one job, or one block, the calls are made in this process, in order. An error raised by a call is raised here
    with its class and fields, and stops the others. Closing the iterator early, or Ctrl-C, kills the processes.

    The processes end with this one, however it ends, and share the locks that it holds until their calls are done.
    """
    jobs = min(jobs, len(blocks))
    if jobs <= 1:
        yield from starmap(work, blocks)
        return
    from joblib import Parallel, delayed
    from joblib.externals.loky.process_executor import BrokenProcessPool

    how = {"n_jobs": jobs, "return_as": "generator_unordered", "pre_dispatch": "2*n_jobs"}
    if threads:
        parallel, call = Parallel(prefer="threads", **how), work
    else:
        parallel = Parallel(backend="loky", initializer=end_with_parent, initargs=(os.getpid(),), **how)
        call = partial(_call_in, os.getcwd(), os.getpid(), locks_of_this_process(), work)
    results: Any = None
    try:
        with nullcontext() if threads else block_interrupts():
            results = parallel(delayed(call)(*block) for block in blocks)
        yield from results
    except BrokenProcessPool as error:
        if stopped_by() is not None:  # a signal to the whole process group ends the workers too
            raise KeyboardInterrupt from error
        raise DsgenError(
            "worker process",
            f"ended before its work was done ({reason_of(error)})",
            "most often memory runs out: use fewer --jobs; run the same command again to resume",
        ) from error
    finally:
        with warnings.catch_warnings():  # joblib warns of results that nobody fetched
            warnings.simplefilter("ignore")
            if results is not None:
                results.close()


def _call_in(folder: str, parent: int, locks: Sequence[str], work: Callable[..., T], *block: Any) -> T:
    """Call `work(*block)` in the caller's folder, with a share of the caller's locks.

    joblib keeps its processes for later calls, and those may come from another folder.
    """
    with share_locks(locks):
        exit_without_parent(parent)  # after sharing: another run may have found the locks free
        if os.getcwd() != folder:
            os.chdir(folder)
        return work(*block)


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
    """Call `work(*block)` for every block in `jobs` processes, show the progress, and return the sum of the results.

    `total` and `done` are the samples of the whole stage and those made earlier, for the progress display. The first
    error stops the run.

    `cluster` is the address of a dask scheduler: its workers then run the blocks, as many at a time as they have
    threads, and `jobs` is ignored. All workers must see the folders `shared`. Use absolute paths there and in the
    blocks, since workers have other working directories.
    """
    made = 0
    with progress(title, total, done) as advance:
        results = (
            map_unordered(work, blocks, jobs) if cluster is None else run_on_cluster(work, blocks, cluster, shared)
        )
        with closing(results):
            for count in results:
                made += count
                advance(count)
    return made
