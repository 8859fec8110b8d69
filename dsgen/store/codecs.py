"""Encode and decode the chunks of a store, and join chunks into Zarr shards."""

import google_crc32c
import numpy as np
from numcodecs import blosc
from numcodecs.zstd import Zstd

LEVEL = 3
NO_CHUNK = 2**64 - 1


def encode_block(field: str, values: np.ndarray, chunk: int, block: int) -> bytes:
    """Encode a block of `image`, `mask` or `depth`, (n,...), as a Zarr shard: its chunks, then the table of them.

    `chunk` and `block` are counts of samples; n is at most `block`.
    """
    codes = []
    for start in range(0, len(values), chunk):
        piece = values[start : start + chunk]
        if len(piece) < chunk:  # every chunk has its full shape, the last one too
            piece = np.concatenate([piece, np.zeros((chunk - len(piece), *piece.shape[1:]), piece.dtype)])
        codes.append(encode_chunk(field, piece))
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


def decode_depth(code: bytes, chunk: np.ndarray) -> np.ndarray:
    """Decode an encoded chunk of depth into `chunk`, (n,S,S) u2, and return it; raise `ValueError` if it is damaged."""
    code = check_checksum(code)
    if code[4:8] != chunk.nbytes.to_bytes(4, "little"):  # the decoded length, from blosc's header
        raise ValueError("another length than its shape says")
    blosc.decompress(code, chunk)
    return chunk


def encode_chunk(field: str, chunk: np.ndarray) -> bytes:
    """Encode one chunk: depth by blosc followed by a checksum, everything else by zstd, which has its own."""
    chunk = np.ascontiguousarray(chunk)
    if field == "depth":
        code = blosc.compress(chunk.astype("<u2", copy=False), b"zstd", LEVEL, blosc.BITSHUFFLE, typesize=2)
        return with_checksum(bytes(code))
    return bytes(Zstd(level=LEVEL, checksum=True).encode(chunk))


def with_checksum(content: bytes) -> bytes:
    """Append the CRC-32C, as zarr does."""
    return content + google_crc32c.value(content).to_bytes(4, "little")


def check_checksum(content: bytes) -> bytes:
    """Verify the CRC-32C that zarr appends, and return the content without it; raise `ValueError` if it is wrong."""
    if google_crc32c.value(content[:-4]) != int.from_bytes(content[-4:], "little"):
        raise ValueError("checksum wrong")
    return content[:-4]
