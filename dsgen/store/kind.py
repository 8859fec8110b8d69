"""Tell a store from a corpus by the names in its folder."""

from pathlib import Path

from dsgen.corpus import layout
from dsgen.errors import DsgenError, NotFoundError
from dsgen.io.filesystem import is_url
from dsgen.store.layout import INDEX_JSON, PACKING, SHA256SUMS

_CORPUS_NAMES = (layout.CORPUS_JSON, layout.PLAN)
_STORE_NAMES = (INDEX_JSON, SHA256SUMS, PACKING)


def is_store(place: Path | str) -> bool:
    """Return whether a folder or URL holds a store, True, or a corpus, False, whether or not it is finished.

    A URL is always taken for a store. Raises `NotFoundError` where there is neither, and another `DsgenError` for a
    file and for a single shard.
    """
    if is_url(place):
        return True
    path = Path(place)
    remedy = "run dsgen composite for a corpus, or dsgen pack for a store"
    if not path.exists():
        raise NotFoundError(path, "no such folder, expected a corpus or a store", remedy)
    if not path.is_dir():
        raise DsgenError(path, "a file, expected a corpus or a store", "pass the folder it is in")
    if path.name.startswith("shard-") and (path / "zarr.json").exists() and not (path / INDEX_JSON).exists():
        raise DsgenError(path, "a shard, expected a store", "pass the folder it is in")
    if any((path / name).exists() for name in _CORPUS_NAMES) or any(path.glob(f"{layout.SOURCES}*")):
        return False
    if any((path / name).exists() for name in _STORE_NAMES) or any(path.glob("shard-*")):
        return True
    raise NotFoundError(path, "neither a corpus nor a store", remedy)
