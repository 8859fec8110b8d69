"""The Zarr schema of a store. Only this module writes and reads it.

A store is a folder or a URL. It holds shards, `SHA256SUMS` with a line for every file, in the format of `sha256sum -c`,
and `index.json`, which is written last. A shard is a self-contained Zarr v3 group of consecutive rows of the corpus,
readable with plain zarr or xarray:

    image             (sample, y, x, channel)   u1   RGB
    mask              (sample, y, x)            u1   255 where the foreground is, else 0
    depth             (sample, y, x)            u2   millimetres, 0 invalid
    background        (picture, y, x, channel)  u1   RGB, every background of the shard once
    background_index  (sample)                  u4   which of them
    row               (sample)                  i8   the row of the plan; then its columns, `background` as
                                                     `background_number`
    instance          (sample, y, x)            u1   1 + the slot of the person that is seen, 0 = none
    sample            (sample)                  i8   the row again, as the coordinate of its dimension
    picture           (picture)                 u4   the background's number in the corpus, likewise

The two coordinates keep xarray from taking rows or backgrounds of different shards for the same.

Arrays without content are absent: depth if the corpus was not labelled, masks or backgrounds if pictures came without
them. A chunk holds samples that share a background, so that plain zstd stores the background nearly once. A block of
chunks is one file, a Zarr shard; in a zip file (`shard-*.zarr.zip`) every chunk is an entry. A recipe has no image and
mask. Instead it has

    foreground_cutout (cutout, cutout_y, cutout_x, rgba)  u1   straight alpha, each in the top left corner
    foreground_shape  (cutout, side)            u2   height and width

from which `Shard` draws them, bit for bit the same. Every chunk of pixels carries a checksum. The arrays of a compact
store are the same, and encoded in fewer bytes, which fewer readers decode, see `dsgen.store.codecs.Coding`.

Where people have sizes and places of their own, rows have slots for people, and a column for each of their properties
in the plan, `person_top` (sample, person) and so on, and

    person_box        (sample, person, box)     u2   left, top, width and height of what is seen of them, in pixels

`instance` is there if rows may have several people, or if there are several classes. A recipe with rooms has

    room_depth        (picture, y, x)           u2   millimetres, 0 invalid
    room_floor        (picture, y, x)           u1   255 where the floor is seen, else 0
    room_margin       (picture)                 u2   how far that depth may be wrong, in permille of itself
    room_camera       (picture)                 u2   height of the camera above the floor in millimetres, 0 without one
    room_lean         (picture)                 i4   how much farther heads are than feet, see `dsgen.corpus.scene.Room`

and if its depth is composed, it has no array `depth`, but what draws it:

    person_depth      (sample, person)          u2   depth of people in millimetres

The store itself is a Zarr v3 group, the parent of its shards unless they are zip files. It has the names of the
pictures, as variable-length UTF-8 strings:

    background_name   (backgrounds)             by `background_number`
    foreground_name   (foregrounds)             by `foreground`
    picture_name      (pictures)                by `row`, in place of both for pictures that are no corpus

Its consolidated metadata repeat those of the shards, so that the tree opens by reading one file. Stores of layout 1,
which earlier versions made, lack the group and the two coordinates.
"""

import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import wraps
from typing import Annotated, Any, Literal, NotRequired, ParamSpec, TypeVar

import numpy as np
from annotated_types import Ge, Le, Len
from pydantic import StringConstraints
from typing_extensions import TypedDict

from dsgen.corpus.plan import DTYPE, MAX_PEOPLE, PERSON, SPLITS
from dsgen.errors import DamagedError, NotFoundError, reason_of
from dsgen.io.filesystem import Files
from dsgen.io.json_files import check_as, encode_json, parse_as
from dsgen.store.codecs import LEVEL, PLAIN, Coding, encode_chunk, with_checksum
from dsgen.store.differences import LEAST_SAMPLES, ZARR_CODECS
from dsgen.store.layout import INDEX_JSON, SHA256SUMS, ZIP_SUFFIX
from dsgen.store.source import RoomParts

