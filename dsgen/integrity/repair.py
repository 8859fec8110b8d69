"""Restore what is damaged in a corpus or a store, and nothing else."""

from pathlib import Path

from dsgen.integrity.findings import RepairResult
from dsgen.parallel.pool import worker_count
from dsgen.store.kind import is_store


def repair(
    place: Path | str,
    corpus: Path = Path("corpus"),
    backgrounds: Path | None = None,
    foregrounds: Path | None = None,
    background_depths: Path | None = None,
    *,
    jobs: int | None = None,
) -> RepairResult:
    """Rebuild the damaged files of a store or corpus, remove what does not belong to it, and verify it again.

    A store is rebuilt from `corpus`, and only if that gives the hashes the store was finished with; otherwise an error
    is raised and the store stays as it is. A corpus draws its pictures and its plan itself; its sources are normalised
    again from the pictures in the folders `backgrounds` and `foregrounds`, by default the bundled ones; what it knows
    of rooms is made again from the depth maps in `background_depths`, from bundled ones, or by the bundled network.
    Damaged labels are removed, and recreated where the bundled network made them. Files that dsgen did not write are
    left alone. A repair that was killed can be repeated. `jobs` is the number of processes or threads, by default one
    per core.

    Raises `NotFoundError` where there is neither corpus nor store, nor the corpus to rebuild from; `BusyError` while
    another dsgen writes to it; another `DsgenError` where the corpus or the pictures are not those it was made from.

    >>> result = repair("shards", corpus=Path("corpus"))  # doctest: +SKIP
    >>> print(result.summary())  # doctest: +SKIP
    shards: 2 findings; 2 recreated, 0 removed; no findings left
    """
    workers = worker_count(jobs)
    if is_store(place):
        from dsgen.integrity.repair_store import repair_store

        return repair_store(place, corpus, workers)
    from dsgen.integrity.repair_corpus import repair_corpus

    return repair_corpus(Path(place), backgrounds, foregrounds, workers, background_depths)
