"""Sealed shards -> `SHA256SUMS` and `index.json`, which vouch for the whole store."""

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from dsgen import __version__
from dsgen.corpus.plan import split_counts
from dsgen.io.filesystem import LocalFiles, UrlFiles
from dsgen.io.json_files import encode_json
from dsgen.io.zip_files import ZipFiles
from dsgen.store import reader, schema
from dsgen.store.statistics import add_all_sums, mean_and_std

ZIP_SUFFIX = ".zip"


def open_shard(files: LocalFiles | UrlFiles, name: str) -> reader.Shard:
    """Open a shard of a store by its name, a folder or a zip file."""
    return reader.Shard(ZipFiles(files, name) if name.endswith(ZIP_SUFFIX) else files.child(name))


def sums_and_index(
    plan: np.ndarray,
    shards: Mapping[str, reader.Shard],
    tables: Mapping[str, dict[str, list[Any]]],
    version: str = __version__,
) -> tuple[bytes, bytes]:
    """Return what `SHA256SUMS` and `index.json` hold, from all shards in order and bytes and hash of their files."""
    each = {
        name: "".join(schema.sums_line(file, table[file][1]) for file in sorted(table)).encode()
        for name, table in tables.items()
    }
    lines = b"".join(each.values())
    some = next(iter(shards.values()))
    made_from = some.attributes["made_from"]
    sums = add_all_sums([shard.attributes["sums"] for shard in shards.values()])
    scales = {"image": 255, "background": 255, "mask": 1, "depth": 1000}
    firsts = {name: shard.attributes["first_row"] for name, shard in shards.items()}
    index = {
        "format": schema.FORMAT,
        "dsgen": version,
        "rows": len(plan),
        "size": some.size,
        "splits": split_counts(plan),
        "depth": made_from["depth"],
        "left_out": made_from.get("left_out", 0),
        "statistics": {part: mean_and_std(sums[part], scale) for part, scale in scales.items() if part in sums},
        "made_from": made_from,
        "sums_sha256": hashlib.sha256(lines).hexdigest(),
        "shards": [
            {
                "name": name,
                "first_row": firsts[name],
                "rows": shard.rows,
                "splits": split_counts(plan[firsts[name] : firsts[name] + shard.rows]),
                "bytes": sum(size for size, _ in tables[name].values()),
                "image_bytes": _image_bytes(shard, tables[name], name),
                "sha256": hashlib.sha256(each[name]).hexdigest(),
            }
            for name, shard in shards.items()
        ],
    }
    return lines, encode_json(index)


def _image_bytes(shard: reader.Shard, table: dict[str, list[Any]], name: str) -> int:
    sizes = shard.files.sizes() if name in table else {file[len(name) + 1 :]: size for file, (size, _) in table.items()}
    return sum(size for file, size in sizes.items() if file.startswith("image/c/"))
