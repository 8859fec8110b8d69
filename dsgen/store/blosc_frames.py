"""Write buffers of blosc whose blocks are encoded by zstd at a level that blosc itself has no number for.

The fast levels of zstd, below 0, store what does not repeat as it is. Bits that differ at random, the lower ones of
differences, are then copied at the speed of memory, and the upper ones, which seldom differ, are still found again. So
decoding takes half the time of blosc's lowest level for a few percent more bytes. Every reader of blosc reads them.

The format is that of blosc 1 (README_CHUNK_FORMAT.rst of c-blosc): a header, the start of every block, then for each
block its length and content. The content are the bits of the values, shuffled: the lowest bit of all values, then the
next.
"""

import numpy as np
from numcodecs import blosc
from numcodecs.zstd import Zstd

_VERSION, _ZSTD_VERSION = 2, 1
_BITSHUFFLE, _NOT_SPLIT, _ZSTD = 0x4, 0x10, 4 << 5
_HEADER_BYTES = 16
_BLOCK_BYTES = 2**19  # stays in the cache of a core while its bits are put back
_GROUP = 8  # values whose bits fill a byte
_SWAPS = ((7, 0x00AA00AA00AA00AA), (14, 0x0000CCCC0000CCCC), (28, 0x00000000F0F0F0F0))


def compress(values: np.ndarray, level: int) -> bytes:
    """Encode u2 values; `level` is one of zstd. The result decodes by `numcodecs.blosc.decompress`."""
    flat = np.ascontiguousarray(values, "<u2").reshape(-1)
    if len(flat) % _GROUP:  # blosc leaves the last bits of such blocks as they are, or not
        return bytes(blosc.compress(flat, b"zstd", 1, blosc.BITSHUFFLE, typesize=2))
    block = min(len(flat), _BLOCK_BYTES // 2)
    zstd = Zstd(level=level)
    blocks = []
    for start in range(0, len(flat), block):
        shuffled = shuffle_bits(flat[start : start + block])
        content = bytes(zstd.encode(shuffled))
        if len(content) >= shuffled.nbytes:  # by this length a reader knows that it is not encoded
            content = shuffled.tobytes()
        blocks.append(len(content).to_bytes(4, "little") + content)
    first = _HEADER_BYTES + 4 * len(blocks)
    starts = np.cumsum([first, *map(len, blocks)])
    header = bytes([_VERSION, _ZSTD_VERSION, _BITSHUFFLE | _NOT_SPLIT | _ZSTD, flat.itemsize])
    lengths = np.array([flat.nbytes, 2 * block, starts[-1]], "<u4")
    return b"".join([header, lengths.tobytes(), starts[:-1].astype("<i4").tobytes(), *blocks])


def shuffle_bits(values: np.ndarray) -> np.ndarray:
    """Return (2n,) u1: bit 0 of all n values, u2, eight to a byte, then bit 1, and so on; n is a multiple of 8.

    Eight bytes of as many values are a matrix of bits, which is transposed in three swaps of ever larger squares
    (Warren, Hacker's Delight, 7-3).
    """
    low_high = np.ascontiguousarray(values.view(np.uint8).reshape(-1, 2).T)
    bits = low_high.reshape(2, -1, _GROUP).view("<u8")[..., 0]
    for distance, squares in _SWAPS:
        swapped = (bits ^ (bits >> np.uint64(distance))) & np.uint64(squares)
        bits = bits ^ swapped ^ (swapped << np.uint64(distance))
    return np.ascontiguousarray(bits.view(np.uint8).reshape(2, -1, _GROUP).transpose(0, 2, 1)).reshape(-1)
