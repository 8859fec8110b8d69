"""Export every picture as a file, with labels of its instances: the formats `coco` and `yolo`.

Rows are written in blocks of `rows_per_file`. The files of a block are moved to their folders together; then its
record, `exporting/train-00000-of-00003.json`, says that they are complete, and holds what `labels.json` needs of them.
Once all blocks are there, `labels.json` or `data.yaml` is written from their records, then `export.json`, which keeps
rows and bytes of every block; then `exporting` is removed.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from dsgen.errors import DamagedError, DsgenError
from dsgen.io.atomic import clear_unfinished, fill_folder, name_in_errors, write_bytes, write_json
from dsgen.io.json_files import read_as
from dsgen.parallel.pool import run_blocks
from dsgen.store.export import coco, yolo
from dsgen.store.export.instances import TINY_PIXELS, InstanceLabels
from dsgen.store.export.plan import EXPORT_JSON, EXPORTING, BlockSummary, ExportFile, ExportSettings, count_rows
from dsgen.store.export.samples import encode_picture, open_store, read_rows, split_rows
from dsgen.store.reader import Store

_FOLDERS = {
    "coco": {"image": "{}/data", "depth": "{}/depth"},
    "yolo": {"image": "images/{}", "label": "labels/{}"},
}
_CACHE = re.compile(r"labels/\w+\.cache")  # which ultralytics writes beside the labels that it has read
_SPACE_ROWS = 4  # that are encoded to estimate the size of all
_DISK_BLOCK_BYTES = 4096


class BlockRecord(BlockSummary):
    """The record of a finished block; the lists are empty for `yolo`.

    In its file `sha256` is added, the hash of the others, so that no annotation is wrong without a word.
    """

    images: list[dict[str, Any]]
    annotations: list[dict[str, Any]]


@dataclass(frozen=True)
class PictureFiles:
    """The names of the files that the settings ask for, relative to the export."""

    settings: ExportSettings

    @cached_property
    def suffixes(self) -> dict[str, str]:
        """The ending of every kind of file that a row has."""
        pictures = {field: self.settings.suffix(field) for field in self.settings.fields}
        return pictures | ({"label": "txt"} if self.settings.file_format == "yolo" else {})

    def folder(self, kind: str, split: str) -> str:
        """Return the folder of a kind of file."""
        name = yolo.FOLDERS[split] if self.settings.file_format == "yolo" else split
        return _FOLDERS[self.settings.file_format][kind].format(name)

    def name(self, kind: str, row: int) -> str:
        """Return the name of a row's file within its folder."""
        return f"{row:09d}.{self.suffixes[kind]}"

    def summaries(self, splits: Sequence[str]) -> list[str]:
        """Return the names of the files that are written once all blocks are there."""
        if self.settings.file_format == "yolo":
            return [yolo.DATA_YAML]
        return [f"{split}/{coco.LABELS_JSON}" for split in splits]

    def has(self, name: str, splits: Sequence[str], blocks: Sequence[ExportFile]) -> bool:
        """Say whether an export of these splits has a file of this name, or its readers may leave one."""
        if name in self.summaries(splits) or (self.settings.file_format == "yolo" and _CACHE.fullmatch(name)):
            return True
        folder, _, file = name.rpartition("/")
        if folder == EXPORTING:
            return any(name == block.name for block in blocks)
        kinds = [kind for kind in self.suffixes for split in splits if folder == self.folder(kind, split)]
        return any(re.fullmatch(rf"\d{{9,}}\.{self.suffixes[kind]}", file) for kind in kinds)


