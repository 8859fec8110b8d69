"""Write a store out for other tools: WebDataset tar files, or a folder for Hugging Face `datasets` (parquet).

Rows go split by split, in the order of the plan. A file holds up to `rows_per_file` of them, is a pure function of
the store, the rows and the settings, is streamed to its place and appears there whole or not at all: what has its
name is not written again. `export.json` says what the folder is made from before anything else is there, and that it
is `complete`, with every file's rows and bytes, when everything is.

    webdataset    train-00000-of-00003.tar       000000123.image.png, .mask.png, .depth.png, .json, key = row
    parquet       data/train-00000-of-00003.parquet, README.md       one row each, features in the schema

Images are PNG, lossless, or JPEG of quality 95; masks 8-bit PNG, 0 or 255; depth 16-bit PNG, millimetres, 0 = none.
"""

import io
import json
import os
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from dsgen import __version__
from dsgen.corpus.plan import DTYPE, SPLITS
from dsgen.errors import (
    ConflictError,
    DamagedError,
    DsgenError,
    InvalidValueError,
    MissingPackageError,
    find_differences,
)
from dsgen.io.atomic import partial_path, write_bytes, write_json
from dsgen.io.images import encode_jpeg, encode_png
from dsgen.io.json_files import read_json
from dsgen.parallel.locks import LOCK, exclusive_lock
from dsgen.parallel.pool import run_blocks, worker_count
from dsgen.store.reader import Store

EXPORT = "export.json"
CARD = "README.md"
VERSION = 1
_SUFFIXES = {"webdataset": "tar", "parquet": "parquet"}
_IMAGE_SUFFIXES = {"png": "png", "jpeg": "jpg"}
_JPEG_QUALITY = 95
_ROW_GROUP = 100  # rows of parquet that are held at once, here and by readers
_DICTIONARY_BYTES = 2**30
_COLUMN_NAMES = {"background": "background_number"}  # as in the store, where `background` is a picture


@dataclass(frozen=True)
class _Settings:
    """What the bytes of a file depend on beside the store and its rows."""

    file_format: str
    pictures: tuple[str, ...]
    image_format: str

    @property
    def units(self) -> dict[str, str]:
        """Say in what the numbers are."""
        units = {"depth": "millimetre", "top": "pixel", "left": "pixel"}
        return units if "depth" in self.pictures else {name: units[name] for name in ("top", "left")}

    def suffix(self, picture: str) -> str:
        """Return how the name of an encoded picture ends, without dot."""
        return _IMAGE_SUFFIXES[self.image_format] if picture in ("image", "background") else "png"


@dataclass(frozen=True)
class _File:
    """A file to write: rows `first` to `last`, exclusive, counted within the split."""

    name: str
    split: str
    first: int
    last: int


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
) -> dict[str, Any]:
    """Write a store as `webdataset` or `parquet` files, or go on with them, and return the counts.

    `split` is train, validation, test or unused, or `all` four; unless given it is the first three. `image_format` is
    `png`, lossless, or `jpeg`. With `backgrounds` every sample has its background: one more picture a sample in a tar
    file; in parquet a picture that comes again within a hundred rows costs nothing.
    Raises `DsgenError` for a folder that holds anything else, or an export of another store or with other settings.
    """
    workers = worker_count(jobs)
    _check_choice("--format", file_format, _SUFFIXES)
    _check_choice("--image-format", image_format, _IMAGE_SUFFIXES)
    if rows_per_file < 1:
        raise InvalidValueError("--rows-per-file", f"got {rows_per_file}, expected 1 or more", "leave it out for 1000")
    if file_format == "parquet":
        _import_parquet()
    opened = Store(store)
    settings = _Settings(file_format, _choose_pictures(opened, backgrounds), image_format)
    splits = _choose_splits(opened, split)
    made_from = {
        "store_sha256": opened.sha256,
        "format": file_format,
        "splits": splits,
        "image_format": image_format,
        "backgrounds": backgrounds,
        "rows_per_file": rows_per_file,
    }
    files = [file for name in splits for file in _divide(name, opened.splits[name], rows_per_file, file_format)]
    _check_out(out, made_from, files)
    with exclusive_lock(out):
        before = read_json(out / EXPORT) if (out / EXPORT).exists() else {}
        missing = [file for file in files if not _is_whole(out, file, before)]
        if missing or not before.get("complete"):
            for file in missing:  # while it is still noted how long it should be
                (out / file.name).unlink(missing_ok=True)
            write_json(out / EXPORT, {"format": VERSION, "complete": False, "made_from": made_from})
            blocks = [(opened.path, opened.sha256, out, file, settings) for file in missing]
            total, lacking = _count(files), _count(missing)
            run_blocks(export_file, blocks, jobs=workers, title="export", total=total, done=total - lacking)
            index = _make_index(opened, out, made_from, settings, files)
            if file_format == "parquet" and not (out / CARD).exists():  # people write their licence into it
                write_bytes(out / CARD, _card(opened, index, settings).encode())
            write_json(out / EXPORT, index)
    return {
        "out": str(out),
        "format": file_format,
        "rows": _count(files),
        "files": len(files),
        "exported": _count(missing),
        "already_there": _count(files) - _count(missing),
        "bytes": sum((out / file.name).stat().st_size for file in files),
        "splits": {name: opened.splits[name] for name in splits},
    }