P = ParamSpec("P")
T = TypeVar("T")
FORMAT = 1
SCENE_FORMAT = 2  # of a recipe whose rows only `dsgen.corpus.scene` draws
COMPACT_FORMAT = 3
_FORMATS = (FORMAT, SCENE_FORMAT, COMPACT_FORMAT)
LAYOUT = (
    2  # what a new store has besides what readers need; a store is finished, checked and repaired in its own layout
)
CONVENTIONS = {"Conventions": "CF-1.11"}
SAMPLE_FIELDS = ("image", "mask", "depth", "instance")
_ROOM_COLUMNS = ("room_margin", "room_camera", "room_lean")
PERSON_FIELDS = ("person_box", "person_depth")
ROOT = "zarr.json"
_BLOCK_SAMPLES, _BLOCK_BYTES = 1000, 2**25
_COLUMN_CHUNK = 65536
_COLUMNS: dict[str, tuple[str, dict[str, Any]]] = {
    "background_index": ("<u4", {"long_name": "index into the array background of this shard"}),
    "row": ("<i8", {"long_name": "row of the corpus' plan"}),
    "background_number": ("<u4", {"long_name": "background, as numbered in the corpus"}),
    "foreground": ("<u4", {"long_name": "foreground, as numbered in the corpus"}),
    "flip": ("|u1", {"long_name": "1 where the foreground is mirrored"}),
    "position": ("<u2", {"long_name": "number of the place among those of this pair"}),
    "top": ("<u2", {"long_name": "first row of the foreground", "units": "pixel"}),
    "left": ("<u2", {"long_name": "first column of the foreground", "units": "pixel"}),
    "split": ("|u1", {"long_name": "split", "flag_values": [0, 1, 2, 3], "flag_meanings": " ".join(SPLITS)}),
}
_PERSON_COLUMNS: dict[str, tuple[str, dict[str, Any]]] = {
    "person_foreground": ("<u4", {"long_name": "foreground, as numbered in the corpus"}),
    "person_flip": ("|u1", {"long_name": "1 where the foreground is mirrored"}),
    "person_look": ("|u1", {"long_name": "how the foreground is blended in"}),
    "person_height": ("<u4", {"long_name": "height of the whole foreground, 0 = no person", "units": "pixel / 64"}),
    "person_top": ("<i4", {"long_name": "top of the whole foreground", "units": "pixel / 64"}),
    "person_left": ("<i4", {"long_name": "left of the whole foreground", "units": "pixel / 64"}),
    "person_distance": ("<u2", {"long_name": "distance along the optical axis, 0 = not known", "units": "mm"}),
    "person_tilt": ("<i2", {"long_name": "clockwise turn", "units": "degree / 100"}),
}
_COORDINATES: dict[str, tuple[str, dict[str, Any]]] = {
    "sample": ("<i8", {"long_name": "row of the corpus' plan"}),
    "picture": ("<u4", {"long_name": "background, as numbered in the corpus"}),
}
_NAMES: dict[str, tuple[str, str]] = {  # by the list of pictures in the attributes of a shard
    "backgrounds": ("background_name", "name of the background of this number"),
    "foregrounds": ("foreground_name", "name of the foreground of this number"),
    "pictures": ("picture_name", "name of the picture of this row"),
}
TREE_FILES = (*(f"{name}/{file}" for name, _ in _NAMES.values() for file in ("c/0", ROOT)), ROOT)
_DESCRIBED: dict[str, dict[str, Any]] = {
    "image": {"long_name": "composite, RGB"},
    "mask": {"long_name": "mask of the foreground, 0 or 255"},
    "depth": {"long_name": "planar depth", "units": "m", "scale_factor": 0.001, "_FillValue": 0},
    "instance": {"long_name": "1 + the slot of the person that is seen, 0 = none"},
    "background": {"long_name": "background, RGB"},
    "person_box": {"long_name": "left, top, width, height of what is seen of a person", "units": "pixel"},
    "person_depth": {"long_name": "depth of a person", "units": "m", "scale_factor": 0.001, "_FillValue": 0},
    "room_depth": {"long_name": "planar depth of the background", "units": "m", "scale_factor": 0.001, "_FillValue": 0},
    "room_floor": {"long_name": "where the floor is seen, 0 or 255"},
    "room_margin": {"long_name": "how far the depth of the background may be wrong", "units": "permille"},
    "room_camera": {"long_name": "height of the camera above the floor, 0 without one", "units": "mm"},
    "room_lean": {"long_name": "farther distance of a head at the picture's height, share of the feet's / 2^20"},
    "foreground_cutout": {"long_name": "foreground, RGBA with straight alpha"},
}


