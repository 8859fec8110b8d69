"""What an export writes: its settings, and the files that the rows of a store are divided into."""

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NotRequired

from annotated_types import Ge
from typing_extensions import TypedDict

from dsgen.corpus.plan import DTYPE, SPLITS
from dsgen.errors import ConflictError, DamagedError, InvalidValueError, find_differences
from dsgen.io.atomic import final_name
from dsgen.io.json_files import read_as
from dsgen.parallel.locks import LOCK
from dsgen.store.reader import Store

EXPORT_JSON = "export.json"
CARD = "README.md"
EXPORTING = "exporting"  # the records of an unfinished export of picture files
PICTURE_FORMATS = ("coco", "yolo")  # every picture is a file; a block of rows has a record in place of a file
FORMATS = ("webdataset", "parquet", *PICTURE_FORMATS)
_NAMES = {"webdataset": "{}.tar", "parquet": "data/{}.parquet"} | dict.fromkeys(
    PICTURE_FORMATS, f"{EXPORTING}/{{}}.json"
)
IMAGE_SUFFIXES = {"png": "png", "jpeg": "jpg"}
# of depth in a tar file: webdataset's picture decoders take every .png and keep 8 bits of it; this one they leave alone
DEPTH_SUFFIX = "npy.gz"
JPEG_QUALITY = 95
# of a person: number in `instance`, cut-out, mirrored or not, left, top, width, height in view in pixels, and distance
PEOPLE = {"instance": "uint8", "foreground": "uint32", "flip": "uint8", "box": "uint16", "distance_m": "float32"}
COLUMN_NAMES = {"background": "background_number"}  # as in the store, where `background` is an array of images


_Count = Annotated[int, Ge(0)]


class _ExportedFile(TypedDict):
    bytes: _Count


class BlockSummary(TypedDict):
    """What a block of picture files holds: rows, bytes by kind of file, and the instances in its rows."""

    rows: _Count
    bytes: dict[str, _Count]
    instances: _Count
    tiny_instances: _Count
    rows_without: _Count


class _Export(TypedDict):
    """`export.json`; while the export is unfinished it has neither files nor blocks but those still to be trusted."""

    complete: NotRequired[bool]
    made_from: NotRequired[dict[str, Any]]
    files: NotRequired[dict[str, _ExportedFile]]
    blocks: NotRequired[dict[str, BlockSummary]]


@dataclass(frozen=True)
class ExportSettings:
    """What the bytes of a file depend on besides the store and its rows.

    `fields` are the images of a sample; `people` says that rows have a list of people.
    """

    file_format: str
    fields: tuple[str, ...]
    image_format: str
    people: bool = False

    @property
    def units(self) -> dict[str, str]:
        """The units of the numbers."""
        depth = {"depth": "millimetre"} if "depth" in self.fields else {}
        if self.file_format in PICTURE_FORMATS:
            return depth | ({"distance_m": "metre"} if self.file_format == "coco" else {})
        people = {"box": "pixel", "distance_m": "metre"} if self.people else {}
        return depth | {"top": "pixel", "left": "pixel"} | people

    def suffix(self, field: str) -> str:
        """Return the extension of an encoded image, without the dot."""
        if field == "depth" and self.file_format == "webdataset":
            return DEPTH_SUFFIX
        return IMAGE_SUFFIXES[self.image_format] if field in ("image", "background") else "png"

    @property
    def kinds(self) -> dict[str, str]:
        """The type of every column of a table: `Image`, or a name that both Arrow and `datasets` know."""
        numbers = {COLUMN_NAMES.get(name, name): DTYPE[name].name for name in DTYPE.names or ()}
        kinds = dict.fromkeys(self.fields, "Image") | {"row": "int64"} | numbers | {"split": "string"}
        return kinds | {"people": "People"} if self.people else kinds

    def describe(self, field: str) -> str:
        """Describe an image of a sample."""
        encoding = "PNG, lossless" if self.image_format == "png" else f"JPEG, quality {JPEG_QUALITY}"
        return {
            "image": f"composite, RGB, 8 bits, {encoding}",
            "mask": "mask of the foreground, grey PNG, 8 bits, 0 or 255",
            "instance": "number of the person or thing that is seen, grey PNG, 8 bits, 0 = none",
            "depth": (
                "planar depth, gzipped npy, uint16, millimetres, 0 = none"
                if self.file_format == "webdataset"
                else "planar depth, grey PNG, 16 bits, millimetres, 0 = none"
            ),
            "background": f"the background alone, RGB, 8 bits, {encoding}",
        }[field]


@dataclass(frozen=True)
class ExportFile:
    """A file to write: rows `first` to `last`, exclusive, counted within the split.

    Of the formats with picture files it is a block of these, and `name` is that of its record.
    """

    name: str
    split: str
    first: int
    last: int

    @property
    def rows(self) -> int:
        """How many rows the file has."""
        return self.last - self.first


def check_choice(option: str, value: str, choices: Iterable[str]) -> None:
    """Raise `InvalidValueError` unless the value is one of the choices."""
    if value not in choices:
        raise InvalidValueError.expected(option, value, " or ".join(choices))


