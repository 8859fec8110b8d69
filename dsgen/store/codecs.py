"""Encode and decode the chunks of a store, and join chunks into Zarr shards."""

import math
import threading
from types import ModuleType
from typing import NamedTuple

import google_crc32c
import numpy as np
from numcodecs import blosc
from numcodecs.zstd import Zstd

from dsgen.store import blosc_frames, differences

LEVEL = 3
NO_CHUNK = 2**64 - 1
_DIFFERENCES_LEVEL = -2
_CRC_OF_CHECKED = 0x48674BC7  # of any bytes that are followed by their own CRC-32C

Shape = tuple[int, ...]


class Coding(NamedTuple):
    """How the samples of a store are encoded.

    Every Zarr reader reads what is not `compact`. If it is, depth may consist of `differences`, see the module of this
    name, and a CRC-32C of the encoded bytes takes the place of zstd's checksum of the decoded ones.
    """

    compact: bool
    differences: bool


PLAIN = Coding(compact=False, differences=False)


def encode_block(field: str, values: np.ndarray, chunk: int, block: int, coding: Coding = PLAIN) -> bytes:
    """Encode a block of `image`, `mask` or `depth`, (n,...), as a Zarr shard: its chunks, then the table of them.

    `chunk` and `block` are counts of samples; n is at most `block`.
    """
    codes = []
    for start in range(0, len(values), chunk):
        piece = values[start : start + chunk]
        if len(piece) < chunk:  # every chunk has its full shape, the last one too
            piece = np.concatenate([piece, np.zeros((chunk - len(piece), *piece.shape[1:]), piece.dtype)])
        codes.append(encode_chunk(field, piece, coding))
    return join_chunks(codes, chunk, block)


def join_chunks(codes: list[bytes], chunk: int, block: int) -> bytes:
    """Join encoded chunks into a block; the inverse of `split_block`."""
    ends = np.cumsum([len(code) for code in codes])
    table = np.full((block // chunk, 2), NO_CHUNK, "<u8")
    table[: len(codes), 0] = ends - [len(code) for code in codes]
    table[: len(codes), 1] = [len(code) for code in codes]
    return b"".join(codes) + with_checksum(table.tobytes())


def split_block(content: bytes, chunk: int, block: int) -> list[bytes]:
    """Split an encoded block into its encoded chunks; raise `ValueError` if its table is damaged."""
    index = np.frombuffer(check_checksum(content[-16 * (block // chunk) - 4 :]), "<u8").reshape(-1, 2)
    return [content[start : start + length] for start, length in index.tolist() if start != NO_CHUNK]


def decode_depth(
    code: bytes,
    shape: Shape,
    dtype: np.dtype | str,
    out: np.ndarray | None = None,
    is_differences: bool = False,
) -> np.ndarray:
    """Decode an encoded chunk of depth of a shape and dtype, into `out` if it is passed.

    It may consist of differences. Raises `ValueError` if it is damaged, or decodes to more or less than the shape;
    memory is allocated after that check.
    """
    checked = _check_depth(code, shape, dtype)
    chunk = np.empty(shape, dtype) if out is None else out
    if is_differences:
        differences.undo(_decode_differences(checked, shape, dtype), chunk)
    else:
        blosc.decompress(checked, chunk)
    return chunk


def place_differences(code: bytes, shape: Shape, targets: np.ndarray, loops: ModuleType) -> None:
    """Decode an encoded chunk of differences of depth, and put each sample at an address (n,) i8, if that is not 0.

    `loops` are those for decoding. Raises as `decode_depth`.
    """
    loops.restore(_decode_differences(_check_depth(code, shape, "<u2"), shape, "<u2"), targets)


def _decode_differences(checked: memoryview, shape: Shape, dtype: np.dtype | str) -> np.ndarray:
    """Decode a chunk of differences into memory of this thread, which the next one overwrites."""
    taken = _work_memory(shape, dtype)
    blosc.decompress(checked, taken)
    return taken


def _check_depth(code: bytes, shape: Shape, dtype: np.dtype | str) -> memoryview:
    """Return an encoded chunk without its checksum; raise `ValueError` if that or a length in its header is wrong."""
    checked = check_checksum(code)
    decoded, encoded = (int.from_bytes(checked[k : k + 4], "little") for k in (4, 12))
    _check_length(decoded, shape, dtype)
    if encoded != len(checked):
        raise ValueError(f"got {len(checked):,} bytes, expected {encoded:,}")
    return checked


_work = threading.local()  # new memory costs more time than what is decoded into it


def _work_memory(shape: Shape, dtype: np.dtype | str) -> np.ndarray:
    """Return memory of this thread for an array, the same every time as long as the shape stays the same."""
    kept: np.ndarray | None = vars(_work).get("array")
    if kept is None or kept.shape != shape or kept.dtype != dtype:
        kept = vars(_work)["array"] = np.empty(shape, dtype)
    return kept


def decode_zstd(
    code: bytes | memoryview, shape: Shape, dtype: np.dtype | str, out: np.ndarray | None = None
) -> np.ndarray:
    """Decode a chunk that zstd encoded; as `decode_depth`."""
    _check_length(_zstd_length(code), shape, dtype)
    chunk = np.empty(shape, dtype) if out is None else out
    Zstd().decode(code, chunk)
    return chunk


def _check_length(length: int, shape: Shape, dtype: np.dtype | str) -> None:
    expected = math.prod(shape) * np.dtype(dtype).itemsize
    if length != expected:
        raise ValueError(f"decodes to {length:,} bytes, expected {expected:,} by its shape")


def _zstd_length(code: bytes | memoryview) -> int:
    """Read the decoded length from the header of a zstd frame (RFC 8878, 3.1.1.1); -1 where it does not say."""
    if code[:4] != b"\x28\xb5\x2f\xfd" or len(code) < 6:
        raise ValueError("not encoded by zstd")
    descriptor = code[4]
    single, size_flag = descriptor >> 5 & 1, descriptor >> 6
    start = 5 + (1 - single) + (0, 1, 2, 4)[descriptor & 3]
    width = (single, 2, 4, 8)[size_flag]
    if not width:
        return -1
    return int.from_bytes(code[start : start + width], "little") + (256 if width == 2 else 0)


def encode_chunk(field: str, chunk: np.ndarray, coding: Coding = PLAIN) -> bytes:
    """Encode one chunk: depth by blosc followed by a checksum, everything else by zstd.

    zstd has a checksum of its own; in a compact store one follows it, as after blosc.
    """
    chunk = np.ascontiguousarray(chunk)
    if field == "depth":
        depth = chunk.astype("<u2", copy=False)
        if coding.differences:
            return with_checksum(blosc_frames.compress(differences.take(depth), _DIFFERENCES_LEVEL))
        return with_checksum(bytes(blosc.compress(depth, b"zstd", LEVEL, blosc.BITSHUFFLE, typesize=2)))
    code = bytes(Zstd(level=LEVEL, checksum=not coding.compact).encode(chunk))
    return with_checksum(code) if coding.compact else code


def with_checksum(content: bytes) -> bytes:
    """Append the CRC-32C, as zarr does."""
    return content + google_crc32c.value(content).to_bytes(4, "little")


def check_checksum(content: bytes) -> memoryview:
    """Verify the CRC-32C that zarr appends, and return the content without it; raise `ValueError` if it is wrong."""
    if google_crc32c.value(content) != _CRC_OF_CHECKED:
        raise ValueError("checksum wrong")
    return memoryview(content)[:-4]
