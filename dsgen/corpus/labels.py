"""The schema of a corpus' depth labels, `depth.zarr`."""

import zarr

from dsgen.errors import DamagedError

METRIC, INVERSE = "metric", "inverse"


def open_array(group: zarr.Group, name: str) -> zarr.Array:
    """Return an array of a zarr group; anything else under its name is a damaged corpus."""
    array = group.get(name)
    if not isinstance(array, zarr.Array):
        raise DamagedError(group.store_path, f"no array {name!r}", "remove the folder and make it again")
    return array
