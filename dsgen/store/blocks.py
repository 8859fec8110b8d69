"""Pack one block of a store: the unit of work of a pack.

A block is whole chunks of consecutive rows, and becomes one file of every array of samples. It is a pure function of
the source and the rows, so it may be packed twice, even at the same time.
"""

import threading
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from dsgen.corpus.scene import DRAWN, sample_shape
from dsgen.io.filesystem import open_files
from dsgen.store import codecs, schema
from dsgen.store.layout import PACKING, ZIP_SUFFIX
from dsgen.store.records import BlockRecord, FileEntry, FileTable, write_block_record
from dsgen.store.source import Source, SourceKey
from dsgen.store.statistics import block_sums


@dataclass(frozen=True)
class ShardTask:
    """A shard to pack: rows `first` to `last` of the store, exclusive, in blocks of `block` rows."""

    name: str
    first: int
    last: int
    block: int

    @property
    def zipped(self) -> bool:
        """Whether the shard is a zip file."""
        return self.name.endswith(ZIP_SUFFIX)

    @property
    def root(self) -> str:
        """The file that is written last: if it exists, the shard is sealed."""
        return self.name if self.zipped else f"{self.name}/{schema.ROOT}"

    @property
    def blocks_folder(self) -> str:
        """The folder that blocks are written to: the shard, or one below `packing/` until they go into the zip file."""
        return f"{PACKING}/{self.name.removesuffix(ZIP_SUFFIX)}" if self.zipped else self.name

    @property
    def blocks(self) -> list[tuple[int, int]]:
        """First and last row of every block, exclusive."""
        return [(start, min(start + self.block, self.last)) for start in range(self.first, self.last, self.block)]

    def block_file(self, field: str, start: int) -> str:
        """Name the file of `image`, `mask` or `depth` of the block at row `start`, relative to `blocks_folder`."""
        return schema.block_name(field, (start - self.first) // self.block)


@dataclass(frozen=True)
class BlockTask:
    """What a worker needs to pack rows `start` to `stop` of the store, exclusive, into a shard.

    `store` is an absolute path or a URL; of `fields` the arrays are stored.
    """

    source: SourceKey
    store: str
    shard: ShardTask
    start: int
    stop: int
    fields: tuple[str, ...]
    coding: codecs.Coding = codecs.PLAIN

    @property
    def rows(self) -> int:
        """How many rows the block has."""
        return self.stop - self.start


@lru_cache(maxsize=1)
def _open_source(key: SourceKey) -> Source:
    return key.open()


_reused = threading.local()  # new memory costs more time than what is drawn into it


def _memory(source: Source, rows: int) -> dict[str, np.ndarray]:
    """Return memory for the drawn fields of so many rows, the same for every block of a thread."""
    kept: dict[str, np.ndarray] = vars(_reused).setdefault("arrays", {})
    for field, dtype in DRAWN.items():
        if field in source.fields or (field == "instance" and source.people > 1):
            shape = (rows, *sample_shape(field, source.size))
            if field not in kept or kept[field].shape[1:] != shape[1:] or len(kept[field]) < rows:
                kept[field] = np.empty(shape, dtype)
    return {field: array[:rows] for field, array in kept.items()}


def pack_block(task: BlockTask) -> int:
    """Write the files of a block, then its record; return its rows."""
    source, files, shard = _open_source(task.source), open_files(task.store), task.shard
    arrays = source.pictures(task.start, task.stop, _memory(source, task.rows))
    sums = block_sums(arrays)
    written: FileTable = {}
    for field, values in arrays.items():
        if field in task.fields:
            name = shard.block_file(field, task.start)
            copied = field == "depth" and not task.coding.differences
            codes = source.coded_depth(task.start, task.stop) if copied else None
            content = (
                codecs.encode_block(field, values, source.chunk, shard.block, task.coding)
                if codes is None
                else codecs.join_chunks(codes, source.chunk, shard.block)
            )
            files.write(f"{shard.blocks_folder}/{name}", content)
            written[name] = FileEntry.of(content)
    write_block_record(files, task.start, BlockRecord(sums, written))
    return task.rows
