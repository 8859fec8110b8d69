"""The only decoder and encoder of picture files.

In memory a picture is HWC RGB u1, a cut-out HWC RGBA u1 with straight alpha, a mask HW u1 of 0 or 255. Encoders
return bytes; who writes them decides how that is made atomic.
"""

import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps

from dsgen.errors import DamagedError, DsgenError

MAX_PIXELS = 64_000_000
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp"}
DEFLATE_LEVEL = 1  # level 0 saves 8 us a mask and doubles its bytes


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
        raise DamagedError(path, f"cannot be decoded ({reason}), expected a whole PNG", "replace it") from error


def read_cutout(path: Path) -> np.ndarray:
    """Decode a picture with an alpha channel, or a palette with transparency, to (h,w,4) u1 RGBA."""
    return _decode(path, alpha=True)


def _decode(path: Path, alpha: bool) -> np.ndarray:
    if path.stat().st_size == 0:
        raise DsgenError(path, "empty file (0 bytes), expected a picture", "replace it")
    try:
        with Image.open(path) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise DsgenError(
                    path, f"{width}x{height} pixels, expected at most {MAX_PIXELS:,} in all", "scale it down"
                )
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
        raise DsgenError(
            path, f"far more than {MAX_PIXELS:,} pixels, the most a picture may have", "scale it down"
        ) from error
    except Exception as error:  # Pillow's decoders raise what they please on damaged files
        reason = str(error).replace(str(path), "it") or type(error).__name__
        raise DamagedError(path, f"cannot be decoded ({reason})", "replace it") from error


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
    deflate = zlib.compressobj(DEFLATE_LEVEL, strategy=zlib.Z_RLE if runs else zlib.Z_DEFAULT_STRATEGY)
    code = deflate.compress(filtered.data) + deflate.flush()
    return png_header(width, height, channels, depth) + png_chunk(b"IDAT", code) + PNG_END


def png_chunk(kind: bytes, body: bytes) -> bytes:
    """Return a chunk of a PNG file: length, kind, body and CRC-32."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(body, zlib.crc32(kind)))


def png_header(width: int, height: int, channels: int, depth: int) -> bytes:
    """Return the signature and the IHDR chunk of a PNG file; `depth` is the bytes of a sample."""
    colour = {1: 0, 3: 2, 4: 6}[channels]
    header = struct.pack(">IIBBBBB", width, height, 8 * depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header)


PNG_END = png_chunk(b"IEND", b"")


def encode_jpeg(picture: np.ndarray, quality: int = 95, restart: int = 0) -> bytes:
    """Encode (h,w,3) RGB or (h,w) grey u1 as baseline 4:2:0 JPEG, with a restart marker every `restart` units."""
    if picture.ndim == 3:
        picture = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    options = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_RST_INTERVAL, restart]
    done, code = cv2.imencode(".jpg", picture, options)
    if not done:
        raise RuntimeError(f"opencv could not encode a JPEG of shape {picture.shape}")
    return code.tobytes()
