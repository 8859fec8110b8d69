"""Open picture files with Pillow: which formats are read, which kinds of them are refused, and every error by name.

Only JPEG, PNG, WebP, TIFF and BMP are opened, by content, whatever the name: others of Pillow's formats start programs
or are read by code that few have tested. A warning of Pillow becomes a line of the log that names the file.
"""

import ctypes
import logging
import math
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from dsgen.camera import fov_along, fov_deg
from dsgen.errors import DamagedError, DsgenError, reason_of

MAX_PIXELS = 64_000_000
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP")
_NAMED = "JPEG, PNG, WebP, TIFF or BMP"
_QUARTER_TURNS = (5, 6, 7, 8)
_ORIENTATION = 0x0112
# tags of EXIF about the lens, and what is believed of it
_EXIF_IFD, _FOCAL_LENGTH_MM, _FOCAL_LENGTH_35MM, _PIXELS_X = 0x8769, 0x920A, 0xA405, 0xA002
_FOCAL_PLANE_PIXELS_X, _FOCAL_PLANE_UNIT = 0xA20E, 0xA210
_UNITS_MM = {2: 25.4, 3: 10.0, 4: 1.0, 5: 0.001}
_FILM_SIDE_MM = 36.0  # the longer side of the frame that focal lengths "in 35 mm film" are told for
_LEAST_FOV_DEG, _MOST_FOV_DEG = 1.0, 150.0  # along the longer side; other values are nonsense, or of a fisheye
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # by EXIF orientation
# tags of a TIFF, and values of theirs
_BITS, _COMPRESSION, _PHOTOMETRIC, _SAMPLES, _PLANAR, _SUBSAMPLING, _SAMPLE_FORMAT = 258, 259, 262, 277, 284, 530, 339
_UNCOMPRESSED, _WHITE_IS_ZERO, _YCBCR, _SEPARATE, _SIGNED = 1, 0, 6, 2, 2
_SAMPLE_FORMATS = {1: "unsigned", 2: "signed", 3: "float"}
# how files begin that people take for pictures, or that are pictures of other formats
_OTHERS = {
    b"%!PS": "PostScript",
    b"\xc5\xd0\xd3\xc6": "PostScript",
    b"%PDF": "PDF",
    b"GIF8": "GIF",
    b"8BPS": "Photoshop",
    b"\x00\x00\x00\x0cjP": "JPEG 2000",
    b"\xff\x4f\xff\x51": "JPEG 2000",
    b"\xff\x0a": "JPEG XL",
    b"\x00\x00\x00\x0cJXL": "JPEG XL",
    b"<svg": "SVG",
    b"<?xml": "XML",
    b"<html": "HTML",
    b"<!DOCTYPE": "HTML",
    b"\x93NUMPY": "NumPy",
    b"PK\x03\x04": "zip",
    b"version https://git-lfs": "a Git LFS pointer",
}
_OURS = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG": "PNG",
    b"RIFF": "WebP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",
    b"MM\0+": "TIFF",
    b"BM": "BMP",
}
log = logging.getLogger("dsgen")


@contextmanager
def open_picture(path: Path) -> Iterator[Image.Image]:
    """Open a picture, its pixels not decoded yet; errors of decoding it in the `with` block are named as well.

    Raises `DsgenError` for a picture that is too large or of a kind that is not read, and for an error of the system;
    `DamagedError` for every other file that cannot be decoded.
    """
    try:
        if path.stat().st_size == 0:
            raise DamagedError(path, "empty file (0 bytes), expected a picture", "replace it")
        with named_warnings(path), Image.open(path, formats=FORMATS) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                reason = f"{width}x{height} pixels, expected at most {MAX_PIXELS:,} in total"
                raise DsgenError(path, reason, "scale it down")
            if image.format == "TIFF":
                _check_tiff(path, image)
            if image.format in ("TIFF", "PNG", "WEBP") and getattr(image, "n_frames", 1) > 1:
                note_once(path, f"the first of its {image.n_frames} pictures is used")  # type: ignore[attr-defined]
            yield image
    except DsgenError:
        raise
    except Image.DecompressionBombError as error:
        raise DsgenError(path, f"far more pixels than the limit of {MAX_PIXELS:,}", "scale it down") from error
    except UnidentifiedImageError as error:
        with named_warnings(None):
            found = _unidentified(path)
        raise DamagedError(path, f"cannot be decoded ({found})", "replace or convert it") from error
    except MemoryError as error:
        raise DsgenError(path, "too little memory to decode it", "scale it down, or use fewer --jobs") from error
    except Exception as error:  # Pillow's decoders raise errors of any class on damaged files
        if isinstance(error, OSError) and error.errno is not None:
            raise DsgenError(path, f"cannot be read ({reason_of(error, path)})") from error
        raise DamagedError(path, f"cannot be decoded ({_reason(error, path)})", "replace it") from error


def read_size(path: Path) -> tuple[int, int]:
    """Read a picture's height and width as displayed from its header; raise as `open_picture`."""
    with open_picture(path) as image:
        return _displayed_size(image)


