"""Run blocks of work in parallel: in local processes or threads, or on a dask cluster.

A block of work is a call with picklable arguments, independent of all others. A stage's blocks write their own files
and return the number of samples made. Such a block may be run twice, even at the same time: a cluster does that after
losing contact with a worker.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import starmap
from pathlib import Path
from typing import Any, TypeVar

from dsgen.errors import InvalidValueError
from dsgen.parallel.dask_cluster import run_on_cluster
from dsgen.parallel.progress import progress

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
) -> Iterator[T]:
    """Yield `work(*block)` of every block as each one finishes, from `jobs` processes, or `threads`.

    With one job, or one block, the calls are made in this process, in order. An error raised by a call is raised here
    with its class and fields, and stops the others.
    """
    jobs = min(jobs, len(blocks))
    if jobs <= 1:
        return starmap(work, blocks)
    from joblib import Parallel, delayed

    prefer = "threads" if threads else "processes"
    parallel = Parallel(n_jobs=jobs, prefer=prefer, return_as="generator_unordered", pre_dispatch="2*n_jobs")
    call = work if threads else partial(_call_in, os.getcwd(), work)
    results: Iterator[T] = parallel(delayed(call)(*block) for block in blocks)
    return results


def _call_in(folder: str, work: Callable[..., T], *block: Any) -> T:
    """Call `work(*block)` in the caller's folder.

    joblib keeps its processes for later calls, and those may come from another folder.
    """
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
        for count in results:
            made += count
            advance(count)
    return made
