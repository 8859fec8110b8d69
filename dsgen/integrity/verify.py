"""Check a corpus or a store completely: hashes, checksums, shapes, counts, the plan, and pixels against the plan."""

import time
from pathlib import Path

from dsgen.corpus import layout
from dsgen.errors import DsgenError, InvalidValueError
from dsgen.integrity.findings import Report
from dsgen.io.filesystem import is_url
from dsgen.parallel.pool import worker_count
from dsgen.store.layout import INDEX_JSON, PACKING, SHA256SUMS


def verify(place: Path | str, corpus: Path | None = None, *, fast: bool = False, jobs: int | None = None) -> Report:
    """Check a corpus, or a store in a folder or at a URL, and report all that is wrong; nothing is changed.

    Of a store every file is hashed, every chunk decoded, and with `corpus`, the one it was packed from, every pixel,
    depth and column compared. Of a corpus the plan is made again, the sources are hashed, every picture is drawn again
    and compared, every label decoded. `fast` leaves it at hashes, names and counts. Raises `DsgenError` where there is
    neither, and where `corpus` is another one.
    """
    workers = worker_count(jobs)
    started = time.monotonic()
    if is_store(place):
        from dsgen.integrity.check_store import check_pixels, inspect_store

        report = Report(str(place), "store")
        found = inspect_store(place, workers, report, corpus)
        if fast:
            report.notes.append("files hashed, chunks not decoded (--fast)")
        else:
            check_pixels(found, workers, report)
    else:
        from dsgen.integrity.check_corpus import check_corpus

        if corpus is not None:
            raise InvalidValueError("--corpus", f"{place} is a corpus itself, expected a store", "leave it out")
        report = Report(str(place), "corpus")
        check_corpus(Path(place), fast, workers, report)
    report.seconds = time.monotonic() - started
    return report


def is_store(place: Path | str) -> bool:
    """Say whether a place holds a store, or else a corpus; `DsgenError` where there is neither."""
    if is_url(place):
        return True
    path = Path(place)
    if not path.is_dir():
        what = "a file" if path.exists() else "no such folder"
        raise DsgenError(path, f"{what}, expected a corpus or a store in a folder, or a URL")
    if (path / "zarr.json").exists() and path.name.startswith("shard-"):
        raise DsgenError(path, "a shard, expected a store", "give the folder that it is in")
    if any((path / name).exists() for name in (layout.CORPUS_JSON, layout.PLAN)) or any(
        path.glob(f"{layout.SOURCES}*")
    ):
        return False
    if any((path / name).exists() for name in (INDEX_JSON, SHA256SUMS, PACKING)) or any(path.glob("shard-*")):
        return True
    raise DsgenError(path, "neither a corpus nor a store", "run dsgen composite or dsgen pack")
