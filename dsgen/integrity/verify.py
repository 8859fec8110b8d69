"""Check a corpus or a store completely: hashes, checksums, shapes, counts, the plan, and pixels against the plan."""

import time
from pathlib import Path

from dsgen.corpus import layout
from dsgen.errors import DsgenError, InvalidValueError, NotFoundError
from dsgen.integrity.findings import ReportBuilder, VerifyReport
from dsgen.io.filesystem import is_url
from dsgen.parallel.pool import worker_count
from dsgen.store.layout import INDEX_JSON, PACKING, SHA256SUMS


def verify(
    place: Path | str, corpus: Path | None = None, *, fast: bool = False, jobs: int | None = None
) -> VerifyReport:
    """Check a corpus, or a store in a folder or at a URL, and report everything that is wrong; nothing is changed.

    Of a store, every file is hashed and every chunk decoded; with `corpus`, the one it was packed from, every pixel,
    depth and column is compared. Of a corpus, the plan is computed again, the sources are hashed, every picture is
    drawn again and compared, and every label is decoded. `fast` checks hashes, names and counts only. `jobs` is the
    number of processes or threads, by default one per core.

    Raises `NotFoundError` where there is neither corpus nor store, and `InvalidValueError` where `corpus` is not the
    one the store was packed from.

    >>> report = verify("shards", corpus=Path("corpus"))  # doctest: +SKIP
    >>> print(report.summary())  # doctest: +SKIP
    shards: no findings; 24 files, 3.4 MB read in 0.3 s (0.01 GB/s), 72 rows compared (0.02 GB/s of pixels)
    """
    workers = worker_count(jobs)
    started = time.monotonic()
    if is_store(place):
        from dsgen.integrity.check_store import check_store

        report = ReportBuilder(str(place), "store")
        check_store(place, corpus, fast, workers, report)
    else:
        from dsgen.integrity.check_corpus import check_corpus

        if corpus is not None:
            raise InvalidValueError("--corpus", f"{place} is a corpus itself, expected a store", "leave it out")
        report = ReportBuilder(str(place), "corpus")
        check_corpus(Path(place), fast, workers, report)
    return report.build(time.monotonic() - started)


def is_store(place: Path | str) -> bool:
    """Return whether a folder or URL holds a store, True, or a corpus, False; `DsgenError` where it holds neither."""
    if is_url(place):
        return True
    path = Path(place)
    remedy = "run dsgen composite for a corpus, or dsgen pack for a store"
    if not path.exists():
        raise NotFoundError(path, "no such folder, expected a corpus or a store in a folder, or a URL", remedy)
    if not path.is_dir():
        raise DsgenError(path, "a file, expected a corpus or a store in a folder, or a URL", "pass the folder it is in")
    if (path / "zarr.json").exists() and path.name.startswith("shard-"):
        raise DsgenError(path, "a shard, expected a store", "pass the folder it is in")
    if any((path / name).exists() for name in (layout.CORPUS_JSON, layout.PLAN)) or any(
        path.glob(f"{layout.SOURCES}*")
    ):
        return False
    if any((path / name).exists() for name in (INDEX_JSON, SHA256SUMS, PACKING)) or any(path.glob("shard-*")):
        return True
    raise NotFoundError(path, "neither a corpus nor a store", remedy)
