"""Run blocks of work in parallel, in local processes or on a dask cluster.

A block is a pure function of its arguments that writes its own files and returns the number of samples it made. It may
be run twice, at the same time too: a cluster does that when it has lost sight of a worker.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from dsgen.errors import InvalidValueError
from dsgen.parallel.dask_cluster import run_on_cluster
from dsgen.parallel.progress import progress


def available_cores() -> int:
    """Count the cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def worker_count(jobs: int | None) -> int:
    """Return the number of workers meant: every core unless told otherwise."""
    if jobs is None:
        return available_cores()
    if jobs < 1:
        raise InvalidValueError("--jobs", f"got {jobs}, expected 1 or more", "leave it out for one per core")
    return jobs


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
            else run_on_cluster(work, blocks, cluster, shared)
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
