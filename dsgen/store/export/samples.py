"""The samples of an export: the columns of every row, and its encoded images."""

import gzip
import io
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from dsgen.corpus.plan import DTYPE, SPLITS
from dsgen.io.images import encode_jpeg, encode_png
from dsgen.store.export.plan import COLUMN_NAMES, DEPTH_SUFFIX, JPEG_QUALITY, ExportSettings
from dsgen.store.reader import Store


@lru_cache(maxsize=1)
def open_store(path: Path | str, _sha256: str) -> Store:
    """Open a store, once in each process; the hash of its index tells it from another at the same place."""
    return Store(path)


@lru_cache(maxsize=1)
def split_rows(path: Path | str, sha256: str, split: str) -> np.ndarray:
    """Return the rows of a split, in order."""
    return open_store(path, sha256).rows_of(split)


@dataclass(frozen=True)
class EncodedSample:
    """A row: its `columns`, named as in the store, the split by name; and its encoded `images`, by field."""

    columns: dict[str, Any]
    images: dict[str, bytes]


def encode_samples(store: Store, rows: np.ndarray, settings: ExportSettings) -> Iterator[EncodedSample]:
    """Yield the sample of every row, in order, reading one chunk of the store at a time."""
    background, background_code = np.empty(0), b""
    for row, arrays in read_rows(store, rows):
        images = {}
        for field in settings.fields:
            if field == "background":  # rows that follow each other mostly share it
                if not np.array_equal(arrays[field], background):
                    background, background_code = arrays[field], encode_picture(field, arrays[field], settings)
                images[field] = background_code
            else:
                images[field] = encode_picture(field, arrays[field], settings)
        yield EncodedSample(_columns(store, row), images)


def read_rows(store: Store, rows: np.ndarray) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """Yield every row, ascending, with its arrays by field, reading one chunk of the store at a time."""
    for first, last, chosen in _runs(store, rows):
        arrays = store.read(first, last)
        for row in chosen.tolist():
            yield row, {field: values[row - first] for field, values in arrays.items()}


def _runs(store: Store, rows: np.ndarray) -> Iterator[tuple[int, int, np.ndarray]]:
    """Divide ascending rows by the chunk they are in; yield the range to read, last exclusive, and its rows."""
    shards = np.searchsorted(store.first_rows, rows, side="right") - 1
    chunks = (rows - store.first_rows[shards]) // store.shards[0].chunk
    edges = np.flatnonzero((np.diff(shards) != 0) | (np.diff(chunks) != 0)) + 1
    for chosen in np.split(rows, edges):
        yield int(chosen[0]), int(chosen[-1]) + 1, chosen


def _columns(store: Store, row: int) -> dict[str, Any]:
    """Return the number of a row and its entries in the plan."""
    values = store.plan[row]
    columns = {COLUMN_NAMES.get(name, name): values[name].item() for name in DTYPE.names or ()}
    columns = {"row": row} | columns | {"split": SPLITS[columns["split"]]}
    if store.people:
        columns["people"] = _people(values["people"], store.boxes[row])
    return columns


def _people(slots: np.ndarray, boxes: np.ndarray) -> list[dict[str, Any]]:
    """Describe the people of a row, nobody for an empty slot; see `PEOPLE`."""
    found = []
    for slot, (person, box) in enumerate(zip(slots, boxes.tolist(), strict=True)):
        if person["height"]:
            distance = int(person["distance"])
            numbers = {"foreground": int(person["foreground"]), "flip": int(person["flip"])}
            found.append(
                {"instance": slot + 1, **numbers, "box": box, "distance_m": distance / 1000 if distance else None}
            )
    return found


def encode_picture(field: str, image: np.ndarray, settings: ExportSettings) -> bytes:
    """Encode a picture of a sample as the settings say."""
    if field in ("image", "background") and settings.image_format == "jpeg":
        return encode_jpeg(image, JPEG_QUALITY)
    if settings.suffix(field) == DEPTH_SUFFIX:
        return _encode_npy(image)
    return encode_png(image, runs=field in ("mask", "instance"))


def _encode_npy(image: np.ndarray) -> bytes:
    """Encode an array as gzipped npy, without the time. Higher levels of compression are slower and hardly smaller."""
    stream = io.BytesIO()
    with gzip.GzipFile("", "wb", 1, stream, mtime=0) as file:
        np.lib.format.write_array(file, image, allow_pickle=False)
    return stream.getvalue()
