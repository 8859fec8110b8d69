"""Pack a corpus, or pictures that are no corpus, into the shards of a store.

The unit of work is a block: whole chunks of consecutive rows, one file of every array of samples (`blocks`). While a
store is packed, its folder `packing/` records what it is packed from and which blocks are finished (`records`). A
shard whose blocks are all finished is sealed, and when all shards are, the other files of the store are written,
`index.json` last (`sealing`). Every file is written whole or not at all, and its bytes depend on the source alone. So
runs that are killed, repeated, or divided among several machines end with the same store.
"""

import contextlib
import re
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from dsgen.errors import ConflictError, DsgenError, InvalidValueError, find_differences
from dsgen.io.atomic import final_name, is_unfinished
from dsgen.io.filesystem import LocalFiles, UrlFiles, open_files
from dsgen.io.json_files import parse_as
from dsgen.parallel.locks import LOCK
from dsgen.parallel.parts import Part, lock_setup, lock_stage, select_part
from dsgen.parallel.pool import run_blocks, worker_count
from dsgen.store import reader, schema
from dsgen.store.blocks import BlockTask, ShardTask, pack_block
from dsgen.store.corpus_source import CorpusSource
from dsgen.store.layout import INDEX_JSON, PACKING, SHA256SUMS, ZIP_SUFFIX, shard_name
from dsgen.store.records import (
    MADE_FROM,
    FileTable,
    block_record_name,
    hash_shard,
    read_shard_table,
    start_records,
)
from dsgen.store.schema import MadeFrom, parse_index
from dsgen.store.sealing import layout_of, open_shard, seal_shard, store_files
from dsgen.store.source import Source, comparable
from dsgen.store.space import check_space

DEFAULT_SHARDS = 6
_TREE = {name.partition("/")[0] for name in schema.TREE_FILES}
_SHARD = re.compile(r"shard-\d+-of-(\d+)\.zarr(\.zip)?")


@dataclass(frozen=True)
class PackResult:
    """What a run of `pack` did, and the store it left.

    If other parts still have work to do, `finished` is False and all but the first three fields are None.
    """

    store: str
    """The folder or URL."""
    rows: int
    """Rows of the whole store."""
    packed: int
    """Rows that this run packed."""
    finished: bool
    """Whether the store is complete and can be opened."""
    already_there: int | None = None
    """Rows that earlier runs or other parts packed."""
    shards: int | None = None
    depth: bool | None = None
    """Whether it has depth."""
    depth_from: str | None = None
    """What made the depth: a model, or composed, and of which depth of the backgrounds."""
    left_out: int | None = None
    """Rows that were taken out of their split because of `max_flip_error`."""
    bytes: int | None = None
    """Bytes of all shards."""
    image_bytes_per_row: int | None = None
    """Encoded bytes of an image on average; 0 for a recipe, which stores none."""
    splits: dict[str, int] | None = None
    """Rows of every split."""


def pack(
    corpus: Path = Path("corpus"),
    out: Path | str = Path("shards"),
    *,
    shards: int | None = None,
    max_flip_error: float | None = None,
    recipe: bool = False,
    composed: bool = False,
    compact: bool = False,
    zipped: bool = False,
    part: Part | None = None,
    cluster: str | None = None,
    jobs: int | None = None,
) -> PackResult:
    """Pack a corpus into `shards` shards below `out`, a folder or a URL; resume if some of it is packed already.

    There are 6 shards by default, fewer if the rows make fewer chunks.

    Depth is packed if the corpus is labelled; if it is not, a warning says so. Rows whose depth differs from that of
    their mirror image by more than `max_flip_error` stay in the store but leave their split: they become `unused`,
    and the index counts them as `left_out`. A `recipe` stores the foregrounds instead of composites and masks, which
    are drawn when they are read, and so is composed depth. With `composed` that is packed though a network has labelled
    the corpus too; where no network has, it is packed anyway if it is known. A `compact` store has the same arrays in
    fewer bytes, by codecs that fewer readers know. `zipped` makes every shard one zip file.
    `part` packs one part of the blocks; whichever part ends last finishes the store. `cluster` is the address of a dask
    scheduler, `jobs` the number of processes without one, by default one per core.

    Raises `DsgenError` for a corpus that is only partly labelled, `InvalidValueError` for a disk without enough room
    and for a folder that holds other files, and `ConflictError` for a store of another source or with other options.

    >>> result = pack(Path("corpus"), "shards", jobs=4)  # doctest: +SKIP
    >>> result.rows, result.packed  # doctest: +SKIP
    (400000, 400000)
    """
    source = CorpusSource(corpus, max_flip_error, composed=composed)
    return pack_source(
        source,
        out,
        shards=shards,
        recipe=recipe,
        compact=compact,
        zipped=zipped,
        part=part,
        cluster=cluster,
        jobs=jobs,
    )


