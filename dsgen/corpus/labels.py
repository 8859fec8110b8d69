"""The schema of a corpus' depth labels, `depth.zarr`: arrays, attributes, and which blocks of rows are labelled.

A group with one of two arrays, and with --check-flip a third:

    depth       (rows,S,S) u2  millimetres, 0 = no label, one scale for all rows; reads as metres by its CF attributes
    relative    (rows,S,S) f4  instead of depth: inverse depth of unknown scale and shift, from a model without metres
    flip_error  (rows,) f4     how far the depth of a row and of its mirror image disagree, NaN = not labelled

A block of rows is one shard, a file written whole or not at all, so the files that exist say which blocks are
labelled. The attribute `complete` turns true once all of them are. Every chunk ends with its CRC-32C, and the attribute
`metadata_sha256` has the SHA-256 of every array's `zarr.json` and of all other attributes but `complete`. Labels of
earlier versions lack that attribute, and flip errors their checksum.
"""

import hashlib
import json
import math
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Literal, NotRequired

import numpy as np
import zarr
from annotated_types import Ge, Gt, Le, MinLen
from typing_extensions import TypedDict
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec

from dsgen import __version__
from dsgen.corpus.chunks import chunk_rows
from dsgen.corpus.manifest import FovDegrees, Sha256
from dsgen.corpus.vouched import named_damage, open_array
from dsgen.errors import ConflictError, DamagedError, Difference, DsgenError, find_differences
from dsgen.io.atomic import write_folder
from dsgen.io.json_files import parse_as
from dsgen.io.regular_files import regular
from dsgen.parallel.parts import Part, select_part

METRIC, INVERSE = "metric", "inverse"  # kinds of labels: metres, or 1 / depth up to an unknown scale and shift
DEPTH, RELATIVE, FLIP_ERROR = "depth", "relative", "flip_error"  # the arrays
COMPOSED, EXACT = "composed", "integers"  # model and precision of labels that no network made
BLOCK_ROWS, BLOCK_BYTES = 480, 2**26  # at most in a block, decoded, but a block has at least one chunk
METADATA_SHA256 = "metadata_sha256"
_ROOT = "zarr.json"
_ATTRIBUTES = "attributes"  # stands for the group's attributes among the names of files in `metadata_sha256`
# the options of what labels depend on, where they are not networks
_OPTIONS = {
    "precision": "--precision",
    "flip_checked": "--check-flip",
    "flip_averaged": "--average-flip",
    "fov_deg": "--fov",
    "fov_from": "--fov",
}
# what attributes that labels of earlier versions lack stand for
_IMPLIED: dict[str, Any] = {
    "kind": METRIC,
    "precision": "auto",
    "flip_checked": False,
    "flip_averaged": False,
    "metric_reference": None,
}
_OF_CAMERA = ("focal_px", "fov_deg", "fov_from")  # only labels of networks with a canonical camera have these

Block = tuple[int, int]  # first row and last row, exclusive

_Size = Annotated[int, Ge(1), Le(2**20)]


class GroupAttributes(TypedDict):
    """The attributes of the group: those of `LabelAttributes`, most of which the oldest labels lack, and four more."""

    model: str
    weights_sha256: str
    kind: NotRequired[Literal["metric", "inverse"]]
    metric_reference: NotRequired[str | None]
    label_size: NotRequired[_Size]
    drawn_size: NotRequired[_Size]
    network_input: NotRequired[list[_Size]]
    precision: NotRequired[str]
    flip_checked: NotRequired[bool]
    flip_averaged: NotRequired[bool]
    units: NotRequired[str]
    focal_px: NotRequired[Annotated[float, Gt(0)]]
    fov_deg: NotRequired[list[FovDegrees]]
    fov_from: NotRequired[dict[str, Annotated[int, Ge(1)]]]
    dsgen: NotRequired[str]
    complete: NotRequired[bool]
    metadata_sha256: NotRequired[dict[str, Sha256]]