def read_size_and_fov(path: Path) -> tuple[tuple[int, int], float | None]:
    """Read a picture's height and width as displayed, and the field of view in degrees along that width by EXIF.

    The latter is None where EXIF does not say it: neither FocalLengthIn35mmFilm, whose 36 mm are along the longer side,
    nor FocalLength with FocalPlaneXResolution, or values that no lens has. Raises as `open_picture`.
    """
    with open_picture(path) as image:
        height, width = _displayed_size(image)
        try:
            tags = image.getexif().get_ifd(_EXIF_IFD)
        except Exception:  # Pillow's reader raises errors of any class on damaged EXIF, which hides no pixel
            tags = {}
        longer = max(height, width)
        focal_px = _focal_in_longer_sides(tags, is_quarter_turn(read_orientation(image)), height, width)
        along = fov_deg(focal_px, 1.0) if focal_px > 0 else 0.0
        known = _LEAST_FOV_DEG <= along <= _MOST_FOV_DEG
        return (height, width), fov_along(along, longer, width) if known else None


def _focal_in_longer_sides(tags: Mapping[int, Any], turned: bool, height: int, width: int) -> float:
    """Return the focal length by EXIF over the longer side of a displayed picture; 0 where it does not say it."""
    film_mm = _positive(tags.get(_FOCAL_LENGTH_35MM))
    if film_mm:
        return film_mm / _FILM_SIDE_MM
    unit_mm = _UNITS_MM.get(tags.get(_FOCAL_PLANE_UNIT, 2), 0.0)
    per_mm = _positive(tags.get(_FOCAL_PLANE_PIXELS_X)) / unit_mm if unit_mm else 0.0
    stored_width = height if turned else width
    taken_width = _positive(tags.get(_PIXELS_X)) or stored_width  # differs from the stored one if that was scaled
    focal_in_widths = _positive(tags.get(_FOCAL_LENGTH_MM)) * per_mm / taken_width
    return focal_in_widths * stored_width / max(height, width)


def _positive(value: Any) -> float:
    """Return a number of EXIF, 0 where it is none, or not above 0."""
    try:
        number = float(value)
    except (TypeError, ValueError, ZeroDivisionError):
        return 0.0
    return number if 0 < number < math.inf else 0.0


def _displayed_size(image: Image.Image) -> tuple[int, int]:
    width, height = image.size
    turned = is_quarter_turn(read_orientation(image)) and image.format != "TIFF"  # Pillow turns the size of a TIFF
    return (width, height) if turned else (height, width)


class _PixelBudget:
    """Bounds the pixels of the pictures that all threads hold together."""

    def __init__(self, pixels: int) -> None:
        self._pixels = self._free = pixels
        self._changed = threading.Condition()

    @contextmanager
    def share(self, pixels: int) -> Iterator[None]:
        pixels = min(pixels, self._pixels)
        with self._changed:
            self._changed.wait_for(lambda: self._free >= pixels)
            self._free -= pixels
        try:
            yield
        finally:
            with self._changed:
                self._free += pixels
                self._changed.notify_all()


_budget = _PixelBudget(2 * MAX_PIXELS)


@contextmanager
def share_memory(path: Path) -> Iterator[None]:
    """Wait until a picture may be decoded and held: those of all threads have at most 128,000,000 pixels together.

    Decoding and shrinking takes some 8 bytes a pixel. Raises as `open_picture`.
    """
    height, width = read_size(path)
    with _budget.share(height * width):
        yield


def read_orientation(image: Image.Image) -> int:
    """Return the EXIF orientation of an open picture, 1 (upright) to 8; 1 where there is no valid one."""
    orientation = image.getexif().get(_ORIENTATION, 1)
    return orientation if orientation in range(1, 9) else 1


def turn_upright(image: Image.Image, orientation: int) -> Image.Image:
    """Turn a decoded picture of this EXIF orientation upright."""
    return image.transpose(_TURNS[orientation]) if orientation in _TURNS else image


def is_quarter_turn(orientation: int) -> bool:
    """Whether a picture of this EXIF orientation is turned by 90 degrees, which swaps its sides."""
    return orientation in _QUARTER_TURNS


def is_white_zero(image: Image.Image) -> bool:
    """Whether an open picture is a TIFF whose value 0 is white; Pillow inverts those of up to 8 bits only."""
    return image.format == "TIFF" and _tiff_tag(image, _PHOTOMETRIC) == _WHITE_IS_ZERO


def sample_bits(image: Image.Image) -> int:
    """Return the bits of a sample of an open TIFF; Pillow does not scale 12-bit samples."""
    bits = _tiff_tag(image, _BITS) or 1
    return max(bits) if isinstance(bits, tuple) else int(bits)


def _tiff_tag(image: Image.Image, tag: int) -> Any:
    return image.tag_v2.get(tag)  # type: ignore[attr-defined]


