"""Rebuild the damaged shards of a store from its corpus.

Bad shards are packed beside the store and compared with the hashes it was finished with before any of its files is
touched. Then only the files that differ are replaced, each atomically. A repair that was killed can be repeated.
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

from dsgen.corpus import layout
from dsgen.errors import DsgenError, NotFoundError
from dsgen.integrity.check_store import (
    Inspection,
    expect_records,
    inspect_store,
    list_sizes,
    open_source,
    shard_digest,
)
from dsgen.integrity.findings import RepairLog, RepairResult, ReportBuilder, plural
from dsgen.integrity.verify import verify
from dsgen.io.filesystem import LocalFiles, UrlFiles, is_url
from dsgen.parallel.parts import lock_stage
from dsgen.store.corpus_source import CorpusSource
from dsgen.store.layout import PACKING
from dsgen.store.packing import pack_shards
from dsgen.store.sealing import ZIP_SUFFIX

Tables = dict[str, dict[str, str]]  # by shard: name and hash of every file


def repair_store(path: Path | str, corpus: Path, workers: int) -> RepairResult:
    """Rebuild the damaged shards of a store from `corpus`, and its index and hashes; see `repair`."""
    with _lock(path):
        report = ReportBuilder(str(path), "store")
        inspection = inspect_store(path, workers, report)
        log = RepairLog(str(path), len(report.findings))
        if not report.findings:
            return log.build()
        extra, bad = _sort_shards(inspection)
        rebuilt: Tables = {}
        if bad:
            with make_scratch(inspection.files) as scratch:
                rebuilt = _rebuild(_open_corpus(corpus, inspection), scratch, bad, inspection, workers)
                for name, table in rebuilt.items():
                    extra += inspection.own(name).keys() - table.keys()
                    _replace_files(scratch, name, table, inspection, log)
        for file in sorted(extra):
            inspection.files.remove(file)
            log.removed.append(file)
        _write_records(inspection, rebuilt, log)
        _remove_empty_folders(inspection.files, inspection.names)
        return log.build(verify(path, fast=True, jobs=workers))


def _lock(path: Path | str) -> AbstractContextManager[Any]:
    """Keep others from writing to a store, and refuse while they do; an object store has no locks."""
    return nullcontext() if is_url(path) else lock_stage(Path(path), "pack", None)


def _sort_shards(inspection: Inspection) -> tuple[list[str], list[str]]:
    """Return the files to remove, and the shards to rebuild: those with more wrong than files too many."""
    extra, bad = list(inspection.leftovers), list(inspection.unknown)
    for name in inspection.bad:
        listed, own = inspection.listed[name], inspection.own(name)
        if inspection.is_listed_whole(name) and listed.items() <= own.items():
            extra += own.keys() - listed.keys()
        else:
            bad.append(name)
    return extra, sorted(bad)


def _open_corpus(corpus: Path, inspection: Inspection) -> CorpusSource:
    """Open the corpus to rebuild a store from."""
    made_from = inspection.made_from()
    bad = plural(len({*inspection.bad, *inspection.unknown}), "bad shard")
    if "corpus_sha256" not in made_from:
        raise DsgenError(
            inspection.files,
            f"{bad}, but packed from pictures (--images), from which repair cannot rebuild",
            "remove the store and run the same dsgen pack",
        )
    if not (corpus / layout.CORPUS_JSON).is_file():
        raise NotFoundError(
            corpus,
            f"no corpus, expected the one that {inspection.files} was packed from, to rebuild {bad}",
            "pass it with --corpus",
        )
    return open_source(corpus, made_from)


def _rebuild(source: CorpusSource, scratch: Path, names: list[str], inspection: Inspection, workers: int) -> Tables:
    """Pack shards again and return the hashes of their files, which must be those they were finished with."""
    numbers = [inspection.names.index(name) for name in names]
    packed = pack_shards(source, scratch, numbers, inspection.made_from(), workers)
    tables = {name: {file: entry.sha256 for file, entry in table.items()} for name, table in packed.items()}
    for name, table in tables.items():
        # where SHA256SUMS is damaged too, the bytes found vouch for a file as well
        listed, own = inspection.listed[name], inspection.own(name)
        confirmed = all(digest in (listed.get(file), own.get(file)) for file, digest in table.items())
        if (
            not confirmed
            and shard_digest(dict(table)) != inspection.vouched.get(name)
            and name not in inspection.unknown
        ):
            version = (inspection.index or {}).get("dsgen", "of the same version")
            raise DsgenError(
                f"{inspection.files}/{name}",
                "rebuilt with other hashes than it had; nothing was changed",
                f"check that the corpus is whole (dsgen verify {source.folders[0]}), and that dsgen {version} is "
                "installed",
            )
    return tables


def _replace_files(scratch: Path, name: str, table: dict[str, str], inspection: Inspection, log: RepairLog) -> None:
    """Replace the files of a shard that differ from the rebuilt ones."""
    own = inspection.own(name)
    differing = sorted(file for file in table if own.get(file) != table[file])
    if differing and name in inspection.unknown:
        log.notes.append(f"{name}: there was no record of its hashes; the files that differed were replaced")
    for file in differing:
        move_file(scratch / file, inspection.files, file)
        log.replaced.append(file)


def _write_records(inspection: Inspection, rebuilt: Tables, log: RepairLog) -> None:
    """Rewrite the files beside the shards where they differ from what the shards, rebuilt or not, say."""
    files = inspection.files
    sizes = list_sizes(files)
    digests = inspection.digests | {file: digest for table in rebuilt.values() for file, digest in table.items()}
    now = replace(inspection, sizes=sizes, digests={file: digests[file] for file in sizes}, bad=[])
    expect_records(now)
    for name, content in (now.expected or {}).items():
        if name not in sizes or files.read(name) != content:
            if isinstance(files, LocalFiles) and (files.path / name).is_dir():
                files.remove(name)
            files.write(name, content)
            log.replaced.append(name)


@contextmanager
def make_scratch(files: LocalFiles | UrlFiles) -> Iterator[Path]:
    """Yield an empty folder, on the file system of the store where that is a local one."""
    if not isinstance(files, LocalFiles):
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)
        return
    scratch = files.path / PACKING / f"repair-{os.getpid()}-{uuid4().hex[:12]}"  # which no other process uses
    files.remove(PACKING)
    scratch.mkdir(parents=True)
    try:
        yield scratch
    finally:
        files.remove(PACKING)


def move_file(path: Path, files: LocalFiles | UrlFiles, name: str) -> None:
    """Move a file into the store; into an object store in pieces, since a zip may be larger than memory."""
    if isinstance(files, LocalFiles):
        target = files.path / name
        if target.is_dir():
            files.remove(name)
        target.parent.mkdir(parents=True, exist_ok=True)
        path.replace(target)
    elif name.endswith(ZIP_SUFFIX):
        import fsspec

        fs, target = fsspec.core.url_to_fs(f"{files}/{name}")
        fs.put_file(str(path), target)
    else:
        files.write(name, path.read_bytes())


def _remove_empty_folders(files: LocalFiles | UrlFiles, shards: list[str]) -> None:
    """Remove the folders of shards that removed files have left empty."""
    if isinstance(files, LocalFiles):
        for name in shards:
            for folder, _, _ in os.walk(files.path / name, topdown=False):
                if not os.listdir(folder):
                    os.rmdir(folder)
