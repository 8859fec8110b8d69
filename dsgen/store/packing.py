"""Stage three: pack a corpus, or pictures that are none, into the shards of a store.

The unit of work is a block, whole chunks of consecutive rows, one file of every picture array: a pure function of the
source and the rows. While a store is made its folder `packing/` says how far it is: what it is made from, and a record
of each finished block with the block's statistics and hashes. A shard whose blocks are all there is sealed: columns,
backgrounds and metadata are written, its own `zarr.json` last, so that no unfinished shard can be opened. `SHA256SUMS`
and `index.json` come at the end. Every file is written whole or not at all, and its bytes depend on the source alone:
runs that are killed, repeated, or share the work on several machines end with the same store.
"""

import contextlib
import hashlib
import json
import logging
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from dsgen import __version__
from dsgen.corpus.plan import SPLITS
from dsgen.errors import ConflictError, DsgenError, InvalidValueError, find_differences
from dsgen.io.filesystem import LocalFiles, UrlFiles, open_files
from dsgen.io.json_files import encode_json, parse_json
from dsgen.io.zip_files import write_zip
from dsgen.parallel.locks import LOCK
from dsgen.parallel.parts import Part, lock_setup, lock_stage, select_part
from dsgen.parallel.pool import run_blocks, worker_count
from dsgen.store import codecs, reader, schema
from dsgen.store.corpus_source import CorpusSource, Source
from dsgen.store.layout import INDEX_JSON, PACKING, SHA256SUMS, shard_name
from dsgen.store.sealing import ZIP_SUFFIX, open_shard, sums_and_index
from dsgen.store.statistics import add_all_sums, add_sums, depth_sums, image_sums, scale_sums

log = logging.getLogger("dsgen")

_MADE_FROM = "made_from.json"
_WRITERS = 8
_SHARD = re.compile(r"shard-\d+-of-(\d+)\.zarr(\.zip)?(\.partial)?")


def pack(
    corpus: Path = Path("corpus"),
    out: Path | str = Path("shards"),
    *,
    shards: int = 6,
    max_flip_error: float | None = None,
    recipe: bool = False,
    zipped: bool = False,
    part: Part | None = None,
    cluster: str | None = None,
    jobs: int | None = None,
) -> dict[str, Any]:
    """Pack a corpus into `shards` shards below `out`, a folder or a URL, or go on with them, and return the counts.

    Depth is packed when the corpus is labelled and left out with a warning when it is not. Rows whose depth and that
    of their mirror image disagree by more than `max_flip_error` keep their place and leave their split: they become
    `unused`, and the index counts them as `left_out`. A `recipe` holds the foregrounds in place of the composites and
    masks, which are drawn when read. `zipped` makes every shard one zip file. With `part` only a share of the blocks
    is packed; whichever part ends last finishes the store. `cluster` is the address of a dask scheduler.

    Raises `DsgenError` for half labelled corpora, for a disk without room, and for a folder that holds anything else
    than an unfinished or finished store of the same source and options.
    """
    source = CorpusSource(corpus, max_flip_error)
    return pack_source(source, out, shards=shards, recipe=recipe, zipped=zipped, part=part, cluster=cluster, jobs=jobs)


def pack_source(
    source: Source,
    out: Path | str = Path("shards"),
    *,
    shards: int = 6,
    recipe: bool = False,
    zipped: bool = False,
    part: Part | None = None,
    cluster: str | None = None,
    jobs: int | None = None,
) -> dict[str, Any]:
    """Do the work of `pack` for any source."""
    workers = worker_count(jobs)
    files = open_files(out)
    if zipped and not isinstance(files, LocalFiles):
        raise InvalidValueError(
            "--zip", f"{out} is a URL, zip files are made on a disk", "pack into a folder and copy them"
        )
    bounds = shard_bounds(len(source.plan), source.chunk, shards)
    made_from = source.made_from | {"shards": shards, "recipe": recipe, "zip": zipped}
    work = _Packing(source, files, bounds, made_from)
    _check_out(files, made_from)
    # in an object store there are no locks: whoever does the same work twice writes the same bytes
    with lock_stage(files.path, "pack", part) if isinstance(files, LocalFiles) else contextlib.nullcontext():
        if files.has(INDEX_JSON):
            if not work.lost():
                work.tidy()
                return _summary(reader.Store(out), packed=0)
            files.remove(INDEX_JSON)  # no index while anything is missing: it vouches for the whole
        packed = work.fill(workers, part, cluster)
        with lock_setup(files.path, part) if isinstance(files, LocalFiles) else contextlib.nullcontext():
            if work.seal():
                work.finish()
        if files.has(INDEX_JSON):
            return _summary(reader.Store(out), packed)
        return {"store": str(out), "rows": len(source.plan), "packed": packed, "unfinished": True}