def choose_fields(store: Store, file_format: str, backgrounds: bool) -> tuple[str, ...]:
    """Return the images of a sample: what the store has of image, mask, instance, depth and, if wanted, background.

    In the formats with picture files the labels take the place of the mask, and `yolo` has no depth.
    """
    if file_format in PICTURE_FORMATS:
        _check_for_pictures(store, file_format, backgrounds)
        return ("image", "depth") if file_format == "coco" and "depth" in store.fields else ("image",)
    if backgrounds and "background" not in store.fields:
        raise InvalidValueError("--backgrounds", f"{store.path} has none", "leave it out")
    wanted = ("image", "mask", "instance", "depth", *(("background",) if backgrounds else ()))
    return tuple(name for name in wanted if name in store.fields)


def _check_for_pictures(store: Store, file_format: str, backgrounds: bool) -> None:
    others = " or ".join(name for name in FORMATS if name not in PICTURE_FORMATS)
    if backgrounds:
        raise InvalidValueError(
            "--backgrounds", f"not part of --format {file_format}", f"leave it out, or use {others}"
        )
    if "mask" not in store.fields:
        reason = f"{file_format} has labels of instances, and {store.path} has no masks"
        raise InvalidValueError("--format", reason, f"use {others}")


def choose_splits(store: Store, split: str | None) -> list[str]:
    """Return the splits to write: those that were asked for and have rows."""
    filled = [name for name in SPLITS if store.splits[name]]
    if split not in (None, "all", *filled):
        raise InvalidValueError("--split", f"got {split}, expected one that has rows: {', '.join(filled)}", "or all")
    chosen = [name for name in filled if split in (name, "all") or (split is None and name != "unused")]
    if not chosen:
        raise DamagedError(store.path, "no rows in train, validation or test", "choose --split all")
    return chosen


def divide(split: str, rows: int, rows_per_file: int, file_format: str) -> list[ExportFile]:
    """Divide the rows of a split into files with the names that WebDataset and Hugging Face expect."""
    count = -(-rows // rows_per_file)
    return [
        ExportFile(
            _NAMES[file_format].format(f"{split}-{k:05d}-of-{count:05d}"),
            split,
            k * rows_per_file,
            min((k + 1) * rows_per_file, rows),
        )
        for k in range(count)
    ]


def count_rows(files: Iterable[ExportFile]) -> int:
    """Add up the rows of files."""
    return sum(file.rows for file in files)


def is_complete(out: Path, file: ExportFile, before: dict[str, Any]) -> bool:
    """Say whether a file exists and has the size that a finished export noted in `before`, its `export.json`."""
    path = out / file.name
    noted = before.get("files", {}).get(file.name)
    return path.is_file() and (noted is None or path.stat().st_size == noted["bytes"])


def read_export(out: Path) -> dict[str, Any]:
    """Read the `export.json` of a folder; empty if there is none."""
    path = out / EXPORT_JSON
    return dict(read_as(_Export, path, "remove the folder and export again")) if path.is_file() else {}


def check_out(out: Path, made_from: dict[str, Any], is_known: Callable[[str], bool]) -> None:
    """Refuse a folder that holds anything but an export, and an export of anything else.

    `is_known` says of the relative name of a file whether the export has, or its readers may leave, such a file.
    """
    if out.exists() and not out.is_dir():
        raise InvalidValueError(out, "a file, expected a folder or nothing", "choose another name")
    if not out.is_dir():
        return
    started = False
    if (out / EXPORT_JSON).is_file():
        was = read_export(out).get("made_from", {})
        if "depth" in made_from:
            was = {"depth": "png"} | was  # what earlier versions wrote without a note of it
        differences = find_differences(made_from, was)
        if differences:
            reason = "exported from another store or with other settings"
            remedy = "use the same, choose another folder, or remove this one"
            if [difference.name for difference in differences] == ["depth"]:
                reason = f"exported by an earlier version, whose depth is .depth.{was['depth']}"
                remedy = "remove this folder and export again, or choose another"
            raise ConflictError(out, reason, remedy, differences, "export")
        started = True
    others = sorted(name for name in _list_files(out) if not _belongs(name, started, is_known))
    if others:
        raise InvalidValueError(
            out, f"holds other files ({', '.join(others[:5])})", "move them, or choose another name"
        )


def _list_files(out: Path) -> Iterator[str]:
    """Yield every file below a folder by its relative name; there may be a million."""
    for folder, _, names in os.walk(out):
        below = os.path.relpath(folder, out).replace(os.sep, "/")
        yield from names if below == "." else (f"{below}/{name}" for name in names)


def _belongs(name: str, started: bool, is_known: Callable[[str], bool]) -> bool:
    """Say whether a file below an export's folder is part of it; until it was `started` only its first file is."""
    final = "/".join(map(final_name, name.split("/")))
    return name.startswith(LOCK) or final == EXPORT_JSON or (started and (final == CARD or is_known(final)))
