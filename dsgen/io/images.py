"""Decode and encode picture files; no other module does.

In memory a picture is HWC RGB u1, a cut-out is HWC RGBA u1 with straight alpha, a mask is HW u1 with 0 or 255. Encoders
return bytes, so that the caller decides how they are written.
"""

import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps

from dsgen.errors import DamagedError, DsgenError, reason_of

MAX_PIXELS = 64_000_000
SUFFIXES = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".tif", ".tiff", ".bmp"}
DEFLATE_LEVEL = 1  # level 0 would save 8 us per mask and double its bytes


def read_picture(path: Path) -> np.ndarray:
    """Decode a picture to (h,w,3) u1 RGB: 8 or 16 bits, grey, palette, CMYK; apply EXIF rotation, drop alpha.

    Raises `DamagedError` if it cannot be decoded, `DsgenError` if it is too large or has 32-bit samples.
    """
    return _decode(path, alpha=False)


def read_depth_png(path: Path) -> np.ndarray:
    """Decode a 16-bit grey PNG to (h,w) integers; raise `DamagedError` if it cannot be decoded."""
    try:
        with Image.open(path, formats=["PNG"]) as image:
            return np.asarray(image)
    except Exception as error:  # Pillow's decoders raise errors of any class on damaged files
        reason = f"cannot be decoded ({reason_of(error, path)}), expected a complete PNG"
        raise DamagedError(path, reason, "replace it") from error


def read_cutout(path: Path) -> np.ndarray:
    """Decode a picture with an alpha channel, or a palette with transparency, to (h,w,4) u1 RGBA.

    Raises as `read_picture`, and `DamagedError` if there is no alpha channel.
    """
    return _decode(path, alpha=True)


def _decode(path: Path, alpha: bool) -> np.ndarray:
    if path.stat().st_size == 0:
        raise DamagedError(path, "empty file (0 bytes), expected a picture", "replace it")
    try:
        with Image.open(path) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                reason = f"{width}x{height} pixels, expected at most {MAX_PIXELS:,} in total"
                raise DsgenError(path, reason, "scale it down")
            if alpha and not image.has_transparency_data:
                raise DamagedError(path, f"no alpha channel (mode {image.mode})", "save it as an RGBA PNG")
            image.load()
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith("I;16"):
                grey = ((np.asarray(upright).astype(np.uint32) + 128) // 257).astype(np.uint8)
                return np.repeat(grey[..., None], 3, axis=2)
            if upright.mode in ("I", "F"):
                raise DsgenError(path, f"32-bit samples (mode {upright.mode}), expected 8 or 16 bits", "convert it")
            return np.asarray(upright.convert("RGBA" if alpha else "RGB"))
    except DsgenError:
        raise
    except Image.DecompressionBombError as error:
        raise DsgenError(path, f"far more pixels than the limit of {MAX_PIXELS:,}", "scale it down") from error
    except Exception as error:  # Pillow's decoders raise errors of any class on damaged files
        raise DamagedError(path, f"cannot be decoded ({reason_of(error, path)})", "replace it") from error


def resize(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize an (h,w) or (h,w,c) u1 picture: area averaging to shrink it, cubic interpolation to enlarge it."""
    if picture.shape[:2] == (height, width):
        return picture
    shrink = height < picture.shape[0] or width < picture.shape[1]
    return cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA if shrink else cv2.INTER_CUBIC)


def resize_cutout(rgba: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize an (h,w,4) u1 picture with straight alpha.

    Colours are weighted by alpha, so that transparent pixels lend no colour to the edge.
    """
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
    """Crop a picture to its largest centred square."""
    height, width = picture.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return picture[top : top + side, left : left + side]


def trim(rgba: np.ndarray) -> np.ndarray:
    """Crop a cut-out to its visible pixels, those with alpha above 0; there must be one."""
    solid = rgba[..., 3] > 0
    rows, columns = np.flatnonzero(solid.any(axis=1)), np.flatnonzero(solid.any(axis=0))
    return rgba[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def encode_png(picture: np.ndarray, *, runs: bool = False) -> bytes:
    """Encode (h,w) grey, (h,w,3) RGB or (h,w,4) RGBA, u1 or u2, as PNG.

    Pass `runs` for pictures with long runs of one value, such as masks: they are stored unfiltered and deflated as
    run lengths. In all others each row is stored as its difference from the row above (filter type 2), which saves a
    quarter of the bytes of composites and half of those of depth maps. zlib deflates: ISA-L is four times as fast but
    was seen to encode the same mask differently in two processes.
    """
    height, width = picture.shape[:2]
    channels = 1 if picture.ndim == 2 else picture.shape[2]
    sample_bytes = picture.dtype.itemsize
    big_endian = np.ascontiguousarray(picture.astype(">u2") if sample_bytes == 2 else picture)
    lines = big_endian.view(np.uint8).reshape(height, -1)
    filtered = np.zeros((height, 1 + lines.shape[1]), np.uint8)
    filtered[:, 1:] = lines
    if not runs:
        filtered[:, 0] = 2
        filtered[1:, 1:] -= lines[:-1]
    deflate = zlib.compressobj(DEFLATE_LEVEL, strategy=zlib.Z_RLE if runs else zlib.Z_DEFAULT_STRATEGY)
    code = deflate.compress(filtered.data) + deflate.flush()
    return png_header(width, height, channels, sample_bytes) + png_chunk(b"IDAT", code) + PNG_END


def png_chunk(kind: bytes, body: bytes) -> bytes:
    """Return a chunk of a PNG file: length, type, body and CRC-32."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(body, zlib.crc32(kind)))


def png_header(width: int, height: int, channels: int, sample_bytes: int) -> bytes:
    """Return the signature and the IHDR chunk of a PNG file of 1 (grey), 3 (RGB) or 4 (RGBA) channels."""
    colour_type = {1: 0, 3: 2, 4: 6}[channels]
    header = struct.pack(">IIBBBBB", width, height, 8 * sample_bytes, colour_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header)


PNG_END = png_chunk(b"IEND", b"")


def encode_jpeg(picture: np.ndarray, quality: int = 95, restart: int = 0) -> bytes:
    """Encode (h,w,3) RGB or (h,w) grey u1 as a baseline 4:2:0 JPEG, with a restart marker every `restart` MCUs."""
    if picture.ndim == 3:
        picture = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    options = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_RST_INTERVAL, restart]
    succeeded, code = cv2.imencode(".jpg", picture, options)
    if not succeeded:
        raise RuntimeError(f"OpenCV could not encode a JPEG of shape {picture.shape}")
    return code.tobytes()