def pack_source(
    source: Source,
    out: Path | str = Path("shards"),
    *,
    shards: int | None = None,
    recipe: bool = False,
    compact: bool = False,
    zipped: bool = False,
    part: Part | None = None,
    cluster: str | None = None,
    jobs: int | None = None,
) -> PackResult:
    """Pack any source; the options are those of `pack`."""
    workers = worker_count(jobs)
    files = open_files(out)
    if zipped and not isinstance(files, LocalFiles):
        raise InvalidValueError(
            "--zip", f"{out} is a URL, but zip files can only be made on a disk", "pack into a folder and copy it"
        )
    if shards is None:
        shards = min(DEFAULT_SHARDS, -(-len(source.plan) // source.chunk))
    made_from = source.made_from | {"shards": shards, "recipe": recipe, "zip": zipped, "layout": schema.LAYOUT}
    if compact:
        _check_compact(source, made_from)
        made_from["compact"] = True
    shard_bounds(len(source.plan), source.chunk, shards)
    packing = _Packing(source, files, _check_out(files, made_from) or made_from)
    with _lock_stage(files, part):
        if files.has(INDEX_JSON) and packing.is_whole():
            packing.clean_up()
            return _summarise(reader.Store(out), packed=0)
        packing.reopen()
        packed = packing.pack_blocks(workers, part, cluster)
        with _lock_setup(files, part):
            if files.has(INDEX_JSON):  # another part has finished the store meanwhile
                packing.clean_up()
            elif packing.seal_shards():
                packing.finish()
        if files.has(INDEX_JSON):
            return _summarise(reader.Store(out), packed)
        return PackResult(str(out), len(source.plan), packed, finished=False)


def _stored_fields(source: Source, made_from: dict[str, Any]) -> tuple[str, ...]:
    """Return the fields of a source that a store has as arrays; a recipe does not have those that are drawn."""
    drawn = source.drawn if made_from["recipe"] else ()
    return tuple(field for field in source.fields if field not in drawn)


def _check_compact(source: Source, made_from: dict[str, Any]) -> None:
    """Refuse to make a store compact that has no array of samples to encode."""
    if set(_stored_fields(source, made_from)) <= {"background"}:
        raise InvalidValueError(
            "--compact", "got it with --recipe, which draws everything and stores no samples", "leave out --compact"
        )


def _lock_stage(files: LocalFiles | UrlFiles, part: Part | None) -> AbstractContextManager[Any]:
    """Lock a folder. An object store has no locks: two runs that do the same work write the same bytes."""
    return lock_stage(files.path, "pack", part) if isinstance(files, LocalFiles) else nullcontext()


def _lock_setup(files: LocalFiles | UrlFiles, part: Part | None) -> AbstractContextManager[Any]:
    return lock_setup(files.path, part) if isinstance(files, LocalFiles) else nullcontext()


def pack_shards(
    source: Source, out: Path, numbers: Sequence[int], made_from: dict[str, Any], jobs: int | None = None
) -> dict[str, FileTable]:
    """Pack some shards of a store, by their numbers, below a folder: whole shards, but no index.

    `made_from` is that of the store's index. Returns size and hash of every file, by shard and by the file's name
    within the store.
    """
    packing = _Packing(source, LocalFiles(out), made_from, numbers)
    packing.pack_blocks(worker_count(jobs), None, None)
    packing.seal_shards()
    return packing.shard_tables()


def shard_bounds(rows: int, chunk: int, shards: int) -> list[tuple[int, int]]:
    """Divide rows into shards of whole chunks, as equal as can be; return first and last row of each, exclusive."""
    chunks = -(-rows // chunk)
    if not 1 <= shards <= chunks:
        raise InvalidValueError(
            "--shards", f"got {shards}, expected 1 to {chunks}, since {rows:,} rows make {chunks:,} chunks of {chunk}"
        )
    edges = [min(k * chunks // shards * chunk, rows) for k in range(shards + 1)]
    return list(pairwise(edges))


def _check_out(files: LocalFiles | UrlFiles, made_from: dict[str, Any]) -> dict[str, Any] | None:
    """Refuse a folder that holds anything but a store, and a store that was packed from anything else.

    Returns what an existing store says it was made from, perhaps by an earlier version, in its own words.
    """
    if isinstance(files, LocalFiles) and files.path.exists() and not files.path.is_dir():
        raise InvalidValueError("--out", f"{files} is a file, expected a folder or nothing", "choose another name")
    names = files.top()
    known = {INDEX_JSON, SHA256SUMS, PACKING, *_TREE}
    others = [
        name
        for name in names
        if final_name(name) not in known and not _SHARD.fullmatch(final_name(name)) and not name.startswith(LOCK)
    ]
    if others:
        raise InvalidValueError(
            "--out", f"{files} holds other files ({', '.join(others[:5])})", "move them, or choose another name"
        )
    found = list(_made_from_earlier(files, names))
    for earlier in found:
        differences = find_differences(_flatten(comparable(made_from)), _flatten(comparable(earlier)))
        if differences:
            remedy = "use the same inputs, choose another --out, or remove this store"
            raise ConflictError(str(files), "packed from other inputs", remedy, differences, "store")
    return found[0] if found else None


def _made_from_earlier(files: LocalFiles | UrlFiles, names: list[str]) -> Iterator[dict[str, Any]]:
    """Yield what an existing store was packed from, according to its index, its records, or else its shards."""
    for name in (INDEX_JSON, MADE_FROM):
        with contextlib.suppress(FileNotFoundError):
            content, place = files.read(name), f"{files}/{name}"
            if name == INDEX_JSON:
                yield dict(parse_index(content, place)["made_from"])
            else:
                yield dict(parse_as(MadeFrom, content, place, f"remove {files}/{PACKING} and run dsgen pack again"))
            return
    for name in names:
        if _SHARD.fullmatch(name):
            with contextlib.suppress(DsgenError):  # an unsealed shard cannot be opened
                yield dict(open_shard(files, name).attributes["made_from"])


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested settings into one level, and spell their names as words."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        words = prefix + name.replace("_", " ")
        flat |= _flatten(value, f"{words} ") if isinstance(value, dict) else {words: value}
    return flat


class _Packing:
    """The packing of a store, or of some of its shards by their numbers."""

    def __init__(
        self,
        source: Source,
        files: LocalFiles | UrlFiles,
        made_from: dict[str, Any],
        numbers: Sequence[int] | None = None,
    ):
        self._source, self._files, self._made_from = source, files, made_from
        bounds = shard_bounds(len(source.plan), source.chunk, made_from["shards"])
        suffix = ZIP_SUFFIX if made_from["zip"] else ""
        self._shards = [
            ShardTask(shard_name(k, len(bounds)) + suffix, *bounds[k], made_from["block_rows"])
            for k in (range(len(bounds)) if numbers is None else numbers)
        ]
        self._fields = _stored_fields(source, made_from) + schema.person_fields(made_from)
        self._coding = schema.coding_of(made_from)

    def unsealed(self) -> list[ShardTask]:
        """List the shards that are not sealed."""
        return [shard for shard in self._shards if not self._files.has(shard.root)]

    def is_whole(self) -> bool:
        """Return whether every shard is sealed, and the group that they are in exists."""
        return not self.unsealed() and (layout_of(self._made_from) == 1 or self._files.has(schema.ROOT))

    def reopen(self) -> None:
        """Remove what vouches for the whole store if anything is missing.

        Each of the two is looked for before the shards are: it exists only after all of them do, so a part that
        finishes the store at this moment is not disturbed.
        """
        for name in (schema.ROOT, INDEX_JSON):
            if self._files.has(name) and not self.is_whole():
                self._files.remove(name)

    def _existing(self) -> set[str]:
        return set(self._files.sizes())

    def _is_packed(self, shard: ShardTask, start: int, existing: set[str]) -> bool:
        """Say whether the block at row `start` of an unsealed shard is finished: its record and its files exist."""
        fields = [field for field in self._fields if field != "background"]
        files = [f"{shard.blocks_folder}/{shard.block_file(field, start)}" for field in fields]
        return existing.issuperset([block_record_name(start), *files])

    def pack_blocks(self, workers: int, part: Part | None, cluster: str | None) -> int:
        """Pack every unfinished block of the part; return the rows packed now."""
        files = self._files
        local = [files.path] if isinstance(files, LocalFiles) else []
        store = str(files.path.absolute() if isinstance(files, LocalFiles) else files)
        existing, unsealed = self._existing(), set(self.unsealed())
        tasks: list[tuple[BlockTask, bool]] = []  # with whether it is finished
        for shard in self._shards:
            for start, stop in shard.blocks:
                finished = shard not in unsealed or self._is_packed(shard, start, existing)
                tasks.append(
                    (BlockTask(self._source.key, store, shard, start, stop, self._fields, self._coding), finished)
                )
        if part is not None:
            tasks = select_part(tasks, part)
        missing = [task for task, finished in tasks if not finished]
        total, left = sum(task.rows for task, _ in tasks), sum(task.rows for task in missing)
        if not missing:
            return 0
        if isinstance(files, LocalFiles):
            largest_zip = len(self._source.plan) // len(self._shards) if self._made_from["zip"] else 0
            check_space(self._source, files.path, self._fields, left, largest_zip, self._coding)
        start_records(files, self._made_from)
        return run_blocks(
            pack_block,
            [(task,) for task in missing],
            jobs=workers,
            title="pack",
            total=total,
            done=total - left,
            cluster=cluster,
            shared=[*self._source.folders, *local],
        )

    def seal_shards(self) -> bool:
        """Seal every shard whose blocks are all finished; say whether all shards are sealed."""
        all_sealed = True
        existing = self._existing()
        for shard in self.unsealed():
            if not all(self._is_packed(shard, start, existing) for start, _ in shard.blocks):
                all_sealed = False
                continue
            try:
                seal_shard(self._source, self._files, shard, self._made_from, self._fields)
            except FileNotFoundError:
                if not self._files.has(shard.root):  # otherwise another part sealed it first and has cleaned up
                    raise
        return all_sealed

    def shard_tables(self) -> dict[str, FileTable]:
        """Return size and hash of every file of every shard, by shard; all must be sealed."""
        return self._fill_tables(self._noted_tables())

    def _fill_tables(self, noted: dict[str, FileTable | None]) -> dict[str, FileTable]:
        """Hash the shards without a note."""
        sizes = self._files.sizes() if None in noted.values() else {}
        return {name: hash_shard(self._files, name, sizes) if table is None else table for name, table in noted.items()}

    def _noted_tables(self) -> dict[str, FileTable | None]:
        return {shard.name: read_shard_table(self._files, shard.name) for shard in self._shards}

    def finish(self) -> None:
        """Write the other files of the store, which follow from its sealed shards, then clean up."""
        noted = self._noted_tables()
        if None in noted.values() and self._files.has(INDEX_JSON):
            self.clean_up()  # another part, which no lock keeps out of an object store, has finished it
            return
        tables = self._fill_tables(noted)
        shards = {shard.name: open_shard(self._files, shard.name) for shard in self._shards}
        found = store_files(self._source.plan, shards, tables)
        for top in sorted(_TREE - {schema.ROOT}):
            for name in self._files.child(top).sizes():  # of writes that were killed
                if f"{top}/{name}" not in found:
                    self._files.remove(f"{top}/{name}")
        for name, content in found.items():
            self._files.write(name, content)
        self.clean_up()

    def clean_up(self) -> None:
        """Remove the records, and what killed runs left of their writes."""
        for name in self._files.top():
            if name == PACKING or is_unfinished(name):
                self._files.remove(name)


def _summarise(store: reader.Store, packed: int) -> PackResult:
    shards = store.index["shards"]
    return PackResult(
        store=str(store.path),
        rows=store.rows,
        packed=packed,
        finished=True,
        already_there=store.rows - packed,
        shards=len(shards),
        depth=store.has_depth,
        depth_from=schema.describe_depth(store.index["made_from"]),
        left_out=store.index.get("left_out", 0),
        bytes=sum(shard["bytes"] for shard in shards),
        image_bytes_per_row=round(sum(shard["image_bytes"] for shard in shards) / store.rows),
        splits=store.splits,
    )