class _GroupMetadata(TypedDict):
    zarr_format: Literal[3]
    node_type: Literal["group"]
    attributes: GroupAttributes


class _ArrayMetadata(TypedDict):
    zarr_format: Literal[3]
    node_type: Literal["array"]
    shape: Annotated[list[Annotated[int, Ge(1)]], MinLen(1)]
    data_type: Literal["uint16", "float32"]


@dataclass(frozen=True)
class LabelAttributes:
    """What labels depend on, as stored in the group's attributes; labels are only ever resumed with the same.

    `model` and `weights_sha256` name the network, `kind` what it answers (`METRIC` or `INVERSE`) and
    `metric_reference` the metric network, with its hash, that relative answers were fitted to. Rows were drawn at
    `drawn_size` pixels, `network_input` (height, width) is what the network was fed for a picture of `label_size`.
    `units` is "mm", or "1" for relative labels.

    Of a network with a canonical camera, `focal_px` is that camera's focal length in pixels as fed, `fov_deg` has the
    field of view of every background, and `fov_from` counts where these are from, see `dsgen.io.cameras`.
    """

    model: str
    weights_sha256: str
    kind: str
    metric_reference: str | None
    label_size: int
    drawn_size: int
    network_input: tuple[int, int]
    precision: str
    flip_checked: bool
    flip_averaged: bool
    units: str
    focal_px: float | None = None
    fov_deg: tuple[float, ...] | None = None
    fov_from: dict[str, int] | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the attributes as JSON stores them."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        stored = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
        return {name: value for name, value in stored.items() if value is not None or name not in _OF_CAMERA}