def _check_choice(option: str, value: str, choices: Iterable[str]) -> None:
    if value not in choices:
        raise InvalidValueError(option, f"got {value}, expected {' or '.join(choices)}", "choose one of them")


def _choose_pictures(store: Store, backgrounds: bool) -> tuple[str, ...]:
    """Name the pictures of a sample: what the store has of image, mask, depth and, where wanted, background."""
    there = store.read(0, 1)
    if backgrounds and "background" not in there:
        raise InvalidValueError("--backgrounds", f"{store.path} has none", "leave it out")
    wanted = ("image", "mask", "depth", "background") if backgrounds else ("image", "mask", "depth")
    return tuple(name for name in wanted if name in there)


def _choose_splits(store: Store, split: str | None) -> list[str]:
    """Name the splits to write: those that were asked for and have rows."""
    filled = [name for name in SPLITS if store.splits[name]]
    if split not in (None, "all", *filled):
        raise InvalidValueError("--split", f"got {split}, expected one that has rows: {', '.join(filled)}", "or all")
    chosen = [name for name in filled if split in (name, "all") or (split is None and name != "unused")]
    if not chosen:
        raise DamagedError(store.path, "no rows in train, validation or test", "choose --split all")
    return chosen


def _divide(split: str, rows: int, rows_per_file: int, file_format: str) -> list[_File]:
    """Divide the rows of a split into files of the names that WebDataset and Hugging Face expect."""
    count = -(-rows // rows_per_file)
    folder = "data/" if file_format == "parquet" else ""
    return [
        _File(
            f"{folder}{split}-{k:05d}-of-{count:05d}.{_SUFFIXES[file_format]}",
            split,
            k * rows_per_file,
            min((k + 1) * rows_per_file, rows),
        )
        for k in range(count)
    ]


def _count(files: list[_File]) -> int:
    return sum(file.last - file.first for file in files)


def _is_whole(out: Path, file: _File, before: dict[str, Any]) -> bool:
    """Say whether a file is there, of the size that a finished export noted."""
    path = out / file.name
    noted = before.get("files", {}).get(file.name)
    return path.is_file() and (noted is None or path.stat().st_size == noted["bytes"])


def _check_out(out: Path, made_from: dict[str, Any], files: list[_File]) -> None:
    """Refuse a folder that is something else, and an export made from anything else."""
    if out.exists() and not out.is_dir():
        raise DsgenError(out, "a file, expected a folder or nothing", "choose another name")
    if not out.is_dir():
        return
    if (out / EXPORT).is_file():
        was = read_json(out / EXPORT).get("made_from", {})
        differences = find_differences(made_from, was)
        if differences:
            reason = "exported from another store or with other settings"
            remedy = "use the same, or another folder, or remove this one"
            raise ConflictError(out, reason, remedy, differences, "export")
        known = {LOCK, EXPORT, CARD, *(file.name for file in files)}
    else:
        known = {LOCK}
    known |= {partial_path(Path(name)).as_posix() for name in (EXPORT, *known)}
    there = sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if not path.is_dir())
    others = [name for name in there if name not in known]
    if others:
        raise DsgenError(out, f"holds other files ({', '.join(others[:5])})", "choose another name")


@lru_cache(maxsize=1)
def _open(path: Path | str, _sha256: str) -> Store:
    return Store(path)


@lru_cache(maxsize=1)
def _split_rows(path: Path | str, sha256: str, split: str) -> np.ndarray:
    return np.flatnonzero(_open(path, sha256).plan["split"] == SPLITS.index(split))


def export_file(store: Path | str, sha256: str, out: Path, file: _File, settings: _Settings) -> int:
    """Write one file of an export; return its rows."""
    opened = _open(store, sha256)
    rows = _split_rows(store, sha256, file.split)[file.first : file.last]
    write = _write_tar if settings.file_format == "webdataset" else _write_parquet
    with _write_file(out / file.name) as stream:
        write(stream, _samples(opened, rows, settings), settings)
    return len(rows)


