"""What the page of `dsgen view` reads: trees of files, on disk, at a URL, or drawn when they are asked for.

The page reads Zarr and nothing else. A store is served as it is. Rows of a recipe and of a corpus are drawn: their
arrays `image`, `mask` and so on have chunks of one row, in the schema and with the codecs of `dsgen.store.schema`, as
in a zip file that was packed with one row a chunk. So plain zarr reads them too.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from dsgen import __version__
from dsgen.corpus.composed import composed_depth
from dsgen.corpus.corpus import Corpus
from dsgen.corpus.plan import SPLITS
from dsgen.io.filesystem import LocalFiles, UrlFiles
from dsgen.store.codecs import encode_chunk
from dsgen.store.layout import INDEX_JSON, SHA256SUMS, shard_name
from dsgen.store.reader import Shard, Store
from dsgen.store.schema import ROOT, Geometry, block_name, column_files, coordinate_files, metadata_files

_CHUNK = re.compile(r"([a-z_]+)/c/(\d{1,15})(/0)*")
_EVALUATION = ("scores.json", "rows.csv", "worst.png")
_RUN = ("config.json", "metrics.csv")


@dataclass(frozen=True)
class Content:
    """A file: its bytes, `read(start, length)` returns some of them; where `tag` is the same, so are they."""

    size: int
    tag: str
    read: Callable[[int, int], bytes]

    @classmethod
    def of(cls, content: bytes) -> "Content":
        """Return bytes as a file."""
        return cls(len(content), hashlib.sha256(content).hexdigest()[:32], lambda start, n: content[start : start + n])


class Tree(Protocol):
    """Files by name. Threads may share it."""

    def find(self, name: str) -> Content | None:
        """Return a file, or None if there is none of that name."""


class FilesTree:
    """Those files of a folder or a URL that are named; no others are read, whatever a name says.

    Listings of web servers do not tell `sizes`. Files of an unknown size, None, are read as a whole.
    """

    def __init__(self, files: LocalFiles | UrlFiles, sizes: Mapping[str, int | None], version: str = ""):
        self._files, self._sizes, self._version = files, dict(sizes), version

    @property
    def names(self) -> list[str]:
        """The names of all files."""
        return list(self._sizes)

    def find(self, name: str) -> Content | None:
        """Return a file; None too for a link that leads out of the folder."""
        if name not in self._sizes:
            return None
        size, version = self._sizes[name], self._version
        if size is None:
            return Content.of(self._files.read(name))
        if isinstance(self._files, LocalFiles):
            path, root = (self._files.path / name).resolve(), self._files.path.resolve()
            if not path.is_relative_to(root) or not path.is_file():
                return None
            found = path.stat()
            size, version = found.st_size, f"{version}-{found.st_mtime_ns}"
        tag = hashlib.sha256(f"{version}-{name}-{size}".encode()).hexdigest()[:32]
        return Content(size, tag, partial(self._files.read_range, name))


def store_tree(store: Store) -> FilesTree:
    """Return the files of a store with pixels: those that its index lists, and what vouches for them."""
    known = {INDEX_JSON, SHA256SUMS, ROOT}
    shards = tuple(shard["name"] for shard in store.index["shards"])
    beside = ("background_name", "foreground_name", "picture_name")
    sizes = {
        name: size
        for name, size in store.files.sizes().items()
        if name in known or name.partition("/")[0] in (*shards, *beside)
    }
    return FilesTree(store.files, sizes, store.sha256)


def run_tree(run: Path) -> FilesTree:
    """Return the files of a run that are shown: its scores, pictures and evaluations, and no checkpoint."""
    files = LocalFiles(run)
    evaluations = [path.parent.name for path in sorted(run.glob("*/scores.json"))]
    names = [
        *_RUN,
        *(f"predictions/{path.name}" for path in sorted((run / "predictions").glob("*.png"))),
        *(f"{evaluation}/{name}" for evaluation in evaluations for name in _EVALUATION),
    ]
    return FilesTree(files, {name: (run / name).stat().st_size for name in names if files.has(name)})


class DrawnShard:
    """A shard in which the arrays of `fields` are drawn: `draw(field, row)` returns a row of one.

    `files` are the other files by name, if they are known at once; `other` finds those that are not.
    """

    def __init__(
        self,
        geometry: Geometry,
        root: Mapping[str, Any],
        fields: Iterable[str],
        draw: Callable[[str, int], np.ndarray],
        other: Callable[[str], bytes | None],
    ):
        self._counts = {field: geometry.backgrounds if field == "background" else geometry.rows for field in fields}
        self._draw, self._other = draw, other
        described = metadata_files(geometry, {}, sharded=False)
        self._files = {f"{field}/{ROOT}": described[f"{field}/{ROOT}"] for field in self._counts}
        members = {field: json.loads(self._files[f"{field}/{ROOT}"]) for field in self._counts}
        known = root["consolidated_metadata"]
        merged = dict(root) | {"consolidated_metadata": dict(known) | {"metadata": dict(known["metadata"]) | members}}
        self._files[ROOT] = json.dumps(merged).encode()

    def find(self, name: str) -> Content | None:
        """Return a file; a chunk is drawn."""
        content = self._files.get(name)
        chunk = _CHUNK.fullmatch(name)
        if content is None and chunk is not None and chunk[1] in self._counts:
            field, number = chunk[1], int(chunk[2])
            if number >= self._counts[field] or name != block_name(field, number):
                return None
            content = encode_chunk(field, self._draw(field, number)[None])
        elif content is None:
            content = self._other(name)
        return None if content is None else Content.of(content)


class ShardsTree:
    """Shards by name."""

    def __init__(self, shards: Mapping[str, Tree]):
        self._shards = dict(shards)

    def find(self, name: str) -> Content | None:
        """Return a file of a shard."""
        shard, _, rest = name.partition("/")
        return self._shards[shard].find(rest) if shard in self._shards else None


def recipe_tree(store: Store) -> ShardsTree:
    """Return a recipe as a store with pixels."""
    names = [shard["name"] for shard in store.index["shards"]]
    return ShardsTree({name: _recipe_shard(shard) for name, shard in zip(names, store.shards, strict=True)})


def _recipe_shard(shard: Shard) -> DrawnShard:
    drawn = [field for field in shard.fields if not shard.stores(field)]
    sizes = shard.files.sizes()

    def draw(field: str, row: int) -> np.ndarray:
        return shard.samples(row, row + 1, (field,))[field][0]

    def other(name: str) -> bytes | None:
        return shard.files.read(name) if name in sizes else None

    geometry = Geometry(shard.rows, shard.size, 1, 1, tuple(drawn))
    return DrawnShard(geometry, json.loads(shard.files.read(ROOT)), drawn, draw, other)


class CorpusRows:
    """The rows of a corpus as a store would have them; `fields` are those that can be drawn.

    Rows that have no depth label yet have depth 0. Composed depth is drawn where there are no labels.
    """

    def __init__(self, corpus: Corpus):
        self._corpus = corpus
        self._composed = corpus.labels is None and corpus.rooms is not None
        depth = ("depth",) if self._composed or corpus.depth is not None else ()
        classes = {record.get("class") for record in corpus.manifest["foregrounds"]}
        instance = ("instance",) if corpus.people > 1 or len(classes) > 1 else ()
        self.fields: tuple[str, ...] = ("image", "mask", *depth, *instance, "background")

    def draw(self, field: str, row: int) -> np.ndarray:
        """Draw a field of a row; of `background` that of this number."""
        corpus = self._corpus
        if field == "background":
            return corpus.background(row)
        rows = corpus.plan[row : row + 1]
        if field == "depth":
            if self._composed:
                return composed_depth(corpus, rows)[0]
            assert corpus.labels is not None
            return corpus.labels.read_rows(np.array([row]))[0]
        if corpus.people:
            return corpus.draw(rows, (field,))[field][0]
        image, mask = corpus.render(rows)
        return {"image": image, "mask": mask, "instance": mask & 1}[field][0]


def corpus_tree(corpus: Corpus) -> ShardsTree:
    """Return a corpus as a store with pixels, of one shard."""
    rows, backgrounds = CorpusRows(corpus), len(corpus.manifest["backgrounds"])
    attributes = {
        "dsgen": __version__,
        "first_row": 0,
        "splits": list(SPLITS),
        "backgrounds": corpus.manifest["backgrounds"],
        "foregrounds": corpus.manifest["foregrounds"],
    }
    geometry = Geometry(len(corpus), corpus.size, 1, 1, rows.fields, backgrounds=backgrounds, people=corpus.people)
    described = metadata_files(geometry, attributes, sharded=False)
    columns = _CorpusColumns(corpus, backgrounds, described)
    shard = DrawnShard(geometry, json.loads(described[ROOT]), rows.fields, rows.draw, columns.get)
    return ShardsTree({shard_name(0, 1): shard})


class _CorpusColumns:
    """The columns of a corpus as the files of a shard, encoded when the first of them is asked for."""

    def __init__(self, corpus: Corpus, backgrounds: int, described: Mapping[str, bytes]):
        self._corpus, self._backgrounds, self._described = corpus, backgrounds, described

    @cached_property
    def _encoded(self) -> dict[str, bytes]:
        return dict(self._encode())

    def _encode(self) -> Iterator[tuple[str, bytes]]:
        plan = self._corpus.plan
        for name, content in (*column_files(plan, 0), *coordinate_files(plan, 0, np.arange(self._backgrounds))):
            if name.startswith("background_index/"):  # it counts the backgrounds that have rows, others are served too
                continue
            yield name, content
            if name.startswith("background_number/"):
                yield name.replace("background_number", "background_index"), content

    def get(self, name: str) -> bytes | None:
        """Return a file by name."""
        return self._described[name] if name in self._described else self._encoded.get(name)
