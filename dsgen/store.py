"""The Zarr schema of a store, written and read here only.

A store is a folder of shards and `index.json`, which is written last. A shard is a self-contained Zarr v3 group of
consecutive rows of the corpus, readable with plain zarr or xarray:

    image             (sample, y, x, channel)   u1   RGB
    mask              (sample, y, x)            u1   255 where the foreground is, else 0
    depth             (sample, y, x)            u2   millimetres, 0 invalid; absent from a store without depth
    background        (picture, y, x, channel)  u1   RGB, every background of the shard once
    background_index  (sample)                  u4   which of them
    row               (sample)                  i8   the row of the plan; then its columns, `background` as
                                                     `background_number`

Pictures are coded in chunks of samples that share a background, which plain zstd then stores nearly once; a block
of chunks is one file, written whole or not at all. Every chunk carries a checksum.
"""

import hashlib
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import zarr
from numcodecs import blosc
from numcodecs.zstd import Zstd
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec

from dsgen import layout
from dsgen.errors import DsgenError
from dsgen.plan import DTYPE, SPLITS

FORMAT = 1
PICTURES = ("image", "mask", "depth")
_CHUNK_SAMPLES, _CHUNK_BYTES = 20, 2**24
_BLOCK_SAMPLES, _BLOCK_BYTES = 1000, 2**25
_COLUMN_CHUNK = 65536
_CACHED_BYTES = 2**26
_COLUMNS: dict[str, tuple[str, dict[str, Any]]] = {
    "background_index": ("<u4", {"long_name": "index into the array background"}),
    "row": ("<i8", {"long_name": "row of the corpus' plan"}),
    "background_number": ("<u4", {"long_name": "background, as numbered in the corpus"}),
    "foreground": ("<u4", {"long_name": "foreground, as numbered in the corpus"}),
    "flip": ("u1", {"long_name": "1 where the foreground is mirrored"}),
    "position": ("<u2", {"long_name": "number of the place among those of this pair"}),
    "top": ("<u2", {"long_name": "first row of the foreground", "units": "pixel"}),
    "left": ("<u2", {"long_name": "first column of the foreground", "units": "pixel"}),
    "split": ("u1", {"long_name": "split", "flag_values": [0, 1, 2, 3], "flag_meanings": " ".join(SPLITS)}),
}


