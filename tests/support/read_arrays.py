"""Read arrays with what users of a store have: `python read_arrays.py WANTED OUT`.

`WANTED` is JSON: by key, the folder or zip file of a group, and the name of an array in it. Every reader of `READERS`
reads all of them. OUT gets `READER/KEY.npy`, and `results.json`: by reader and key, null or why it refuses. It is a
process of its own because threads of zarrs and tensorstore do not survive a fork, which other tests do.
"""

import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask.array
import numpy as np
import tensorstore
import xarray
import zarr
import zarrs

Read = Callable[[str, str], Any]


def place(group: str) -> Any:
    """What zarr-python opens: a folder, or a zip file."""
    return zarr.storage.ZipStore(group, mode="r") if group.endswith(".zip") else group


def by_zarr(group: str, name: str) -> Any:
    """By zarr-python."""
    return zarr.open_array(place(group), path=name, mode="r")[...]


@functools.cache
def opened_by_xarray(group: str) -> xarray.Dataset:
    """A group as it is stored, without the scale and the fill value of the attributes."""
    return xarray.open_zarr(place(group), mask_and_scale=False)


def by_xarray(group: str, name: str) -> Any:
    """By xarray."""
    return opened_by_xarray(group)[name].values


def by_dask(group: str, name: str) -> Any:
    """By `dask.array.from_zarr`."""
    return dask.array.from_zarr(place(group), component=name).compute(scheduler="synchronous")


def by_tensorstore(group: str, name: str) -> Any:
    """By tensorstore."""
    store: dict[str, Any] = {"driver": "file", "path": f"{group}/{name}/"}
    if group.endswith(".zip"):
        store = {"driver": "zip", "base": {"driver": "file", "path": group}, "path": f"{name}/"}
    return tensorstore.open({"driver": "zarr3", "kvstore": store}).result().read().result()


def by_zarrs(group: str, name: str) -> Any:
    """By zarrs, the pipeline in Rust for zarr-python, alone.

    It is strict, and must be the one in use: zarr-python would read what zarrs cannot, and takes its own pipeline for a
    kind of store that zarrs does not know.
    """
    with zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline", "codec_pipeline.strict": True}):
        array = zarr.open_array(place(group), path=name, mode="r")
        pipeline = array._async_array.codec_pipeline
        if not isinstance(pipeline, zarrs.ZarrsCodecPipeline):
            raise TypeError(f"{type(pipeline).__name__} would read it")
        return array[...]


def by_zarrs_or_zarr_python(group: str, name: str) -> Any:
    """By zarrs as users have it."""
    with zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}):
        return by_zarr(group, name)


READERS: dict[str, Read] = {
    "zarr-python": by_zarr,
    "xarray": by_xarray,
    "dask": by_dask,
    "tensorstore": by_tensorstore,
    "zarrs alone": by_zarrs,
    "zarrs": by_zarrs_or_zarr_python,
}


def main() -> None:
    """Read everything by everyone."""
    wanted, out = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    results: dict[str, dict[str, str | None]] = {}
    for reader, read in READERS.items():
        results[reader] = {}
        (out / reader).mkdir(parents=True)
        for key, (group, name) in wanted.items():
            try:
                values = np.asarray(read(group, name))
                kept = values if values.dtype.kind in "iufb" else np.array(values.tolist())
                np.save(out / reader / f"{key}.npy", kept, allow_pickle=False)
                results[reader][key] = None
            except Exception as error:
                results[reader][key] = f"{type(error).__name__}: {error}"
    (out / "results.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main()
