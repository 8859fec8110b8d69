"""A store as an xarray dataset: every row, lazily, depth in metres.

xarray alone opens the shards as they are, one dataset each, and turns depth to float64, since the scale in the
attributes of a Zarr array is a JSON number. Here the rows are read by `Store`, so that recipes have images, and zip
files, URLs and every coding of depth need nothing more.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dsgen.corpus.plan import DTYPE, PERSON, SPLITS
from dsgen.errors import MissingPackageError
from dsgen.store.reader import Store, StoreHandle
from dsgen.store.schema import CONVENTIONS, SAMPLE_FIELDS, attributes_of, picture_names

try:
    from xarray import Dataset, Variable
    from xarray.backends import BackendArray
    from xarray.core import indexing
    from xarray.core.indexing import LazilyIndexedArray
except ImportError as error:
    raise MissingPackageError("xarray", "not installed", "pip install 'dsgen[xarray]'") from error


def open_xarray(store: Path | str, split: str | None = None) -> Dataset:
    """Open the rows of a split of a store, or of the whole store, as one `xarray.Dataset`; pixels load when used.

    >>> data = open_xarray("shards", "train")  # doctest: +SKIP
    >>> float(data.depth[0].mean())  # metres, without the pixels that have none  # doctest: +SKIP
    3.41
    >>> data.background.sel(picture=data.background_number[0]).shape  # doctest: +SKIP
    (224, 224, 3)

    `image` (sample,y,x,channel) uint8, `mask` (sample,y,x) uint8, 0 or 255, `depth` (sample,y,x) float32 metres, NaN
    where there is none, `instance` (sample,y,x) uint8, `background` (picture,y,x,channel) uint8, each background once;
    what the store does not have is absent. Then the columns of the plan, by `sample`; those of people are
    (sample,person), with `person_box` (sample,person,box). The coordinates are `sample`, the row, `picture`, the
    number of the background, and by sample `split` and the names of the pictures, of
    people (sample,person).

    It needs xarray (`pip install 'dsgen[xarray]'`), not dask; `data.chunk(sample=1000)` makes dask arrays of it. It can
    be pickled: each process opens the store for itself. Rows of one chunk are decoded at once, so read runs of rows.

    Raises `NotFoundError` or `DamagedError` for a store that cannot be read, `InvalidValueError` for a split that does
    not exist, and `MissingPackageError` without xarray.
    """
    handle = StoreHandle(store)
    opened = handle.open()
    rows = opened.rows_of(split)
    columns = _columns(opened, rows)
    variables = {
        name: Variable(_dimensions(name), LazilyIndexedArray(_Lazy(handle, name, rows)), _attributes(name))
        for name in (*SAMPLE_FIELDS, "person_box")
        if name in opened.fields or (name == "person_box" and opened.people)
    }
    coordinates = {
        "sample": Variable("sample", rows, attributes_of("sample")),
        "split": Variable("sample", np.array(SPLITS)[opened.plan["split"][rows]], {"long_name": "split"}),
    }
    if "background" in opened.fields:
        pictures, first = np.unique(opened.plan["background"][rows], return_index=True)
        pixels = LazilyIndexedArray(_LazyBackgrounds(handle, "background", rows[first]))
        variables["background"] = Variable(_dimensions("background"), pixels, _attributes("background"))
        coordinates["picture"] = Variable("picture", pictures, attributes_of("picture"))
    for name, values in columns.items():
        variables[name] = Variable(_dimensions(name)[: values.ndim], values, attributes_of(name))
    for name, values in _names(opened, rows).items():
        coordinates[name] = Variable(("sample", "person")[: values.ndim], values, {"long_name": name.replace("_", " ")})
    return Dataset(variables, coordinates, CONVENTIONS | {"dsgen": opened.index["dsgen"]})


def _columns(store: Store, rows: np.ndarray) -> dict[str, np.ndarray]:
    """Return the columns of some rows by the names that they have in a store; where people have places, theirs."""
    plan = store.plan[rows]
    if not store.people:
        names = {name: name for name in DTYPE.names or () if name != "split"} | {"background": "background_number"}
        return {column: plan[name] for name, column in names.items()}
    people = {f"person_{name}": plan["people"][name] for name in PERSON.names or ()}
    return {"background_number": plan["background"], **people}


def _names(store: Store, rows: np.ndarray) -> dict[str, np.ndarray]:
    """Return the names of the pictures of some rows; of people (n,slots), empty where there is nobody."""
    plan = store.plan[rows]
    names = {name: np.array(found) for name, found in picture_names(store.shards[0].attributes).items()}
    if "picture_name" in names:
        return {"picture_name": names["picture_name"][rows]}
    people = plan["people"] if store.people else None
    foreground = plan["foreground"] if people is None else people["foreground"]
    found = {"background_name": plan["background"], "foreground_name": foreground}
    named = {name: names[name][numbers] for name, numbers in found.items() if name in names}
    if people is not None and "foreground_name" in named:
        named["foreground_name"][people["height"] == 0] = ""
    return named


def _dimensions(name: str) -> tuple[str, ...]:
    if name.startswith("person_"):
        return "sample", "person", "box"
    if name == "background":
        return "picture", "y", "x", "channel"
    return ("sample", "y", "x", "channel") if name == "image" else ("sample", "y", "x")


def _attributes(name: str) -> dict[str, Any]:
    """Return the attributes of pixels, which are decoded: those that say how to are left out."""
    return {key: value for key, value in attributes_of(name).items() if key not in ("scale_factor", "_FillValue")}


class _Lazy(BackendArray):
    """Pixels or boxes of some rows of a store, read when they are indexed; a process opens the store for itself."""

    def __init__(self, handle: StoreHandle, field: str, rows: np.ndarray):
        store = handle.open()
        self.handle, self.field, self.rows = handle, field, rows
        pixels = (store.size, store.size, *((3,) if field in ("image", "background") else ()))
        self.shape = (len(rows), *((store.people, 4) if field == "person_box" else pixels))
        self.dtype = np.dtype({"depth": np.float32, "person_box": np.uint16}.get(field, np.uint8))

    def __getitem__(self, key: indexing.ExplicitIndexer) -> np.ndarray:
        read: np.ndarray = indexing.explicit_indexing_adapter(
            key, self.shape, indexing.IndexingSupport.OUTER, self._read
        )
        return read

    def _read(self, key: tuple[Any, ...]) -> np.ndarray:
        """Index each dimension by a number, a slice or an array; rows are read once, in their order."""
        wanted = np.atleast_1d(self.rows[key[0]])
        rows, where = np.unique(wanted, return_inverse=True)
        nothing = np.empty((0, *self.shape[1:]), self.dtype)
        pieces = [_index_rest(values, key[1:]) for values in (nothing, *self._pieces(rows))]
        found = np.concatenate(pieces)[where]
        return found[0] if np.ndim(key[0]) == 0 and not isinstance(key[0], slice) else found

    def _pieces(self, rows: np.ndarray) -> Iterator[np.ndarray]:
        """Yield the values of ascending rows, in pieces of a chunk."""
        store = self.handle.open()
        shards = np.searchsorted(store.first_rows, rows, side="right") - 1
        for k in np.unique(shards).tolist():
            shard, within = store.shards[k], rows[shards == k] - store.first_rows[k]
            for chunk in np.unique(within // shard.chunk).tolist():
                here = within[within // shard.chunk == chunk]
                values = shard.read(self.field, int(here[0]), int(here[-1]) + 1)[here - here[0]]
                yield _metres(values) if self.field == "depth" else values


class _LazyBackgrounds(_Lazy):
    """The backgrounds of some rows of a store."""

    def _pieces(self, rows: np.ndarray) -> Iterator[np.ndarray]:
        store = self.handle.open()
        for row in rows:
            yield store.backgrounds(np.array([row]))[0][None]


def _index_rest(values: np.ndarray, key: tuple[Any, ...]) -> np.ndarray:
    """Index every dimension but the first."""
    for axis in reversed(range(len(key))):  # from the last, as numbers remove theirs
        values = values[(slice(None),) * (axis + 1) + (key[axis],)]
    return values


def _metres(millimetres: np.ndarray) -> np.ndarray:
    metres = millimetres.astype(np.float32) / np.float32(1000)
    metres[millimetres == 0] = np.nan
    return metres