@contextmanager
def _write_file(path: Path) -> Iterator[BinaryIO]:
    """Yield a file to write to; it takes its final name when the block ends well."""
    path.parent.mkdir(exist_ok=True)
    unfinished = partial_path(path)
    try:
        with unfinished.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


def _samples(store: Store, rows: np.ndarray, settings: _Settings) -> Iterator[tuple[dict[str, Any], dict[str, bytes]]]:
    """Yield the columns and the encoded pictures of every row, in order, reading a chunk of the store at a time."""
    background, code = np.empty(0), b""
    for first, last, chosen in _runs(store, rows):
        samples = store.read(first, last)
        for row in chosen.tolist():
            pictures = {}
            for name in settings.pictures:
                picture = samples[name][row - first]
                if name == "background":
                    if not np.array_equal(picture, background):
                        background, code = picture, _encode(name, picture, settings)
                    pictures[name] = code
                else:
                    pictures[name] = _encode(name, picture, settings)
            yield _columns(store, row), pictures


def _runs(store: Store, rows: np.ndarray) -> Iterator[tuple[int, int, np.ndarray]]:
    """Divide ascending rows by the chunk they are in; yield the range to read, last exclusive, and its rows."""
    shards = np.searchsorted(store.first_rows, rows, side="right") - 1
    chunks = (rows - store.first_rows[shards]) // store.shards[0].chunk
    edges = np.flatnonzero((np.diff(shards) != 0) | (np.diff(chunks) != 0)) + 1
    for chosen in np.split(rows, edges):
        yield int(chosen[0]), int(chosen[-1]) + 1, chosen


def _columns(store: Store, row: int) -> dict[str, Any]:
    """Return a row's number and what the plan says of it, named as in the store, the split by name."""
    values = dict(zip(DTYPE.names or (), store.plan[row].item(), strict=True))
    columns = {_COLUMN_NAMES.get(name, name): value for name, value in values.items()}
    return {"row": row} | columns | {"split": SPLITS[columns["split"]]}


def _encode(name: str, picture: np.ndarray, settings: _Settings) -> bytes:
    if name in ("image", "background") and settings.image_format == "jpeg":
        return encode_jpeg(picture, _JPEG_QUALITY)
    return encode_png(picture, runs=name == "mask")


def _write_tar(
    stream: BinaryIO, samples: Iterator[tuple[dict[str, Any], dict[str, bytes]]], settings: _Settings
) -> None:
    """Write samples as WebDataset has them: files of one key in a row, nothing that depends on time or user."""
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for columns, pictures in samples:
            members = {f"{name}.{settings.suffix(name)}": code for name, code in pictures.items()}
            members["json"] = json.dumps(columns | {"units": settings.units}).encode()
            for name, content in members.items():
                member = tarfile.TarInfo(f"{columns['row']:09d}.{name}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))


def _import_parquet() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingPackageError("pyarrow", "not installed", "pip install 'dsgen[parquet]'") from error
    return pyarrow, pyarrow.parquet


def _write_parquet(
    stream: BinaryIO, samples: Iterator[tuple[dict[str, Any], dict[str, bytes]]], settings: _Settings
) -> None:
    """Write samples as parquet, with the features of Hugging Face `datasets` in the schema."""
    pyarrow, parquet = _import_parquet()
    picture = pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()})
    types = {name: picture if kind == "Image" else getattr(pyarrow, kind)() for name, kind in _kinds(settings).items()}
    features = {
        name: {"_type": "Image"} if kind == "Image" else {"dtype": kind, "_type": "Value"}
        for name, kind in _kinds(settings).items()
    }
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    schema = pyarrow.schema(list(types.items()), metadata=metadata)
    plain = [name for name, kind in _kinds(settings).items() if kind != "Image"]
    with parquet.ParquetWriter(
        stream,
        schema,
        compression="none",  # what weighs anything is compressed already
        # a dictionary holds a background once a row group; the other pictures never come twice
        use_dictionary=[*plain, "background.bytes"],
        dictionary_pagesize_limit=_DICTIONARY_BYTES,
        write_statistics=plain,
    ) as writer:
        while group := list(islice(samples, _ROW_GROUP)):
            rows = [{name: {"bytes": code} for name, code in pictures.items()} | columns for columns, pictures in group]
            writer.write_table(pyarrow.Table.from_pylist(rows, schema), row_group_size=_ROW_GROUP)


def _kinds(settings: _Settings) -> dict[str, str]:
    """Say what every column of a table is: `Image`, or the name that Arrow and `datasets` have for its type."""
    numbers = {_COLUMN_NAMES.get(name, name): DTYPE[name].name for name in DTYPE.names or ()}
    return dict.fromkeys(settings.pictures, "Image") | {"row": "int64"} | numbers | {"split": "string"}


