"""The labels of rows whose block is not finished, so that a run that is interrupted loses little of its work.

    depth.zarr/rows-000000000480-000000000520.partial       rows 480 to 520, exclusive: an npz of labels and flip errors

They lie in the folder of the labels, and so belong to the network that made these. They are removed once their block
is written.
"""

import re
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dsgen.corpus.labels import Block, Labels
from dsgen.io.atomic import write_file

_NAME = re.compile(r"rows-(\d{12})-(\d{12})\.partial")


class RowLabels(NamedTuple):
    """The labels (n,S,S) of consecutive rows, and their flip errors (n,) if they are measured."""

    labels: np.ndarray
    flip_error: np.ndarray | None


def join_rows(parts: list[RowLabels]) -> RowLabels:
    """Join the labels of consecutive rows."""
    errors = [part.flip_error for part in parts if part.flip_error is not None]
    return RowLabels(np.concatenate([part.labels for part in parts]), np.concatenate(errors) if errors else None)


def is_saved_rows(name: str) -> bool:
    """Return whether a file within the folder of the labels holds rows of an unfinished block."""
    return _NAME.fullmatch(name) is not None


def save_rows(labels: Labels, first: int, rows: RowLabels) -> None:
    """Save the labels of the rows from `first` on, whose block is not finished."""
    with write_file(_path(labels, first, first + len(rows.labels)), apart=True) as file:  # an array has a checksum
        if rows.flip_error is None:
            np.savez(file, labels=rows.labels)
        else:
            np.savez(file, labels=rows.labels, flip_error=rows.flip_error)


def count_saved_rows(labels: Labels, block: Block) -> int:
    """Count the rows of a block that are saved: consecutive ones from its first on."""
    return sum(stop - start for start, stop in _pieces(labels, block))


def load_rows(labels: Labels, block: Block) -> RowLabels | None:
    """Return the labels of the first rows of a block, as far as they are saved and can be read; None without any."""
    parts = []
    for piece in _pieces(labels, block):
        part = _load(labels, piece)
        if part is None:
            break
        parts.append(part)
    return join_rows(parts) if parts else None


def remove_rows(labels: Labels, block: Block) -> None:
    """Remove what is saved of a block, which is finished."""
    for first, last in _saved(labels):
        if block[0] <= first < block[1]:
            _path(labels, first, last).unlink(missing_ok=True)


def _path(labels: Labels, first: int, last: int) -> Path:
    return labels.path / f"rows-{first:012d}-{last:012d}.partial"


def _saved(labels: Labels) -> list[Block]:
    """List the rows that every file holds, in order."""
    names = [_NAME.fullmatch(path.name) for path in labels.path.glob("rows-*.partial")]
    return sorted((int(name[1]), int(name[2])) for name in names if name)


def _pieces(labels: Labels, block: Block) -> list[Block]:
    """List the files, by their rows, that continue each other from the first row of a block on, but not to its end."""
    pieces, (row, stop) = [], block
    for first, last in _saved(labels):
        if first == row < last < stop:
            pieces.append((first, last))
            row = last
    return pieces


def _load(labels: Labels, piece: Block) -> RowLabels | None:
    """Read a file; None if it is damaged, does not fit the labels, or was removed by another process."""
    shape = (piece[1] - piece[0], *labels.array.shape[1:])
    try:
        with _path(labels, *piece).open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            rows = RowLabels(arrays["labels"], arrays["flip_error"] if labels.flip_error is not None else None)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    fits = rows.labels.shape == shape and rows.labels.dtype == labels.array.dtype
    return rows if fits and (rows.flip_error is None or rows.flip_error.shape == shape[:1]) else None
