"""The records of an unfinished store: the folder `packing/`, which says how far a pack has got.

    packing/made_from.json              what the store is packed from, and how
    packing/block-000000000000.json     a finished block, by its first row: statistics, size and hash of its files
    packing/shard-00000-of-00006.zarr.json      a sealed shard: size and hash of every file

A finished store has no such folder.
"""

import contextlib
import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

from typing_extensions import TypedDict

from dsgen.errors import DamagedError
from dsgen.io.filesystem import LocalFiles, UrlFiles
from dsgen.io.json_files import encode_json, parse_as
from dsgen.store.layout import PACKING
from dsgen.store.schema import Count, Sha256, SumsEntry
from dsgen.store.statistics import Sums

MADE_FROM = f"{PACKING}/made_from.json"
THREADS = 8  # for many small reads or writes, each of which waits for the disk or the network


class FileEntry(NamedTuple):
    """Size and hash of a file. JSON has it as a list of the two."""

    nbytes: int
    sha256: str

    @classmethod
    def of(cls, content: bytes) -> "FileEntry":
        """Describe a file by its content."""
        return cls(len(content), hashlib.sha256(content).hexdigest())


FileTable = dict[str, FileEntry]  # by the name of the file


_Table = dict[str, tuple[Count, Sha256]]  # as JSON has it


class _Record(TypedDict):
    """The record of a block; `sha256` is the hash of the others, as JSON without spaces or line ends."""

    sums: dict[str, SumsEntry]
    files: _Table
    sha256: Sha256


@dataclass(frozen=True)
class BlockRecord:
    """A finished block: the sums of its arrays, by array, and its files, by their names within the shard."""

    sums: dict[str, Sums]
    files: FileTable

    def encode(self) -> bytes:
        """Encode the record as JSON."""
        content = {"sums": self.sums, "files": self.files}
        return json.dumps(content | {"sha256": _hash(content)}).encode()

    @classmethod
    def parse(cls, content: bytes, name: str) -> "BlockRecord":
        """Parse a record; raise `DamagedError` if it is damaged, so that no statistics are wrong without a word."""
        remedy = "remove it and run dsgen pack again"
        record = parse_as(_Record, content, name, remedy)
        if record["sha256"] != _hash({"sums": record["sums"], "files": record["files"]}):
            raise DamagedError(name, "damaged, its content differs from the hash in it", remedy)
        return cls({name: dict(sums) for name, sums in record["sums"].items()}, _parse_table(record["files"]))


def _hash(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, separators=(",", ":")).encode()).hexdigest()


def block_record_name(first: int) -> str:
    """Name the record of the block that starts at row `first` of the store."""
    return f"{PACKING}/block-{first:012d}.json"


def start_records(files: LocalFiles | UrlFiles, made_from: dict[str, Any]) -> None:
    """Note what the store is packed from."""
    files.write(MADE_FROM, encode_json(made_from))


def write_block_record(files: LocalFiles | UrlFiles, first: int, record: BlockRecord) -> None:
    """Note that the block at row `first` is finished."""
    files.write(block_record_name(first), record.encode())


def read_block_records(files: LocalFiles | UrlFiles, firsts: Sequence[int]) -> list[BlockRecord]:
    """Read the records of the blocks that start at these rows."""
    names = [block_record_name(first) for first in firsts]
    with ThreadPoolExecutor(THREADS) as pool:
        return [
            BlockRecord.parse(content, f"{files}/{name}")
            for name, content in zip(names, pool.map(files.read, names), strict=True)
        ]


def write_shard_table(files: LocalFiles | UrlFiles, shard: str, table: FileTable) -> None:
    """Note size and hash of every file of a shard; the names are relative to the store."""
    files.write(f"{PACKING}/{shard}.json", encode_json(table))


def read_shard_table(files: LocalFiles | UrlFiles, shard: str) -> FileTable | None:
    """Return size and hash of every file of a sealed shard as noted when it was sealed; None without such a note."""
    name = f"{PACKING}/{shard}.json"
    with contextlib.suppress(FileNotFoundError):
        remedy = "remove it and run dsgen pack again"
        return _parse_table(parse_as(_Table, files.read(name), f"{files}/{name}", remedy))
    return None


def hash_shard(files: LocalFiles | UrlFiles, shard: str, sizes: dict[str, int]) -> FileTable:
    """Return size and hash of every file of a shard by reading them; `sizes` lists all files of the store."""
    names = [file for file in sizes if file == shard or file.startswith(f"{shard}/")]
    with ThreadPoolExecutor(THREADS) as pool:
        return dict(zip(names, pool.map(lambda file: FileEntry.of(files.read(file)), names), strict=True))


def _parse_table(table: _Table) -> FileTable:
    return {name: FileEntry(*entry) for name, entry in table.items()}
