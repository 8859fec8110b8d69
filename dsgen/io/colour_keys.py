"""Transparency by key: the one colour of a grey or RGB PNG that its tRNS chunk declares transparent.

Samples are compared in full, at the file's own 1 to 16 bits. Pillow compares them after it has scaled them to 8 bits.
"""

import struct
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

_SIGNATURE_BYTES = 8
_GREY, _RGB = 0, 2


def key_alpha(path: Path, image: Image.Image) -> np.ndarray | None:
    """Return the alpha of a decoded PNG by its colour key, (h,w) u1, 0 or 255; None for a picture without a key."""
    if image.format != "PNG" or "transparency" not in image.info:
        return None
    content = path.read_bytes()
    chunks = {kind: chunk[8:-4] for kind, chunk in _chunks(content) if kind in (b"IHDR", b"tRNS")}
    bits, colour_type = chunks[b"IHDR"][8:10]
    if colour_type not in (_GREY, _RGB):
        return None
    channels = 1 if colour_type == _GREY else 3
    # of a key, only as many bits count as samples have
    key = [sample & (2**bits - 1) for sample in struct.unpack(f">{channels}H", chunks[b"tRNS"][: 2 * channels])]
    if colour_type == _GREY:
        samples = np.asarray(image if bits == 16 else image.convert("L"))
        transparent = samples == (key[0] if bits == 16 else key[0] * (255 // (2**bits - 1)))
    else:
        samples = np.asarray(image) if bits == 8 else _decode_rgb16(content)
        transparent = np.ones(samples.shape[:2], bool)
        for channel, value in enumerate(key):
            transparent &= samples[..., channel] == value
    return np.where(transparent, np.uint8(0), np.uint8(255))


def _chunks(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield every chunk of a PNG file: its type, and all of it with length, type, body and CRC."""
    at = _SIGNATURE_BYTES
    while at + 8 <= len(content):
        length, kind = struct.unpack_from(">I4s", content, at)
        yield kind, content[at : at + 12 + length]
        at += 12 + length


def _decode_rgb16(content: bytes) -> np.ndarray:
    """Decode a 16-bit RGB PNG to (h,w,3) u2. Only its pixels are handed on: OpenCV applies keys in its own way."""
    kept = [chunk for kind, chunk in _chunks(content) if kind in (b"IHDR", b"IDAT", b"IEND")]
    code = content[:_SIGNATURE_BYTES] + b"".join(kept)
    decoded = cv2.imdecode(np.frombuffer(code, np.uint8), cv2.IMREAD_UNCHANGED)
    if decoded is None:
        raise ValueError("OpenCV cannot decode its 16-bit samples")
    return decoded[..., ::-1]