MAX_CHUNK_BYTES = 2**30  # of a chunk when decoded; the largest that is written is a cut-out of 8192 x 8192 pixels
_SHAPES: dict[str, tuple[str, int, tuple[int | None, ...]]] = {  # dtype, dimensions, and the last lengths
    "image": ("|u1", 4, (3,)),
    "mask": ("|u1", 3, ()),
    "depth": ("<u2", 3, ()),
    "instance": ("|u1", 3, ()),
    "background": ("|u1", 4, (3,)),
    "person_box": ("<u2", 3, (4,)),
    "person_depth": ("<u2", 2, ()),
    "room_depth": ("<u2", 3, ()),
    "room_floor": ("|u1", 3, ()),
    "room_margin": ("<u2", 1, ()),
    "room_camera": ("<u2", 1, ()),
    "room_lean": ("<i4", 1, ()),
    "foreground_cutout": ("|u1", 4, (4,)),
    "foreground_shape": ("<u2", 2, (2,)),
}

Count = Annotated[int, Ge(0), Le(2**48)]
Positive = Annotated[int, Ge(1), Le(2**48)]
Slots = Annotated[int, Ge(1), Le(MAX_PEOPLE)]
Pixels = Annotated[int, Ge(1), Le(8192)]
Sha256 = Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")]
Sum = Annotated[int, Ge(0), Le(2**128)]
Channels = Annotated[list[Sum], Len(1, 3)]
ShardName = Annotated[str, StringConstraints(pattern=r"^shard-\d{5,}-of-\d{5,}\.zarr(\.zip)?$")]


class SumsEntry(TypedDict):
    """The sums of an array, see `dsgen.store.statistics`."""

    count: Count
    sum: Channels
    squares: NotRequired[Channels]


class MadeFrom(TypedDict):
    """What a store is packed from, and how; the rest depends on the source."""

    chunk_rows: Positive
    block_rows: Positive
    depth: dict[str, Any] | None
    shards: Positive
    recipe: bool
    zip: bool
    layout: NotRequired[Positive]
    left_out: NotRequired[Count]
    max_flip_error: NotRequired[float | None]
    compact: NotRequired[bool]
    people: NotRequired[Slots]
    instance: NotRequired[bool]
    composed: NotRequired[bool]
    rooms: NotRequired[dict[str, Count]]


class Statistics(TypedDict):
    """Mean and standard deviation of an array, by channel."""

    mean: Annotated[list[float], Len(1, 3)] | None
    std: Annotated[list[float], Len(1, 3)] | None


class IndexShard(TypedDict):
    """What the index says of a shard."""

    name: ShardName
    first_row: Count
    rows: Positive
    splits: dict[str, Count]
    bytes: Count
    image_bytes: Count
    sha256: Sha256


class AnyIndex(TypedDict):
    """An index of any format."""

    format: int


class Index(TypedDict):
    """`index.json`."""

    format: int
    dsgen: str
    rows: Positive
    size: Pixels
    splits: dict[Literal["train", "validation", "test", "unused"], Count]
    depth: dict[str, Any] | None
    left_out: NotRequired[Count]
    statistics: dict[str, Statistics]
    made_from: MadeFrom
    sums_sha256: Sha256
    shards: Annotated[list[IndexShard], Len(1)]


class ShardAttributes(TypedDict):
    """The attributes of a shard."""

    dsgen: str
    made_from: MadeFrom
    first_row: Count
    sums: dict[str, SumsEntry]


class Consolidated(TypedDict):
    """The metadata of a shard's arrays, by name."""

    metadata: dict[str, dict[str, Any]]


class ShardMetadata(TypedDict):
    """The `zarr.json` of a shard."""

    attributes: ShardAttributes
    consolidated_metadata: Consolidated


class Codec(TypedDict):
    """A codec of an array."""

    name: str
    configuration: NotRequired[dict[str, Any]]


class Grid(TypedDict):
    """Of an array its grid, of a sharding codec its inner one."""

    chunk_shape: Annotated[list[Positive], Len(1, 4)]
    codecs: NotRequired[Annotated[list[Codec], Len(1, 8)]]


class ChunkGrid(TypedDict):
    """The grid of an array's chunks."""

    configuration: Grid


class ArrayMetadata(TypedDict):
    """The `zarr.json` of an array."""

    shape: Annotated[list[Count], Len(1, 4)]
    data_type: Literal["uint8", "uint16", "int16", "uint32", "int32", "int64", "float32"]
    chunk_grid: ChunkGrid
    codecs: Annotated[list[Codec], Len(1, 8)]


