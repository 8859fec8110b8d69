"""How a pasted person meets the room: contact shadows, feathered edges, Gaussian and Poisson blending.

Pure functions of arrays with the same bits on every machine: in integers, but for `poisson_blend`, whose additions and
multiplications of float64 are elementwise, so that IEEE 754 fixes every one. A person is a window of `colour` (h,w,3)
u1, RGB premultiplied by `alpha` (h,w) u1, so colour <= alpha; it is drawn over a background by `premultiplied_over`.

    div255(x) = floor((x + 128 + floor((x + 128) / 256)) / 256)        = x / 255 to the nearest, x in 0..65025

An edge of a window is an edge of the person. Where a picture's border cuts a person off, the window must go beyond the
border: by the radius in `feather`, by `GAUSSIAN_PAD` in `gaussian_blend`. Masks are those of the alpha before any look.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np

BLENDS = ("alpha", "gaussian", "poisson")  # a person's `look` in the plan is a number of this list
ALPHA, GAUSSIAN, POISSON = range(len(BLENDS))

FEATHER_RADII = (1, 2, 3)
GAUSSIAN_PAD = 1  # pixels that `gaussian_blend` adds on each side

_ONE = 4096  # a squared radius of 1 in the tables of `contact_shadow`
_SCREENING, _OVER_RELAXATION, _SWEEPS = 1.0, 1.25, 9  # of `poisson_blend`: they leave an error below 0.01


def premultiplied_over(background: np.ndarray, colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Draw a person over a background of the same shape, (h,w,3) u1: div255(background * (255 - alpha)) + colour."""
    return _scaled(background, 255 - alpha) + colour


class Ellipse(NamedTuple):
    """An ellipse with level axes on a picture, in 1/64 pixel; pixel (y, x) has its centre at (64 y + 32, 64 x + 32)."""

    centre_y64: int
    centre_x64: int
    radius_y64: int
    radius_x64: int

    def extent(self) -> tuple[int, int, int, int]:
        """Return top, left, bottom and right (the last two exclusive) of the pixels that it can shade.

        These are the rows y with |64 y + 32 - centre_y64| < radius_y64 and the columns alike, of an endless picture.
        """
        top, bottom = _inside(self.centre_y64, self.radius_y64)
        left, right = _inside(self.centre_x64, self.radius_x64)
        return top, left, bottom, right

    def seen_from(self, top: int, left: int) -> "Ellipse":
        """Return it in the coordinates of a window whose first pixel is the picture's (top, left)."""
        return self._replace(centre_y64=self.centre_y64 - 64 * top, centre_x64=self.centre_x64 - 64 * left)