def chunk_rows(positions: int, size: int) -> int:
    """Say how many samples make a chunk: about 20, whole runs of `positions` or an even part of one, 16 MiB at most."""
    if positions <= _CHUNK_SAMPLES:
        rows = positions * (_CHUNK_SAMPLES // positions)
    else:
        rows = -(-positions // round(positions / _CHUNK_SAMPLES))
    return min(rows, max(1, _CHUNK_BYTES // (size * size * 3)))


def block_rows(chunk: int, size: int) -> int:
    """Say how many samples make a file: whole chunks, 1,000 samples or 32 MiB of raw image at most."""
    return chunk * max(1, min(_BLOCK_SAMPLES, _BLOCK_BYTES // (size * size * 3)) // chunk)


def create_shard(
    path: Path,
    first_row: int,
    rows: np.ndarray,
    background: Callable[[int], np.ndarray],
    *,
    size: int,
    chunk: int,
    block: int,
    depth: bool,
    attributes: Mapping[str, Any],
) -> None:
    """Make a shard for `rows` of the plan, everything but image, mask and depth written.

    `background(number)` returns a background of the corpus, (S,S,3) u1.
    """
    numbers, index = np.unique(rows["background"], return_inverse=True)
    group = zarr.create_group(path, attributes=dict(attributes))
    plain = ZstdCodec(level=3, checksum=True)
    smooth = BloscCodec(cname="zstd", clevel=3, shuffle="bitshuffle", typesize=2)
    codings: dict[str, tuple[str, tuple[int, ...], list[Any], dict[str, Any]]] = {
        "image": ("uint8", (size, size, 3), [plain], {"long_name": "composite, RGB"}),
        "mask": ("uint8", (size, size), [plain], {"long_name": "mask of the foreground, 0 or 255"}),
    }
    if depth:
        codings["depth"] = (
            "uint16",
            (size, size),
            [smooth, Crc32cCodec()],
            {"long_name": "planar depth", "units": "m", "scale_factor": 0.001, "_FillValue": 0},
        )
    for name, (dtype, shape, codecs, described) in codings.items():
        group.create_array(
            name,
            shape=(len(rows), *shape),
            chunks=(chunk, *shape),
            shards=(block, *shape),
            dtype=dtype,
            compressors=codecs,
            fill_value=0,
            dimension_names=("sample", "y", "x", "channel")[: 1 + len(shape)],
            attributes=described,
            config={"write_empty_chunks": True},
        )
    pictures = group.create_array(
        "background",
        shape=(len(numbers), size, size, 3),
        chunks=(1, size, size, 3),
        dtype="uint8",
        compressors=[plain],
        fill_value=0,
        dimension_names=("picture", "y", "x", "channel"),
        attributes={"long_name": "background, RGB"},
        config={"write_empty_chunks": True},
    )
    for i, number in enumerate(numbers.tolist()):
        pictures[i] = background(number)
    values = {name: rows[name] for name in DTYPE.names or () if name != "background"} | {
        "background_number": rows["background"],
        "background_index": index,
        "row": np.arange(first_row, first_row + len(rows)),
    }
    for name, (dtype, about) in _COLUMNS.items():
        column = group.create_array(
            name,
            shape=(len(rows),),
            chunks=(min(len(rows), _COLUMN_CHUNK),),
            dtype=dtype,
            compressors=[plain],
            fill_value=0,
            dimension_names=("sample",),
            attributes=about,
            config={"write_empty_chunks": True},
        )
        column[:] = values[name].astype(dtype)


def write_block(path: Path, first: int, pictures: Mapping[str, np.ndarray]) -> None:
    """Write image, mask and, where there is one, depth of a block that begins at sample `first` of the shard."""
    # not part of an array's metadata: without it a chunk of zeros would be no file, as if it had never been written
    with zarr.config.set({"array.write_empty_chunks": True}):
        group = zarr.open_group(path, mode="r+", use_consolidated=False)
        arrays = {name: _array(group, name) for name in pictures}
    for name, values in pictures.items():
        array = arrays[name]
        # a block at the end of a shard is no whole file to zarr, which would mix it with what is there
        _block_file(path, name, first // _rows_a_file(array)).unlink(missing_ok=True)
        array[first : first + len(values)] = values


def add_attributes(path: Path, attributes: Mapping[str, Any]) -> None:
    """Add to the attributes of an unfinished shard."""
    zarr.open_group(path, mode="r+", use_consolidated=False).attrs.update(attributes)


def seal_shard(path: Path) -> None:
    """Gather the metadata of a shard whose blocks are all written, and clear away what a kill left of their files."""
    with warnings.catch_warnings():
        # xarray warns without it; zarr-python warns that others need not know it
        warnings.filterwarnings("ignore", message="Consolidated metadata")
        zarr.consolidate_metadata(path)
    for leftover in path.rglob("*.partial"):
        leftover.unlink()


def hash_shard(path: Path) -> str:
    """Hash a shard: SHA-256 over the relative name, length and bytes of every file, in order of name."""
    digest = hashlib.sha256()
    for name in sorted(p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file()):
        content = (path / name).read_bytes()
        digest.update(f"{name}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()


def shard_bytes(path: Path, name: str | None = None) -> int:
    """Count the bytes of a shard's files, or of those of one array."""
    return sum(p.stat().st_size for p in (path / name if name else path).rglob("*") if p.is_file())


def shard_attributes(path: Path) -> dict[str, Any]:
    """Return the attributes of a shard, finished or not."""
    with _reading(path):
        return dict(zarr.open_group(path, mode="r", use_consolidated=False).attrs)


class Shard:
    """One shard, read-only. Threads may share it."""

    def __init__(self, path: Path | str):
        self.path = Path(path)
        with _reading(self.path):
            group = zarr.open_group(self.path, mode="r")
            self._arrays = {name: _array(group, name) for name in group.array_keys()}
            self.rows, self.size = self._arrays["image"].shape[:2]
            self.chunk = self._arrays["image"].chunks[0]
            self.parts = tuple(name for name in PICTURES if name in self._arrays)
        self._indices: dict[tuple[str, int], np.ndarray] = {}  # where each file has its chunks: offset, length

    def missing_files(self) -> list[str]:
        """Name the files of the shard that should be there and are not; zarr would read zeros in their place."""
        expected = [
            _block_file(self.path, name, block)
            for name in self.parts
            for block in range(-(-self.rows // _rows_a_file(self._arrays[name])))
        ]
        expected += [self._background_file(i) for i in range(self._arrays["background"].shape[0])]
        expected += [
            self.path / name / "c" / str(i) for name in _COLUMNS for i in range(-(-self.rows // _COLUMN_CHUNK))
        ]
        return [path.relative_to(self.path).as_posix() for path in expected if not path.is_file()]

    def read(self, part: str, first: int, last: int) -> np.ndarray:
        """Read samples `first` to `last`, exclusive, of `image`, `mask` or `depth`."""
        with _reading(self.path, f"{part} {first}..{last - 1}"):
            starts = range(first - first % self.chunk, last, self.chunk)
            pieces = [self._decode(part, s)[max(first - s, 0) : min(last, self.rows) - s] for s in starts]
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def _decode(self, part: str, start: int) -> np.ndarray:
        """Decode the chunk that begins at sample `start`.

        Does what zarr does with the codecs of `create_shard`, in less than half the time: zarr reads a file's index
        each time and spends more on its own machinery than on decoding.
        """
        array = self._arrays[part]
        each = _rows_a_file(array)
        chunk = np.empty((self.chunk, *array.shape[1:]), array.dtype)
        with _block_file(self.path, part, start // each).open("rb", buffering=0) as file:
            index = self._indices.get((part, start // each))
            if index is None:
                file.seek(-16 * (each // self.chunk) - 4, 2)
                index = np.frombuffer(_checked(file.read()), "<u8").reshape(-1, 2)
                self._indices[part, start // each] = index
            offset, length = index[start % each // self.chunk].tolist()
            if offset == 2**64 - 1:
                raise ValueError("left out of its file")
            file.seek(offset)
            code = file.read(length)
        if part == "depth":
            code = _checked(code)
            if code[4:8] != chunk.nbytes.to_bytes(4, "little"):  # the decoded length in blosc's header
                raise ValueError("another length than its shape says")
            blosc.decompress(code, chunk)
        else:
            Zstd().decode(code, chunk)
        return chunk

    def background(self, index: int) -> np.ndarray:
        """Read a background of the shard, (S,S,3) u1."""
        with _reading(self.path, f"background {index}"):
            self._background_file(index).stat()
            return self._arrays["background"][index]  # type: ignore[return-value]

    def column(self, name: str) -> np.ndarray:
        """Read a column, (rows,)."""
        with _reading(self.path, name):
            return self._arrays[name][:]  # type: ignore[return-value]

    def _background_file(self, index: int) -> Path:
        return self.path / "background" / "c" / str(index) / "0" / "0" / "0"


class Store:
    """A finished store, read-only and cheap to open. Threads may share it; it can be pickled.

    `index` is what `index.json` says, `sha256` the hash of its bytes, `splits` the rows of every split, `size` the
    side in pixels. Raises `DsgenError` for an unfinished store and for one with missing files.
    """

    def __init__(self, path: Path | str):
        self.path = Path(path)
        index = self.path / layout.INDEX
        if not index.is_file():
            what = "an unfinished store" if any(self.path.glob("shard-*")) else "no store"
            raise DsgenError(f"{self.path}: {what} (no {layout.INDEX}); run dsgen pack --out {self.path}")
        self.sha256 = hashlib.sha256(index.read_bytes()).hexdigest()
        self.index: dict[str, Any] = layout.read_json(index)
        if self.index.get("format") != FORMAT:
            raise DsgenError(
                f"{index}: format {self.index.get('format')}, expected {FORMAT}; use the dsgen that made it"
            )
        self.rows: int = self.index["rows"]
        self.size: int = self.index["size"]
        self.has_depth: bool = self.index["depth"] is not None
        self.splits: dict[str, int] = self.index["splits"]
        self.first_rows = np.array([shard["first_row"] for shard in self.index["shards"]] + [self.rows])
        self.shards = [self._open(shard["name"], shard["rows"]) for shard in self.index["shards"]]
        self._backgrounds: OrderedDict[tuple[int, int], np.ndarray] = OrderedDict()

    def __reduce__(self) -> tuple[Any, ...]:
        return Store, (self.path,)

    def _open(self, name: str, rows: int) -> Shard:
        path = self.path / name
        remedy = f"remove it and run dsgen pack --out {self.path} again"
        if not path.is_dir():
            raise DsgenError(f"{path}: missing, {layout.INDEX} lists it; run dsgen pack --out {self.path} again")
        shard = Shard(path)
        if shard.rows != rows:
            raise DsgenError(f"{path}: {shard.rows} rows, expected {rows} as {layout.INDEX} says; {remedy}")
        missing = shard.missing_files()
        if missing:
            raise DsgenError(f"{path}: {len(missing)} files missing, the first {missing[0]}; {remedy}")
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
        read: dict[tuple[int, int], np.ndarray] = {}
        for key in dict.fromkeys(keys):
            picture = self._backgrounds.get(key)
            if picture is None:
                picture = self._backgrounds[key] = self.shards[key[0]].background(key[1])
                while len(self._backgrounds) * picture.nbytes > max(_CACHED_BYTES, picture.nbytes):
                    self._backgrounds.popitem(last=False)
            read[key] = picture
        return [read[key] for key in keys]

    def read(self, first: int, last: int) -> dict[str, np.ndarray]:
        """Read rows `first` to `last`, exclusive: `image`, `mask`, `depth` if there is one, `background`, `row`."""
        if not 0 <= first < last <= self.rows:
            raise DsgenError(f"{self.path}: rows {first} to {last}, expected a range within 0 to {self.rows}")
        parts: dict[str, list[np.ndarray]] = {name: [] for name in self.shards[0].parts}
        for shard, start in zip(self.shards, self.first_rows.tolist(), strict=False):
            begin, end = max(first - start, 0), min(last - start, shard.rows)
            if begin < end:
                for name, pieces in parts.items():
                    pieces.append(shard.read(name, begin, end))
        rows = np.arange(first, last)
        pictures = {name: np.concatenate(pieces) for name, pieces in parts.items()}
        return pictures | {"background": np.stack(self.backgrounds(rows)), "row": rows}


def _array(group: zarr.Group, name: str) -> zarr.Array:
    array = group[name]
    if not isinstance(array, zarr.Array):
        raise ValueError(f"{name} is no array")
    return array


def _rows_a_file(array: zarr.Array) -> int:
    return (array.shards or array.chunks)[0]


def _block_file(path: Path, part: str, block: int) -> Path:
    return path.joinpath(part, "c", str(block), "0", "0", *(["0"] if part == "image" else []))


def _checked(content: bytes) -> bytes:
    """Take off the CRC-32C that zarr appends, if it is right."""
    if google_crc32c.value(content[:-4]) != int.from_bytes(content[-4:], "little"):
        raise ValueError("checksum wrong")
    return content[:-4]


@contextmanager
def _reading(path: Path, what: str = "metadata") -> Iterator[None]:
    """Turn what zarr and its codecs raise on missing or damaged files, which is anything, into a `DsgenError`."""
    try:
        yield
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DsgenError(
            f"{path}: cannot read {what} ({reason}), the shard is damaged; remove it and run dsgen pack again"
        ) from error
