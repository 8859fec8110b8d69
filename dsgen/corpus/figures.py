"""Cut-outs drawn at any size and place: resampled in integers, with the same bits on every machine.

A cut-out is kept in levels: level 0 is premultiplied RGBA, (colour alpha + 127) / 255 rounded down. Each other is half
as large as the one before, rounded up, down to the first with less than 8 rows or columns: a pixel is the mean of four
of the level before, (a + b + c + d + 2) >> 2, transparent ones beyond its edge. It is drawn from the last level that is
at least as high as what is drawn, h0 / 2^level >= k height / 64, else from level 0. Places are in units of 1/64 pixel
of the stored size. At `scale` k, the pixel (x, y) of a picture has its centre at x' = 32 (2x + 1) units of the drawn
size, and shows the level at

    u = floor(256 h0 (x' - k left) / (2^level k height)) - 128      in 1/256 of the level's pixels

where h0 is the height of the cut-out and `height` the one that it is drawn with; likewise for y. Outside the level all
is transparent. Between four of its pixels, values are interpolated first along y, then along x, each time
(a (256 - w) + b w + 128) >> 8 with w = u & 255. A tilted cut-out is turned about the middle of its lower edge: for
x' - k left and y' - k top it has, with c and s the cosine and sine of the tilt, times 65536 and rounded,
m = floor(k height w0 / (2 h0)), a = x' - k left - m and b = y' - k top - k height,

    (a c + b s) / 65536 + m      and      (b c - a s) / 65536 + k height      not rounded
"""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from dsgen.corpus.colour_matching import ColourStatistics
from dsgen.corpus.looks import Contact, ground_contacts

UNIT = 64  # of places and heights, to a pixel of the stored size
_TURN = 65536  # of sine and cosine
_PAD = 2  # transparent pixels around a level
_SMALLEST = 4  # rows of the last level


