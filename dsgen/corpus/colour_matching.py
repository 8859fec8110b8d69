"""Match a pasted person's light and colour to the room: the transfer of statistics of Reinhard et al. 2001, in CIE Lab.

All in integers, with tables that are computed in floats and rounded to the nearest integer, halves up, when the module
is loaded: the same bits on every machine. CIE Lab of sRGB (IEC 61966-2-1, white D65) is kept as (y, a, b) in units of
1 / 16384, without the factors that put Lab's axes to scale: L* = 116 y / 16384 - 16, a* = 500 a / 16384 and
b* = 200 b / 16384. With divisions rounded down, for a straight colour (R, G, B):

    linear(v) = 16384 * sRGB's linear light of v / 255                                      table of v in 0..255
    (X, Y, Z) = (FROM_RGB . (linear(R), linear(G), linear(B)) + 2048) / 4096                0..16384, white is 16384
    root(t) = 16384 * f(t / 16384)                                                          table of t in 0..16384
        f(t) = cube root of t if t > (6 / 29)^3, else t / (3 (6 / 29)^2) + 4 / 29
    y = root(Y);  a = root(X) - root(Y);  b = root(Y) - root(Z)

and back, where tables are read at the nearest place they have:

    cube(v) = 16384 * max(0, f^-1(v / 16384))                                               table of v in 0..20480
    (R, G, B) = encoded((TO_RGB . (cube(y + a), cube(y), cube(y - b)) + 2048) / 4096)
    encoded(t) = 255 * sRGB's value of the linear light t / 16384                           table of t in 0..16384
"""

import math
from dataclasses import dataclass

import numpy as np

LEAST_GAIN, GREATEST_GAIN = 2048, 8192  # of deviations, in 1 / 4096: a half and twice

_FROM_RGB = ((1777, 1541, 778), (871, 2929, 296), (73, 448, 3575))  # to XYZ / white, in 1 / 4096; rows add up to 4096
_TO_RGB = ((12621, -6300, -2225), (-3775, 7686, 185), (215, -834, 4715))  # the inverse; rows add up to 4096