def _check_tiff(path: Path, image: Image.Image) -> None:
    """Refuse the kinds of TIFF that Pillow decodes wrongly."""
    _silence_libtiff()
    formats = _tiff_tag(image, _SAMPLE_FORMAT) or (1,)
    if _SIGNED in (formats if isinstance(formats, tuple) else (formats,)):
        raise DsgenError(path, "signed samples, expected unsigned ones of up to 16 bits", "convert it")
    if _tiff_tag(image, _COMPRESSION) not in (None, _UNCOMPRESSED):
        return
    if _tiff_tag(image, _PHOTOMETRIC) == _YCBCR and _tiff_tag(image, _SUBSAMPLING) != (1, 1):
        raise DsgenError(path, "uncompressed YCbCr with subsampled colours, which is not read", "convert it to RGB")
    if _tiff_tag(image, _PLANAR) == _SEPARATE and sample_bits(image) > 8:
        raise DsgenError(path, "uncompressed 16-bit planes, which are not read", "save it with interleaved channels")


def _unidentified(path: Path) -> str:
    """Say what a file is that Pillow cannot open as one of the formats."""
    with path.open("rb") as file:
        start = file.read(32)
    for magic, name in _OURS.items():
        if start.startswith(magic):
            if start[2:4] in (b"+\0", b"\0+") and name == "TIFF":
                return "a BigTIFF of a kind that is not read"
            return (_tiff_kind(path) if name == "TIFF" else "") or f"begins like a {name} file, but is damaged"
    found = next((name for magic, name in _OTHERS.items() if start.lstrip().startswith(magic)), "")
    if start[4:8] == b"ftyp":
        found = "AVIF" if start[8:11] == b"avi" else "HEIC" if start[8:11] in (b"hei", b"mif", b"hev") else "a video"
    if not found:
        found = "text" if start.isascii() and b"\0" not in start else f"begins with {start[:4].hex(' ')}"
    return f"{found}, expected {_NAMED}"


def _tiff_kind(path: Path) -> str:
    """Describe a TIFF whose kind Pillow does not know; empty if even its first directory cannot be read."""
    with suppress(Exception), path.open("rb") as file:
        directory = ImageFileDirectory_v2(file.read(8))
        file.seek(directory.next)
        directory.load(file)
        bits, formats = directory[_BITS], directory.get(_SAMPLE_FORMAT, (1,))
        return (
            f"a TIFF of a kind that is not read: {directory.get(_SAMPLES, 1)} samples of {max(bits)} bits, "
            f"{_SAMPLE_FORMATS.get(max(formats), 'unknown')}, photometric {directory[_PHOTOMETRIC]}, compression "
            f"{directory.get(_COMPRESSION, 1)}; expected unsigned samples of 8 or 16 bits"
        )
    return ""


def _reason(error: Exception, path: Path) -> str:
    reason = reason_of(error, path)
    return "its data are damaged" if reason.startswith(("decoder error", "broken data stream")) else reason


@lru_cache(4096)
def note_once(path: Path, text: str) -> None:
    """Log a warning about a picture, once in a process, however often it is decoded."""
    log.warning("%s: %s", path, text)


class _WarningRouter:
    """Sends Pillow's warnings to the log with the name of the picture; unlike `warnings.catch_warnings` thread-safe.

    The filter that lets them through, and the hook that gets them, are there only while a picture is being decoded.
    """

    def __init__(self) -> None:
        self._lock, self._users, self._own = threading.Lock(), 0, threading.local()

    @contextmanager
    def named(self, path: Path | None) -> Iterator[None]:
        """Log the warnings of the `with` block, in this thread, unless it ends with an error, which says enough.

        Without a path they are dropped.
        """
        found: list[str] = []
        self._enter()
        self._own.found = found
        try:
            yield
        finally:
            self._own.found = None
            self._leave()
        for text in dict.fromkeys(found if path else []):
            note_once(path, text)

    def _enter(self) -> None:
        with self._lock:
            self._users += 1
            if self._users == 1:
                warnings.filterwarnings("always", module=r"PIL\.")
                self._filter = warnings.filters[0]
                self._previous = warnings.showwarning
                warnings.showwarning = self._show

    def _leave(self) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0:
                with suppress(ValueError):
                    warnings.filters.remove(self._filter)  # type: ignore[attr-defined]
                warnings.showwarning = self._previous

    def _show(self, message: Any, category: Any, filename: str, *others: Any, **named: Any) -> None:
        found = getattr(self._own, "found", None)
        if found is None or "PIL" not in Path(filename).parts:
            self._previous(message, category, filename, *others, **named)
        elif not issubclass(category, Image.DecompressionBombWarning):  # the size has a limit of its own
            found.append(reason_of(message))


named_warnings = _WarningRouter().named


@lru_cache(1)
def _silence_libtiff() -> None:
    """Stop libtiff from writing to stderr about a file it cannot name; Pillow raises the error anyway."""
    with suppress(OSError, StopIteration, AttributeError), Path("/proc/self/maps").open() as maps:
        library = ctypes.CDLL(next(line.split()[-1] for line in maps if "libtiff" in line))
        for name in ("TIFFSetErrorHandler", "TIFFSetWarningHandler"):
            setter = getattr(library, name)
            setter.argtypes, setter.restype = [ctypes.c_void_p], ctypes.c_void_p
            setter(None)
