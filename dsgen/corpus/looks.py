"""How a pasted person meets the room: contact shadows, feathered edges, Gaussian and Poisson blending.

Pure functions of arrays with the same bits on every machine: in integers, but for `poisson_blend`, whose additions and
multiplications of float64 are elementwise, so that IEEE 754 fixes every one. A person is a window of `colour` (h,w,3)
u1, RGB premultiplied by `alpha` (h,w) u1, so colour <= alpha; it is drawn over a background by `premultiplied_over`.

    div255(x) = floor((x + 128 + floor((x + 128) / 256)) / 256)        = x / 255 to the nearest, x in 0..65025

An edge of a window is an edge of the person. Where a picture's border cuts a person off, the window must go beyond the
border: by the radius in `feather`, by `GAUSSIAN_PAD` in `gaussian_blend`. Masks are those of the alpha before any look.
"""

from functools import lru_cache

import numpy as np

BLENDS = ("alpha", "gaussian", "poisson")  # a person's `look` in the plan is a number of this list
ALPHA, GAUSSIAN, POISSON = range(len(BLENDS))

FEATHER_RADII = (1, 2, 3)
GAUSSIAN_PAD = 2  # pixels that `gaussian_blend` adds on each side

_ONE = 4096  # a squared radius of 1 in the tables of `contact_shadow`


def premultiplied_over(background: np.ndarray, colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Draw a person over a background of the same shape, (h,w,3) u1: div255(background * (255 - alpha)) + colour."""
    return _scaled(background, 255 - alpha) + colour


def shadow_extent(*, centre_y64: int, centre_x64: int, radius_y64: int, radius_x64: int) -> tuple[int, int, int, int]:
    """Return top, left, bottom and right (the last two exclusive) of the pixels that `contact_shadow` can change.

    These are the rows y with |64 y + 32 - centre_y64| < radius_y64 and the columns alike, of an endless picture.
    """
    top, left = ((c - r + 32) // 64 for c, r in ((centre_y64, radius_y64), (centre_x64, radius_x64)))
    bottom, right = ((c + r + 31) // 64 for c, r in ((centre_y64, radius_y64), (centre_x64, radius_x64)))
    return top, left, bottom, right


def contact_shadow(
    window: np.ndarray,
    on_floor: np.ndarray,
    *,
    centre_y64: int,
    centre_x64: int,
    radius_y64: int,
    radius_x64: int,
    strength: int,
) -> np.ndarray:
    """Darken the floor (h,w,3) u1 under a person's feet with a soft ellipse; return (h,w,3) u1.

    `on_floor` (h,w) u1 says how much of a pixel is floor: 255 all, 0 none. Centre and radii, at least 1, are in 1/64
    pixel of the window, whose pixel (y, x) has its centre at (64 y + 32, 64 x + 32). `strength` in 0..255 is the share
    of the light that the centre loses. The shade falls off smoothly to the rim, in two parts: a core of half the
    radius, where the body keeps all light away, and a wide penumbra. With divisions rounded down and n+ = max(0, n):

        r = 4096 (64 y + 32 - centre_y64)^2 / radius_y64^2 + 4096 (64 x + 32 - centre_x64)^2 / radius_x64^2
        p = (5 ((4096 - r)+)^2 + 3 ((4096 - 4 r)+)^2) / 2048                              in 0..65536
        s = div255(on_floor * ((strength p + 32768) / 65536))
        out = div255(window * (255 - s))
    """
    height, width = on_floor.shape
    down = 64 * np.arange(height, dtype=np.int64) + (32 - centre_y64)
    across = 64 * np.arange(width, dtype=np.int64) + (32 - centre_x64)
    down = _ONE * (down * down) // radius_y64**2
    across = _ONE * (across * across) // radius_x64**2
    shade = _shades(strength).take(np.add.outer(down, across), mode="clip")
    return _scaled(window, 255 - _div255(shade * on_floor))


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

    Along a straight edge g is 1 / (2 radius + 1), 3 / (2 radius + 1)... of 255. What is thinner than `radius` pixels
    vanishes.
    """
    n = (2 * radius + 1) ** 2
    kept = _box_sums(alpha, radius)
    kept <<= 1  # at most 2 * 255 * 49
    np.maximum(kept, 255 * n, out=kept)
    kept -= 255 * n - n // 2
    kept //= n
    return _scaled(colour, kept), _div255(kept * alpha).astype(np.uint8)


def gaussian_blend(colour: np.ndarray, alpha: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Blur a person's outline, but not the person; return colour and alpha, `GAUSSIAN_PAD` larger on each side.

    The Gaussian blending of Dwibedi et al. 2017 (Cut, Paste and Learn): alpha is blurred, and colours are wanted where
    there was none. They come from a blur of the premultiplied colour, which takes those of opaque pixels nearby. With c
    and a the colour and alpha, 0 outside the window, and the kernel k = (1, 4, 6, 4, 1) of Pascal's triangle, which is
    a Gaussian of a standard deviation of 1 pixel:

        B(v)(y, x) = floor((sum over i, j of k_i k_j v(y + i - 2, x + j - 2) + 128) / 256)
        alpha' = B(a);  colour' = div255(c * B(a) + (255 - a) * B(c))
    """
    height, width = alpha.shape
    pad = GAUSSIAN_PAD
    rows, stride = (
        height + 4 * pad,
        width + 4 * pad,
    )  # so a shift within the flat array stays in its row, or meets zeros
    planes = np.zeros((4, rows, stride), np.uint16)
    inside = planes[:, 2 * pad : 2 * pad + height, 2 * pad : 2 * pad + width]
    inside[:3], inside[3] = np.moveaxis(colour, 2, 0), alpha
    blurred, scratch = planes.flatten(), np.zeros(planes.size, np.uint16)
    for shift in (1, 1, 1, 1, stride, stride, stride, stride):  # each adding of neighbours is a row of the triangle
        np.add(blurred[:-shift], blurred[shift:], out=scratch[:-shift])
        blurred, scratch = scratch, blurred
    blurred += 128
    blurred >>= 8
    shape = np.s_[: height + 2 * pad, : width + 2 * pad]
    soft = blurred.reshape(planes.shape)[:, *shape]
    sharp = planes[:, pad:, pad:][:, *shape]
    mixed = sharp[:3] * soft[3]
    mixed += soft[:3] * (255 - sharp[3])
    return np.ascontiguousarray(np.moveaxis(_div255(mixed).astype(np.uint8), 0, 2)), soft[3].astype(np.uint8)


def _box_sums(alpha: np.ndarray, radius: int) -> np.ndarray:
    """Return the sums (h,w) u2 of the squares of side 2 * radius + 1 around every pixel, 0 outside the window."""
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
    return sums.reshape(height, stride)[:, :width]


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