@dataclass(frozen=True)
class Window:
    """A part of a picture: rows `top` to `bottom`, columns `left` to `right`, exclusive."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def slices(self) -> tuple[slice, slice]:
        """The rows and the columns."""
        return slice(self.top, self.bottom), slice(self.left, self.right)

    def padded(self, pad: int) -> "Window":
        """Return a window that is larger on each side, perhaps beyond the picture."""
        return Window(self.top - pad, self.bottom + pad, self.left - pad, self.right + pad)

    def within(self, side: int) -> "Window":
        """Return what of it is inside a square picture."""
        return Window(max(0, self.top), min(side, self.bottom), max(0, self.left), min(side, self.right))

    @property
    def empty(self) -> bool:
        """Whether it has no pixel."""
        return self.top >= self.bottom or self.left >= self.right


class Figure:
    """A cut-out, (h,w,4) u1 RGBA with straight alpha, prepared to be drawn at any size.

    `height` and `width` are its own, in pixels, `contacts` are where it stands and `colours` what its colours are like.
    """

    def __init__(self, rgba: np.ndarray):
        self.height, self.width = rgba.shape[:2]
        self._rgba = rgba
        alpha = rgba[..., 3:].astype(np.uint16)
        pixels = np.concatenate([(rgba[..., :3] * alpha + 127) // 255, alpha], axis=2).astype(np.uint8)
        self._pixels = [pixels]
        while min(pixels.shape[:2]) >= 2 * _SMALLEST:
            pixels = _halve(pixels)
            self._pixels.append(pixels)
        self._levels: dict[int, _Level] = {}  # those that were drawn from

    @property
    def nbytes(self) -> int:
        """Bytes in memory once all levels but the largest were drawn from, as they are if pictures are small."""
        return 2 * self._rgba.nbytes + sum(level.nbytes * 5 for level in self._pixels[1:])

    def _level(self, number: int) -> "_Level":
        found = self._levels.get(number)
        if found is None:
            found = self._levels[number] = _Level.of(self._pixels[number].astype(np.uint16))
        return found

    @cached_property
    def contacts(self) -> tuple[Contact, ...]:
        """Where it touches the floor."""
        return ground_contacts(self._rgba[..., 3])

    @cached_property
    def colours(self) -> ColourStatistics:
        """Mean and deviation of its colours, of every second pixel."""
        some = self._rgba[::2, ::2]
        weights = some[..., 3]
        return ColourStatistics.of(some[..., :3], weights if weights.any() else np.ones_like(weights))

    def window(self, height: int, top: int, left: int, tilt: int, size: int, scale: int) -> Window:
        """Return what a drawn cut-out can touch of a picture of `size` * `scale` pixels; see `draw` for the rest."""
        height, top, left = height * scale, top * scale, left * scale
        beyond = max(0, -(-height // (2 * self.height)) - UNIT // 2)  # enlarged, half a pixel of the cut-out is wide
        low, high = top - beyond, top + height + beyond
        first, last = left - beyond, left + -(-height * self.width // self.height) + beyond
        if tilt:
            middle, reach = (first + last) // 2, math.isqrt((high - low) ** 2 + (last - first) ** 2) + UNIT
            low, high, first, last = high - reach, high + reach, middle - reach, middle + reach
        whole = Window(low // UNIT - 1, -(-high // UNIT) + 1, first // UNIT - 1, -(-last // UNIT) + 1)
        return whole.within(size * scale)

    def draw(self, window: Window, height: int, top: int, left: int, tilt: int, scale: int) -> np.ndarray:
        """Draw the cut-out within a window: (h,w,4) u1 RGBA, premultiplied.

        `height`, `top` and `left` are in 1/64 pixel of the stored size, `tilt` in 1/100 degree, clockwise.
        """
        height, top, left = height * scale, top * scale, left * scale
        number = 0
        while number + 1 < len(self._pixels) and self.height * UNIT >= height << (number + 1):
            number += 1
        level, step, divisor = self._level(number), 256 * self.height, height << number
        if tilt:
            y = 32 * (2 * np.arange(window.top, window.bottom) + 1) - top
            x = 32 * (2 * np.arange(window.left, window.right) + 1) - left
            return self._draw_turned(level, (step, divisor), y, x, height, tilt)
        rows, row_weights, columns, column_weights = _samples(window, top, left, step, divisor, level.shape)
        mixed = level.steps.take(rows, axis=0)  # along y first
        mixed *= row_weights[:, None]
        mixed += level.pixels.take(rows, axis=0)
        mixed >>= 8
        whole = mixed.view(np.uint64)  # the four channels of a pixel are moved together
        first, second = whole.take(columns, axis=1).view(np.uint16), whole.take(columns + 1, axis=1).view(np.uint16)
        second -= first
        second *= column_weights.repeat(4)
        first <<= 8
        first += 128
        first += second
        first >>= 8
        return first.astype(np.uint8).reshape(len(rows), len(columns), 4)

    def _draw_turned(
        self, level: "_Level", ratio: tuple[int, int], y: np.ndarray, x: np.ndarray, height: int, tilt: int
    ) -> np.ndarray:
        angle = math.radians(tilt / 100)
        cosine, sine = round(math.cos(angle) * _TURN), round(math.sin(angle) * _TURN)
        half = height * self.width // (2 * self.height)
        across, along = x[None, :] - half, y[:, None] - height
        turned_x = across * cosine + along * sine + half * _TURN
        turned_y = along * cosine - across * sine + height * _TURN
        divisor = ratio[1] * _TURN
        rows, row_weights = _between(turned_y * ratio[0] // divisor - 128, level.shape[0])
        columns, column_weights = _between(turned_x * ratio[0] // divisor - 128, level.shape[1])
        pixels, steps = level.pixels.reshape(-1, 4), level.steps.reshape(-1, 4)
        start = rows * level.shape[1] + columns
        first, second = ((steps[start + k] * row_weights[..., None] + pixels[start + k]) >> 8 for k in (0, 1))
        return ((((second - first) * column_weights[..., None] + (first << 8)) + 128) >> 8).astype(np.uint8)


@dataclass(frozen=True)
class _Level:
    """A level, padded to `shape` (H,W): `pixels` (H,4W) u2 are 256 times the values, plus 128.

    `steps` are the values of the next row less those of the row, mod 2^16.
    """

    shape: tuple[int, int]
    pixels: np.ndarray
    steps: np.ndarray

    @classmethod
    def of(cls, level: np.ndarray) -> "_Level":
        padded = np.pad(level, ((_PAD, _PAD), (_PAD, _PAD), (0, 0)))
        values = np.ascontiguousarray(padded.reshape(len(padded), -1))
        return cls(padded.shape[:2], (values << 8) + 128, np.roll(values, -1, axis=0) - values)


def _samples(
    window: Window, top: int, left: int, step: int, divisor: int, shape: tuple[int, int]
) -> tuple[np.ndarray, ...]:
    """Return where the rows of a window lie in a level of this shape, as `_between` does, and then its columns."""
    height = window.bottom - window.top
    position = np.arange(height + window.right - window.left)
    position *= 64 * step
    position[:height] += (64 * window.top + 32 - top) * step
    position[height:] += (64 * (window.left - height) + 32 - left) * step
    position //= divisor
    position += 256 * _PAD - 128
    weights = (position & 255).astype(np.uint16)
    position >>= 8
    rows, columns = position[:height], position[height:]
    for places, length in ((rows, shape[0]), (columns, shape[1])):
        if places[0] < 0 or places[-1] > length - 2:
            np.clip(places, 0, length - 2, out=places)
    return rows, weights[:height], columns, weights[height:]


def _between(position: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the first of the two padded pixels of a level between which positions lie, and the second's weight u2."""
    return np.clip((position >> 8) + _PAD, 0, length - 2), (position & 255).astype(np.uint16)


def _halve(level: np.ndarray) -> np.ndarray:
    height, width = level.shape[:2]
    even = np.pad(level, ((0, height % 2), (0, width % 2), (0, 0))).astype(np.uint16)
    return ((even[::2, ::2] + even[1::2, ::2] + even[::2, 1::2] + even[1::2, 1::2] + 2) >> 2).astype(np.uint8)
