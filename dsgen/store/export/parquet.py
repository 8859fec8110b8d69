"""Write samples as a parquet file for Hugging Face `datasets`."""

import json
from collections.abc import Iterator
from itertools import islice
from typing import Any, BinaryIO

from dsgen.errors import MissingPackageError
from dsgen.store.export.plan import PEOPLE, ExportSettings
from dsgen.store.export.samples import EncodedSample

_ROW_GROUP = 100  # rows that writer and readers hold in memory at once
_DICTIONARY_BYTES = 2**30


def import_parquet() -> tuple[Any, Any]:
    """Return the modules `pyarrow` and `pyarrow.parquet`; raise `MissingPackageError` without them."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingPackageError("pyarrow", "not installed", "pip install 'dsgen[parquet]'") from error
    return pyarrow, pyarrow.parquet


def _feature(kind: str) -> Any:
    """Return what `datasets` calls a kind of column."""
    if kind == "Image":
        return {"_type": "Image"}
    if kind == "People":
        box = {"feature": _feature(PEOPLE["box"]), "_type": "List"}
        return {
            "feature": {name: box if name == "box" else _feature(each) for name, each in PEOPLE.items()},
            "_type": "List",
        }
    return {"dtype": kind, "_type": "Value"}


def write_parquet(stream: BinaryIO, samples: Iterator[EncodedSample], settings: ExportSettings) -> None:
    """Write samples as parquet, with the features of Hugging Face `datasets` in the schema."""
    pyarrow, parquet = import_parquet()
    image = pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()})
    numbers = {name: getattr(pyarrow, kind)() for name, kind in PEOPLE.items() if name != "box"}
    people = pyarrow.list_(pyarrow.struct(numbers | {"box": pyarrow.list_(pyarrow.uint16())}))
    special = {"Image": image, "People": people}
    types = {name: special.get(kind) or getattr(pyarrow, kind)() for name, kind in settings.kinds.items()}
    features = {name: _feature(kind) for name, kind in settings.kinds.items()}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    schema = pyarrow.schema(list(types.items()), metadata=metadata)
    plain = [name for name, kind in settings.kinds.items() if kind not in special]
    with parquet.ParquetWriter(
        stream,
        schema,
        compression="none",  # the images, nearly all of the bytes, are compressed already
        # a dictionary stores a background once a row group; the other images never repeat
        use_dictionary=[*plain, "background.bytes"],
        dictionary_pagesize_limit=_DICTIONARY_BYTES,
        write_statistics=plain,
    ) as writer:
        while group := list(islice(samples, _ROW_GROUP)):
            rows = [{name: {"bytes": code} for name, code in one.images.items()} | one.columns for one in group]
            writer.write_table(pyarrow.Table.from_pylist(rows, schema), row_group_size=_ROW_GROUP)