def write_pictures(
    store: Store,
    out: Path,
    start: dict[str, Any],
    settings: ExportSettings,
    blocks: list[ExportFile],
    before: dict[str, Any],
    workers: int,
) -> tuple[list[ExportFile], dict[str, Any]]:
    """Write the blocks that are missing, then the files made of all blocks.

    `start` is what `export.json` begins with, `before` what it holds. Returns the blocks that were written, and the
    entries `files` and `blocks` of the finished `export.json`, which is left complete if nothing was missing.
    """
    files, splits = PictureFiles(settings), list(dict.fromkeys(block.split for block in blocks))
    summaries = {
        name: noted
        for name, noted in before.get("files", {}).items()
        if (out / name).is_file() and (out / name).stat().st_size == noted["bytes"]
    }
    lost = [name for name in files.summaries(splits) if name not in summaries]
    trusted: dict[str, BlockSummary] = {
        block.name: before["blocks"][block.name]
        for block in blocks
        if block.name in before.get("blocks", {}) and f"{block.split}/{coco.LABELS_JSON}" not in lost
    }
    for block in blocks:
        if (out / block.name).is_file():
            trusted[block.name] = _summary(_read_record(out, block))
    trusted = {
        block.name: trusted[block.name]
        for block in blocks
        if block.name in trusted and _bytes_on_disk(store, out, block, files) == trusted[block.name]["bytes"]
    }
    missing = [block for block in blocks if block.name not in trusted]
    if missing or lost:
        _check_space(store, out, files, missing)
        write_json(out / EXPORT_JSON, start | {"complete": False, "files": summaries, "blocks": trusted})
        _write_blocks(store, out, settings, blocks, missing, workers)
        trusted |= {block.name: _summary(_read_record(out, block)) for block in missing}
        for name in lost:
            _write_summary(store, out, name, settings, splits, blocks)
    written = {name: {"bytes": (out / name).stat().st_size} for name in files.summaries(splits)}
    return missing, {"files": written, "blocks": {block.name: trusted[block.name] for block in blocks}}


def forget_records(out: Path) -> None:
    """Remove the records of a finished export."""
    shutil.rmtree(out / EXPORTING, ignore_errors=True)


def _write_blocks(
    store: Store,
    out: Path,
    settings: ExportSettings,
    blocks: list[ExportFile],
    missing: list[ExportFile],
    workers: int,
) -> None:
    files = PictureFiles(settings)
    for block in missing:  # their files may be damaged, and are about to be replaced
        (out / block.name).unlink(missing_ok=True)
    for folder in {Path(files.folder(kind, block.split)) for kind in files.suffixes for block in blocks}:
        clear_unfinished(out / folder.parent, {folder.name})
    (out / EXPORTING).mkdir(exist_ok=True)
    clear_unfinished(out / EXPORTING, {Path(block.name).name for block in blocks})
    work = [(store.path, store.sha256, out, block, settings) for block in missing]
    total = count_rows(blocks)
    run_blocks(export_block, work, jobs=workers, title="export", total=total, done=total - count_rows(missing))


def export_block(store: Path | str, sha256: str, out: Path, block: ExportFile, settings: ExportSettings) -> int:
    """Write the files of a block, and its record; return its rows."""
    opened = open_store(store, sha256)
    rows = split_rows(store, sha256, block.split)[block.first : block.last]
    files, labels = PictureFiles(settings), InstanceLabels(opened)
    record = BlockRecord(
        rows=len(rows),
        bytes=dict.fromkeys(files.suffixes, 0),
        instances=0,
        tiny_instances=0,
        rows_without=0,
        images=[],
        annotations=[],
    )
    with ExitStack() as stack:
        places = {
            kind: stack.enter_context(fill_folder(out / files.folder(kind, block.split))) for kind in files.suffixes
        }
        for row, arrays in read_rows(opened, rows):
            for kind, code in _encode_row(row, arrays, opened.size, labels, files, record).items():
                path = places[kind] / files.name(kind, row)
                with name_in_errors(path):
                    path.write_bytes(code)
                record["bytes"][kind] += len(code)
    write_bytes(out / block.name, json.dumps(record | {"sha256": _hash(record)}).encode(), apart=True)
    return len(rows)


