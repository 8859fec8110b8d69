"""Decode and encode picture files; no other module does.

In memory a picture is HWC sRGB u1, a cut-out is HWC RGBA u1 with straight alpha, a mask is HW u1 with 0 or 255.
Encoders return bytes, so that the caller decides how they are written.
"""

import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from dsgen.errors import DamagedError, DsgenError, reason_of
from dsgen.io.colour_keys import key_alpha
from dsgen.io.colour_profiles import convert_to_srgb
from dsgen.io.picture_files import (
    is_white_zero,
    named_warnings,
    note_once,
    open_picture,
    read_orientation,
    sample_bits,
    turn_upright,
)

SUFFIXES = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".tif", ".tiff", ".bmp"}
DEFLATE_LEVEL = 1  # level 0 would save 8 us per mask and double its bytes
_BAND_PIXELS = 1_000_000  # converted at a time, so that a large picture is in memory once
_MODES_OF_8_BITS = {"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr"}


def read_picture(path: Path) -> np.ndarray:
    """Decode a picture to (h,w,3) u1 sRGB: 8 or 16 bits, grey, palette, CMYK; apply EXIF rotation, drop alpha.

    An embedded ICC profile is converted. Of several pages or frames, the first counts. Raises `DamagedError` if the
    file cannot be decoded, `DsgenError` if it is too large, has 32-bit samples or cannot be read at all.
    """
    return _decode(path, alpha=False)


def read_cutout(path: Path) -> np.ndarray:
    """Decode a picture with an alpha channel, a palette with transparency or a PNG's colour key to (h,w,4) u1 RGBA.

    Raises as `read_picture`, and `DamagedError` if there is no transparency.
    """
    return _decode(path, alpha=True)


def read_depth_png(path: Path) -> np.ndarray:
    """Decode a 16-bit grey PNG to (h,w) integers, upright; raise `DamagedError` if it cannot be decoded."""
    try:
        with named_warnings(path), Image.open(path, formats=["PNG"]) as image:
            image.load()
            return np.asarray(turn_upright(image, read_orientation(image)))
    except Exception as error:  # Pillow's decoders raise errors of any class on damaged files
        reason = f"cannot be decoded ({reason_of(error, path)}), expected a complete PNG"
        raise DamagedError(path, reason, "replace it") from error


def _decode(path: Path, alpha: bool) -> np.ndarray:
    with open_picture(path) as image:
        if alpha and not image.has_transparency_data:
            reason = f"no alpha channel (mode {image.mode}), so nothing of it is cut out"
            raise DamagedError(path, reason, "replace it with a cut-out, or is it a background?")
        image.load()
        orientation, profile = read_orientation(image), image.info.get("icc_profile")
        if "icc_profile" in image.info and not profile:
            note_once(path, "its colour profile is damaged; its colours are read as sRGB")
        cover = key_alpha(path, image) if alpha else None
        if cover is not None or not alpha:
            image.info.pop("transparency", None)  # Pillow would apply or warn about it when it converts
        eight_bits = _to_8_bits(path, image)
        picture = convert_to_srgb(path, eight_bits, profile, alpha=alpha and cover is None)
        if cover is not None:
            picture.putalpha(Image.fromarray(cover))
        picture = turn_upright(picture, orientation)
        return _as_array(picture)


def _to_8_bits(path: Path, image: Image.Image) -> Image.Image:
    """Scale the samples of a decoded picture to 8 bits; raise for a kind of picture whose scale is not known."""
    if image.mode.startswith("I;16"):
        return Image.fromarray(_scale_grey16(image))
    if image.mode in ("I", "F"):
        raise DsgenError(path, f"32-bit samples (mode {image.mode}), expected 8 or 16 bits", "convert it")
    if image.mode not in _MODES_OF_8_BITS:
        raise DsgenError(
            path, f"colours of mode {image.mode}, expected grey, palette, RGB or CMYK", "convert it to RGB"
        )
    return image


