"""The only decoder and encoder of picture files.

In memory a picture is HWC RGB u1, a cut-out HWC RGBA u1 with straight alpha, a mask HW u1 of 0 or 255. Encoders
return bytes; who writes them decides how that is made atomic.
"""

import re
import struct
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageOps

from dsgen.errors import DsgenError
from dsgen.render import Cutout, blend

MAX_PIXELS = 64_000_000
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp"}
_DEFLATE = 1  # level 0 saves 8 us a mask and doubles its bytes
_MCU = 16  # the side of the smallest unit a 4:2:0 JPEG is coded in


def read_picture(path: Path) -> np.ndarray:
    """Decode any picture to (h,w,3) u1 RGB: 8 or 16 bits, grey, palette, CMYK; EXIF rotation applied; alpha dropped."""
    return _decode(path, alpha=False)


def read_depth_png(path: Path) -> np.ndarray:
    """Decode a 16-bit grey PNG to (h,w) of whole numbers."""
    try:
        with Image.open(path, formats=["PNG"]) as image:
            return np.asarray(image)
    except Exception as error:  # Pillow's decoders raise what they please on damaged files
        reason = str(error).replace(str(path), "it") or type(error).__name__
        raise DsgenError(f"{path}: cannot be decoded ({reason}), expected a whole PNG; replace it") from error


def read_cutout(path: Path) -> np.ndarray:
    """Decode a picture with an alpha channel, or a palette with transparency, to (h,w,4) u1 RGBA."""
    return _decode(path, alpha=True)


def _decode(path: Path, alpha: bool) -> np.ndarray:
    if path.stat().st_size == 0:
        raise DsgenError(f"{path}: empty file (0 bytes), expected a picture; replace it")
    try:
        with Image.open(path) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise DsgenError(
                    f"{path}: {width}x{height} pixels, expected at most {MAX_PIXELS:,} in all; scale it down"
                )
            if alpha and not image.has_transparency_data:
                raise DsgenError(f"{path}: no alpha channel (mode {image.mode}); save it as an RGBA PNG")
            image.load()
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith("I;16"):
                grey = ((np.asarray(upright).astype(np.uint32) + 128) // 257).astype(np.uint8)
                return np.repeat(grey[..., None], 3, axis=2)
            if upright.mode in ("I", "F"):
                raise DsgenError(f"{path}: 32-bit samples (mode {upright.mode}), expected 8 or 16 bits; convert it")
            return np.asarray(upright.convert("RGBA" if alpha else "RGB"))
    except DsgenError:
        raise
    except Image.DecompressionBombError as error:
        raise DsgenError(
            f"{path}: far more than {MAX_PIXELS:,} pixels, the most a picture may have; scale it down"
        ) from error
    except Exception as error:  # Pillow's decoders raise what they please on damaged files
        reason = str(error).replace(str(path), "it") or type(error).__name__
        raise DsgenError(f"{path}: cannot be decoded ({reason}); replace it") from error


def resize(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize u1 pictures of any channels, by area when shrinking, cubic when enlarging."""
    if picture.shape[:2] == (height, width):
        return picture
    shrink = height < picture.shape[0] or width < picture.shape[1]
    return cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA if shrink else cv2.INTER_CUBIC)


def resize_cutout(rgba: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize an RGBA picture with straight alpha: what is transparent lends no colour to the edge."""
    if rgba.shape[:2] == (height, width):
        return rgba
    alpha = rgba[..., 3:].astype(np.float32) / 255
    weighted = np.concatenate([rgba[..., :3] * alpha, alpha], axis=2)
    shrink = height < rgba.shape[0] or width < rgba.shape[1]
    weighted = cv2.resize(weighted, (width, height), interpolation=cv2.INTER_AREA if shrink else cv2.INTER_LINEAR)
    cover = weighted[..., 3:]
    colour = np.divide(weighted[..., :3], cover, out=np.zeros_like(weighted[..., :3]), where=cover > 1e-4)
    return np.rint(np.concatenate([colour, cover * 255], axis=2)).clip(0, 255).astype(np.uint8)


def centre_square(picture: np.ndarray) -> np.ndarray:
    """Cut the largest centred square out of a picture."""
    height, width = picture.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return picture[top : top + side, left : left + side]


def trim(rgba: np.ndarray) -> np.ndarray:
    """Cut off the rows and columns round a cut-out in which nothing shows."""
    solid = rgba[..., 3] > 0
    rows, columns = np.flatnonzero(solid.any(axis=1)), np.flatnonzero(solid.any(axis=0))
    return rgba[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def encode_png(picture: np.ndarray, *, runs: bool = False) -> bytes:
    """Encode (h,w) grey, (h,w,3) RGB or (h,w,4) RGBA, u1 or u2, as PNG; `runs` of one value, like masks, cost less.

    Other rows say how they differ from the one above (filter type 2), which takes a quarter off the bytes of composites
    and half off those of depth maps. Deflated by zlib: ISA-L is four times as fast and was seen to code the same mask
    in two ways in two processes.
    """
    height, width = picture.shape[:2]
    channels = 1 if picture.ndim == 2 else picture.shape[2]
    depth = picture.dtype.itemsize
    big_endian = np.ascontiguousarray(picture.astype(">u2") if depth == 2 else picture)
    lines = big_endian.view(np.uint8).reshape(height, -1)
    filtered = np.zeros((height, 1 + lines.shape[1]), np.uint8)
    filtered[:, 1:] = lines
    if not runs:
        filtered[:, 0] = 2
        filtered[1:, 1:] -= lines[:-1]
    deflate = zlib.compressobj(_DEFLATE, strategy=zlib.Z_RLE if runs else zlib.Z_DEFAULT_STRATEGY)
    code = deflate.compress(filtered.data) + deflate.flush()
    return _png_head(width, height, channels, depth) + _png_chunk(b"IDAT", code) + _PNG_END


def _png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(body, zlib.crc32(kind)))


def _png_head(width: int, height: int, channels: int, depth: int) -> bytes:
    colour = {1: 0, 3: 2, 4: 6}[channels]
    header = struct.pack(">IIBBBBB", width, height, 8 * depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _png_chunk(b"IHDR", header)


_PNG_END = _png_chunk(b"IEND", b"")


class MaskEncoder:
    """Encodes masks that are 0 outside a window, in a fraction of the time `encode_png` takes for the whole mask.

    The rows above and below the window are deflated once, each piece on its own, and put before and behind it.
    """

    def __init__(self, size: int):
        self._size = size
        self._head = _png_head(size, size, 1, 1)
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
        return self._head + _png_chunk(b"IDAT", code) + _PNG_END

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
    deflate = zlib.compressobj(_DEFLATE, zlib.DEFLATED, -15, zlib.DEF_MEM_LEVEL, zlib.Z_RLE)
    return deflate.compress(content) + deflate.flush(zlib.Z_FINISH if last else zlib.Z_FULL_FLUSH)


def encode_jpeg(picture: np.ndarray, quality: int = 95, restart: int = 0) -> bytes:
    """Encode (h,w,3) RGB or (h,w) grey u1 as baseline 4:2:0 JPEG, with a restart marker every `restart` units."""
    if picture.ndim == 3:
        picture = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    options = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_RST_INTERVAL, restart]
    done, code = cv2.imencode(".jpg", picture, options)
    if not done:
        raise RuntimeError(f"opencv could not encode a JPEG of shape {picture.shape}")
    return code.tobytes()


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
