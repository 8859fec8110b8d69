"""Read a store and its shards."""

import hashlib
import math
import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from dsgen.compiled import find_loops
from dsgen.compiled.memory import addresses
from dsgen.corpus.composed import compose
from dsgen.corpus.figures import Figure
from dsgen.corpus.plan import SPLITS, join_plan
from dsgen.corpus.render import Cutout, Pictures, draw_rows, has_plain_memory, render
from dsgen.corpus.scene import DRAWN, Looks, Room, draw_scenes, memory_for, sample_shape
from dsgen.errors import (
    DamagedError,
    DsgenError,
    InvalidValueError,
    NotFoundError,
    is_local_shortage,
    is_system_error,
    reason_of,
)
from dsgen.io.cache import Cache
from dsgen.io.filesystem import Files, is_url, open_files
from dsgen.io.json_files import parse_as
from dsgen.io.places import not_a_store, recognise_names
from dsgen.io.zip_files import ZipFiles
from dsgen.store.codecs import NO_CHUNK, check_checksum, decode_depth, decode_zstd, place_differences
from dsgen.store.layout import INDEX_JSON, ZIP_SUFFIX
from dsgen.store.sample_places import Places
from dsgen.store.schema import (
    ROOT,
    SAMPLE_FIELDS,
    ArrayLayout,
    ShardMetadata,
    check_arrays,
    parse_index,
    repair_or_pack,
)
from dsgen.store.source import RoomParts

_CACHED_BYTES = 2**27
_WHOLE = 0  # the length that stands for the rest of a file
_MISSING_LISTED = 1000