def repair_or_pack(file: object) -> str:
    """Say what to do about a damaged file or shard, which lies in the folder of its store."""
    store = str(file).rpartition("/")[0] or "STORE"
    return f"run dsgen repair {store} --corpus CORPUS, or remove it and run dsgen pack again"


def parse_index(content: bytes, name: str) -> Index:
    """Parse `index.json`; raise `DamagedError` if it does not fit its schema or contradicts itself.

    That of another format is refused too.
    """
    remedy = repair_or_pack(name)
    version = parse_as(AnyIndex, content, name, remedy)["format"]
    if version not in _FORMATS:
        known = f"{', '.join(map(str, _FORMATS[:-1]))} or {_FORMATS[-1]}"
        raise DamagedError(name, f"format {version}, expected {known}", "use the version of dsgen that made it")
    index = parse_as(Index, content, name, remedy)
    next_row = 0
    for shard in index["shards"]:
        if shard["first_row"] != next_row:
            reason = f"damaged, {shard['name']} starts at row {shard['first_row']:,}, expected {next_row:,}"
            raise DamagedError(name, reason, remedy)
        next_row += shard["rows"]
    for what, count in (("its shards have", next_row), ("its splits have", sum(index["splits"].values()))):
        if count != index["rows"]:
            raise DamagedError(name, f"damaged, got {index['rows']:,} rows, but {what} {count:,}", remedy)
    return index


def index_format(made_from: Mapping[str, Any]) -> int:
    """Return the format of a store: versions that know only the first cannot draw or decode the others."""
    if made_from.get("compact"):
        return COMPACT_FORMAT
    scenes = made_from["recipe"] and any(made_from.get(name) for name in ("people", "composed", "instance"))
    return SCENE_FORMAT if scenes else FORMAT


def coding_of(made_from: Mapping[str, Any]) -> Coding:
    """Return how the samples of a store are encoded, by what it was made from."""
    compact = bool(made_from.get("compact"))
    return Coding(compact, differences=compact and made_from["chunk_rows"] >= LEAST_SAMPLES)


def describe_depth(made_from: Mapping[str, Any]) -> str | None:
    """Say what made the depth of a store: the model, and of composed depth where that of the backgrounds is from."""
    labels = made_from.get("depth")
    if not labels:
        return None
    rooms = made_from.get("rooms") or {}
    sources = ", ".join(f"{count:,} {source}" for source, count in sorted(rooms.items()))
    return f"{labels['model']} (backgrounds: {sources})" if sources else str(labels["model"])


def person_fields(made_from: Mapping[str, Any]) -> tuple[str, ...]:
    """Return those of `PERSON_FIELDS` that a store has."""
    boxes = ("person_box",) if made_from.get("people") else ()
    return (*boxes, "person_depth") if made_from["recipe"] and made_from.get("composed") else boxes


