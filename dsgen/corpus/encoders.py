"""Encode composites and masks at the cost of the window that the foreground covers.

The encoders return the bytes of complete JPEG and PNG files.
"""

import re
import zlib
from typing import Any

import numpy as np

from dsgen.corpus.render import Cutout, blend
from dsgen.io.images import DEFLATE_LEVEL, PNG_END, encode_jpeg, png_chunk, png_header

_MCU = 16  # size of the minimum coded unit of a 4:2:0 JPEG, in pixels


class MaskEncoder:
    """Encode masks that are 0 outside a window, in a fraction of the time `encode_png` takes for the whole mask.

    The empty rows above and below the window are deflated separately, once per number of rows, and concatenated with
    the window's rows.
    """

    def __init__(self, size: int):
        self._size = size
        self._head = png_header(size, size, 1, 1)
        self._deflated_zeros: dict[tuple[int, bool], bytes] = {}

    def encode(self, window: np.ndarray, top: int, left: int) -> bytes:
        """Encode the mask that has `window`, (h,w) u1, at the given position and 0 elsewhere."""
        height, width = window.shape
        below = self._size - top - height
        rows = np.zeros((height, 1 + self._size), np.uint8)
        rows[:, 1 + left : 1 + left + width] = window
        code = b"".join(
            (
                b"\x78\x01",
                self._empty_rows(top, last=False),
                _deflate(rows.data, last=below == 0),
                self._empty_rows(below, last=True),
                self._adler(rows, top, below).to_bytes(4, "big"),
            )
        )
        return self._head + png_chunk(b"IDAT", code) + PNG_END

    def _empty_rows(self, rows: int, last: bool) -> bytes:
        """Return a number of empty rows, deflated; the `last` ones end the stream."""
        if not rows:
            return b""
        if (rows, last) not in self._deflated_zeros:
            self._deflated_zeros[rows, last] = _deflate(bytes(rows * (1 + self._size)), last)
        return self._deflated_zeros[rows, last]

    def _adler(self, rows: np.ndarray, top: int, below: int) -> int:
        """Return the Adler-32 of the whole mask (RFC 1950): every zero byte adds the first sum to the second."""
        modulus, line = 65521, 1 + self._size
        value = zlib.adler32(rows.data, 1 | (top * line % modulus) << 16)
        a, b = value & 0xFFFF, value >> 16
        return (b + below * line * a) % modulus << 16 | a


def _deflate(content: Any, last: bool) -> bytes:
    """Deflate a piece of a stream; pieces can be concatenated."""
    deflate = zlib.compressobj(DEFLATE_LEVEL, zlib.DEFLATED, -15, zlib.DEF_MEM_LEVEL, zlib.Z_RLE)
    return deflate.compress(content) + deflate.flush(zlib.Z_FINISH if last else zlib.Z_FULL_FLUSH)


class JpegPatcher:
    """Encode composites that differ from a background only in a window, at the cost of the window.

    A JPEG with a restart marker after every 16x16 unit is a sequence of independent byte strings. Units outside the
    window are copied from the background's JPEG; the others come from encoding the window alone, aligned to the same
    grid. The result is, byte for byte, `encode_jpeg(composite, quality, restart=1)`.
    """

    def __init__(self, background: np.ndarray, quality: int):
        self._background, self._quality = background, quality
        header, units = _split_units(encode_jpeg(background, quality, restart=1))
        self._columns = -(-background.shape[1] // _MCU)
        self._code: list[bytes] = [header]  # then unit, restart marker, unit, ..., end marker
        for number, unit in enumerate(units):
            self._code += [unit, bytes((0xFF, 0xD0 + number % 8))]
        self._code[-1] = b"\xff\xd9"

    def encode(self, cutout: Cutout, top: int, left: int) -> bytes:
        """Encode the background with a foreground blended over it at the given position."""
        height, width = cutout.shape
        below = self._background[top : top + height, left : left + width]
        return self.encode_changed(blend(below, cutout), top, left)

    def encode_changed(self, changed: np.ndarray, top: int, left: int) -> bytes:
        """Encode the background with other pixels (h,w,3) u1 at the given position."""
        height, width = changed.shape[:2]
        if not changed.size:
            return b"".join(self._code)
        first_row, first_column = top // _MCU, left // _MCU
        last_row, last_column = (top + height - 1) // _MCU, (left + width - 1) // _MCU
        y, x = first_row * _MCU, first_column * _MCU
        window = self._background[y : (last_row + 1) * _MCU, x : (last_column + 1) * _MCU].copy()
        window[top - y : top - y + height, left - x : left - x + width] = changed
        _, units = _split_units(encode_jpeg(window, self._quality, restart=1))
        code = self._code.copy()
        columns = last_column - first_column + 1
        for row in range(last_row - first_row + 1):
            first = 1 + 2 * ((first_row + row) * self._columns + first_column)
            code[first : first + 2 * columns : 2] = units[row * columns : (row + 1) * columns]
        return b"".join(code)


# in entropy-coded data 0xFF is followed by 0x00, unless it starts a restart marker 0xFFD0..0xFFD7
_RESTART = re.compile(rb"\xff[\xd0-\xd7]")


def _split_units(code: bytes) -> tuple[bytes, list[bytes]]:
    """Split a JPEG into its header and its units, which are separated by restart markers."""
    scan = code.index(b"\xff\xda")
    start = scan + 2 + int.from_bytes(code[scan + 2 : scan + 4], "big")
    return code[:start], _RESTART.split(code[start:-2])
