"""The schema of a corpus' depth labels, `depth.zarr`: arrays, attributes, and which blocks of rows are labelled.

A group with one of two arrays, and with --check-flip a third:

    depth       (rows,S,S) u2  millimetres, 0 = no label, one scale for all rows; reads as metres by its CF attributes
    relative    (rows,S,S) f4  instead of depth: inverse depth of unknown scale and shift, from a model without metres
    flip_error  (rows,) f4     how far the depth of a row and of its mirror image disagree, NaN = not labelled

A block of rows is one shard, a file written whole or not at all, so the files that exist say which blocks are
labelled. The attribute `complete` turns true once all of them are.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec

from dsgen import __version__
from dsgen.errors import ConflictError, DamagedError, DsgenError, find_differences
from dsgen.io.atomic import write_folder

METRIC, INVERSE = "metric", "inverse"  # kinds of labels: metres, or 1 / depth up to an unknown scale and shift
DEPTH, RELATIVE, FLIP_ERROR = "depth", "relative", "flip_error"  # the arrays
BLOCK_ROWS = 480  # at most in a block, but a block has at least one chunk
_CHUNK_ROWS = 20  # at most in a chunk, but a chunk has at least all positions of a foreground
# what attributes that labels of earlier versions lack stand for
_IMPLIED: dict[str, Any] = {
    "kind": METRIC,
    "precision": "auto",
    "flip_checked": False,
    "flip_averaged": False,
    "metric_reference": None,
}

Block = tuple[int, int]  # first row and last row, exclusive


@dataclass(frozen=True)
class LabelAttributes:
    """What labels depend on, as stored in the group's attributes; labels are only ever resumed with the same.

    `model` and `weights_sha256` name the network, `kind` what it answers (`METRIC` or `INVERSE`) and
    `metric_reference` the metric network, with its hash, that relative answers were fitted to. Rows were drawn at
    `drawn_size` pixels, `network_input` (height, width) is what the network was fed for a picture of `label_size`.
    `units` is "mm", or "1" for relative labels.
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

    def as_dict(self) -> dict[str, Any]:
        """Return the attributes as JSON stores them."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return values | {"network_input": list(self.network_input)}


class Labels:
    """The depth labels of a corpus: arrays, attributes, and which blocks of rows are labelled.

    `attributes` are those of the group when it was opened. Missing blocks are looked up on disk at every call, since
    other processes may be labelling.
    """

    def __init__(self, path: Path, rows: int, *, writable: bool = False):
        self.path, self.rows = path, rows
        self._group = zarr.open_group(path, mode="r+" if writable else "r")
        self.attributes: dict[str, Any] = dict(self._group.attrs)

    @cached_property
    def metric(self) -> bool:
        """Whether the labels are metres: the network's own, or fitted to a metric reference."""
        return RELATIVE not in self._group

    @cached_property
    def array(self) -> zarr.Array:
        """The labels themselves: `depth`, or `relative`."""
        return open_array(self._group, DEPTH if self.metric else RELATIVE)

    @cached_property
    def flip_error(self) -> zarr.Array | None:
        """The array `flip_error`, or None where it was not measured."""
        return open_array(self._group, FLIP_ERROR) if FLIP_ERROR in self._group else None

    @property
    def kind(self) -> str:
        """`METRIC` where the labels are metres, else `INVERSE`."""
        return METRIC if self.metric else INVERSE

    def blocks(self) -> list[Block]:
        """List all blocks of rows."""
        length = (self.array.shards or self.array.chunks)[0]
        return [(start, min(start + length, self.rows)) for start in range(0, self.rows, length)]

    def missing_blocks(self) -> list[Block]:
        """List the blocks without labels: those whose shard does not exist."""
        name = self.array.basename
        return [
            block for number, block in enumerate(self.blocks()) if not (self.path / block_file(name, number)).is_file()
        ]

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
                f"labelled by {self.attributes['model']}, which answers no metres",
                "remove it and label with --metric-reference, or with a metric model",
            )
        expected = (self.rows, size, size)
        if self.array.shape != expected or self.array.dtype != np.uint16:
            raise DamagedError(
                self.path,
                f"got depth of {self.array.dtype} {self.array.shape}, expected uint16 {expected}",
                "remove it and run dsgen depth again",
            )
        missing = self.missing_rows()
        if missing or not self.attributes.get("complete"):
            raise DsgenError(
                self.path,
                f"labels unfinished, {missing:,} of {self.rows:,} rows lack depth",
                f"run dsgen depth {self.path.parent} to resume, or remove {self.path} to pack without",
            )
        return {name: value for name, value in self.attributes.items() if name != "complete"}


def count_rows(blocks: Iterable[Block]) -> int:
    """Count the rows of blocks."""
    return sum(stop - start for start, stop in blocks)


def block_file(array: str, number: int) -> str:
    """Return the file of a block, relative to `depth.zarr`: `depth/c/3/0/0`, `flip_error/c/3`."""
    return f"{array}/c/{number}" + ("" if array == FLIP_ERROR else "/0/0")


def open_array(group: zarr.Group, name: str) -> zarr.Array:
    """Return an array of a zarr group; anything else under its name is a damaged corpus."""
    array = group.get(name)
    if not isinstance(array, zarr.Array):
        raise DamagedError(group.store_path, f"no array {name!r}", "remove the folder and recreate it")
    return array


def resume_labels(path: Path, rows: int, attributes: LabelAttributes) -> Labels:
    """Open existing labels for writing; raise `ConflictError` if they were made with other attributes."""
    labels = Labels(path, rows, writable=True)
    now, stored = attributes.as_dict(), _IMPLIED | labels.attributes
    differences = find_differences(now, {name: stored.get(name) for name in now})
    if differences:
        remedy = "use the same, or remove the folder to label again"
        raise ConflictError(path, "labelled with another network", remedy, differences, "corpus")
    return labels


def create_labels(path: Path, rows: int, size: int, positions: int, attributes: LabelAttributes) -> None:
    """Create the group and its arrays, without any labels: the folder appears whole or not at all.

    `size` is the side of a label in pixels, `positions` how many consecutive rows show the same foreground: a chunk
    never splits them.
    """
    chunk = min(positions * max(1, _CHUNK_ROWS // positions), rows)
    block = chunk * max(1, min(BLOCK_ROWS // chunk, math.ceil(rows / chunk)))
    with write_folder(path) as unfinished:
        stored = attributes.as_dict() | {"dsgen": __version__, "complete": False}
        group = zarr.create_group(unfinished, attributes=stored)
        array = _depth_array() if attributes.units == "mm" else _relative_array()
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
                fill_value=float("nan"),
                dimension_names=("sample",),
                attributes={"units": "1", "long_name": "mean relative disagreement with the mirror image's depth"},
            )


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
