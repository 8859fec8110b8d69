"""Check the depth labels of a corpus: every file exists and every chunk can be decoded."""

from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import numpy as np
import zarr

from dsgen.corpus import layout
from dsgen.corpus.corpus import Corpus
from dsgen.corpus.saved_rows import is_saved_rows
from dsgen.errors import DsgenError, reason_of
from dsgen.integrity.check_pictures import open_once
from dsgen.integrity.findings import EXTRA, MISSING, Checked, Finding, ReportBuilder, damage_of
from dsgen.io.filesystem import LocalFiles
from dsgen.io.json_files import read_json
from dsgen.parallel.pool import map_unordered
from dsgen.parallel.progress import progress

FLIP_ERROR = "flip_error"
_ARRAYS = ("depth", "relative", FLIP_ERROR)


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
    try:
        arrays = _open_arrays(corpus)
        blocks = corpus.label_blocks()
        complete = bool(corpus.depth_attributes.get("complete"))
    except Exception as error:  # zarr raises errors of any class on damaged metadata
        damaged = _damaged_metadata(folder) or {layout.DEPTH: f"cannot be opened ({reason_of(error)})"}
        for file, what in damaged.items():
            report.find(file, what)
        report.notes.append("labels were not checked, since they cannot be opened")
        return
    name, labels = next(iter(arrays.items()))
    shape = (len(corpus), corpus.size, corpus.size)
    if labels.shape != shape or labels.dtype not in (np.uint16, np.float32):
        report.find(f"{layout.DEPTH}/{name}", f"{labels.dtype} {labels.shape}, expected {shape}")
        return
    sizes = LocalFiles(folder).sizes()
    report.files += len(sizes)
    run = uuid4().hex
    tasks = [
        LabelTask(run, str(corpus.path), name, f"{name}/c/{number}" + "/0" * (array.ndim - 1), *block)
        for name, array in arrays.items()
        for number, block in enumerate(blocks)
    ]
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
        report.find(f"{layout.DEPTH}/{file}", EXTRA)
    if not fast:
        report.bytes += sum(sizes.values())
        if "Crc32c" not in str(labels.compressors):
            report.notes.append("labels of an earlier dsgen have no checksums: a changed byte may go unnoticed")
        _decode([task for task in tasks if task.file in sizes], len(corpus), jobs, report)


def _open_arrays(corpus: Corpus) -> dict[str, zarr.Array]:
    """Open the arrays of the labels by name, depth or relative depth first."""
    names = ["relative" if corpus.depth is None else "depth"]
    if (corpus.path / layout.DEPTH / FLIP_ERROR).is_dir():
        names.append(FLIP_ERROR)
    return {name: _open_array(corpus, name) for name in names}


def _open_array(corpus: Corpus, name: str) -> zarr.Array:
    if name == FLIP_ERROR:
        return zarr.open_array(corpus.path / layout.DEPTH / FLIP_ERROR, mode="r")
    labels = corpus.relative if name == "relative" else corpus.depth
    assert labels is not None
    return labels


def _damaged_metadata(folder: Path) -> dict[str, str]:
    """Return which `zarr.json` of the labels is missing or is not JSON, and what is wrong with it."""
    damaged = {}
    existing = [f"{name}/" for name in _ARRAYS if (folder / name).is_dir()]
    for file in (f"{layout.DEPTH}/{name}zarr.json" for name in ("", *existing)):
        path = folder.parent / file
        try:
            read_json(path)
        except FileNotFoundError:
            damaged[file] = MISSING
        except (DsgenError, OSError) as error:
            damaged[file] = f"cannot be read ({damage_of(error, str(path))})"
    return damaged


def _decode(tasks: list[LabelTask], rows: int, jobs: int, report: ReportBuilder) -> None:
    with progress("verify depth", rows) as advance:
        for checked in map_unordered(check_label_block, [(task,) for task in tasks], jobs):
            report.add(checked)
            advance(checked.steps)


def check_label_block(task: LabelTask) -> Checked:
    """Decode one block of rows of one array of the labels."""
    corpus = open_once(task.run, task.corpus)
    damage = ""
    try:
        values = np.asarray(_open_array(corpus, task.array)[task.first : task.last])
        if task.array == FLIP_ERROR and not np.isfinite(values).all():
            damage = "without a value"
    except Exception as error:  # zarr and codecs raise errors of any class on damaged files
        damage = f"cannot be read ({reason_of(error)})"
    what = f"rows {task.first:,} to {task.last - 1:,} {damage}"
    findings = [Finding(f"{layout.DEPTH}/{task.file}", what)] if damage else []
    return Checked(findings, steps=0 if task.array == FLIP_ERROR else task.last - task.first)
