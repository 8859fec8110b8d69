"""Check that a disk has room for a store before it is packed."""

import shutil
from pathlib import Path

import numpy as np

from dsgen.errors import InvalidValueError
from dsgen.store import codecs
from dsgen.store.source import Source

_PROBES = 4  # chunks that are encoded to estimate the size of all


def check_space(
    source: Source, path: Path, fields: tuple[str, ...], rows: int, largest_zip: int, coding: codecs.Coding
) -> None:
    """Raise `InvalidValueError` if the disk of `path` cannot hold `rows` more rows of these arrays, as estimated.

    `largest_zip` is how many rows a zip file has, 0 without: it is written beside the blocks it is made of.
    """
    row_bytes = _row_bytes(source, fields, coding)
    absolute = path.absolute()
    folder = next(folder for folder in (absolute, *absolute.parents) if folder.exists())
    need = int((rows + largest_zip) * row_bytes)
    free = shutil.disk_usage(folder).free
    if need > free:
        raise InvalidValueError(
            "--out",
            f"{path}: {rows:,} rows need about {need / 1e9:.1f} GB, {free / 1e9:.1f} GB are free",
            "free some space, choose another --out, or pack --compact or a --recipe",
        )


def _row_bytes(source: Source, fields: tuple[str, ...], coding: codecs.Coding) -> float:
    """Estimate the encoded bytes of a row from a few chunks spread over the plan."""
    chunk, count = source.chunk, len(source.plan)
    probed = nbytes = 0
    for start in np.linspace(0, max(0, count - chunk), _PROBES).astype(int).tolist():
        arrays = source.pictures(start, min(start + chunk, count))
        probed += len(arrays["image"])
        nbytes += sum(
            len(codecs.encode_block(field, values, chunk, chunk, coding))
            for field, values in arrays.items()
            if field in fields
        )
    return nbytes / probed
