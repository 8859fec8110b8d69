"""Encoders of composites that cost no more than the part of the picture that a person covers.

They return the bytes of whole JPEG and PNG files.
"""

import re
import zlib
from typing import Any

import numpy as np

from dsgen.corpus.render import Cutout, blend
from dsgen.io.images import DEFLATE_LEVEL, PNG_END, encode_jpeg, png_chunk, png_header

_MCU = 16  # the side of the smallest unit a 4:2:0 JPEG is coded in


class MaskEncoder:
    """Encodes masks that are 0 outside a window, in a fraction of the time `encode_png` takes for the whole mask.

    The rows above and below the window are deflated once, each piece on its own, and put before and behind it.
    """

    def __init__(self, size: int):
        self._size = size
        self._head = png_header(size, size, 1, 1)
        self._zeros: dict[tuple[int, bool], bytes] = {}

    def encode(self, window: np.ndarray, top: int, left: int) -> bytes:
        """Encode a mask that holds `window`, (h,w) u1, at the given place."""
        height, width = window.shape
        below = self._size - top - height
        rows = np.zeros((height, 1 + self._size), np.uint8)
        rows[:, 1 + left : 1 + left + width] = window
        code = b"".join(
            (
                b"\x78\x01",
                self._empty(top, last=False),
                _deflated(rows.data, last=below == 0),
                self._empty(below, last=True),
                self._adler(rows, top, below).to_bytes(4, "big"),
            )
        )
        return self._head + png_chunk(b"IDAT", code) + PNG_END

    def _empty(self, rows: int, last: bool) -> bytes:
        """Return the deflated form of so many empty rows, which end the stream if they are the last."""
        if not rows:
            return b""
        if (rows, last) not in self._zeros:
            self._zeros[rows, last] = _deflated(bytes(rows * (1 + self._size)), last)
        return self._zeros[rows, last]

    def _adler(self, rows: np.ndarray, top: int, below: int) -> int:
        """Return the Adler-32 of the whole mask: zeros move its second sum on by the first (RFC 1950)."""
        first, line = 65521, 1 + self._size
        value = zlib.adler32(rows.data, 1 | (top * line % first) << 16)
        a, b = value & 0xFFFF, value >> 16
        return (b + below * line * a) % first << 16 | a


def _deflated(content: Any, last: bool) -> bytes:
    """Deflate a piece of a stream so that pieces can be put one behind the other."""
    deflate = zlib.compressobj(DEFLATE_LEVEL, zlib.DEFLATED, -15, zlib.DEF_MEM_LEVEL, zlib.Z_RLE)
    return deflate.compress(content) + deflate.flush(zlib.Z_FINISH if last else zlib.Z_FULL_FLUSH)


class JpegPatcher:
    """Encodes pictures that differ from a background only in a window, at the cost of the window.

    A JPEG with a restart marker after every 16x16 unit is a row of independent byte strings. Those the window does
    not touch are the background's; the others come from encoding the window alone, cut at the same grid. The result
    is, byte for byte, `encode_jpeg(picture, quality, restart=1)`.
    """

    def __init__(self, background: np.ndarray, quality: int):
        self._background, self._quality = background, quality
        start, units = _split_units(encode_jpeg(background, quality, restart=1))
        self._columns = -(-background.shape[1] // _MCU)
        self._code: list[bytes] = [start]
        for number, unit in enumerate(units):
            self._code += [unit, bytes((0xFF, 0xD0 + number % 8))]
        self._code[-1] = b"\xff\xd9"

    def encode(self, cutout: Cutout, top: int, left: int) -> bytes:
        """Encode the background with a foreground blended over it at the given place."""
        height, width = cutout.shape
        first_row, first_column = top // _MCU, left // _MCU
        last_row, last_column = (top + height - 1) // _MCU, (left + width - 1) // _MCU
        y, x = first_row * _MCU, first_column * _MCU
        window = self._background[y : (last_row + 1) * _MCU, x : (last_column + 1) * _MCU].copy()
        place = window[top - y : top - y + height, left - x : left - x + width]
        place[...] = blend(place, cutout)
        _, units = _split_units(encode_jpeg(window, self._quality, restart=1))
        code = self._code.copy()
        across = last_column - first_column + 1
        for row in range(last_row - first_row + 1):
            begin = 1 + 2 * ((first_row + row) * self._columns + first_column)
            code[begin : begin + 2 * across : 2] = units[row * across : (row + 1) * across]
        return b"".join(code)


# inside coded data 0xFF is always followed by 0x00 or is a restart marker 0xFFD0..0xFFD7
_RESTART = re.compile(rb"\xff[\xd0-\xd7]")


def _split_units(code: bytes) -> tuple[bytes, list[bytes]]:
    """Return what comes before the coded picture, and the coded picture cut at its restart markers."""
    scan = code.index(b"\xff\xda")
    start = scan + 2 + int.from_bytes(code[scan + 2 : scan + 4], "big")
    return code[:start], _RESTART.split(code[start:-2])