def _scale_grey16(image: Image.Image) -> np.ndarray:
    """Scale 12- or 16-bit grey to (h,w) u1, rounded to nearest, 0 black."""
    values = np.asarray(image)
    top = 4095 if image.format == "TIFF" and sample_bits(image) == 12 else 65535
    table = ((np.arange(65536).clip(0, top) * 255 + top // 2) // top).astype(np.uint8)
    if is_white_zero(image):
        table = 255 - table
    scaled = np.empty(values.shape, np.uint8)
    rows = max(1, _BAND_PIXELS // max(1, values.shape[1]))
    for start in range(0, len(values), rows):
        scaled[start : start + rows] = table[values[start : start + rows]]
    return scaled


def _as_array(picture: Image.Image) -> np.ndarray:
    """Copy a picture to an array in bands: Pillow's own conversion holds it three times."""
    width, height = picture.size
    array = np.empty((height, width, len(picture.getbands())), np.uint8)
    rows = max(1, _BAND_PIXELS // width)
    for top in range(0, height, rows):
        array[top : top + rows] = np.asarray(picture.crop((0, top, width, min(height, top + rows))))
    return array


def resize(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize an (h,w) or (h,w,c) u1 picture: area averaging to shrink it, cubic interpolation to enlarge it."""
    if picture.shape[:2] == (height, width):
        return picture
    shrink = height < picture.shape[0] or width < picture.shape[1]
    return cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA if shrink else cv2.INTER_CUBIC)


def resize_cutout(rgba: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize an (h,w,4) u1 picture with straight alpha.

    Colours are weighted by alpha, so that transparent pixels lend no colour to the edge. A large picture is shrunk in
    bands of rows, with the same result to the bit, since its float copy would take 16 bytes a pixel.
    """
    if rgba.shape[:2] == (height, width):
        return rgba
    shrink = height < rgba.shape[0] or width < rgba.shape[1]
    both_shrink = height <= rgba.shape[0] and width <= rgba.shape[1]
    if both_shrink and rgba.shape[0] * rgba.shape[1] > _BAND_PIXELS:
        weighted = _shrink_in_bands(rgba, height, width)
    else:
        interpolation = cv2.INTER_AREA if shrink else cv2.INTER_LINEAR
        weighted = cv2.resize(_weight_by_alpha(rgba), (width, height), interpolation=interpolation)
    cover = weighted[..., 3:]
    colour = np.divide(weighted[..., :3], cover, out=np.zeros_like(weighted[..., :3]), where=cover > 1e-4)
    return np.rint(np.concatenate([colour, cover * 255], axis=2)).clip(0, 255).astype(np.uint8)


def _weight_by_alpha(rgba: np.ndarray) -> np.ndarray:
    """Return colour * alpha and alpha, (h,w,4) f4, alpha from 0 to 1."""
    alpha = rgba[..., 3:].astype(np.float32) / 255
    return np.concatenate([rgba[..., :3] * alpha, alpha], axis=2)


def _shrink_in_bands(rgba: np.ndarray, height: int, width: int) -> np.ndarray:
    """Average areas of the picture weighted by alpha, (height,width,4) f4: the bits of `cv2.resize`, in less memory.

    OpenCV averages whole blocks if both factors are integers, a band of which is as good as all. Otherwise it averages
    along x, then along y, so one can follow the other; where a single factor is an integer, OpenCV would average blocks
    in that step alone, which rounds otherwise.
    """
    factor_y, whole_y = divmod(rgba.shape[0], height)
    whole_x = rgba.shape[1] % width
    if not whole_y and not whole_x:
        rows = max(1, _BAND_PIXELS // (factor_y * rgba.shape[1]))
        bands = (rgba[top * factor_y : (top + rows) * factor_y] for top in range(0, height, rows))
        return np.concatenate([_average(_weight_by_alpha(band), len(band) // factor_y, width) for band in bands])
    rows = max(1, _BAND_PIXELS // rgba.shape[1])
    bands = (_weight_by_alpha(rgba[top : top + rows]) for top in range(0, len(rgba), rows))
    if whole_x:
        narrow = np.concatenate([_average(band, len(band), width) for band in bands])
    else:
        narrow = np.concatenate([_average_columns(band, width) for band in bands])
    if whole_y:
        return _average(narrow, height, width)
    return _average_columns(narrow.swapaxes(0, 1), height).swapaxes(0, 1)


def _average(weighted: np.ndarray, height: int, width: int) -> np.ndarray:
    return cv2.resize(weighted, (width, height), interpolation=cv2.INTER_AREA)


def _average_columns(weighted: np.ndarray, width: int) -> np.ndarray:
    """Average each `k` columns of an (h,k*width,4) f4 picture, added in order."""
    factor = weighted.shape[1] // width
    total = weighted[:, ::factor] * np.float32(1 / factor)
    for column in range(1, factor):
        total += weighted[:, column::factor] * np.float32(1 / factor)
    return total


def centre_square(picture: np.ndarray) -> np.ndarray:
    """Crop a picture to its largest centred square."""
    height, width = picture.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return picture[top : top + side, left : left + side]


def trim(rgba: np.ndarray) -> np.ndarray:
    """Crop a cut-out to its visible pixels, those with alpha above 0; there must be one."""
    rows, columns = (np.flatnonzero(rgba[..., 3].max(axis=axis)) for axis in (1, 0))
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