def block_rows(chunk: int, size: int) -> int:
    """Return how many samples make a file: whole chunks, 1,000 samples or 32 MiB of raw images at most."""
    return chunk * max(1, min(_BLOCK_SAMPLES, _BLOCK_BYTES // (size * size * 3)) // chunk)


@dataclass(frozen=True)
class Geometry:
    """The shapes of a shard: `chunk` samples are encoded together, `block` samples are a file; `size` is in pixels.

    `fields` are those of `SAMPLE_FIELDS`, `PERSON_FIELDS` and `background` that are stored as arrays. `foregrounds`,
    (number, height, width), belongs to a recipe, and so do `rooms`. `people` are the slots of a row. `layout` is 1 or
    `LAYOUT`.
    """

    rows: int
    size: int
    chunk: int
    block: int
    fields: tuple[str, ...]
    backgrounds: int = 0
    foregrounds: tuple[int, int, int] | None = None
    layout: int = LAYOUT
    people: int = 0
    rooms: bool = False
    coding: Coding = PLAIN


def block_name(field: str, block: int) -> str:
    """Name the file of a block of one of `SAMPLE_FIELDS` or `PERSON_FIELDS` within its shard."""
    return f"{field}/c/{block}" + "/0" * (_SHAPES[field][1] - 1)


def background_files(numbers: np.ndarray, background: Callable[[int], np.ndarray]) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of every file of the array `background`; `background(number)` returns (S,S,3) u1."""
    for i, number in enumerate(numbers.tolist()):
        yield f"background/c/{i}/0/0/0", encode_chunk("background", background(number))


def foreground_files(cutouts: np.ndarray, shapes: np.ndarray) -> Iterator[tuple[str, bytes]]:
    """Yield the files of a recipe's `foreground_cutout`, (f,H,W,4) u1, and `foreground_shape`, (f,2) u2."""
    for i, cutout in enumerate(cutouts):
        yield f"foreground_cutout/c/{i}/0/0/0", encode_chunk("foreground_cutout", cutout)
    yield "foreground_shape/c/0/0", encode_chunk("foreground_shape", shapes.astype("<u2"))


def room_files(numbers: np.ndarray, room: Callable[[int], RoomParts]) -> Iterator[tuple[str, bytes]]:
    """Yield the files of the rooms of a recipe; `room(number)` returns one."""
    columns = []
    for i, number in enumerate(numbers.tolist()):
        depth, floor, *values = room(number)
        yield f"room_depth/c/{i}/0/0", encode_chunk("depth", depth)
        yield f"room_floor/c/{i}/0/0", encode_chunk("room_floor", floor)
        columns.append(values)
    for name, values in zip(_ROOM_COLUMNS, np.array(columns).T, strict=True):
        yield f"{name}/c/0", encode_chunk(name, values.astype(_SHAPES[name][0]))


def column_files(rows: np.ndarray, first_row: int) -> Iterator[tuple[str, bytes]]:
    """Yield the files of the columns for `rows` of the plan, the first of which is row `first_row` of the store."""
    values = {name: rows[name] for name in DTYPE.names or () if name != "background"} | {
        "background_number": rows["background"],
        "background_index": np.unique(rows["background"], return_inverse=True)[1],
        "row": np.arange(first_row, first_row + len(rows)),
    }
    for name, (dtype, _) in _COLUMNS.items():
        yield from _column_files(name, values[name].astype(dtype))
    if "people" in (rows.dtype.names or ()):
        for name in PERSON.names or ():
            yield from _column_files(f"person_{name}", rows["people"][name])


def coordinate_files(rows: np.ndarray, first_row: int, backgrounds: np.ndarray | None) -> Iterator[tuple[str, bytes]]:
    """Yield the files of the coordinates for the same; `backgrounds` are the numbers of those stored, if any are."""
    values = {"sample": np.arange(first_row, first_row + len(rows))}
    if backgrounds is not None:
        values["picture"] = backgrounds
    for name, numbers in values.items():
        yield from _column_files(name, numbers.astype(_COORDINATES[name][0]))


def _column_files(name: str, values: np.ndarray) -> Iterator[tuple[str, bytes]]:
    each = min(len(values), _COLUMN_CHUNK)
    for i, start in enumerate(range(0, len(values), each)):
        piece = values[start : start + each]
        padding = [(0, each - len(piece)), *[(0, 0)] * (piece.ndim - 1)]
        yield f"{name}/c/{i}" + "/0" * (piece.ndim - 1), encode_chunk(name, np.pad(piece, padding))


def _without_warnings(function: Callable[P, T]) -> Callable[P, T]:
    """Keep zarr from warning that other libraries may not know consolidated metadata, nor numcodecs.delta."""

    @wraps(function)
    def quiet(*arguments: P.args, **options: P.kwargs) -> T:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Consolidated metadata")
            warnings.filterwarnings("ignore", message="Numcodecs codecs are not in the Zarr version 3")
            return function(*arguments, **options)

    return quiet


@_without_warnings
def metadata_files(geometry: Geometry, attributes: Mapping[str, Any], *, sharded: bool = True) -> dict[str, bytes]:
    """Return the `zarr.json` of a shard and of its arrays, by name, the shard's own last; zarr itself encodes them.

    Zip files are not `sharded`: every chunk is an entry of its own.
    """
    import zarr
    from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec

    plain: list[Any] = [ZstdCodec(level=LEVEL, checksum=True)]
    compact: list[Any] = [ZstdCodec(level=LEVEL, checksum=False), Crc32cCodec()]
    smooth: list[Any] = [BloscCodec(cname="zstd", clevel=LEVEL, shuffle="bitshuffle", typesize=2), Crc32cCodec()]
    memory: dict[str, Any] = {}
    group = zarr.create_group(zarr.storage.MemoryStore(memory), attributes=dict(attributes))
    side = geometry.size

    def add(
        name: str, shape: tuple[int, ...], chunks: tuple[int, ...], dimensions: tuple[str, ...], **options: Any
    ) -> None:
        common: dict[str, Any] = {
            "compressors": plain,
            "fill_value": 0,
            "dtype": "uint8",
            "attributes": _DESCRIBED.get(name, {}),
        }
        group.create_array(name, shape=shape, chunks=chunks, dimension_names=dimensions, **(common | options))

    for name in SAMPLE_FIELDS:
        if name in geometry.fields:
            tail: tuple[int, ...] = (side, side, 3) if name == "image" else (side, side)
            options: dict[str, Any] = {"shards": (geometry.block, *tail)} if sharded else {}
            if name == "depth":
                filters = ZARR_CODECS if geometry.coding.differences else []
                options |= {"dtype": "uint16", "compressors": smooth, "filters": filters}
            elif geometry.coding.compact:
                options["compressors"] = compact
            dimensions = ("sample", "y", "x", "channel")[: 1 + len(tail)]
            add(name, (geometry.rows, *tail), (geometry.chunk, *tail), dimensions, **options)
    for name, dimensions in (("person_box", ("sample", "person", "box")), ("person_depth", ("sample", "person"))):
        if name in geometry.fields:
            slots = max(1, geometry.people)
            tail = (slots, 4) if name == "person_box" else (slots,)
            options = {"shards": (geometry.block, *tail)} if sharded else {}
            if geometry.coding.compact:
                options["compressors"] = compact
            add(name, (geometry.rows, *tail), (geometry.chunk, *tail), dimensions, dtype="uint16", **options)
    if geometry.rooms:
        count, one = (geometry.backgrounds, side, side), (1, side, side)
        add("room_depth", count, one, ("picture", "y", "x"), dtype="uint16", compressors=smooth)
        add("room_floor", count, one, ("picture", "y", "x"))
        for name in _ROOM_COLUMNS:
            add(name, count[:1], count[:1], ("picture",), dtype=np.dtype(_SHAPES[name][0]).name)
    if "background" in geometry.fields:
        shape = (geometry.backgrounds, side, side, 3)
        add("background", shape, (1, *shape[1:]), ("picture", "y", "x", "channel"))
    if geometry.foregrounds is not None:
        number, height, width = geometry.foregrounds
        # xarray refuses arrays whose dimensions have the same name and another size
        sides = ("y", "x") if geometry.layout == 1 else ("cutout_y", "cutout_x")
        add("foreground_cutout", (number, height, width, 4), (1, height, width, 4), ("cutout", *sides, "rgba"))
        add("foreground_shape", (number, 2), (number, 2), ("cutout", "side"), dtype="uint16")
    lengths = dict.fromkeys(_COLUMNS, ("sample", geometry.rows))
    if geometry.layout > 1:
        lengths["sample"] = ("sample", geometry.rows)
        if "background" in geometry.fields:
            lengths["picture"] = ("picture", geometry.backgrounds)
    for name, (dimension, length) in lengths.items():
        dtype, about = (_COLUMNS | _COORDINATES)[name]
        if geometry.layout == 1 and name == "background_index":
            about = {"long_name": "index into the array background"}
        add(name, (length,), (min(length, _COLUMN_CHUNK),), (dimension,), dtype=dtype, attributes=about)
    if geometry.people:
        for name, (dtype, about) in _PERSON_COLUMNS.items():
            each, slots = min(geometry.rows, _COLUMN_CHUNK), geometry.people
            add(name, (geometry.rows, slots), (each, slots), ("sample", "person"), dtype=dtype, attributes=about)
    # without them xarray warns
    zarr.consolidate_metadata(zarr.storage.MemoryStore(memory))
    names = sorted((name for name in memory if name.endswith(ROOT)), key=lambda name: (name == ROOT, name))
    return {name: memory[name].to_bytes() for name in names}


def attributes_of(name: str) -> dict[str, Any]:
    """Return the attributes that an array of a new store has."""
    columns = {column: about for column, (_, about) in (_COLUMNS | _PERSON_COLUMNS | _COORDINATES).items()}
    return dict((columns | _DESCRIBED).get(name, {}))


def picture_names(attributes: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the names of the pictures by the array that has them, from the attributes of any shard."""
    return {
        array: [picture if isinstance(picture, str) else picture["name"] for picture in attributes[pictures]]
        for pictures, (array, _) in _NAMES.items()
        if attributes.get(pictures)
    }


def tree_files(shards: Mapping[str, Mapping[str, Any]], version: str) -> dict[str, bytes]:
    """Return the files of the group that a store is, by name, its own `zarr.json` last.

    `shards` are the `zarr.json` of all shards by name. Those that are zip files are no members of the group. The bytes
    do not depend on the versions of zarr and numcodecs, so that they can be checked by making them again.
    """
    files: dict[str, bytes] = {}
    members: dict[str, Any] = {}
    some_shard = next(iter(shards.values()))
    named = picture_names(some_shard["attributes"])
    for attribute, (name, about) in _NAMES.items():
        if name in named:
            members[name] = _describe_names(attribute, about, len(named[name]))
            files[f"{name}/c/0"] = _encode_names(named[name])
            files[f"{name}/{ROOT}"] = encode_json(members[name])
    for shard, root in shards.items():
        if shard.endswith(ZIP_SUFFIX):
            continue
        members[shard] = {**root, "consolidated_metadata": _consolidate({})}
        members |= {f"{shard}/{name}": about for name, about in root["consolidated_metadata"]["metadata"].items()}
    files[ROOT] = encode_json(
        {
            "attributes": CONVENTIONS | {"dsgen": version},
            "zarr_format": 3,
            "consolidated_metadata": _consolidate(members),
            "node_type": "group",
        }
    )
    return files


def _consolidate(members: dict[str, Any]) -> dict[str, Any]:
    return {"kind": "inline", "must_understand": False, "metadata": members}


def _describe_names(dimension: str, about: str, count: int) -> dict[str, Any]:
    """Return the `zarr.json` of an array of names, which is one chunk."""
    return {
        "shape": [count],
        "data_type": "string",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [count]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": "",
        "codecs": [{"name": "vlen-utf8", "configuration": {}}, {"name": "crc32c"}],
        "attributes": {"long_name": about},
        "dimension_names": [dimension],
        "zarr_format": 3,
        "node_type": "array",
        "storage_transformers": [],
    }


def _encode_names(names: list[str]) -> bytes:
    """Encode strings as the codecs vlen-utf8 and crc32c do: their number, then each after its length in bytes."""
    codes = [name.encode("utf-8", "replace") for name in names]
    pieces = [len(code).to_bytes(4, "little") + code for code in codes]
    return with_checksum(len(codes).to_bytes(4, "little") + b"".join(pieces))


def sums_line(name: str, sha256: str) -> str:
    """Return a line of `SHA256SUMS`."""
    return f"{sha256}  {name}\n"


def read_sums(files: Files) -> dict[str, str]:
    """Return the SHA-256 of every file of a store, by name, from `SHA256SUMS`."""
    try:
        lines = files.read(SHA256SUMS).decode().splitlines()
        return {name: digest for digest, name in (line.split("  ", 1) for line in lines)}
    except FileNotFoundError as error:
        raise NotFoundError(
            f"{files}/{SHA256SUMS}", "missing", f"remove {INDEX_JSON} and run dsgen pack again"
        ) from error
    except ValueError as error:
        raise DamagedError(
            f"{files}/{SHA256SUMS}", f"damaged ({reason_of(error)})", f"remove {INDEX_JSON} and run dsgen pack again"
        ) from error


_CODECS_OF_DIFFERENCES = (("bytes", "blosc", "crc32c"),)
_CODECS = (*_CODECS_OF_DIFFERENCES, ("bytes", "blosc"), ("bytes", "zstd"), ("bytes", "zstd", "crc32c"))


def _are_differences(codecs: list[Codec]) -> bool:
    """Return whether the first codecs of an array take differences."""
    found = [{name: codec.get(name) for name in ("name", "configuration")} for codec in codecs[: len(ZARR_CODECS)]]
    return [_without_defaults(codec) for codec in found] == ZARR_CODECS


def _without_defaults(codec: dict[str, Any]) -> dict[str, Any]:
    """Leave out of numcodecs.delta the type of the differences, which is noted where it is that of the values."""
    settings = dict(codec["configuration"] or {})
    if codec["name"] == "numcodecs.delta" and settings.get("astype") == settings.get("dtype"):
        settings.pop("astype", None)
    return {"name": codec["name"], "configuration": settings}


@dataclass(frozen=True)
class ArrayLayout:
    """An array, from its `zarr.json`: `chunk` and `each` are the samples of a chunk and of a file.

    A `sharded` file ends with a table of its chunks, even if it has only one. `codecs` are the names of the codecs that
    encode the values, or their differences.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    chunk: int
    each: int
    codecs: tuple[str, ...]
    sharded: bool
    is_differences: bool = False

    @classmethod
    def parse(cls, name: str, metadata: dict[str, Any]) -> "ArrayLayout":
        """Parse an array's `zarr.json`; raise `ValueError` for anything that `metadata_files` does not write."""
        known = check_as(ArrayMetadata, metadata, f"{name}/{ROOT}")
        shape, codecs = tuple(known["shape"]), known["codecs"]
        grid = known["chunk_grid"]["configuration"]["chunk_shape"]
        each = chunk = grid[0]
        sharded = codecs[0]["name"] == "sharding_indexed"
        if sharded:
            inner = check_as(Grid, codecs[0].get("configuration"), f"{name}/{ROOT}")
            chunk, codecs = inner["chunk_shape"][0], inner.get("codecs", [])
            if inner["chunk_shape"][1:] != grid[1:] or each % chunk:
                raise ValueError(f"{name} has chunks {inner['chunk_shape']} in shards {grid}, not as dsgen does")
        is_differences = _are_differences(codecs)
        names = tuple(codec["name"] for codec in codecs[len(ZARR_CODECS) if is_differences else 0 :])
        known_names = _CODECS_OF_DIFFERENCES if is_differences else _CODECS
        if names not in known_names or list(shape[1:]) != grid[1:]:
            raise ValueError(f"{name} is coded by {', '.join(names)} in chunks {grid}, not as dsgen does")
        dtype = np.dtype(known["data_type"]).newbyteorder("<")
        nbytes = math.prod((chunk, *shape[1:])) * dtype.itemsize
        if nbytes > MAX_CHUNK_BYTES:
            raise ValueError(f"{name} has chunks of {nbytes:,} bytes, expected at most {MAX_CHUNK_BYTES:,}")
        return cls(name, shape, dtype, chunk, each, names, sharded, is_differences)

    def file(self, number: int) -> str:
        """Name the file of chunk or block `number`."""
        return f"{self.name}/c/{number}" + "/0" * (len(self.shape) - 1)

    @property
    def is_depth(self) -> bool:
        """Whether it is encoded as `encode_block` encodes depth without differences, but perhaps for the checksum."""
        return "blosc" in self.codecs and self.dtype == np.dtype("<u2") and not self.is_differences

    @property
    def file_count(self) -> int:
        """How many files the array has."""
        return -(-self.shape[0] // self.each)

    @property
    def file_names(self) -> Iterator[str]:
        """Name every file of the array; of a damaged one there may be too many to list."""
        return map(self.file, range(self.file_count))


def check_arrays(arrays: Mapping[str, ArrayLayout]) -> None:
    """Raise `ValueError` for arrays that are not those of one shard, as `metadata_files` describes them."""
    missing = [name for name in _COLUMNS if name not in arrays]
    if missing or not {"image", "depth", "background"} & arrays.keys():
        raise ValueError(f"no array {missing[0] if missing else 'image'}")
    rows = arrays["row"].shape[0]
    sides = {
        side
        for name in (*SAMPLE_FIELDS, "background", "room_depth", "room_floor")
        if name in arrays
        for side in arrays[name].shape[1:3]
    }
    columns = _COLUMNS | _PERSON_COLUMNS
    for name, array in arrays.items():
        if name not in _SHAPES and name not in columns:
            continue
        length = 1 if name in _COLUMNS else 2
        dtype, dimensions, tail = _SHAPES.get(name, (columns.get(name, ("",))[0], length, ()))
        if (
            array.dtype != np.dtype(dtype)
            or len(array.shape) != dimensions
            or array.shape[dimensions - len(tail) :] != tail
        ):
            raise ValueError(f"{name} is {array.dtype} {array.shape}")
        of_rows = name in SAMPLE_FIELDS or name in PERSON_FIELDS or name in columns
        if of_rows and array.shape[0] != rows:
            raise ValueError(f"{name} has {array.shape[0]:,} rows, expected {rows:,}")
    if not rows or len(sides) > 1:
        raise ValueError(f"{rows} rows of sides {sorted(sides)}")
    slots = {array.shape[1] for name, array in arrays.items() if name in _PERSON_COLUMNS or name == "person_box"}
    missing = [name for name in _PERSON_COLUMNS if slots and name not in arrays]
    if len(slots) > 1 or missing:
        raise ValueError(
            f"no array {missing[0]}" if missing else f"people in {sorted(slots)} slots, expected one number"
        )
    chunks = {arrays[name].chunk for name in (*SAMPLE_FIELDS, *PERSON_FIELDS) if name in arrays}
    if len(chunks) > 1:
        raise ValueError(f"chunks of {sorted(chunks)} samples, expected one number")