class Shard:
    """One shard, read-only. Threads may share it.

    `fields` are those of `image`, `mask`, `depth`, `instance` and `background` that can be read, `rows` and `chunk` the
    samples of the shard and of a chunk, `size` the side of the images in pixels, `people` the slots of a row.
    Raises `DamagedError` for a shard that cannot be read.
    """

    def __init__(self, path: Path | str | Files):
        self.files = _shard_files(path) if isinstance(path, Path | str) else path
        self._indices: dict[str, np.ndarray] = {}  # by file, the offset and length of each of its chunks
        self._cutouts = Cache(_CACHED_BYTES)
        with _reading(self.files):
            root = parse_as(ShardMetadata, self.files.read(ROOT), f"{self.files}/{ROOT}", repair_or_pack(self.files))
            described = root["consolidated_metadata"]["metadata"]
            self.attributes: dict[str, Any] = dict(root["attributes"])
            self._arrays = {
                name: ArrayLayout.parse(name, about)
                for name, about in described.items()
                if about.get("node_type") == "array"
            }
            check_arrays(self._arrays)
            self.rows: int = self._arrays["row"].shape[0]
            self.recipe = "foreground_cutout" in self._arrays
            self.people = self._arrays["person_top"].shape[1] if "person_top" in self._arrays else 0
            self._drawn = self._find_drawn() if self.recipe else set()
            readable = {*self._arrays} | self._drawn
            self.fields = tuple(name for name in (*SAMPLE_FIELDS, "background") if name in readable)
            colour = self._arrays.get("image") or self._arrays["background"]
            self.size: int = colour.shape[1]
            self.chunk: int = colour.chunk if colour.name == "image" else self.attributes["made_from"]["chunk_rows"]

    def _find_drawn(self) -> set[str]:
        """Return the fields that a recipe draws."""
        made_from = self.attributes["made_from"]
        instance = {"instance"} if made_from.get("instance") else set()
        return {"image", "mask"} | instance | ({"depth"} if made_from.get("composed") else set())

    def missing_files(self, sizes: Mapping[str, int] | None = None) -> list[str]:
        """Name the missing files of the shard, in whose place zarr would read zeros; of very many the first only."""
        existing = self.files.sizes() if sizes is None else sizes
        names = (name for array in self._arrays.values() for name in array.file_names if name not in existing)
        return list(islice(names, len(existing) + _MISSING_LISTED))

    def read(self, field: str, first: int, last: int) -> np.ndarray:
        """Read samples `first` to `last`, exclusive, of `image`, `mask` or `depth`."""
        return self.samples(first, last, (field,))[field]

    def samples(
        self,
        first: int,
        last: int,
        fields: tuple[str, ...] | None = None,
        out: Mapping[str, np.ndarray] | None = None,
    ) -> dict[str, np.ndarray]:
        """Read samples `first` to `last`, exclusive, of `fields`; by default of all but the backgrounds.

        A range within one chunk is decoded straight into the arrays of `out`, by field, if it is passed, and parts of
        them are returned. They must be C-contiguous and have the chunk's shape and dtype. A longer range ignores `out`.
        """
        wanted = [field for field in self.fields if field != "background"] if fields is None else fields
        found: dict[str, np.ndarray] = {}
        starts = range(first - first % self.chunk, last, self.chunk)
        into = out if out is not None and len(starts) == 1 else {}
        drawn = tuple(self._drawn.intersection(wanted))
        if drawn:
            found = self.draw(
                slice(first, last), drawn, {field: values[: last - first] for field, values in into.items()}
            )
        for field in wanted:
            if field in found:
                continue
            with _reading(self.files, f"{field} {first}..{last - 1}"):
                pieces = [
                    self._decode(self._arrays[field], s, into.get(field))[max(first - s, 0) : min(last, self.rows) - s]
                    for s in starts
                ]
            found[field] = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
        return {field: found[field] for field in wanted}

    def place(
        self,
        field: str,
        first: int,
        positions: np.ndarray,
        places: Places,
        memory: np.ndarray,
        turn: AbstractContextManager[Any],
    ) -> None:
        """Read samples `first` + `positions` of a stored field, all of one chunk, each to its place.

        They are decoded in `memory`, which has the chunk's shape and dtype. `turn` is entered for many short steps, at
        each of which threads would wait for each other; compiled loops do without.
        """
        array, start = self._arrays[field], first - first % self.chunk
        shape, numbers = (array.chunk, *array.shape[1:]), first - start + positions
        loops = find_loops("decoding")
        with _reading(self.files, f"{field} {first}..{first + positions[-1]}"):
            if loops is None:
                decoded = self._decode(array, start, memory)
                with turn:
                    for target, number in zip(places.items(field), numbers.tolist(), strict=True):
                        target[...] = decoded[number]
                return
            targets = np.zeros(array.chunk, np.int64)
            targets[numbers] = places.addresses(field, math.prod(shape[1:]) * array.dtype.itemsize)
            if array.is_differences:
                place_differences(self._encoded(array, start), shape, targets, loops)
            else:
                loops.copy(self._decode(array, start, memory).reshape(array.chunk, -1).view(np.uint8), targets)

    def draw(
        self, samples: slice | np.ndarray, fields: Collection[str], out: Mapping[str, Pictures] | None = None
    ) -> dict[str, Any]:
        """Draw fields of samples of a recipe that are not stored, by slice or by number.

        They are drawn into those of `out` where it has them: an array each, or a list with one for each sample.
        """
        rows, given = self._plan[samples], out or {}
        depths = self._person_depths[samples] if "depth" in fields else None
        if self.people:
            return self._draw_scenes(rows, fields, depths, given)
        loops = find_loops("drawing")
        if loops is not None and all(
            has_plain_memory(given[field], sample_shape(field, self.size), DRAWN[field])
            for field in fields
            if field in given
        ):
            drawn = {field: memory_for(field, len(rows), self.size, given) for field in fields}
            targets = {field: addresses(drawn[field], self._sample_bytes(field)) for field in fields}
            self._draw_rows(rows, targets, depths, loops)
            return drawn
        backgrounds, cutouts = self._sources_of(rows)
        with _reading(self.files, f"{len(rows)} rows"):
            image, mask = render(rows, backgrounds, cutouts, self.size, out=given)
        drawn = {"image": image, "mask": mask}
        if depths is not None:
            rooms = [self._room_depth(b) for b in rows["background"].tolist()]
            drawn["depth"] = compose(rooms, mask, depths[:, 0], given.get("depth"))
        if "instance" in fields:
            drawn["instance"] = memory_for("instance", len(rows), self.size, given)
            for into, seen in zip(drawn["instance"], mask, strict=True):
                np.bitwise_and(seen, 1, out=into)
        return drawn

    def draw_to(
        self, samples: np.ndarray, fields: Collection[str], places: Places, turn: AbstractContextManager[Any]
    ) -> None:
        """Draw fields of samples as `draw` does, each to its place; `turn` is as that of `place`."""
        loops = find_loops("drawing")
        if loops is None or self.people:
            with turn:
                self.draw(samples, fields, {field: places.items(field) for field in fields})
            return
        with _reading(self.files, f"{len(samples)} rows"):
            targets = {field: places.addresses(field, self._sample_bytes(field)) for field in fields}
        depths = self._person_depths[samples] if "depth" in fields else None
        self._draw_rows(self._plan[samples], targets, depths, loops)

    def _sample_bytes(self, field: str) -> int:
        return math.prod(sample_shape(field, self.size)) * np.dtype(DRAWN[field]).itemsize

    def _sources_of(self, rows: np.ndarray) -> tuple[dict[int, np.ndarray], dict[tuple[int, int], Cutout]]:
        """Return what rows with one person are drawn from: their backgrounds and cut-outs."""
        pairs = set(zip(rows["foreground"].tolist(), rows["flip"].tolist(), strict=True))
        return {b: self._drawn_on(b) for b in set(rows["background"].tolist())}, {p: self._cutout(*p) for p in pairs}

    def _draw_rows(
        self, rows: np.ndarray, targets: Mapping[str, np.ndarray], depths: np.ndarray | None, loops: ModuleType
    ) -> None:
        """Draw rows with one person to addresses, by field, with the compiled loops for drawing."""
        backgrounds, cutouts = self._sources_of(rows)
        rooms = {b: self._room_depth(b) for b in backgrounds} if depths is not None else None
        people = None if depths is None else np.ascontiguousarray(depths[:, 0])
        with _reading(self.files, f"{len(rows)} rows"):
            draw_rows(rows, backgrounds, cutouts, self.size, targets, loops, rooms=rooms, depths=people)

    def _draw_scenes(
        self, rows: np.ndarray, fields: Collection[str], depths: np.ndarray | None, given: Mapping[str, Pictures]
    ) -> dict[str, Any]:
        people = rows["people"][rows["people"]["height"] > 0]
        figures = {pair: self._figure(*pair) for pair in np.unique(people[["foreground", "flip"]]).tolist()}
        rooms_drawn = {b: self._room(b) for b in np.unique(rows["background"]).tolist()}
        with _reading(self.files, f"{len(rows)} rows"):
            looks = Looks.of(self.attributes["made_from"]["parameters"])
            return draw_scenes(
                rows, rooms_drawn, figures, self.size, fields=fields, depths=depths, looks=looks, out=given
            )

    def _drawn_on(self, index: int) -> np.ndarray:
        """Return a background of the shard, kept for the rows that show it."""
        return self._cutouts.get(("background", index), lambda: self.background(index))

    @cached_property
    def _person_depths(self) -> np.ndarray:
        return self.column("person_depth")

    def _room_depth(self, index: int) -> np.ndarray:
        """Return the depth (S,S) u2 of a background of the shard."""

        def read() -> np.ndarray:
            with _reading(self.files, f"depth of background {index}"):
                return self._decode(self._arrays["room_depth"], index)[0]

        return self._cutouts.get(("depth", index), read)

    def room_parts(self, index: int) -> RoomParts:
        """Return a background of a recipe as a room."""
        with _reading(self.files, f"floor of background {index}"):
            floor = self._decode(self._arrays["room_floor"], index)[0]
        margin, camera_mm, lean = (int(self.column(f"room_{name}")[index]) for name in ("margin", "camera", "lean"))
        return self._room_depth(index), floor, margin, camera_mm, lean

    def _room(self, index: int) -> Room:
        if "room_depth" not in self._arrays:
            return Room(self._drawn_on(index))
        return self._cutouts.get(("room", index), lambda: Room.of(self._drawn_on(index), *self.room_parts(index)))

    @cached_property
    def _plan(self) -> np.ndarray:
        """The rows of the plan, where `background` is an index into the backgrounds of the shard."""
        return self.plan_rows("background_index")

    def plan_rows(self, background: str = "background_number") -> np.ndarray:
        """Read the rows of the plan from the columns, the number of the background from the one of this name."""
        return join_plan(lambda name: self.column(background if name == "background" else name), self.rows, self.people)

    def _figure(self, number: int, flip: int) -> Figure:
        def make() -> Figure:
            rgba = self._cutout_pixels(number)
            return Figure(np.ascontiguousarray(rgba[:, ::-1]) if flip else rgba)

        return self._cutouts.get(("figure", number, flip), make)

    def _cutout_pixels(self, number: int) -> np.ndarray:
        with _reading(self.files, f"foreground {number}"):
            height, width = self._decode(self._arrays["foreground_shape"], 0)[number].tolist()
            return self._decode(self._arrays["foreground_cutout"], number)[0, :height, :width]

    def _cutout(self, number: int, flip: int) -> Cutout:
        def make() -> Cutout:
            rgba = self._cutout_pixels(number)
            return Cutout.from_rgba(rgba[:, ::-1] if flip else rgba)

        return self._cutouts.get((number, flip), make)

    def _decode(self, array: ArrayLayout, start: int, out: np.ndarray | None = None) -> np.ndarray:
        """Decode the chunk that starts at sample `start`, into `out` if it is passed.

        This does what zarr does with the codecs of `metadata_files`, in less than half the time: zarr reads a file's
        index every time, and spends more time on its own machinery than on decoding.
        """
        code, shape = self._encoded(array, start), (array.chunk, *array.shape[1:])
        if "blosc" in array.codecs:
            return decode_depth(code, shape, array.dtype, out, array.is_differences)
        return decode_zstd(check_checksum(code) if "crc32c" in array.codecs else code, shape, array.dtype, out)

    def _encoded(self, array: ArrayLayout, start: int) -> bytes:
        """Read the chunk that starts at sample `start`."""
        name, offset, length = self._locate(array, start)
        return self.files.read(name) if length is None else self.files.read_range(name, offset, length)

    def _locate(self, array: ArrayLayout, start: int) -> tuple[str, int, int | None]:
        """Return the file of the chunk that starts at sample `start`, its offset, and its length, None = all."""
        name = array.file(start // array.each)
        if not array.sharded:
            return name, 0, None
        index = self._indices.get(name)
        if index is None:
            length = 16 * (array.each // array.chunk) + 4
            index = np.frombuffer(check_checksum(self.files.read_range(name, -length, length)), "<u8").reshape(-1, 2)
            self._indices[name] = index
        offset, length = index[start % array.each // array.chunk].tolist()
        if offset == NO_CHUNK:
            raise ValueError("not in its file")
        return name, offset, length

    def expect(self, sample: int, fields: Collection[str]) -> None:
        """Say that the chunk of a sample will be read soon; what is wrong with it shows when it is."""
        start = sample - sample % self.chunk
        for field in fields:
            with suppress(DsgenError, OSError, ValueError):
                name, offset, length = self._locate(self._arrays[field], start)
                self.files.expect(name, offset, _WHOLE if length is None else length)

    def background(self, index: int) -> np.ndarray:
        """Read a background of the shard, (S,S,3) u1."""
        with _reading(self.files, f"background {index}"):
            return self._decode(self._arrays["background"], index)[0]

    def stores(self, field: str) -> bool:
        """Return whether a field is an array of the shard, and not drawn."""
        return field in self._arrays

    def has_column(self, name: str) -> bool:
        """Return whether the shard has a column or coordinate; those of earlier versions lack some."""
        return name in self._arrays

    def column(self, name: str) -> np.ndarray:
        """Read a column, (rows,), or the coordinate `picture`, (backgrounds,)."""
        with _reading(self.files, name):
            array = self._arrays[name]
            rows = array.shape[0]
            pieces = [self._decode(array, start) for start in range(0, rows, array.chunk)]
            return np.concatenate(pieces)[:rows]


def _shard_files(path: Path | str) -> Files:
    """Return the files of a shard that is a folder, a URL or a zip file."""
    if str(path).endswith(ZIP_SUFFIX):
        folder, _, name = str(path).rpartition("/")
        return ZipFiles(open_files(folder or "."), name)
    return open_files(path)


class Store:
    """A finished store, read-only and cheap to open. Threads may share it; it can be pickled, and used after a fork.

    `path` is a folder or a URL. `index` is the content of `index.json`, `sha256` the hash of its bytes, `splits` the
    rows of every split, `size` the side of the images in pixels, `fields` those of `image`, `mask`, `depth` and
    `background` that it has.

    >>> store = Store("shards")  # doctest: +SKIP
    >>> store.rows, store.size, store.splits["train"]  # doctest: +SKIP
    (400000, 224, 320000)
    >>> samples = store.read(0, 20)  # doctest: +SKIP
    >>> samples["image"].shape, samples["depth"].dtype  # doctest: +SKIP
    ((20, 224, 224, 3), dtype('uint16'))

    Raises `NotFoundError` if there is no store, an unfinished one, or one with missing files, and `DamagedError` if a
    file cannot be read.
    """

    def __init__(self, path: Path | str):
        self.path = path
        self.files = open_files(path)
        try:
            content = self.files.read(INDEX_JSON)
        except FileNotFoundError as error:
            raise self._not_found() from error
        self.sha256 = hashlib.sha256(content).hexdigest()
        self.index: dict[str, Any] = dict(parse_index(content, f"{self.files}/{INDEX_JSON}"))
        self.rows: int = self.index["rows"]
        self.size: int = self.index["size"]
        self.splits: dict[str, int] = self.index["splits"]
        self.first_rows = np.array([shard["first_row"] for shard in self.index["shards"]] + [self.rows])
        sizes = self.files.sizes()
        self.shards = [self._open(shard["name"], shard["rows"], sizes) for shard in self.index["shards"]]
        self.fields = self.shards[0].fields
        for entry, shard in zip(self.index["shards"], self.shards, strict=True):
            if shard.fields != self.fields:
                reason = f"holds {', '.join(shard.fields)}, expected {', '.join(self.fields)} like the first shard"
                place = f"{self.path}/{entry['name']}"
                raise DamagedError(place, reason, repair_or_pack(place))
        self.has_depth = "depth" in self.fields
        self._backgrounds = Cache(_CACHED_BYTES)

    def __reduce__(self) -> tuple[Any, ...]:
        return Store, (self.path,)

    def _not_found(self) -> NotFoundError:
        """Say what the folder is instead of a store, and what to do."""
        return not_a_store(self.path, recognise_names(self.files.top()) if is_url(self.path) else None)

    def _open(self, name: str, rows: int, sizes: Mapping[str, int]) -> Shard:
        remedy = f"remove it and run dsgen pack --out {self.path} again"
        if name.endswith(ZIP_SUFFIX):
            below = None
            found = name in sizes
        else:
            below = {file[len(name) + 1 :]: size for file, size in sizes.items() if file.startswith(f"{name}/")}
            found = bool(below)
        if not found:
            raise NotFoundError(
                f"{self.path}/{name}",
                f"missing, although {INDEX_JSON} lists it",
                f"run dsgen pack --out {self.path} again",
            )
        shard = Shard(ZipFiles(self.files, name) if below is None else self.files.child(name))
        if (shard.rows, shard.size) != (rows, self.size):
            reason = f"{shard.rows} rows of size {shard.size}, expected {rows} of {self.size} by {INDEX_JSON}"
            raise DamagedError(f"{self.path}/{name}", reason, remedy)
        with _reading(shard.files):
            missing = shard.missing_files(below)
        if missing:
            raise NotFoundError(f"{self.path}/{name}", f"{len(missing)} files missing, the first {missing[0]}", remedy)
        return shard

    @cached_property
    def plan(self) -> np.ndarray:
        """The plan of the corpus, read from the columns of the shards."""
        return np.concatenate([shard.plan_rows() for shard in self.shards])

    @property
    def people(self) -> int:
        """The slots for people that rows have, 0 without."""
        return self.shards[0].people

    @cached_property
    def boxes(self) -> np.ndarray:
        """What is in view of the people of every row: (rows, slots, 4) u2 left, top, width and height in pixels."""
        return np.concatenate([shard.column("person_box") for shard in self.shards])

    def rows_of(self, split: str | None) -> np.ndarray:
        """Return the rows of a split in order, (n,) i8, or all rows for None.

        Raises `InvalidValueError` for a name that is no split, and `DamagedError` for a split without rows.
        """
        if split is None:
            return np.arange(self.rows)
        if split not in SPLITS:
            raise InvalidValueError.expected("split", split, f"one of {', '.join(SPLITS)}, or None for all rows")
        rows = np.flatnonzero(self.plan["split"] == SPLITS.index(split))
        if not len(rows):
            counts = ", ".join(f"{count:,} {name}" for name, count in self.splits.items())
            raise DamagedError(
                self.path,
                f"no rows in split {split!r} ({counts})",
                "a row belongs to a split if both its pictures do: make the corpus from more pictures, or with a "
                f"larger share for {split}",
            )
        return rows

    def locate(self, row: int) -> tuple[int, int]:
        """Return the number of the shard that has a row, and the sample that the row is in it."""
        number = int(np.searchsorted(self.first_rows, row, side="right")) - 1
        return number, row - int(self.first_rows[number])

    @cached_property
    def _background_index(self) -> np.ndarray:
        return np.concatenate([shard.column("background_index") for shard in self.shards])

    def backgrounds(self, rows: np.ndarray) -> list[np.ndarray]:
        """Return the background, (S,S,3) u1, of every row; rows with the same background share one array."""
        shards = np.searchsorted(self.first_rows, rows, side="right") - 1
        keys = list(zip(shards.tolist(), self._background_index[rows].tolist(), strict=True))
        found = {
            key: self._backgrounds.get(key, partial(self.shards[key[0]].background, key[1]))
            for key in dict.fromkeys(keys)
        }
        return [found[key] for key in keys]

    def read(self, first: int, last: int) -> dict[str, np.ndarray]:
        """Read rows `first` to `last`, exclusive: every field of `fields`, and `row`.

        `image` and `background` are (n,S,S,3) uint8 RGB, `mask` (n,S,S) uint8, 0 or 255, `depth` (n,S,S) uint16
        millimetres, 0 = no depth, `row` (n,) int64.
        """
        if not 0 <= first < last <= self.rows:
            raise InvalidValueError(self.path, f"rows {first} to {last}, expected a range within 0 to {self.rows}")
        pieces = [
            shard.samples(max(first - start, 0), min(last - start, shard.rows))
            for shard, start in zip(self.shards, self.first_rows.tolist(), strict=False)
            if max(first - start, 0) < min(last - start, shard.rows)
        ]
        samples = {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}
        rows = np.arange(first, last)
        if "background" in self.fields:
            samples["background"] = np.stack(self.backgrounds(rows))
        return samples | {"row": rows}


class StoreHandle:
    """A store that every process opens for itself, as neither locks nor connections survive a fork in good order.

    It can be pickled. Raises `DsgenError` if the store at the path has been replaced by another.
    """

    def __init__(self, path: Path | str):
        self.path = path
        store = Store(path)
        self.sha256 = store.sha256
        self._process, self._store = os.getpid(), store

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_process": None, "_store": None}

    def open(self) -> Store:
        """Return the store, opened by this process."""
        if self._process != os.getpid():
            store = Store(self.path)
            if store.sha256 != self.sha256:
                raise DsgenError(
                    self.path, "not the store it was when the loader was made", "make a new loader or dataset"
                )
            self._process, self._store = os.getpid(), store
        return self._store


@contextmanager
def _reading(files: Files, what: str = "metadata") -> Iterator[None]:
    """Turn whatever codecs and parsers raise on missing or damaged files into a `DamagedError`.

    Errors of the system pass: they say nothing of the files.
    """
    try:
        yield
    except DsgenError:
        raise
    except Exception as error:
        if is_system_error(error) or is_local_shortage(error):
            raise
        reason = f"cannot read {what} ({reason_of(error)}), the shard is damaged"
        raise DamagedError(files, reason, repair_or_pack(files)) from error