def _make_index(
    store: Store, out: Path, made_from: dict[str, Any], settings: _Settings, files: list[_File]
) -> dict[str, Any]:
    index: dict[str, Any] = {
        "format": VERSION,
        "dsgen": __version__,
        "complete": True,
        "made_from": made_from,
        "rows": _count(files),
        "size": store.size,
        "splits": {},
        "pictures": {f"{name}.{settings.suffix(name)}": _about(name, settings) for name in settings.pictures},
        "units": settings.units,
        "depth": store.index.get("depth"),
        "files": {
            file.name: {
                "split": file.split,
                "rows": file.last - file.first,
                "bytes": (out / file.name).stat().st_size,
            }
            for file in files
        },
    }
    for split in made_from["splits"]:
        own = [file for file in files if file.split == split]
        brace = f"{{00000..{len(own) - 1:05d}}}"
        index["splits"][split] = {"rows": _count(own), "files": own[0].name.replace("00000", brace, 1)}
    return index


def _about(picture: str, settings: _Settings) -> str:
    """Describe a picture of a sample."""
    coded = "PNG, lossless" if settings.image_format == "png" else f"JPEG, quality {_JPEG_QUALITY}"
    return {
        "image": f"composite, RGB, 8 bits, {coded}",
        "mask": "mask of the foreground, grey PNG, 8 bits, 0 or 255",
        "depth": (
            "planar depth, grey PNG, 16 bits, millimetres, 0 = none; decode it by itself, decoders of "
            "colour pictures keep 8 bits of it"
        ),
        "background": f"the background alone, RGB, 8 bits, {coded}",
    }[picture]


_SOURCES = ["background", "foreground"]
_TASKS = {"mask": "image-segmentation", "depth": "depth-estimation"}
_ABOUT_COLUMNS = {
    "row": "row of the corpus' plan, the same in every export of it",
    "background_number": "background, as numbered in the corpus from 0",
    "foreground": "foreground, as numbered in the corpus from 0",
    "flip": "1 where the foreground is mirrored",
    "position": "number of the place among those of this pair",
    "top": "first row of the foreground, in pixels",
    "left": "first column of the foreground, in pixels",
    "split": "train, validation, test or unused",
}
_CARD = """---
license: other
license_name: that-of-the-source-pictures
task_categories:{tasks}
tags:
  - synthetic
configs:
  - config_name: default
    data_files:
{configured}
---

# Composites with labels

Foregrounds pasted on backgrounds, {size}x{size} pixels, exported by dsgen {version} from the store whose `index.json`
has the SHA-256 {sha256}.

| split | rows |
|---|---|
{splits}
{held_out}
| column | type | what |
|---|---|---|
{features}
{depth}
## Licence

That of the backgrounds and foregrounds the composites are made of; name it here before passing them on. Those bundled
with dsgen are CC0, CC BY 3.0 and Apache-2.0: passing on composites of them requires the attribution in dsgen's
`assets/ATTRIBUTION.md`.
"""
_HELD_OUT_CARD = """
Train, validation and test share neither backgrounds nor foregrounds.
"""
_DEPTH_CARD = """
Depth decodes to whole numbers of millimetres, so that metres are `numpy.asarray(sample["depth"]) / 1000` where it is
not 0.{origin}
"""


def _card(store: Store, index: dict[str, Any], settings: _Settings) -> str:
    """Write the dataset card that Hugging Face shows, and that `datasets` reads the splits from."""
    kinds = _kinds(settings)
    about = {name: _about(name, settings) for name in settings.pictures} | _ABOUT_COLUMNS
    tasks = [task for name, task in _TASKS.items() if name in kinds]
    model = (store.index.get("depth") or {}).get("model")
    origin = f" It was not measured but estimated, by {model}." if model else ""
    return _CARD.format(
        tasks="".join(f"\n  - {task}" for task in tasks) or " []",
        configured="\n".join(
            f"      - split: {split}\n        path: data/{split}-*.parquet" for split in index["splits"]
        ),
        size=store.size,
        version=__version__,
        sha256=store.sha256,
        splits="\n".join(f"| {split} | {part['rows']:,} |" for split, part in index["splits"].items()),
        held_out=_HELD_OUT_CARD if _are_held_out(store.plan) else "",
        features="\n".join(f"| `{name}` | {kind} | {about[name]} |" for name, kind in kinds.items()),
        depth=_DEPTH_CARD.format(origin=origin) if "depth" in kinds else "",
    )


def _are_held_out(plan: np.ndarray) -> bool:
    """Say whether no background and no foreground is in two of train, validation and test."""
    used = plan[plan["split"] != SPLITS.index("unused")]
    return all(len(np.unique(used[[name, "split"]])) == len(np.unique(used[name])) for name in _SOURCES)
