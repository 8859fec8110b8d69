"""Seal the shards of a store, then the store itself.

A shard whose blocks are all packed is sealed: its columns, backgrounds and metadata are written, its own `zarr.json`
last, so that no unfinished shard can be opened; or the zip file is. Once all shards are sealed, the other files of the
store follow from them: the group that is the parent of the shards, and `SHA256SUMS` and `index.json`, which vouch for
the whole.
"""

import hashlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import Any

import numpy as np

from dsgen import __version__
from dsgen.corpus.plan import SPLITS, split_counts
from dsgen.errors import DamagedError
from dsgen.io.filesystem import LocalFiles, UrlFiles
from dsgen.io.json_files import encode_json, parse_json
from dsgen.io.zip_files import ZipFiles, write_zip
from dsgen.store import codecs, reader, schema
from dsgen.store.blocks import ShardTask
from dsgen.store.layout import INDEX_JSON, SHA256SUMS, ZIP_SUFFIX
from dsgen.store.records import (
    THREADS,
    BlockRecord,
    FileEntry,
    FileTable,
    read_block_records,
    write_shard_table,
)
from dsgen.store.source import Source
from dsgen.store.statistics import Sums, add_all_sums, add_sums, image_sums, mean_and_std, scale_sums


def open_shard(files: LocalFiles | UrlFiles, name: str) -> reader.Shard:
    """Open a shard of a store, a folder or a zip file, by its name."""
    return reader.Shard(ZipFiles(files, name) if name.endswith(ZIP_SUFFIX) else files.child(name))


def seal_shard(
    source: Source, files: LocalFiles | UrlFiles, shard: ShardTask, made_from: dict[str, Any], fields: tuple[str, ...]
) -> None:
    """Seal a shard whose blocks are all packed, and note size and hash of its files.

    Of `fields` the arrays are stored.
    """
    records = read_block_records(files, [start for start, _ in shard.blocks])
    blocks: FileTable = {file: entry for record in records for file, entry in record.files.items()}
    rows = source.plan[shard.first : shard.last]
    numbers, counts = np.unique(rows["background"], return_counts=True)
    cutouts, shapes = source.cutouts() if made_from["recipe"] else (None, None)
    geometry = schema.Geometry(
        rows=len(rows),
        size=source.size,
        chunk=source.chunk,
        block=shard.block,
        fields=fields,
        backgrounds=len(numbers),
        foregrounds=None if cutouts is None else cutouts.shape[:3],
        layout=layout_of(made_from),
        people=source.people,
        rooms=bool(made_from["recipe"] and source.rooms),
        coding=schema.coding_of(made_from),
    )
    attributes = {
        **(schema.CONVENTIONS if geometry.layout > 1 else {}),
        "dsgen": __version__,
        "made_from": made_from,
        "first_row": shard.first,
        "splits": list(SPLITS),
        **source.attributes,
        "sums": _shard_sums(source, records, numbers, counts if "background" in fields else None),
    }
    metadata = schema.metadata_files(geometry, attributes, sharded=not shard.zipped)

    def small_files() -> Iterator[tuple[str, bytes]]:
        if "background" in fields:
            yield from schema.background_files(numbers, source.background)
        if cutouts is not None and shapes is not None:
            yield from schema.foreground_files(cutouts, shapes)
        if geometry.rooms:
            yield from schema.room_files(numbers, source.room)
        yield from schema.column_files(rows, shard.first)
        if geometry.layout > 1:
            yield from schema.coordinate_files(rows, shard.first, numbers if "background" in fields else None)

    if shard.zipped:
        assert isinstance(files, LocalFiles)
        _seal_zip(files, shard, chain(metadata.items(), small_files(), _zip_chunks(files, shard, blocks, source.chunk)))
    else:
        _seal_folder(files, shard, blocks, small_files(), metadata)


def _shard_sums(
    source: Source, records: list[BlockRecord], numbers: np.ndarray, background_counts: np.ndarray | None
) -> dict[str, Sums]:
    """Add up the sums of a shard's blocks; each background counts once for every row that has it."""
    sums = add_all_sums([record.sums for record in records])
    if background_counts is not None:
        sums["background"] = add_sums(
            [
                scale_sums(image_sums(source.background(number)[None]), times)
                for number, times in zip(numbers.tolist(), background_counts.tolist(), strict=True)
            ]
        )
    return sums


def _seal_folder(
    files: LocalFiles | UrlFiles,
    shard: ShardTask,
    blocks: FileTable,
    small_files: Iterator[tuple[str, bytes]],
    metadata: Mapping[str, bytes],
) -> None:
    table = dict(blocks)

    def write(file: tuple[str, bytes]) -> None:
        name, content = file
        files.write(f"{shard.name}/{name}", content)
        table[name] = FileEntry.of(content)

    *arrays, root = metadata.items()
    with ThreadPoolExecutor(THREADS) as pool:
        for group in (small_files, arrays):
            list(pool.map(write, group))
    for leftover in sorted(set(files.child(shard.name).sizes()) - set(table)):  # of writes that were killed
        files.remove(f"{shard.name}/{leftover}")
    table[root[0]] = FileEntry.of(root[1])
    write_shard_table(files, shard.name, {f"{shard.name}/{name}": entry for name, entry in table.items()})
    write(root)