def pack_shards(
    source: Source, out: Path, numbers: Sequence[int], made_from: dict[str, Any], jobs: int | None = None
) -> dict[str, dict[str, list[Any]]]:
    """Pack some shards of a store, by their numbers, below a folder: whole, but without an index.

    `made_from` is what the store's index says. Returns bytes and hash of every file, by the names of shard and file.
    """
    files = LocalFiles(out)
    bounds = shard_bounds(len(source.plan), source.chunk, made_from["shards"])
    work = _Packing(source, files, bounds, made_from, numbers)
    work.fill(worker_count(jobs), None, None)
    work.seal()
    return work.tables()


def shard_bounds(rows: int, chunk: int, shards: int) -> list[tuple[int, int]]:
    """Divide rows into shards of as many whole chunks each, give or take one: first and last row, exclusive."""
    chunks = -(-rows // chunk)
    if not 1 <= shards <= chunks:
        raise InvalidValueError(
            "--shards", f"got {shards}, expected 1 to {chunks}, since {rows:,} rows make {chunks:,} chunks of {chunk}"
        )
    edges = [min(k * chunks // shards * chunk, rows) for k in range(shards + 1)]
    return list(pairwise(edges))


def _check_out(files: LocalFiles | UrlFiles, made_from: dict[str, Any]) -> None:
    """Refuse a folder that is something else, and a store made from anything else."""
    if isinstance(files, LocalFiles) and files.path.exists() and not files.path.is_dir():
        raise InvalidValueError("--out", f"{files} is a file, expected a folder or nothing", "choose another name")
    entries = files.top()
    known = {INDEX_JSON, SHA256SUMS, PACKING}
    others = [
        name
        for name in entries
        if name.removesuffix(".partial") not in known and not _SHARD.fullmatch(name) and not name.startswith(LOCK)
    ]
    if others:
        raise InvalidValueError("--out", f"{files} holds other files ({', '.join(others[:5])})", "choose another name")
    for was in _made_before(files, entries):
        differences = find_differences(_flat(made_from), _flat(was))
        if differences:
            remedy = "use the same, or another --out, or remove this one"
            raise ConflictError(str(files), "packed from other inputs", remedy, differences, "store")


def _made_before(files: LocalFiles | UrlFiles, entries: list[str]) -> Iterator[dict[str, Any]]:
    """Yield what is said of a store's making: by its index, or by what is there of an unfinished one."""
    for name in (INDEX_JSON, f"{PACKING}/{_MADE_FROM}"):
        with contextlib.suppress(FileNotFoundError):
            content = parse_json(files.read(name), f"{files}/{name}")
            yield content["made_from"] if name == INDEX_JSON else content
            return
    for name in entries:
        if _SHARD.fullmatch(name) and not name.endswith(".partial"):
            with contextlib.suppress(DsgenError):  # an unfinished shard says nothing
                yield open_shard(files, name).attributes["made_from"]


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        words = prefix + name.replace("_", " ")
        flat |= _flat(value, f"{words} ") if isinstance(value, dict) else {words: value}
    return flat


class _Packing:
    """The making of a store, or of some of its shards by their numbers: of which rows, from what."""

    def __init__(
        self,
        source: Source,
        files: LocalFiles | UrlFiles,
        bounds: list[tuple[int, int]],
        made_from: dict[str, Any],
        numbers: Sequence[int] | None = None,
    ):
        numbers = range(len(bounds)) if numbers is None else numbers
        self._source, self._files, self._made_from = source, files, made_from
        self._bounds = [bounds[k] for k in numbers]
        self._zip: bool = made_from["zip"]
        self._block: int = made_from["block_rows"]
        ending = ZIP_SUFFIX if self._zip else ""
        self._names = [shard_name(k, len(bounds)) + ending for k in numbers]
        recipe = made_from["recipe"]
        self._stored = tuple(part for part in source.parts if not (recipe and part in ("image", "mask")))

    def lost(self) -> list[str]:
        """Name the shards that are not there."""
        return [name for name in self._names if not self._sealed(name)]

    def _sealed(self, name: str) -> bool:
        return self._files.has(name if self._zip else f"{name}/{schema.ROOT}")

    def _staged(self, name: str) -> str:
        """Where a shard's blocks are written: in place, or beside until they are put into a zip."""
        return f"{PACKING}/{name.removesuffix(ZIP_SUFFIX)}" if self._zip else name

    def _there(self) -> set[str]:
        return set(self._files.sizes())

    def _done(self, name: str, first: int, start: int, there: set[str]) -> bool:
        """Say whether the block at row `start` of a shard that begins at `first` is there: its record and its files."""
        folder, number = self._staged(name), (start - first) // self._block
        parts = [part for part in self._stored if part != "background"]
        files = [f"{folder}/{schema.block_name(part, number)}" for part in parts]
        return there.issuperset([f"{PACKING}/{_record(start)}", *files])

    def _blocks(self, first: int, last: int) -> list[tuple[int, int]]:
        return [(start, min(start + self._block, last)) for start in range(first, last, self._block)]

    def fill(self, workers: int, part: Part | None, cluster: str | None) -> int:
        """Pack every block of the part that is not there; return the rows packed now."""
        place = str(self._files.path.absolute() if isinstance(self._files, LocalFiles) else self._files)
        there = self._there()
        tasks: list[tuple[int, tuple[Any, ...]]] = []
        for name, (first, last) in zip(self._names, self._bounds, strict=True):
            sealed = self._sealed(name)
            for start, stop in self._blocks(first, last):
                done = sealed or self._done(name, first, start, there)
                task = (self._source.key, place, self._staged(name), first, start, stop, self._block, self._stored)
                tasks.append((0 if done else stop - start, task))
        if part is not None:
            tasks = select_part(tasks, part)
        missing = [task for rows, task in tasks if rows]
        total = sum(task[5] - task[4] for _, task in tasks)
        left = sum(rows for rows, _ in tasks)
        if not missing:
            return 0
        self._check_space(left)
        self._files.write(f"{PACKING}/{_MADE_FROM}", encode_json(self._made_from))
        return run_blocks(
            pack_block,
            missing,
            jobs=workers,
            title="pack",
            total=total,
            done=total - left,
            cluster=cluster,
            shared=[*self._source.folders, *([self._files.path] if isinstance(self._files, LocalFiles) else [])],
        )

    def _check_space(self, rows: int) -> None:
        """Refuse to start what the disk cannot hold, judged by a few chunks."""
        if not isinstance(self._files, LocalFiles):
            return
        chunk, count = self._source.chunk, len(self._source.plan)
        measured = taken = 0
        for start in np.linspace(0, max(0, count - chunk), 4).astype(int).tolist():
            pictures = self._source.pictures(start, min(start + chunk, count))
            measured += len(pictures["image"])
            taken += sum(
                len(codecs.encode_block(part, values, chunk, chunk))
                for part, values in pictures.items()
                if part in self._stored
            )
        folder = next(
            path for path in (self._files.path.absolute(), *self._files.path.absolute().parents) if path.exists()
        )
        # a zip is written beside the blocks it is made of
        need = rows * taken // measured + (count // len(self._names) * taken // measured if self._zip else 0)
        free = shutil.disk_usage(folder).free
        if need > free:
            raise InvalidValueError(
                "--out",
                f"{self._files}: {rows:,} rows need about {need / 1e9:.1f} GB, {free / 1e9:.1f} GB are free",
                "make room, choose another --out, or pack a --recipe",
            )

    def seal(self) -> bool:
        """Seal every shard whose blocks are all there; say whether all shards are sealed."""
        complete = True
        there = self._there()
        for name, (first, last) in zip(self._names, self._bounds, strict=True):
            if self._sealed(name):
                continue
            blocks = [start for start, _ in self._blocks(first, last)]
            if not all(self._done(name, first, start, there) for start in blocks):
                complete = False
                continue
            records = [_record(start) for start in blocks]
            try:
                self._seal(name, first, last, records)
            except FileNotFoundError:
                if not self._sealed(name):  # else another part was quicker and has cleared up
                    raise
        return complete

    def _seal(self, name: str, first: int, last: int, records: list[str]) -> None:
        files, staged = self._files, self._staged(name)
        with ThreadPoolExecutor(_WRITERS) as pool:
            read = [
                parse_json(content, record)
                for content, record in zip(
                    pool.map(lambda record: files.read(f"{PACKING}/{record}"), records), records, strict=True
                )
            ]
        table: dict[str, list[Any]] = {file: entry for record in read for file, entry in record["files"].items()}
        rows = self._source.plan[first:last]
        numbers, counts = np.unique(rows["background"], return_counts=True)
        sums = add_all_sums([record["sums"] for record in read])
        if "background" in self._stored:
            sums["background"] = add_sums(
                [
                    scale_sums(image_sums(self._source.background(number)[None]), times)
                    for number, times in zip(numbers.tolist(), counts.tolist(), strict=True)
                ]
            )
        cutouts, shapes = self._source.cutouts() if self._made_from["recipe"] else (None, None)
        geometry = schema.Geometry(
            rows=len(rows),
            size=self._source.size,
            chunk=self._source.chunk,
            block=self._block,
            parts=self._stored,
            backgrounds=len(numbers),
            foregrounds=None if cutouts is None else cutouts.shape[:3],
        )
        attributes = {
            "dsgen": __version__,
            "made_from": self._made_from,
            "first_row": first,
            "splits": list(SPLITS),
            **self._source.attributes,
            "sums": sums,
        }
        metadata = schema.metadata_files(geometry, attributes, sharded=not self._zip)

        def small() -> Iterator[tuple[str, bytes]]:
            if "background" in self._stored:
                yield from schema.background_files(numbers, self._source.background)
            if cutouts is not None and shapes is not None:
                yield from schema.foreground_files(cutouts, shapes)
            yield from schema.column_files(rows, first)

        if self._zip:
            assert isinstance(files, LocalFiles)
            chunks = self._zip_chunks(staged, table)
            write_zip(files.path / name, _chain(metadata.items(), small(), chunks))
            with (files.path / name).open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            table = {name: [(files.path / name).stat().st_size, digest]}
        else:

            def write(entry: tuple[str, bytes]) -> None:
                files.write(f"{name}/{entry[0]}", entry[1])
                table[entry[0]] = _entry(entry[1])

            *arrays, root = metadata.items()
            with ThreadPoolExecutor(_WRITERS) as pool:
                for entries in (small(), arrays):
                    list(pool.map(write, entries))
            for leftover in sorted(set(files.child(name).sizes()) - set(table)):  # what a kill left of a write
                files.remove(f"{name}/{leftover}")
            table[root[0]] = _entry(root[1])
            self._save_table(name, {f"{name}/{file}": entry for file, entry in table.items()})
            write(root)
            return
        self._save_table(name, table)
        files.remove(staged)

    def _zip_chunks(self, staged: str, table: dict[str, list[Any]]) -> Iterator[tuple[str, bytes]]:
        """Yield the chunks of all blocks of a shard, each under the name it has without Zarr shards."""
        each = self._block // self._source.chunk
        for file in sorted(table, key=lambda file: (file.split("/")[0], int(file.split("/")[2]))):
            part, block = file.split("/")[0], int(file.split("/")[2])
            codes = codecs.split_block(self._files.read(f"{staged}/{file}"), self._source.chunk, self._block)
            for k, code in enumerate(codes):
                yield schema.block_name(part, block * each + k), code

    def _save_table(self, name: str, table: dict[str, list[Any]]) -> None:
        self._files.write(f"{PACKING}/{name}.json", encode_json(table))

    def _table(self, name: str, sizes: dict[str, int]) -> dict[str, list[Any]]:
        """Every file of a sealed shard with bytes and hash, as its sealing left them, or read anew."""
        with contextlib.suppress(FileNotFoundError):
            file = f"{PACKING}/{name}.json"
            return parse_json(self._files.read(file), f"{self._files}/{file}")
        names = [file for file in sizes if file == name or file.startswith(f"{name}/")]
        with ThreadPoolExecutor(_WRITERS) as pool:
            return dict(zip(names, pool.map(lambda file: _entry(self._files.read(file)), names), strict=True))

    def tables(self) -> dict[str, dict[str, list[Any]]]:
        """Bytes and hash of every file of every sealed shard."""
        sizes = self._files.sizes()
        return {name: self._table(name, sizes) for name in self._names}

    def finish(self) -> None:
        """Write hashes and index from what the sealed shards say, and clear up."""
        tables = self.tables()
        shards = {name: open_shard(self._files, name) for name in self._names}
        lines, index = sums_and_index(self._source.plan, shards, tables)
        self._files.write(SHA256SUMS, lines)
        self._files.write(INDEX_JSON, index)
        self.tidy()

    def tidy(self) -> None:
        """Remove what says how far the work was, and what a kill left of a write."""
        for leftover in self._files.top():
            if leftover == PACKING or leftover.endswith(".partial"):
                self._files.remove(leftover)


def _chain(*parts: Iterable[tuple[str, bytes]]) -> Iterator[tuple[str, bytes]]:
    for part in parts:
        yield from part


def _entry(content: bytes) -> list[Any]:
    return [len(content), hashlib.sha256(content).hexdigest()]


def _record(first: int) -> str:
    """Name the record of the block that begins at row `first`."""
    return f"block-{first:012d}.json"


@lru_cache(maxsize=1)
def _open(key: tuple[Any, ...]) -> Source:
    make: Callable[..., Source] = key[0]
    return make(*key[1:])


def pack_block(
    key: tuple[Any, ...],
    place: str,
    folder: str,
    shard_first: int,
    start: int,
    stop: int,
    block: int,
    parts: tuple[str, ...],
) -> int:
    """Pack `parts` of rows `start` to `stop`, exclusive, of a source into a shard that begins at row `shard_first`."""
    source, files = _open(key), open_files(place)
    pictures = source.pictures(start, stop)
    image = pictures["image"]
    sums: dict[str, Any] = {"image": image_sums(image)}
    if "mask" in pictures:
        sums["mask"] = {"count": pictures["mask"].size, "sum": [int(np.count_nonzero(pictures["mask"]))]}
    if "depth" in pictures:
        sums["depth"] = depth_sums(pictures["depth"])
    written = {}
    for part, values in pictures.items():
        if part in parts:
            name = schema.block_name(part, (start - shard_first) // block)
            codes = source.coded_depth(start, stop) if part == "depth" else None
            content = (
                codecs.encode_block(part, values, source.chunk, block)
                if codes is None
                else codecs.join_chunks(codes, source.chunk, block)
            )
            files.write(f"{folder}/{name}", content)
            written[name] = _entry(content)
    record = json.dumps({"sums": sums, "files": written}).encode()
    files.write(f"{PACKING}/{_record(start)}", record)
    return stop - start


def _summary(packed_store: reader.Store, packed: int) -> dict[str, Any]:
    shards = packed_store.index["shards"]
    return {
        "store": str(packed_store.path),
        "rows": packed_store.rows,
        "shards": len(shards),
        "packed": packed,
        "already_there": packed_store.rows - packed,
        "depth": packed_store.has_depth,
        "left_out": packed_store.index.get("left_out", 0),
        "bytes": sum(shard["bytes"] for shard in shards),
        "image_bytes_per_row": round(sum(shard["image_bytes"] for shard in shards) / packed_store.rows),
        "splits": packed_store.splits,
    }
