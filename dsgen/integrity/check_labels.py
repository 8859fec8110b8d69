"""Check the depth labels of a corpus: metadata has its hashes, every file exists, every chunk can be decoded."""

import os
from dataclasses import dataclass
from uuid import uuid4

import numpy as np

from dsgen.corpus import layout
from dsgen.corpus.composed import compose_rows
from dsgen.corpus.corpus import Corpus
from dsgen.corpus.labels import COMPOSED, FLIP_ERROR, block_file, find_damaged_metadata
from dsgen.corpus.saved_rows import is_saved_rows
from dsgen.errors import DsgenError, is_system_error, reason_of
from dsgen.integrity.check_pictures import open_once
from dsgen.integrity.findings import MISSING, Checked, Finding, ReportBuilder, classify_extra
from dsgen.io.filesystem import LocalFiles
from dsgen.parallel.pool import map_unordered
from dsgen.parallel.progress import progress


@dataclass(frozen=True)
class LabelTask:
    """A block of one array of the labels to decode: rows `first` to `last`, exclusive, in `file`."""

    run: str
    corpus: str
    array: str
    file: str
    first: int
    last: int


def check_labels(corpus: Corpus, fast: bool, jobs: int, report: ReportBuilder) -> None:
    """Check that every block of depth labels exists and, unless `fast`, that every chunk can be decoded."""
    folder = corpus.path / layout.DEPTH
    if not folder.is_dir():
        report.notes.append("no depth labels, none checked")
        return
    damaged = find_damaged_metadata(folder)
    try:
        labels = None if damaged else corpus.labels
        arrays = {} if labels is None else {name: labels.array_blocks(name) for name in labels.array_names}
    except DsgenError as error:
        damaged = {error.what.removeprefix(f"{folder}{os.sep}").replace(os.sep, "/"): error.reason}
    if damaged or labels is None:
        for name, what in damaged.items():
            report.find(f"{layout.DEPTH}/{name}", what)
        report.notes.append("labels were not checked, since they cannot be opened")
        return
    shape = (len(corpus), corpus.size, corpus.size)
    if labels.array.shape != shape or labels.array.dtype not in (np.uint16, np.float32):
        what = f"{labels.array.dtype} {labels.array.shape}, expected {shape}"
        report.find(f"{layout.DEPTH}/{labels.array.basename}", what)
        return
    if not labels.vouched:
        report.notes.append(
            "labels of an earlier dsgen have no hash of their metadata: a changed attribute may go unnoticed"
        )
    sizes = LocalFiles(folder).sizes()
    report.files += len(sizes)
    run = uuid4().hex
    tasks = [
        LabelTask(run, str(corpus.path), name, block_file(name, number), *block)
        for name, blocks in arrays.items()
        for number, block in enumerate(blocks)
    ]
    complete = bool(labels.attributes.get("complete"))
    expected = {"zarr.json", *(f"{name}/zarr.json" for name in arrays), *(task.file for task in tasks)}
    missing = sorted(expected - sizes.keys())
    if complete:
        for file in missing:
            report.find(f"{layout.DEPTH}/{file}", MISSING)
    elif missing:
        report.notes.append(f"labels unfinished, {len(corpus) - corpus.labelled_rows():,} rows to go; run dsgen depth")
    for file in sorted(sizes.keys() - expected):
        if is_saved_rows(file) and not complete:
            continue
        report.find(f"{layout.DEPTH}/{file}", classify_extra(file))
    if not fast:
        report.bytes += sum(sizes.values())
        plain = [name for name in arrays if not labels.has_checksums(name)]
        if plain:
            report.notes.append(
                f"labels of an earlier dsgen have no checksums ({', '.join(plain)}): a changed byte may go unnoticed"
            )
        _decode([task for task in tasks if task.file in sizes], len(corpus), jobs, report)


def _is_composed(corpus: Corpus, depth: np.ndarray, first: int) -> bool:
    """Return whether composed labels (n,S,S) of the rows from `first` on are what the corpus composes again."""
    return corpus.rooms is not None and np.array_equal(depth, compose_rows(corpus, first, first + len(depth)))


def _decode(tasks: list[LabelTask], rows: int, jobs: int, report: ReportBuilder) -> None:
    with progress("verify depth", rows) as advance:
        for checked in map_unordered(check_label_block, [(task,) for task in tasks], jobs):
            report.add(checked)
            advance(checked.steps)


def check_label_block(task: LabelTask) -> Checked:
    """Decode one block of rows of one array of the labels."""
    corpus = open_once(task.run, task.corpus)
    labels = corpus.labels
    assert labels is not None
    damage = ""
    try:
        values = labels.read_array(task.array, task.first, task.last)
        if labels.attributes["model"] == COMPOSED and not _is_composed(corpus, values, task.first):
            damage = "differ from what the corpus composes"
        if task.array == FLIP_ERROR and not np.isfinite(values).all():
            damage = "without a value"
    except DsgenError as error:
        damage = f"cannot be read ({error.reason})"
    except OSError as error:
        if is_system_error(error):
            raise
        damage = f"cannot be read ({reason_of(error)})"
    what = f"rows {task.first:,} to {task.last - 1:,} {damage}"
    findings = [Finding(f"{layout.DEPTH}/{task.file}", what)] if damage else []
    return Checked(findings, steps=0 if task.array == FLIP_ERROR else task.last - task.first)