def _seal_zip(files: LocalFiles, shard: ShardTask, entries: Iterator[tuple[str, bytes]]) -> None:
    path = files.path / shard.name
    write_zip(path, entries)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    write_shard_table(files, shard.name, {shard.name: FileEntry(path.stat().st_size, digest)})
    files.remove(shard.blocks_folder)


def _zip_chunks(
    files: LocalFiles | UrlFiles, shard: ShardTask, blocks: FileTable, chunk: int
) -> Iterator[tuple[str, bytes]]:
    """Yield the chunks of all blocks of a shard, each under the name it has without Zarr shards."""
    chunks_per_block = shard.block // chunk
    for name in sorted(blocks, key=_field_and_block):
        field, block = _field_and_block(name)
        codes = codecs.split_block(files.read(f"{shard.blocks_folder}/{name}"), chunk, shard.block)
        for k, code in enumerate(codes):
            yield schema.block_name(field, block * chunks_per_block + k), code


def _field_and_block(name: str) -> tuple[str, int]:
    """Read the array and the number from the name of a block's file; the inverse of `schema.block_name`."""
    field, _, number, *_ = name.split("/")
    return field, int(number)


def layout_of(made_from: Mapping[str, Any]) -> int:
    """Return the layout of a store by what it was made from; versions that knew only one did not note it."""
    return int(made_from.get("layout", 1))


def store_files(
    plan: np.ndarray,
    shards: Mapping[str, reader.Shard],
    tables: Mapping[str, Mapping[str, FileEntry]],
    version: str = __version__,
) -> dict[str, bytes]:
    """Return the files of a store besides its shards, by name, in the order in which they are to be written.

    They are those of the group that the store is, `SHA256SUMS`, and `index.json`. `shards` are all shards in order, by
    name, and `tables` size and hash of the files of each, by name within the store.
    """
    lines_by_shard = {
        name: "".join(schema.sums_line(file, table[file].sha256) for file in sorted(table)).encode()
        for name, table in tables.items()
    }
    some_shard = next(iter(shards.values()))
    made_from = some_shard.attributes["made_from"]
    for name, shard in shards.items():
        if shard.attributes["sums"].keys() != some_shard.attributes["sums"].keys():
            raise DamagedError(shard.files, "damaged, its sums are of other arrays", f"remove {name} and pack it again")
    tree: dict[str, bytes] = {}
    if layout_of(made_from) > 1:
        roots = {
            name: parse_json(shard.files.read(schema.ROOT), f"{name}/{schema.ROOT}") for name, shard in shards.items()
        }
        tree = schema.tree_files(roots, version)
    tree_lines = "".join(schema.sums_line(name, FileEntry.of(content).sha256) for name, content in tree.items())
    lines = b"".join(lines_by_shard.values()) + tree_lines.encode()
    sums = add_all_sums([shard.attributes["sums"] for shard in shards.values()])
    scales = {"image": 255, "background": 255, "mask": 1, "depth": 1000}
    firsts = {name: shard.attributes["first_row"] for name, shard in shards.items()}
    index = {
        "format": schema.index_format(made_from),
        "dsgen": version,
        "rows": len(plan),
        "size": some_shard.size,
        "splits": split_counts(plan),
        "depth": made_from["depth"],
        "left_out": made_from.get("left_out", 0),
        "statistics": {field: mean_and_std(sums[field], scale) for field, scale in scales.items() if field in sums},
        "made_from": made_from,
        "sums_sha256": hashlib.sha256(lines).hexdigest(),
        "shards": [
            {
                "name": name,
                "first_row": firsts[name],
                "rows": shard.rows,
                "splits": split_counts(plan[firsts[name] : firsts[name] + shard.rows]),
                "bytes": sum(entry.nbytes for entry in tables[name].values()),
                "image_bytes": _image_bytes(shard, tables[name], name),
                "sha256": hashlib.sha256(lines_by_shard[name]).hexdigest(),
            }
            for name, shard in shards.items()
        ],
    }
    return {**tree, SHA256SUMS: lines, INDEX_JSON: encode_json(index)}


def _image_bytes(shard: reader.Shard, table: Mapping[str, FileEntry], name: str) -> int:
    """Add up the encoded bytes of a shard's images; the files in a zip file are listed by itself."""
    sizes = (
        shard.files.sizes() if name in table else {file[len(name) + 1 :]: entry.nbytes for file, entry in table.items()}
    )
    return sum(size for file, size in sizes.items() if file.startswith("image/c/"))