@dataclass(frozen=True)
class ColourStatistics:
    """Means and standard deviations of (y, a, b) over weighted pixels, integers in 1 / 16384."""

    mean: tuple[int, ...]
    deviation: tuple[int, ...]

    @classmethod
    def of(cls, rgb: np.ndarray, weight: np.ndarray) -> "ColourStatistics":
        """Take them of straight colours (h,w,3) u1 with weights (h,w) u1, such as alpha.

        With sums S over all pixels: mean = floor((2 S(w v) + S(w)) / (2 S(w))) and
        deviation = floor(floor(sqrt(S(w) S(w v^2) - S(w v)^2)) / S(w)), exactly. Raises `ValueError` if no
        pixel weighs.
        """
        weights = weight.reshape(-1).astype(np.int64)
        total = int(weights.sum())
        if not total:
            raise ValueError("all pixels have the weight 0; take the statistics of some that are seen")
        mean, deviation = [], []
        for values in _to_lab(_LINEAR.take(rgb.reshape(-1, 3).T)):
            weighted = weights * values
            first, second = int(weighted.sum()), int((weighted * values).sum())
            mean.append(_rounded(first, total))
            deviation.append(math.isqrt(total * second - first * first) // total)
        return cls(tuple(mean), tuple(deviation))


def match_colours(
    colour: np.ndarray, alpha: np.ndarray, target: ColourStatistics, own: ColourStatistics, strength: int
) -> np.ndarray:
    """Move a person's colours (h,w,3) u1, premultiplied by alpha (h,w) u1, from their `own` statistics to the target's.

    `strength` in 0..255 is the share of the way; 0 changes nothing. The result is premultiplied, at most alpha, which
    stays. The gain of a deviation is between a half and twice, so that a plain wall turns nobody grey, nor a colourful
    room anybody garish. For each of y, a, b, with round(n / d) = floor((2 n + d) / (2 d)):

        gain = min(8192, max(2048, round(4096 target.deviation / own.deviation))), 4096 where own.deviation is 0
        E = 4096 + round(strength (gain - 4096) / 255)
        C = round(strength (4096 target.mean - gain own.mean) / 255)
        v' = floor((E v + C + 2048) / 4096)

    A pixel's straight colour is floor((255 colour + floor(alpha / 2)) / alpha), and colour' = div255(rgb' * alpha) with
    div255 of `looks`.
    """
    if strength == 0:
        return colour.copy()
    seen = np.flatnonzero(alpha != 0)
    places = 3 * seen + np.arange(3)[:, None]  # of each channel in the flat array
    opacity = alpha.reshape(-1).take(seen)
    premultiplied = colour.reshape(-1).take(places)
    lab = _to_lab(_LINEAR_OF_PREMULTIPLIED.take((opacity.astype(np.intp) << 8) + premultiplied))
    for i, values in enumerate(lab):
        scale, offset = _transfer(target.mean[i], target.deviation[i], own.mean[i], own.deviation[i], strength)
        values *= scale
        values += offset + 2048
        values >>= 12
    product = _to_rgb(lab) * opacity.astype(np.uint16)
    product += 128
    product += product >> 8
    product >>= 8
    matched = np.zeros_like(colour)
    matched.reshape(-1)[places] = product.astype(np.uint8)
    return matched


def _transfer(target_mean: int, target_deviation: int, mean: int, deviation: int, strength: int) -> tuple[int, int]:
    """Return E and C of `match_colours` for one of y, a, b."""
    gain = 4096
    if deviation:
        gain = min(GREATEST_GAIN, max(LEAST_GAIN, _rounded(4096 * target_deviation, deviation)))
    return 4096 + _rounded(strength * (gain - 4096), 255), _rounded(strength * (4096 * target_mean - gain * mean), 255)


def _rounded(numerator: int, denominator: int) -> int:
    """Divide integers and round to the nearest, halves up, for a denominator above 0."""
    return (2 * numerator + denominator) // (2 * denominator)


def _to_lab(linear: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return y, a and b (n,) i4 of linear light (3,n) i4."""
    x, y, z = _ROOT.take(_mixed(_FROM_RGB, linear))
    return y, x - y, y - z


def _to_rgb(lab: tuple[np.ndarray, np.ndarray, np.ndarray]) -> np.ndarray:
    """Return sRGB (3,n) u1 of y, a and b (n,) i4."""
    y, a, b = lab
    return _ENCODED.take(_mixed(_TO_RGB, _CUBE.take(np.stack([y + a, y, y - b]), mode="clip")), mode="clip")


def _mixed(matrix: tuple[tuple[int, ...], ...], planes: np.ndarray) -> np.ndarray:
    """Return matrix . planes in 1 / 4096, rounded, (3,n) i4 for planes (3,n) i4."""
    mixed = np.empty_like(planes)
    for out, (first, second, third) in zip(mixed, matrix, strict=True):
        np.multiply(planes[0], first, out=out)
        out += planes[1] * second
        out += planes[2] * third
    mixed += 2048
    mixed >>= 12
    return mixed


def _nearest(values: np.ndarray, dtype: type) -> np.ndarray:
    return np.floor(values + 0.5).astype(dtype)


def _linear_light() -> np.ndarray:
    value = np.arange(256) / 255
    return _nearest(16384 * np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4), np.int32)


def _linear_of_premultiplied() -> np.ndarray:
    """Return the linear light (65536,) i4 of colour c premultiplied by alpha a, at the index 256 a + c."""
    alpha, colour = np.divmod(np.arange(65536), 256)
    return _LINEAR[np.minimum(255, (255 * colour + alpha // 2) // np.maximum(alpha, 1))]


def _root() -> np.ndarray:
    t = np.arange(16385) / 16384
    return _nearest(16384 * np.where(t > (6 / 29) ** 3, np.cbrt(t), t * (29 / 6) ** 2 / 3 + 4 / 29), np.int32)


def _cube() -> np.ndarray:
    v = np.arange(20481) / 16384
    return _nearest(16384 * np.where(v > 6 / 29, v * v * v, np.maximum(0, 3 * (6 / 29) ** 2 * (v - 4 / 29))), np.int32)


def _encoded() -> np.ndarray:
    t = np.arange(16385) / 16384
    return _nearest(255 * np.where(t <= 0.0031308, 12.92 * t, 1.055 * t ** (1 / 2.4) - 0.055), np.uint8)


_LINEAR = _linear_light()
_LINEAR_OF_PREMULTIPLIED = _linear_of_premultiplied()
_ROOT = _root()
_CUBE = _cube()
_ENCODED = _encoded()