class Labels:
    """The depth labels of a corpus: arrays, attributes, and which blocks of rows are labelled.

    `attributes` are those of the group when it was opened. Missing blocks are looked up on disk at every call, since
    other processes may be labelling.
    """

    def __init__(self, path: Path, rows: int, *, writable: bool = False):
        self.path, self.rows = path, rows
        damaged = find_damaged_metadata(path)
        self.attributes: dict[str, Any] = {} if _ROOT in damaged else dict(_parse_group(path)["attributes"])
        if damaged:
            file, reason = next(iter(damaged.items()))
            raise DamagedError(path / file, reason, self._remedy_of(file))
        with named_damage(path / _ROOT, self._remedy_of(_ROOT)):
            mode: Literal["r", "r+"] = "r+" if writable else "r"
            self._group = zarr.open_group(path, mode=mode, zarr_format=3, use_consolidated=False)

    def _remedy_of(self, file: str) -> str:
        """Return what restores damaged metadata: that of arrays follows from the attributes, if it has hashes."""
        lost = file == _ROOT or not self.vouched
        return f"remove {self.path} and run dsgen depth again" if lost else self._remedy

    @property
    def _remedy(self) -> str:
        return f"run dsgen repair {self.path.parent}"

    @property
    def vouched(self) -> bool:
        """Whether the metadata has hashes; that of labels of earlier versions has none."""
        return METADATA_SHA256 in self.attributes

    @cached_property
    def array_names(self) -> tuple[str, ...]:
        """The names of the arrays, `depth` or `relative` first."""
        found = _array_names(self.path, self.attributes)
        return tuple(name for name in (RELATIVE, DEPTH, FLIP_ERROR) if name in found)

    @cached_property
    def metric(self) -> bool:
        """Whether the labels are metres: the network's own, or fitted to a metric reference."""
        return RELATIVE not in self.array_names

    @cached_property
    def array(self) -> zarr.Array:
        """The labels themselves: `depth`, or `relative`; `read` names what is damaged."""
        return self._open(DEPTH if self.metric else RELATIVE)

    @cached_property
    def flip_error(self) -> zarr.Array | None:
        """The array `flip_error`, or None where it was not measured; `read_flip_errors` names what is damaged."""
        return self._open(FLIP_ERROR) if FLIP_ERROR in self.array_names else None

    def array_blocks(self, name: str) -> list[Block]:
        """List the blocks of rows of an array, each of which is a file."""
        array = self._open(name)
        length = (array.shards or array.chunks)[0]
        return [(start, min(start + length, self.rows)) for start in range(0, self.rows, length)]

    def has_checksums(self, name: str) -> bool:
        """Return whether every chunk of an array carries a checksum; those of earlier versions may not."""
        return any(isinstance(codec, Crc32cCodec) for codec in self._open(name).compressors)

    def read_array(self, name: str, first: int, last: int) -> np.ndarray:
        """Return rows `first` to `last`, exclusive, of an array; raises as `read`."""
        return self._read(self._open(name), first, last)

    def _open(self, name: str) -> zarr.Array:
        """Open an array; raise `DamagedError` unless it has all rows, in blocks of whole pictures."""
        array = open_array(self._group, name, self.path, self._remedy_of(f"{name}/{_ROOT}"))
        shape, block = array.shape, array.shards or array.chunks
        square = len(shape) == 1 if name == FLIP_ERROR else len(shape) == 3 and shape[1] == shape[2]
        whole = block[1:] == array.chunks[1:] == shape[1:]
        chunk, most = array.chunks[0], max(BLOCK_ROWS, self.rows)
        bounded = 1 <= chunk <= block[0] < most + chunk <= 2 * most
        if shape[0] != self.rows or not (square and whole and bounded):
            raise DamagedError(
                self.path / name / _ROOT,
                f"shape {shape} in blocks of {block} and chunks of {array.chunks}, expected {self.rows:,} rows",
                self._remedy_of(f"{name}/{_ROOT}"),
            )
        return array

    def read(self, first: int, last: int) -> np.ndarray:
        """Return the labels (n,S,S) of rows `first` to `last`, exclusive; 0 where unfinished labels have none yet.

        Raises `DamagedError`, naming the file, for a block that cannot be decoded or that finished labels lack.
        """
        return self._read(self.array, first, last)

    def read_rows(self, rows: np.ndarray) -> np.ndarray:
        """Return the labels (n,S,S) of single rows; raises as `read`."""
        return np.concatenate([self.read(row, row + 1) for row in rows.tolist()])

    def read_flip_errors(self) -> np.ndarray | None:
        """Return all flip errors (rows,) f4, NaN where unfinished labels have none yet, or None; raises as `read`."""
        if self.flip_error is None:
            return None
        errors = self._read(self.flip_error, 0, self.rows)
        if self.attributes.get("complete") and not np.isfinite(errors).all():
            row = int(np.argmin(np.isfinite(errors)))
            file = block_file(FLIP_ERROR, row // self.flip_error.chunks[0])
            raise DamagedError(self.path / file, f"damaged, row {row:,} has no value", self._remedy)
        return errors

    def named_damage(self, row: int) -> AbstractContextManager[None]:
        """Turn the errors of codecs into a `DamagedError` about the file of the labels that has a row."""
        length = (self.array.shards or self.array.chunks)[0]
        return named_damage(self.path / block_file(self.array.basename, row // length), self._remedy)

    def _read(self, array: zarr.Array, first: int, last: int) -> np.ndarray:
        length = (array.shards or array.chunks)[0]
        pieces = []
        for number in range(first // length, -(-last // length)):
            file = self.path / block_file(array.basename, number)
            if self.attributes.get("complete") and not file.is_file():  # zarr would read it as not labelled
                raise DamagedError(file, "missing", self._remedy)
            with named_damage(file, self._remedy):
                start, stop = number * length, (number + 1) * length
                pieces.append(np.asarray(array[max(first, start) : min(last, stop)]))
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    @property
    def kind(self) -> str:
        """`METRIC` where the labels are metres, else `INVERSE`."""
        return METRIC if self.metric else INVERSE

    def blocks(self) -> list[Block]:
        """List all blocks of rows."""
        return self.array_blocks(self.array.basename)

    def missing_blocks(self) -> list[Block]:
        """List the blocks without labels: those whose shard does not exist."""
        name = self.array.basename
        return [
            block for number, block in enumerate(self.blocks()) if not (self.path / block_file(name, number)).is_file()
        ]

    def find_work(self, part: Part | None) -> tuple[list[Block], int]:
        """Return the missing blocks of a part, or of all without parts, and how many of its rows are labelled."""
        blocks, unlabelled = self.blocks(), set(self.missing_blocks())
        ours = blocks if part is None else select_part(blocks, part)
        missing = [block for block in ours if block in unlabelled]
        return missing, count_rows(ours) - count_rows(missing)

    def missing_rows(self) -> int:
        """Count the rows without labels."""
        return count_rows(self.missing_blocks())

    def write_block(self, start: int, labels: np.ndarray, flip_error: np.ndarray | None = None) -> None:
        """Write the labels (n,S,S) of the block that begins at a row, and its flip errors (n,) if they are measured.

        Flip errors come first: the shard of the labels marks the block as done.
        """
        stop = start + len(labels)
        if self.flip_error is not None and flip_error is not None:
            self.flip_error[start:stop] = flip_error
        self.array[start:stop] = labels

    def finish(self) -> int:
        """Mark the labels complete if they are; return how many rows have none yet.

        The caller must hold the corpus' lock.
        """
        missing = self.missing_rows()
        group = zarr.open_group(self.path, mode="r+")  # another process may have marked it since this one opened it
        if not missing and not group.attrs.get("complete"):
            for leftover in self.path.rglob("*.partial"):  # zarr's own unfinished writes, left by a killed process
                leftover.unlink(missing_ok=True)
            group.attrs["complete"] = True
        return missing

    def check_for_packing(self, size: int) -> dict[str, Any]:
        """Return how the labels were made; raise `DsgenError` unless they are complete depth of (rows,size,size) u2."""
        if not self.metric:
            raise DsgenError(
                self.path,
                f"labelled by {self.attributes['model']}, whose depth is relative, not in metres",
                "remove it and label with --metric-reference, or with a metric model",
            )
        expected = (self.rows, size, size)
        if self.array.shape != expected or self.array.dtype != np.uint16:
            raise DamagedError(
                self.path,
                f"got depth of {self.array.dtype} {self.array.shape}, expected uint16 {expected}",
                "remove it and run dsgen depth again",
            )
        lacking = self.missing_rows()
        if lacking or not self.attributes.get("complete"):
            raise DsgenError(
                self.path,
                f"labelling is unfinished, {lacking:,} of {self.rows:,} rows lack depth",
                f"run dsgen depth {self.path.parent} to resume it, or remove {self.path} to pack without depth",
            )
        # the unit of the labels' numbers would contradict that of the store's depth
        left_out = ("complete", "units", "fov_deg", METADATA_SHA256)
        return {name: value for name, value in self.attributes.items() if name not in left_out}


def count_rows(blocks: Iterable[Block]) -> int:
    """Count the rows of blocks."""
    return sum(stop - start for start, stop in blocks)


def block_file(array: str, number: int) -> str:
    """Return the file of a block, relative to `depth.zarr`: `depth/c/3/0/0`, `flip_error/c/3`."""
    return f"{array}/c/{number}" + ("" if array == FLIP_ERROR else "/0/0")


def restored_metadata(path: Path, rows: int, size: int, positions: int) -> dict[str, bytes]:
    """Return every `zarr.json` of the arrays of the labels at `path`, by name, as they were made.

    They follow from the attributes of the group. Left out are those that this zarr, or this version, writes otherwise,
    and those without a recorded hash. Raises `DamagedError` where the attributes are damaged.
    """
    attributes: dict[str, Any] = dict(_parse_group(path)["attributes"])
    recorded = attributes.get(METADATA_SHA256)
    if recorded is None or _find_other_attributes(attributes):
        return {}
    values: dict[str, Any] = dict.fromkeys(_OF_CAMERA) | attributes
    made = LabelAttributes(**{field.name: values[field.name] for field in fields(LabelAttributes)})
    with TemporaryDirectory() as folder:
        create_labels(Path(folder) / path.name, rows, size, positions, made)
        files = {name: (Path(folder) / path.name / name).read_bytes() for name in recorded if name != _ATTRIBUTES}
    return {name: content for name, content in files.items() if hashlib.sha256(content).hexdigest() == recorded[name]}


def find_damaged_metadata(path: Path) -> dict[str, str]:
    """Return which `zarr.json` of the labels at `path` is missing or damaged, by name, and what is wrong with it."""
    try:
        attributes: dict[str, Any] = dict(_parse_group(path)["attributes"])
    except FileNotFoundError:
        damaged, attributes = {_ROOT: "missing"}, {}
    except DamagedError as error:
        damaged, attributes = {_ROOT: error.reason}, {}
    else:
        reason = _find_other_attributes(attributes)
        damaged = {_ROOT: reason} if reason else {}
    for name in _array_names(path, attributes):
        file = f"{name}/{_ROOT}"
        try:
            content = regular(path / file).read_bytes()
            recorded = attributes.get(METADATA_SHA256, {}).get(file)
            if recorded not in (None, hashlib.sha256(content).hexdigest()):
                damaged[file] = f"damaged, its hash differs from the one in {_ROOT}"
            else:
                parse_as(_ArrayMetadata, content, file)
        except FileNotFoundError:
            damaged[file] = "missing"
        except DamagedError as error:
            damaged[file] = error.reason
    return damaged


def _parse_group(path: Path) -> _GroupMetadata:
    return parse_as(_GroupMetadata, regular(path / _ROOT).read_bytes(), path / _ROOT)


def _array_names(path: Path, attributes: dict[str, Any]) -> list[str]:
    """Return the names of the arrays: those with a recorded hash, else those that exist."""
    recorded = attributes.get(METADATA_SHA256)
    names = (DEPTH, RELATIVE, FLIP_ERROR)
    return [name for name in names if (f"{name}/{_ROOT}" in recorded if recorded else (path / name).is_dir())]


def _find_other_attributes(attributes: dict[str, Any]) -> str:
    """Say that the attributes differ from their hash, or return an empty string."""
    recorded = attributes.get(METADATA_SHA256)
    if recorded is None:
        # one bit can turn the name of the attribute into another: no version wrote other attributes and no hash
        unknown = sorted(attributes.keys() - GroupAttributes.__annotations__.keys())
        return f"damaged, holds {unknown[0]!r}, which no dsgen writes without {METADATA_SHA256}" if unknown else ""
    if recorded.get(_ATTRIBUTES) != _hash_attributes(attributes):
        return f"changed or damaged, its attributes differ from their hash in {METADATA_SHA256}"
    return ""


def _hash_attributes(attributes: dict[str, Any]) -> str:
    """Hash all attributes but `complete`, with the hashes of the arrays' metadata but without their own hash."""
    recorded = {name: digest for name, digest in attributes[METADATA_SHA256].items() if name != _ATTRIBUTES}
    content = {name: value for name, value in attributes.items() if name != "complete"} | {METADATA_SHA256: recorded}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def resume_labels(path: Path, rows: int, attributes: LabelAttributes) -> Labels:
    """Open existing labels for writing; raise `ConflictError` if they were made with other attributes."""
    labels = Labels(path, rows, writable=True)
    now, stored = attributes.as_dict(), _IMPLIED | labels.attributes
    differences = find_differences(now, {name: stored.get(name) for name in [*now, *_OF_CAMERA] if name in stored})
    if differences:
        others = [_OPTIONS.get(each.name) for each in differences]
        by = "another network" if None in others else f"other options ({', '.join(dict.fromkeys(map(str, others)))})"
        remedy = "use the same, or remove the folder to label again"
        if stored.get("model") == COMPOSED:
            by = "composed depth" if attributes.model != COMPOSED else "other depth of its backgrounds"
            remedy = "remove the folder to label again; composed depth is then drawn when it is needed"
        raise ConflictError(path, f"labelled with {by}", remedy, [_in_short(each) for each in differences], "corpus")
    return labels


def create_or_resume_labels(path: Path, rows: int, size: int, positions: int, attributes: LabelAttributes) -> Labels:
    """Open labels for writing, and make them first if there are none; the arguments are those of `create_labels`."""
    if not path.is_dir():
        create_labels(path, rows, size, positions, attributes)
    return resume_labels(path, rows, attributes)


def _in_short(difference: Difference) -> Difference:
    """Tell of lists of fields of view only how many differ, and the first of these."""
    now, was = difference.now, difference.was
    if difference.name != "fov_deg" or not now or not was:
        return difference
    others = [pair for pair in zip(now, was, strict=True) if pair[0] != pair[1]]
    return Difference(f"field of view of {len(others):,} backgrounds, the first", *others[0])


def create_labels(path: Path, rows: int, size: int, positions: int, attributes: LabelAttributes) -> None:
    """Create the group and its arrays, without any labels: the folder appears whole or not at all.

    `size` is the side of a label in pixels. Chunks are those of a store of a corpus with so many `positions`, so that
    `pack` can copy them.
    """
    metric = attributes.units == "mm"
    chunk = chunk_rows(positions, size)
    most = min(BLOCK_ROWS, BLOCK_BYTES // (size * size * (2 if metric else 4)))
    block = chunk * max(1, min(most // chunk, math.ceil(rows / chunk)))
    with write_folder(path) as unfinished:
        stored = attributes.as_dict() | {"dsgen": __version__, "complete": False}
        group = zarr.create_group(unfinished, attributes=stored)
        array = _depth_array() if metric else _relative_array()
        group.create_array(
            shape=(rows, size, size),
            chunks=(chunk, size, size),
            shards=(block, size, size),
            fill_value=0,
            dimension_names=("sample", "y", "x"),
            **array,
        )
        if attributes.flip_checked:
            group.create_array(
                FLIP_ERROR,
                shape=(rows,),
                chunks=(block,),
                dtype="float32",
                compressors=(ZstdCodec(level=0), Crc32cCodec()),
                fill_value=float("nan"),
                dimension_names=("sample",),
                attributes={"units": "1", "long_name": "mean relative disagreement with the mirror image's depth"},
            )
        files = sorted(unfinished.glob(f"*/{_ROOT}"))
        hashes = {f"{file.parent.name}/{_ROOT}": hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
        whole = stored | {METADATA_SHA256: hashes}
        group.attrs[METADATA_SHA256] = hashes | {_ATTRIBUTES: _hash_attributes(whole)}


def _depth_array() -> dict[str, Any]:
    return {
        "name": DEPTH,
        "dtype": "uint16",
        "compressors": (BloscCodec(cname="zstd", clevel=3, shuffle="bitshuffle", typesize=2), Crc32cCodec()),
        "attributes": {"units": "m", "scale_factor": 0.001, "_FillValue": 0, "long_name": "planar depth"},
    }


def _relative_array() -> dict[str, Any]:
    return {
        "name": RELATIVE,
        "dtype": "float32",
        "compressors": (BloscCodec(cname="zstd", clevel=5, shuffle="bitshuffle", typesize=4), Crc32cCodec()),
        "attributes": {"units": "1", "long_name": "inverse depth up to an unknown scale and shift"},
    }