def _encode_row(
    row: int, arrays: dict[str, np.ndarray], size: int, labels: InstanceLabels, files: PictureFiles, record: BlockRecord
) -> dict[str, bytes]:
    """Return the files of a row by kind, and add the row to the record of its block."""
    settings = files.settings
    codes = {field: encode_picture(field, arrays[field], settings) for field in settings.fields}
    instances = labels.find(row, arrays)
    record["instances"] += len(instances)
    record["tiny_instances"] += sum(instance.area < TINY_PIXELS for instance in instances)
    record["rows_without"] += not instances
    if settings.file_format == "yolo":
        return codes | {"label": yolo.describe_instances(instances, size)}
    names = {kind: f"{Path(files.folder(kind, 'train')).name}/{files.name(kind, row)}" for kind in codes}
    record["images"].append(coco.describe_image(labels, row, size, names))
    record["annotations"] += [coco.describe_instance(row, instance) for instance in instances]
    return codes


def _write_summary(
    store: Store, out: Path, name: str, settings: ExportSettings, splits: Sequence[str], blocks: list[ExportFile]
) -> None:
    if settings.file_format == "yolo":
        yolo.write_data_yaml(out / name, splits, InstanceLabels(store).classes)
        return
    split = name.partition("/")[0]

    def records() -> Iterator[BlockRecord]:
        return (_read_record(out, block) for block in blocks if block.split == split)

    coco.write_labels(out / name, store, split, settings.units, records)


def _read_record(out: Path, block: ExportFile) -> BlockRecord:
    remedy = "remove it and export again"
    record = read_as(BlockRecord, out / block.name, remedy)
    if record.pop("sha256", None) != _hash(record):  # type: ignore[typeddict-item]
        raise DamagedError(out / block.name, "damaged, its content differs from the hash in it", remedy)
    return record


def _hash(record: BlockRecord) -> str:
    return hashlib.sha256(json.dumps(record).encode()).hexdigest()


def _summary(record: BlockRecord) -> BlockSummary:
    names = BlockSummary.__annotations__
    return BlockSummary(**{name: value for name, value in record.items() if name in names})  # type: ignore[typeddict-item]


def _bytes_on_disk(store: Store, out: Path, block: ExportFile, files: PictureFiles) -> dict[str, int] | None:
    """Return the bytes of a block's files by kind, None if one of them is missing."""
    rows = split_rows(store.path, store.sha256, block.split)[block.first : block.last].tolist()
    try:
        return {
            kind: sum(
                os.stat(f"{out}/{files.folder(kind, block.split)}/{files.name(kind, row)}").st_size for row in rows
            )
            for kind in files.suffixes
        }
    except FileNotFoundError:
        return None


def _check_space(store: Store, out: Path, files: PictureFiles, missing: list[ExportFile]) -> None:
    """Raise `DsgenError` unless the disk has space for the rows that are missing, estimated from a few of them."""
    if not missing:
        return
    rows = np.concatenate(
        [split_rows(store.path, store.sha256, block.split)[block.first : block.last] for block in missing]
    )
    some = rows[np.linspace(0, len(rows) - 1, min(len(rows), _SPACE_ROWS)).astype(int)]
    record = BlockRecord(rows=0, bytes={}, instances=0, tiny_instances=0, rows_without=0, images=[], annotations=[])
    labels, blocks_per_row = InstanceLabels(store), 0.0
    for row, arrays in read_rows(store, np.unique(some)):
        codes = _encode_row(row, arrays, store.size, labels, files, record)
        blocks_per_row += sum(-(-len(code) // _DISK_BLOCK_BYTES) for code in codes.values()) / len(np.unique(some))
    # labels.json, and the records that it is made of
    nbytes = len(rows) * (blocks_per_row * _DISK_BLOCK_BYTES + 2 * len(json.dumps(record)) / len(np.unique(some)))
    remedy = "free some space, choose another folder, or export one --split"
    free = shutil.disk_usage(out).free
    if nbytes > free:
        reason = f"{len(rows):,} rows need about {nbytes / 1e9:.1f} GB, {free / 1e9:.1f} GB are free"
        raise DsgenError(out, reason, remedy if files.settings.image_format == "jpeg" else f"{remedy}, or as jpeg")
    count = len(rows) * len(files.suffixes)
    free_files = os.statvfs(out).f_favail if hasattr(os, "statvfs") else 0
    if 0 < free_files < count:
        reason = f"{count:,} files needed, the file system has space for {free_files:,}"
        raise DsgenError(out, reason, "choose another folder, or export as webdataset or parquet")
