"""Read a store and its shards."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from numcodecs.zstd import Zstd

from dsgen.corpus.plan import DTYPE
from dsgen.corpus.render import Cutout, render
from dsgen.errors import DamagedError, DsgenError, NotFoundError
from dsgen.io.cache import Cache
from dsgen.io.filesystem import Files, open_files
from dsgen.io.json_files import parse_json
from dsgen.io.zip_files import ZipFiles
from dsgen.store.codecs import NO_CHUNK, check_checksum, decode_depth
from dsgen.store.layout import INDEX_JSON, PACKING
from dsgen.store.schema import FORMAT, PICTURES, ROOT, ArrayLayout

_CACHED_BYTES = 2**26


class Shard:
    """One shard, read-only. Threads may share it.

    `parts` are those of `image`, `mask`, `depth` and `background` that can be read.
    """

    def __init__(self, place: Path | str | Files):
        self.files = _shard_files(place) if isinstance(place, Path | str) else place
        self._indices: dict[str, np.ndarray] = {}  # where each file has its chunks: offset, length
        self._cutouts = Cache(_CACHED_BYTES)
        with _reading(self.files):
            root = json.loads(self.files.read(ROOT))
            described = root["consolidated_metadata"]["metadata"]
            self.attributes: dict[str, Any] = root["attributes"]
            self._arrays = {
                name: ArrayLayout.parse(name, about)
                for name, about in described.items()
                if about["node_type"] == "array"
            }
            self.rows: int = self._arrays["row"].shape[0]
            self.recipe = "foreground_cutout" in self._arrays
            there = {*self._arrays} | ({"image", "mask"} if self.recipe else set())
            self.parts = tuple(name for name in (*PICTURES, "background") if name in there)
            seen = self._arrays.get("image") or self._arrays["background"]
            self.size: int = seen.shape[1]
            self.chunk: int = seen.chunk if seen.name == "image" else self.attributes["made_from"]["chunk_rows"]

    def missing_files(self, sizes: Mapping[str, int] | None = None) -> list[str]:
        """Name the files of the shard that should be there and are not; zarr would read zeros in their place."""
        there = self.files.sizes() if sizes is None else sizes
        return [name for array in self._arrays.values() for name in array.file_names if name not in there]

    def read(self, part: str, first: int, last: int) -> np.ndarray:
        """Read samples `first` to `last`, exclusive, of `image`, `mask` or `depth`."""
        return self.samples(first, last, (part,))[part]

    def samples(
        self,
        first: int,
        last: int,
        parts: tuple[str, ...] | None = None,
        out: Mapping[str, np.ndarray] | None = None,
    ) -> dict[str, np.ndarray]:
        """Read samples `first` to `last`, exclusive, of `parts`, or of all of image, mask and depth there are.

        A whole chunk is decoded straight into `out`, part -> C-contiguous array of its shape and dtype, if given, and
        these arrays are returned; whatever else is asked for is read as without.
        """
        wanted = [part for part in self.parts if part != "background"] if parts is None else parts
        found: dict[str, np.ndarray] = {}
        whole = first % self.chunk == 0 and last - first == self.chunk
        if self.recipe and not {"image", "mask"}.isdisjoint(wanted):
            found["image"], found["mask"] = self._draw(first, last)
        for part in wanted:
            if part in found:
                continue
            with _reading(self.files, f"{part} {first}..{last - 1}"):
                starts = range(first - first % self.chunk, last, self.chunk)
                into = out.get(part) if out is not None and whole else None
                pieces = [
                    self._decode(self._arrays[part], s, into)[max(first - s, 0) : min(last, self.rows) - s]
                    for s in starts
                ]
            found[part] = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
        return {part: found[part] for part in wanted}

    def _draw(self, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        """Draw images and masks of a recipe's samples."""
        rows = self._plan[first:last]
        backgrounds = {b: self.background(b) for b in np.unique(rows["background"]).tolist()}
        pairs = np.unique(rows[["foreground", "flip"]]).tolist()
        return render(rows, backgrounds, {pair: self._cutout(*pair) for pair in pairs}, self.size)

    @cached_property
    def _plan(self) -> np.ndarray:
        """The plan's rows, with `background` as an index into the shard's own."""
        plan = np.empty(self.rows, DTYPE)
        for name in DTYPE.names or ():
            plan[name] = self.column("background_index" if name == "background" else name)
        return plan

    def _cutout(self, number: int, flip: int) -> Cutout:
        def make() -> Cutout:
            with _reading(self.files, f"foreground {number}"):
                height, width = self._decode(self._arrays["foreground_shape"], 0)[number].tolist()
                rgba = self._decode(self._arrays["foreground_cutout"], number)[0, :height, :width]
            return Cutout.from_rgba(rgba[:, ::-1] if flip else rgba)

        return self._cutouts.get((number, flip), make)

    def _decode(self, array: ArrayLayout, start: int, out: np.ndarray | None = None) -> np.ndarray:
        """Decode the chunk that begins at sample `start`, into `out` if given.

        Does what zarr does with the codecs of `metadata_files`, in less than half the time: zarr reads a file's index
        each time and spends more on its own machinery than on decoding.
        """
        name = array.file(start // array.each)
        if not array.sharded:
            code = self.files.read(name)
            if "crc32c" not in array.codecs and code[:4] != b"\x28\xb5\x2f\xfd":
                raise ValueError("not coded by zstd")
        else:
            index = self._indices.get(name)
            if index is None:
                length = 16 * (array.each // array.chunk) + 4
                index = np.frombuffer(check_checksum(self.files.read_range(name, -length, length)), "<u8").reshape(
                    -1, 2
                )
                self._indices[name] = index
            offset, length = index[start % array.each // array.chunk].tolist()
            if offset == NO_CHUNK:
                raise ValueError("left out of its file")
            code = self.files.read_range(name, offset, length)
        chunk = np.empty((array.chunk, *array.shape[1:]), array.dtype) if out is None else out
        if "crc32c" in array.codecs:
            return decode_depth(code, chunk)
        Zstd().decode(code, chunk)
        return chunk

    def background(self, index: int) -> np.ndarray:
        """Read a background of the shard, (S,S,3) u1."""
        with _reading(self.files, f"background {index}"):
            return self._decode(self._arrays["background"], index)[0]

    def column(self, name: str) -> np.ndarray:
        """Read a column, (rows,)."""
        with _reading(self.files, name):
            array = self._arrays[name]
            pieces = [self._decode(array, start) for start in range(0, self.rows, array.chunk)]
            return np.concatenate(pieces)[: self.rows]


def _shard_files(place: Path | str) -> Files:
    """The files of a shard: those of a folder, a URL, or a zip."""
    if str(place).endswith(".zip"):
        folder, _, name = str(place).rpartition("/")
        return ZipFiles(open_files(folder or "."), name)
    return open_files(place)


class Store:
    """A finished store, read-only and cheap to open. Threads may share it; it can be pickled, and used after a fork.

    `place` is a folder or a URL. `index` is what `index.json` says, `sha256` the hash of its bytes, `splits` the rows
    of every split, `size` the side in pixels, `parts` those of `image`, `mask`, `depth` and `background` that it has.
    Raises `DsgenError` for an unfinished store and for one with missing files.
    """

    def __init__(self, place: Path | str):
        self.path = place
        self.files = open_files(place)
        try:
            content = self.files.read(INDEX_JSON)
        except FileNotFoundError as error:
            begun = any(name.startswith(("shard-", PACKING)) for name in self.files.top())
            what = "an unfinished store" if begun else "no store"
            raise DsgenError(place, f"{what} (no {INDEX_JSON})", f"run dsgen pack --out {place}") from error
        self.sha256 = hashlib.sha256(content).hexdigest()
        self.index: dict[str, Any] = parse_json(content, f"{place}/{INDEX_JSON}")
        if self.index.get("format") != FORMAT:
            raise DsgenError(
                f"{place}/{INDEX_JSON}",
                f"format {self.index.get('format')}, expected {FORMAT}",
                "use the dsgen that made it",
            )
        self.rows: int = self.index["rows"]
        self.size: int = self.index["size"]
        self.splits: dict[str, int] = self.index["splits"]
        self.first_rows = np.array([shard["first_row"] for shard in self.index["shards"]] + [self.rows])
        sizes = self.files.sizes()
        self.shards = [self._open(shard["name"], shard["rows"], sizes) for shard in self.index["shards"]]
        self.parts = self.shards[0].parts
        self.has_depth = "depth" in self.parts
        self._backgrounds = Cache(_CACHED_BYTES)

    def __reduce__(self) -> tuple[Any, ...]:
        return Store, (self.path,)

    def _open(self, name: str, rows: int, sizes: Mapping[str, int]) -> Shard:
        remedy = f"remove it and run dsgen pack --out {self.path} again"
        if name.endswith(".zip"):
            below = None
            found = name in sizes
        else:
            below = {file[len(name) + 1 :]: size for file, size in sizes.items() if file.startswith(f"{name}/")}
            found = bool(below)
        if not found:
            raise NotFoundError(
                f"{self.path}/{name}", f"missing, {INDEX_JSON} lists it", f"run dsgen pack --out {self.path} again"
            )
        shard = Shard(ZipFiles(self.files, name) if below is None else self.files.child(name))
        if shard.rows != rows:
            raise DsgenError(f"{self.path}/{name}", f"{shard.rows} rows, expected {rows} as {INDEX_JSON} says", remedy)
        with _reading(shard.files):
            missing = shard.missing_files(below)
        if missing:
            raise NotFoundError(f"{self.path}/{name}", f"{len(missing)} files missing, the first {missing[0]}", remedy)
        return shard

    @cached_property
    def plan(self) -> np.ndarray:
        """The plan of the corpus, as the columns of the shards have it."""
        plan = np.empty(self.rows, DTYPE)
        for shard, first, last in zip(self.shards, self.first_rows, self.first_rows[1:], strict=False):
            for name in DTYPE.names or ():
                plan[name][first:last] = shard.column("background_number" if name == "background" else name)
        return plan

    @cached_property
    def _background_index(self) -> np.ndarray:
        return np.concatenate([shard.column("background_index") for shard in self.shards])

    def backgrounds(self, rows: np.ndarray) -> list[np.ndarray]:
        """Return the background, (S,S,3) u1, of every row; rows of the same background get the same array."""
        shards = np.searchsorted(self.first_rows, rows, side="right") - 1
        keys = list(zip(shards.tolist(), self._background_index[rows].tolist(), strict=True))
        found = {
            key: self._backgrounds.get(key, partial(self.shards[key[0]].background, key[1]))
            for key in dict.fromkeys(keys)
        }
        return [found[key] for key in keys]

    def read(self, first: int, last: int) -> dict[str, np.ndarray]:
        """Read rows `first` to `last`, exclusive: all `parts` the store has, and `row`."""
        if not 0 <= first < last <= self.rows:
            raise DsgenError(self.path, f"rows {first} to {last}, expected a range within 0 to {self.rows}")
        pieces = [
            shard.samples(max(first - start, 0), min(last - start, shard.rows))
            for shard, start in zip(self.shards, self.first_rows.tolist(), strict=False)
            if max(first - start, 0) < min(last - start, shard.rows)
        ]
        pictures = {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}
        rows = np.arange(first, last)
        if "background" in self.parts:
            pictures["background"] = np.stack(self.backgrounds(rows))
        return pictures | {"row": rows}


@contextmanager
def _reading(files: Files, what: str = "metadata") -> Iterator[None]:
    """Turn what codecs and parsers raise on missing or damaged files, which is anything, into a `DsgenError`."""
    try:
        yield
    except DsgenError:
        raise
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DamagedError(
            files, f"cannot read {what} ({reason}), the shard is damaged", "remove it and run dsgen pack again"
        ) from error
