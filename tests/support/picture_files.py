"""Picture files of kinds that Pillow does not write: colour keys, odd TIFFs, ICC profiles."""

import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, TiffImagePlugin

D50 = (0.9642, 1.0, 0.8249)
WIDE_PRIMARIES = ((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457))


def png_chunk(kind: bytes, body: bytes) -> bytes:
    """Length, type, body and CRC of a PNG chunk."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def write_keyed_png(path: Path, samples: np.ndarray, bits: int, key: tuple[int, ...]) -> None:
    """Write (h,w,c) samples of 1 to 16 bits as a grey (c=1) or RGB (c=3) PNG with a colour key."""
    lines = b""
    for row in samples.reshape(len(samples), -1):
        if bits == 16:
            lines += b"\0" + row.astype(">u2").tobytes()
        else:
            digits = (row[:, None] >> np.arange(bits - 1, -1, -1) & 1).astype(np.uint8)
            lines += b"\0" + np.packbits(digits).tobytes()
    height, width, channels = samples.shape
    header = struct.pack(">IIBBBBB", width, height, bits, 0 if channels == 1 else 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"tRNS", struct.pack(f">{channels}H", *key)), (b"IDAT", zlib.compress(lines))]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*c) for c in [*chunks, (b"IEND", b"")]))


def write_tiff(path: Path, data: bytes, side: int, bits: int, photometric: int, **tags: int) -> None:
    """Write raw data as a little-endian square TIFF of one strip; `tags` adds others, such as `t339=2`."""
    fields = {256: side, 257: side, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1, 278: side, 279: len(data)}
    fields |= {int(name[1:]): value for name, value in tags.items()}
    entries = b"".join(
        struct.pack("<HHII", tag, 4 if tag in (273, 279) else 3, 1, fields[tag]) for tag in sorted(fields)
    )
    directory = struct.pack("<H", len(fields)) + entries + struct.pack("<I", 0)
    path.write_bytes(b"II*\0" + struct.pack("<I", 8 + len(data)) + data + directory)


def lens_exif(orientation: int = 1, **tags: object) -> Image.Exif:
    """EXIF with an orientation and tags about the lens by name: film_mm, mm, plane, unit, taken_width."""
    numbers = {"film_mm": 0xA405, "mm": 0x920A, "plane": 0xA20E, "unit": 0xA210, "taken_width": 0xA002}
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif.get_ifd(0x8769).update(
        {
            numbers[name]: TiffImagePlugin.IFDRational(*value) if isinstance(value, tuple) else value
            for name, value in tags.items()
        }
    )
    return exif


def icc_profile(gamma: float = 2.2, primaries: tuple[tuple[float, float, float], ...] = WIDE_PRIMARIES) -> bytes:
    """An RGB profile of three primaries and one gamma; with `primaries=()` a grey one."""
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"
    words = b"test\0"
    description = b"desc\0\0\0\0" + struct.pack(">I", len(words)) + words + b"\0" * 78
    tags = [(b"desc", description), (b"cprt", b"text\0\0\0\0CC0\0"), (b"wtpt", _xyz(D50))]
    tags += [(kind, _xyz(value)) for kind, value in zip((b"rXYZ", b"gXYZ", b"bXYZ"), primaries, strict=False)]
    tags += [(kind, curve) for kind in ((b"rTRC", b"gTRC", b"bTRC") if primaries else (b"kTRC",))]
    table, bodies, at = b"", b"", 132 + 12 * len(tags)
    for kind, body in tags:
        body += b"\0" * (-len(body) % 4)
        table += kind + struct.pack(">II", at + len(bodies), len(body))
        bodies += body
    space = b"RGB " if primaries else b"GRAY"
    head = struct.pack(">I4sI4s4s4s", at + len(bodies), b"\0" * 4, 0x02400000, b"mntr", space, b"XYZ ")
    head = (head + b"\0" * 12 + b"acsp").ljust(68, b"\0") + _fixed(D50)
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + bodies


def _fixed(values: tuple[float, float, float]) -> bytes:
    return struct.pack(">3i", *(round(value * 65536) for value in values))


def _xyz(values: tuple[float, float, float]) -> bytes:
    return b"XYZ \0\0\0\0" + _fixed(values)