class Contact(NamedTuple):
    """Where a cut-out stands: columns `left` to `right` and rows up to `bottom`, exclusive, in pixels."""

    left: int
    right: int
    bottom: int

    def ellipse(self, cutout_height: int, top64: int, left64: int, height64: int, flatness1024: int) -> Ellipse:
        """Return the ellipse of the contact's shadow for a cut-out of `cutout_height` rows that is drawn in a picture.

        The cut-out is drawn with its upper left corner at (top64, left64), `height64` high, all in 1/64 pixel.
        `flatness1024` / 1024 is the ratio of height to width of a circle on the floor: the camera's height over the
        floor divided by the distance. The radius is 1.2 times half the contact's width plus a seventh of the height,
        and the centre is a quarter of a radius above the lowest pixel, within the feet. With divisions rounded down
        and H for the cut-out's height:

            radius_x64 = 3 (right - left) height64 / (5 H) + height64 / 7
            radius_y64 = radius_x64 flatness1024 / 1024, both at least 1
            centre_x64 = left64 + (left + right) height64 / (2 H)
            centre_y64 = top64 + bottom height64 / H - radius_y64 / 4
        """
        radius_x64 = max(1, 3 * (self.right - self.left) * height64 // (5 * cutout_height) + height64 // 7)
        radius_y64 = max(1, radius_x64 * flatness1024 // 1024)
        return Ellipse(
            centre_y64=top64 + self.bottom * height64 // cutout_height - radius_y64 // 4,
            centre_x64=left64 + (self.left + self.right) * height64 // (2 * cutout_height),
            radius_y64=radius_y64,
            radius_x64=radius_x64,
        )


def ground_contacts(alpha: np.ndarray) -> tuple[Contact, ...]:
    """Find where a cut-out (h,w) u1 touches the floor, from left to right: at a person's feet, at a chair's legs.

    A column touches it if its lowest pixel of alpha >= 128 is at most 12 h / 100 rows above the lowest of all columns.
    Columns with at most 6 h / 100 others between them are one contact, whose `bottom` is the lowest of them. Divisions
    are rounded down. A cut-out without such pixels has no contact.
    """
    height = len(alpha)
    opaque = alpha >= 128
    bottoms = np.where(opaque.any(axis=0), height - np.argmax(opaque[::-1], axis=0), 0)
    if not bottoms.any():
        return ()
    columns = np.flatnonzero((bottoms > 0) & (bottoms >= bottoms.max() - 12 * height // 100))
    gaps = np.flatnonzero(np.diff(columns) > 6 * height // 100 + 1)
    runs = np.split(columns, gaps + 1)
    return tuple(Contact(int(run[0]), int(run[-1]) + 1, int(bottoms[run].max())) for run in runs)


def contact_shadow(window: np.ndarray, on_floor: np.ndarray, ellipse: Ellipse, strength: int) -> np.ndarray:
    """Darken the floor (h,w,3) u1 under a person's feet with a soft ellipse; return (h,w,3) u1.

    `on_floor` (h,w) u1 says how much of a pixel is floor: 255 all, 0 none. The ellipse is in the window's coordinates,
    with radii of at least 1. `strength` in 0..255 is the share of the light that the centre loses. The shade falls off
    smoothly to the rim, in two parts: a core of half the radius, where the body keeps all light away, and a wide
    penumbra. With divisions rounded down and n+ = max(0, n):

        r = 4096 (64 y + 32 - centre_y64)^2 / radius_y64^2 + 4096 (64 x + 32 - centre_x64)^2 / radius_x64^2
        p = (5 ((4096 - r)+)^2 + 3 ((4096 - 4 r)+)^2) / 2048                              in 0..65536
        s = div255(on_floor * ((strength p + 32768) / 65536))
        out = div255(window * (255 - s))
    """
    height, width = on_floor.shape
    down = 64 * np.arange(height, dtype=np.int64) + (32 - ellipse.centre_y64)
    across = 64 * np.arange(width, dtype=np.int64) + (32 - ellipse.centre_x64)
    down = _ONE * (down * down) // ellipse.radius_y64**2
    across = _ONE * (across * across) // ellipse.radius_x64**2
    shade = _shades(strength).take(np.add.outer(down, across), mode="clip")
    return _scaled(window, 255 - _div255(shade * on_floor))


def _inside(centre64: int, radius64: int) -> tuple[int, int]:
    """Return the first pixel whose centre is less than a radius away, and the one after the last."""
    return (centre64 - radius64 + 32) // 64, (centre64 + radius64 + 31) // 64


@lru_cache(maxsize=256)
def _shades(strength: int) -> np.ndarray:
    """Return the shade (_ONE + 1,) u2 at the squared radii 0.._ONE, as `contact_shadow` defines it."""
    squared = np.arange(_ONE + 1, dtype=np.int64)
    penumbra, core = _ONE - squared, np.maximum(0, _ONE - 4 * squared)
    profile = (5 * penumbra**2 + 3 * core**2) >> 11
    return ((strength * profile + 32768) >> 16).astype(np.uint16)


def feather(colour: np.ndarray, alpha: np.ndarray, radius: int) -> tuple[np.ndarray, np.ndarray]:
    """Soften a person's edge inwards, over `radius` (1, 2 or 3) pixels; return colour and alpha of the same shapes.

    Nothing grows: a pixel keeps a share g / 255 of its colour and alpha, 255 where all pixels around it are opaque, and
    0 where at most half of them are. With S the sum of alpha over the n = (2 radius + 1)^2 pixels of the square around
    a pixel, 0 outside the window:

        g = floor(((2 S - 255 n)+ + floor(n / 2)) / n);  colour' = div255(colour * g);  alpha' = div255(alpha * g)

    Along a straight edge g is 1 / (2 radius + 1), 3 / (2 radius + 1)... of 255. What is `radius` pixels wide or
    less vanishes.
    """
    n = (2 * radius + 1) ** 2
    kept = _box_sums(alpha, radius)
    kept <<= 1  # at most 2 * 255 * 49
    np.maximum(kept, 255 * n, out=kept)
    kept -= 255 * n - n // 2
    kept //= n
    kept = kept[:, : alpha.shape[1]]
    return _scaled(colour, kept), _div255(kept * alpha).astype(np.uint8)


def gaussian_blend(colour: np.ndarray, alpha: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Blur a person's outline, but not the person; return colour and alpha, `GAUSSIAN_PAD` larger on each side.

    The Gaussian blending of Dwibedi et al. 2017 (Cut, Paste and Learn): alpha is blurred, and colours are wanted where
    there was none. They come from a blur of the premultiplied colour, which takes those of opaque pixels nearby. With c
    and a the colour and alpha, 0 outside the window, and the kernel k = (1, 2, 1), which is a Gaussian of a standard
    deviation of 0.7 pixels:

        B(v)(y, x) = floor((sum over i, j of k_i k_j v(y + i - 1, x + j - 1) + 8) / 16)
        alpha' = B(a);  colour' = div255(c * B(a) + (255 - a) * B(c))
    """
    height, width = alpha.shape
    pad = GAUSSIAN_PAD
    rows, stride = height + 4 * pad, width + 4 * pad  # wide enough that no sum of the flat array takes in another row
    planes = np.zeros((4, rows, stride), np.uint16)
    inside = planes[:, 2 * pad : 2 * pad + height, 2 * pad : 2 * pad + width]
    inside[:3], inside[3] = np.moveaxis(colour, 2, 0), alpha
    blurred, scratch = planes.flatten(), np.zeros(planes.size, np.uint16)
    for shift in (1, 1, stride, stride):  # two sums of two are one of three by the kernel
        np.add(blurred[:-shift], blurred[shift:], out=scratch[:-shift])
        blurred, scratch = scratch, blurred
    blurred += 8
    blurred >>= 4
    shape = np.s_[: height + 2 * pad, : width + 2 * pad]
    soft = blurred.reshape(planes.shape)[:, *shape]
    sharp = planes[:, pad:, pad:][:, *shape]
    mixed = sharp[:3] * soft[3]
    mixed += soft[:3] * (255 - sharp[3])
    return np.ascontiguousarray(np.moveaxis(_div255(mixed).astype(np.uint8), 0, 2)), soft[3].astype(np.uint8)


def poisson_blend(background: np.ndarray, colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Blend a person into a background of the same shape by their differences, not their colours; return (h,w,3) u1.

    Poisson image editing (Perez et al. 2003) in the region where alpha >= 128: the picture f keeps the differences of
    the person's own colours g between neighbours in the region, has none between its pixels and their neighbours
    outside, where the background b stays, and is drawn to g with a weight of 1 (the screened equation of Bhat et al.
    2008): without it a whole person takes the colours around them, and what is thin dissolves. So f is the least of

        sum over pairs of neighbours p, q in the region of (f(p) - f(q) - g(p) + g(q))^2
        + sum over pairs of p in the region and q outside of (f(p) - b(q))^2 + sum over p of (f(p) - g(p))^2

    g is the colour without its alpha, floor((255 colour + floor(alpha / 2)) / alpha). With u = f - g, 0 outside the
    region, N the number of p's neighbours in the window, at most 4, and d the sum of b(q) - g(p) over those outside the
    region: (N + 1) u(p) - (sum of u over the neighbours) = d. It is solved by 9 sweeps of over-relaxation from u = 0
    in float64, each over the pixels of even y + x and then over those of odd, in this order of operations:

        u(p) = -0.25 u(p) + ((((right + left) + below) + above) + d) * (1.25 / (N + 1))
        f = min(255, max(0, floor((g + u) + 0.5)));  picture = div255(b * (255 - alpha) + f * alpha) in the region
    """
    height, width = alpha.shape
    region = alpha >= 128
    # a frame of zeros, of an odd number of columns: a flat index is then even where y + x is
    rows, stride = height + 2 + height % 2, width + 3 - width % 2
    framed = np.zeros((9, rows, stride), np.int16)
    inner = framed[:, 1 : height + 1, 1 : width + 1]
    inner[0], inner[1], inner[2] = 1, ~region, region
    opacity = np.maximum(alpha, 1).astype(np.uint16)[..., None]
    own = (colour.astype(np.uint16) * 255 + opacity // 2) // opacity
    inner[3:6], inner[6:9] = np.moveaxis(background, 2, 0), np.moveaxis(own, 2, 0)
    flat = framed.reshape(9, -1)
    in_window, outside, in_region = flat[:3]
    below, person = flat[3:6], flat[6:9]
    pull = (_neighbours(below * outside, stride) - person * _neighbours(outside, stride)) * in_region
    step = in_region * (_OVER_RELAXATION / (_neighbours(in_window, stride).astype(np.float64) + _SCREENING))
    shown = np.floor(person + _relaxed(pull.astype(np.float64), step, stride) + 0.5)
    shown = np.clip(shown, 0, 255).reshape(3, rows, stride)[:, 1 : height + 1, 1 : width + 1]
    mixed = _div255(shown.astype(np.uint16) * alpha + np.moveaxis(background, 2, 0) * (255 - alpha.astype(np.uint16)))
    return np.where(region[..., None], np.moveaxis(mixed, 0, 2), background).astype(np.uint8)


def _neighbours(flat: np.ndarray, stride: int) -> np.ndarray:
    """Return the sums (...,n) of the four neighbours in framed flat planes (...,n), 0 in the first and last row."""
    first, end = stride, flat.shape[-1] - stride
    sums = np.zeros_like(flat)
    sums[..., first:end] = flat[..., first + 1 : end + 1] + flat[..., first - 1 : end - 1]
    sums[..., first:end] += flat[..., first + stride : end + stride] + flat[..., first - stride : end - stride]
    return sums


def _relaxed(pull: np.ndarray, step: np.ndarray, stride: int) -> np.ndarray:
    """Return u (3,n) f8 of `poisson_blend`, from d (3,n) f8 and the last factor (n,) f8 on framed flat planes."""
    corrections = np.zeros((2, 3, pull.shape[-1] // 2))  # at even and at odd indices
    down = stride // 2
    first, end = down + 1, corrections.shape[-1] - down - 1
    sums = np.empty((3, end - first))
    halves = []
    for parity in (0, 1):
        mine, other = corrections[parity, :, first:end], corrections[1 - parity]
        # even index 2 k has neighbours 2 k + 1, 2 k - 1, 2 k + stride, 2 k - stride: all odd; the other way round alike
        shifts = (parity, parity - 1, parity + down, parity - down - 1)
        neighbours = [other[:, first + shift : end + shift] for shift in shifts]
        d, factor = (np.ascontiguousarray(a[..., parity::2][..., first:end]) for a in (pull, step))
        halves.append((mine, neighbours, d, factor))
    for _ in range(_SWEEPS):
        for mine, (right, left, below, above), d, factor in halves:
            np.add(right, left, out=sums)
            sums += below
            sums += above
            sums += d
            sums *= factor
            mine *= 1 - _OVER_RELAXATION
            mine += sums
    return np.moveaxis(corrections, 0, 2).reshape(3, -1)


def _box_sums(alpha: np.ndarray, radius: int) -> np.ndarray:
    """Return the sums (h, w + 2 * radius) u2 of alpha (h,w), 0 outside, over the square around every pixel.

    The last 2 * radius columns are of no use. The squares have sides of 2 * radius + 1.
    """
    height, width = alpha.shape
    stride = width + 2 * radius  # so a shift within the flat array stays in its row, or meets zeros
    padded = np.zeros((height + 2 * radius, stride), np.uint16)
    padded[radius:-radius, radius:-radius] = alpha
    flat, size = padded.ravel(), height * stride
    columns = flat[:size].copy()
    for i in range(1, 2 * radius + 1):
        columns += flat[i * stride : i * stride + size]
    sums = columns.copy()
    for i in range(1, 2 * radius + 1):
        sums[: size - 2 * radius] += columns[i : i + size - 2 * radius]
    return sums.reshape(height, stride)


def _scaled(pixels: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """Return div255(pixels * factor), (h,w,3) u1, for a factor (h,w) in 0..255."""
    product = np.empty(pixels.shape, np.uint16)
    for channel in range(3):  # a third of the time of broadcasting
        product[..., channel] = factor
    product *= pixels
    return _div255(product).astype(np.uint8)


def _div255(x: np.ndarray) -> np.ndarray:
    """Return x / 255 rounded, in place, for x (...) u2 in 0..65025."""
    x += 128
    x += x >> 8
    x >>= 8
    return x
