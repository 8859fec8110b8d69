"""Export a store: divide it into files, write those that are missing, and note what was written."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsgen import __version__
from dsgen.errors import InvalidValueError
from dsgen.io.atomic import clear_unfinished, write_bytes, write_file, write_json
from dsgen.parallel.locks import exclusive_lock
from dsgen.parallel.pool import run_blocks, worker_count
from dsgen.store.export.cards import write_card
from dsgen.store.export.coco import import_masks
from dsgen.store.export.hub import HubRepository
from dsgen.store.export.parquet import import_parquet, write_parquet
from dsgen.store.export.pictures import PictureFiles, forget_records, write_pictures
from dsgen.store.export.plan import (
    CARD,
    EXPORT_JSON,
    FORMATS,
    IMAGE_SUFFIXES,
    PICTURE_FORMATS,
    ExportFile,
    ExportSettings,
    check_choice,
    check_out,
    choose_fields,
    choose_splits,
    count_rows,
    divide,
    is_complete,
    read_export,
)
from dsgen.store.export.samples import encode_samples, open_store, split_rows
from dsgen.store.export.webdataset import write_tar
from dsgen.store.reader import Store

VERSION = 1


@dataclass(frozen=True)
class ExportResult:
    """What a run of `export_store` did, and the export it left."""

    out: str
    """The folder."""
    format: str
    """`webdataset`, `parquet`, `coco` or `yolo`."""
    rows: int
    """Rows of the whole export."""
    files: int
    """Files of the whole export but for its card and index."""
    exported: int
    """Rows that this run wrote."""
    already_there: int
    """Rows that earlier runs wrote."""
    bytes: int
    """Bytes of all files."""
    splits: dict[str, int]
    """Rows of every split that was exported."""
    instances: int | None = None
    """Labelled instances, for `coco` and `yolo`."""
    tiny_instances: int | None = None
    """How many of them have fewer than 16 pixels."""
    rows_without: int | None = None
    """Rows without any visible instance."""
    url: str | None = None
    """The address of the repository it was uploaded to."""
    private: bool | None = None
    """Whether that repository is private."""


def export_store(
    store: Path | str,
    out: Path,
    file_format: str = "webdataset",
    *,
    split: str | None = None,
    image_format: str = "png",
    backgrounds: bool = False,
    rows_per_file: int = 1000,
    jobs: int | None = None,
    push_to_hub: str | None = None,
    private: bool = True,
) -> ExportResult:
    """Write a store as `webdataset`, `parquet`, `coco` or `yolo` files; resume if some of them exist already.

    `coco` and `yolo` have a file for every picture, and labels of its instances. Of them, `rows_per_file` is the number
    of rows that are written together, and that a run which was killed may write again.

    `split` is train, validation, test or unused, or `all` four; by default the first three are exported.
    `image_format` is `png`, lossless, or `jpeg`. `backgrounds` adds the background to every sample: one more image a
    sample in a tar file; in parquet an image that repeats within a hundred rows costs nothing. `coco` and `yolo` have
    none.

    `push_to_hub` is a dataset repository of the Hugging Face hub, OWNER/NAME, that the finished folder is uploaded to;
    `parquet` only. It is made if it does not exist. What is there already is not uploaded again.

    Raises `InvalidValueError` for a bad option, a folder that holds other files, and a store without masks that is to
    be `coco` or `yolo`; `ConflictError` for an export of another store or with other settings; `MissingPackageError`
    for `parquet` without pyarrow, `coco` without pycocotools, and an upload without huggingface_hub; `DsgenError` if
    the hub refuses or cannot be reached.

    >>> result = export_store("shards", Path("out"), "parquet", split="train")  # doctest: +SKIP
    >>> result.rows, result.files  # doctest: +SKIP
    (320000, 320)
    """
    workers = worker_count(jobs)
    check_choice("--format", file_format, FORMATS)
    check_choice("--image-format", image_format, IMAGE_SUFFIXES)
    if rows_per_file < 1:
        raise InvalidValueError.expected("rows_per_file", rows_per_file, "1 or more", "leave it out for 1000")
    if file_format == "parquet":
        import_parquet()
    elif file_format == "coco":
        import_masks()
    if push_to_hub is not None and file_format != "parquet":
        raise InvalidValueError("--push-to-hub", f"not with --format {file_format}", "add --format parquet")
    repository = None if push_to_hub is None else HubRepository(push_to_hub, private=private)
    opened = Store(store)
    fields = choose_fields(opened, file_format, backgrounds)
    settings = ExportSettings(file_format, fields, image_format, opened.people > 0)
    splits = choose_splits(opened, split)
    made_from: dict[str, Any] = {
        "store_sha256": opened.sha256,
        "format": file_format,
        "splits": splits,
        "image_format": image_format,
        "backgrounds": backgrounds,
        "rows_per_file": rows_per_file,
    }
    if file_format == "webdataset" and "depth" in settings.fields:
        made_from["depth"] = settings.suffix("depth")
    files = [file for name in splits for file in divide(name, opened.splits[name], rows_per_file, file_format)]
    if file_format in PICTURE_FORMATS:
        pictures = PictureFiles(settings)
        check_out(out, made_from, lambda name: pictures.has(name, splits, files))
    else:
        names = {file.name for file in files}
        check_out(out, made_from, names.__contains__)
        if repository is not None:
            repository.prepare(names)
    with exclusive_lock(out):
        write = _write_picture_files if file_format in PICTURE_FORMATS else _write_missing
        missing, written = write(opened, out, made_from, settings, files, workers)
        if repository is not None:
            repository.upload(out)
    blocks = written.get("blocks", {}).values()
    counted = {
        name: sum(block[name] for block in blocks) if file_format in PICTURE_FORMATS else None
        for name in ("instances", "tiny_instances", "rows_without")
    }
    return ExportResult(
        out=str(out),
        format=file_format,
        rows=count_rows(files),
        files=len(written["files"]) + sum(block["rows"] * len(block["bytes"]) for block in blocks),
        exported=count_rows(missing),
        already_there=count_rows(files) - count_rows(missing),
        bytes=sum(file["bytes"] for file in written["files"].values())
        + sum(sum(block["bytes"].values()) for block in blocks),
        splits={name: opened.splits[name] for name in splits},
        url=None if repository is None else repository.url,
        private=None if repository is None else private,
        **counted,
    )


def _write_missing(
    store: Store,
    out: Path,
    made_from: dict[str, Any],
    settings: ExportSettings,
    files: list[ExportFile],
    workers: int,
) -> tuple[list[ExportFile], dict[str, Any]]:
    """Write the files that are missing or cut short, then card and index.

    Returns those files, and the entry `files` of the index.
    """
    before = read_export(out)
    missing = [file for file in files if not is_complete(out, file, before)]
    if not missing and before.get("complete"):
        return missing, {"files": _describe_files(out, files)}
    for file in missing:  # as long as the index still says what size it should have
        (out / file.name).unlink(missing_ok=True)
    for folder in {(out / file.name).parent for file in files}:  # of processes that were killed
        clear_unfinished(folder, {Path(file.name).name for file in files})
    write_json(out / EXPORT_JSON, {"format": VERSION, "complete": False, "made_from": made_from})
    blocks = [(store.path, store.sha256, out, file, settings) for file in missing]
    total = count_rows(files)
    run_blocks(export_file, blocks, jobs=workers, title="export", total=total, done=total - count_rows(missing))
    written = {"files": _describe_files(out, files)}
    index = _start_index(store, made_from, settings, files) | written
    for split, about in index["splits"].items():
        own = [file for file in files if file.split == split]
        about["files"] = own[0].name.replace("00000", f"{{00000..{len(own) - 1:05d}}}", 1)
    _write_card_and_index(store, out, settings, index)
    return missing, written


def _write_picture_files(
    store: Store,
    out: Path,
    made_from: dict[str, Any],
    settings: ExportSettings,
    blocks: list[ExportFile],
    workers: int,
) -> tuple[list[ExportFile], dict[str, Any]]:
    """Write the blocks of picture files that are missing, then card and index.

    Returns those blocks, and the entries `files` and `blocks` of the index.
    """
    before, start = read_export(out), {"format": VERSION, "complete": False, "made_from": made_from}
    missing, written = write_pictures(store, out, start, settings, blocks, before, workers)
    if not read_export(out).get("complete"):  # it stays so where nothing was missing
        _write_card_and_index(store, out, settings, _start_index(store, made_from, settings, blocks) | written)
    forget_records(out)
    return missing, written


def _write_card_and_index(store: Store, out: Path, settings: ExportSettings, index: dict[str, Any]) -> None:
    if not (out / CARD).exists():  # users write their licence into it
        write_bytes(out / CARD, write_card(store, index, settings).encode())
    write_json(out / EXPORT_JSON, index)


def export_file(store: Path | str, sha256: str, out: Path, file: ExportFile, settings: ExportSettings) -> int:
    """Write one file of an export; return its rows."""
    opened = open_store(store, sha256)
    rows = split_rows(store, sha256, file.split)[file.first : file.last]
    write = write_tar if settings.file_format == "webdataset" else write_parquet
    (out / file.name).parent.mkdir(exist_ok=True)
    with write_file(out / file.name, apart=True) as stream:
        write(stream, encode_samples(opened, rows, settings), settings)
    return len(rows)


def _describe_files(out: Path, files: list[ExportFile]) -> dict[str, dict[str, Any]]:
    """Return split, rows and bytes of tar or parquet files."""
    return {
        file.name: {"split": file.split, "rows": file.rows, "bytes": (out / file.name).stat().st_size} for file in files
    }


def _start_index(
    store: Store, made_from: dict[str, Any], settings: ExportSettings, files: list[ExportFile]
) -> dict[str, Any]:
    """Return what the `export.json` of every complete export begins with."""
    return {
        "format": VERSION,
        "dsgen": __version__,
        "complete": True,
        "made_from": made_from,
        "rows": count_rows(files),
        "size": store.size,
        "splits": {
            split: {"rows": count_rows(file for file in files if file.split == split)} for split in made_from["splits"]
        },
        "pictures": {f"{field}.{settings.suffix(field)}": settings.describe(field) for field in settings.fields},
        "units": settings.units,
        "depth": store.index.get("depth"),
    }
