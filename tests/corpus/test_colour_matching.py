"""Colour matching against a slow reference: one pixel at a time in Python's integers, tables from exact fractions."""

import math
from fractions import Fraction

import numpy as np
import pytest
from skimage.color import rgb2lab

from dsgen.corpus import colour_matching
from dsgen.corpus.colour_matching import ColourStatistics, match_colours

HALF = Fraction(1, 2)


def exact_linear():
    """The nearest integers to 16384 ((c + 0.055) / 1.055)^2.4: its fifth power is rational."""
    table = []
    for value in range(256):
        c = Fraction(value, 255)
        if c <= Fraction("0.04045"):
            table.append(math.floor(16384 * c / Fraction("12.92") + HALF))
            continue
        fifth = 16384**5 * ((c + Fraction("0.055")) / Fraction("1.055")) ** 12
        nearest = table[-1]
        while (nearest + HALF) ** 5 <= fifth:
            nearest += 1
        table.append(nearest)
    return table


def exact_root():
    """The nearest integers to 16384 f(t / 16384): the cube is rational, or the value itself is."""
    table, nearest = [], 0
    for t in range(16385):
        if Fraction(t, 16384) > Fraction(6, 29) ** 3:
            while (2 * nearest + 1) ** 3 <= 8 * 16384**2 * t:
                nearest += 1
        else:
            nearest = math.floor(t * Fraction(29, 6) ** 2 / 3 + 16384 * Fraction(4, 29) + HALF)
        table.append(nearest)
    return table


def exact_cube():
    """The nearest integers to 16384 f^-1(v / 16384), halves up."""
    table = []
    for v in range(20481):
        if Fraction(v, 16384) > Fraction(6, 29):
            table.append((2 * v**3 + 16384**2) // (2 * 16384**2))
        else:
            line = 3 * Fraction(6, 29) ** 2 * (v - 16384 * Fraction(4, 29))
            table.append(max(0, math.floor(line + HALF)))
    return table


def exact_encoded():
    """The nearest integers to 255 times sRGB's value of t / 16384: each level's lower bound to the power of 2.4."""
    table, level = [], 0
    for t in range(16385):
        light = Fraction(t, 16384)
        if light <= Fraction("0.0031308"):
            level = math.floor(255 * Fraction("12.92") * light + HALF)
        else:
            while (((level + HALF) / 255 + Fraction("0.055")) / Fraction("1.055")) ** 12 <= light**5:
                level += 1
        table.append(level)
    return table


@pytest.fixture(scope="module")
def tables():
    """Linear, root, cube and encoded, as lists of integers."""
    return exact_linear(), exact_root(), exact_cube(), exact_encoded()


def test_tables_are_correctly_rounded(tables):
    """Every entry of every table is the integer nearest to the true value."""
    assert colour_matching._LINEAR.tolist() == tables[0]
    assert colour_matching._ROOT.tolist() == tables[1]
    assert colour_matching._CUBE.tolist() == tables[2]
    assert colour_matching._ENCODED.tolist() == tables[3]


def test_tables_do_not_hang_on_a_float_s_last_digits(monkeypatch):
    """No power is so near to a half that another machine's could round the other way."""
    monkeypatch.setattr(colour_matching, "_nearest", lambda values, _: values)
    for table in (colour_matching._linear_light, colour_matching._root, colour_matching._encoded):
        values = table()
        assert np.abs(values - np.floor(values) - 0.5).min() > 1e-6


def mixed(matrix, triple):
    """A matrix in 1 / 4096 times a triple, rounded."""
    return [(sum(m * v for m, v in zip(row, triple, strict=True)) + 2048) // 4096 for row in matrix]


def slow_lab(rgb, tables):
    """Fixed-point y, a and b of a straight colour."""
    linear, root = tables[:2]
    matrix = ((1777, 1541, 778), (871, 2929, 296), (73, 448, 3575))
    x, y, z = (root[v] for v in mixed(matrix, [linear[int(v)] for v in rgb]))
    return y, x - y, y - z


def slow_rgb(lab, tables):
    """The colour of y, a and b."""
    cube, encoded = tables[2:]
    y, a, b = lab
    matrix = ((12621, -6300, -2225), (-3775, 7686, 185), (215, -834, 4715))
    light = mixed(matrix, [cube[min(max(v, 0), 20480)] for v in (y + a, y, y - b)])
    return [encoded[min(max(v, 0), 16384)] for v in light]


def nearest(numerator, denominator):
    """Round to the nearest, halves up."""
    return math.floor(Fraction(numerator, denominator) + HALF)


def slow_match(colour, alpha, target, own, strength, tables):
    """The matched colours, one pixel at a time."""
    out = np.zeros_like(colour)
    for at in np.ndindex(alpha.shape):
        a = int(alpha[at])
        if a == 0:
            continue
        moved = []
        for i, v in enumerate(slow_lab([(255 * int(c) + a // 2) // a for c in colour[at]], tables)):
            gain = 4096
            if own.deviation[i]:
                gain = min(8192, max(2048, nearest(4096 * target.deviation[i], own.deviation[i])))
            scale = 4096 + nearest(strength * (gain - 4096), 255)
            offset = nearest(strength * (4096 * target.mean[i] - gain * own.mean[i]), 255)
            moved.append((scale * v + offset + 2048) // 4096)
        x = [c * a + 128 for c in slow_rgb(moved, tables)]
        out[at] = [(v + v // 256) // 256 for v in x]
    return out


def some_picture(rng, height, width):
    """Premultiplied colours of every brightness, with opaque, transparent and half-transparent pixels."""
    alpha = rng.choice(np.array([0, 255, 255, 1, 7, 130], np.uint8), (height, width))
    level = rng.choice(np.array([0, 20, 128, 255]), (height, width, 3))
    straight = np.clip(level + rng.integers(-30, 30, level.shape), 0, 255)
    return ((straight * alpha[..., None] + 127) // 255).astype(np.uint8), alpha


@pytest.mark.parametrize("strength", [1, 90, 255])
@pytest.mark.parametrize("seed", range(4))
def test_matching_equals_a_slow_loop(seed, strength, tables):
    """To the bit, with statistics of random colours and with extreme ones that leave the gamut."""
    rng = np.random.default_rng(seed)
    colour, alpha = some_picture(rng, 13, 9)
    own = ColourStatistics.of(colour, alpha)
    room = rng.integers(0, 256, (8, 8, 3)) // rng.integers(1, 5, 3)
    target = ColourStatistics.of(room.astype(np.uint8), np.full((8, 8), 255, np.uint8))
    for one in (
        target,
        ColourStatistics((16384, 5000, -5000), (8000, 8000, 0)),
        ColourStatistics((0, -9000, 9000), (0, 0, 0)),
    ):
        expected = slow_match(colour, alpha, one, own, strength, tables)
        assert (match_colours(colour, alpha, one, own, strength) == expected).all()


def test_statistics_equal_a_slow_loop(tables):
    """Means and deviations over weighted pixels, in exact fractions."""
    rng = np.random.default_rng(0)
    rgb, weight = rng.integers(0, 256, (11, 7, 3), np.uint8), rng.integers(0, 256, (11, 7), np.uint8)
    weight[:4] = 0
    statistics = ColourStatistics.of(rgb, weight)
    labs = [slow_lab(rgb[at], tables) for at in np.ndindex(11, 7)]
    weights = [int(w) for w in weight.reshape(-1)]
    for i in range(3):
        mean = Fraction(sum(w * lab[i] for w, lab in zip(weights, labs, strict=True)), sum(weights))
        variance = sum(w * (lab[i] - mean) ** 2 for w, lab in zip(weights, labs, strict=True)) / sum(weights)
        assert statistics.mean[i] == math.floor(mean + HALF)
        assert statistics.deviation[i] == math.isqrt(math.floor(variance))


def test_statistics_need_a_pixel_that_weighs():
    """All of weight 0 is refused."""
    with pytest.raises(ValueError, match="weight 0"):
        ColourStatistics.of(np.zeros((2, 2, 3), np.uint8), np.zeros((2, 2), np.uint8))


def test_lab_agrees_with_another_library():
    """Within 0.3 of scikit-image's, for a grid over all colours; greys have no chroma."""
    axis = np.arange(0, 256, 17)
    rgb = np.stack(np.meshgrid(axis, axis, axis), axis=-1).reshape(-1, 3).astype(np.uint8)
    y, a, b = colour_matching._to_lab(colour_matching._LINEAR.take(rgb.T))
    lab = np.stack([116 * y / 16384 - 16, 500 * a / 16384, 200 * b / 16384], axis=1)
    assert np.abs(lab - rgb2lab(rgb[None] / 255)[0]).max() < 0.3
    grey = (rgb == rgb[:, :1]).all(axis=1)
    assert (a[grey] == 0).all()
    assert (b[grey] == 0).all()


def test_colours_come_back_from_lab():
    """Within one level, and nearly all to the bit."""
    axis = np.arange(0, 256, 5)
    rgb = np.stack(np.meshgrid(axis, axis, axis), axis=-1).reshape(-1, 3).astype(np.uint8)
    back = colour_matching._to_rgb(colour_matching._to_lab(colour_matching._LINEAR.take(rgb.T))).T
    difference = np.abs(back.astype(int) - rgb)
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.01


def test_strength_0_and_equal_statistics_change_nothing():
    """To the bit at strength 0; within the rounding of Lab where the person has the room's statistics."""
    colour, alpha = some_picture(np.random.default_rng(1), 20, 20)
    own = ColourStatistics.of(colour, alpha)
    other = ColourStatistics((3000, 200, -200), (500, 100, 100))
    same = match_colours(colour, alpha, other, own, 0)
    assert (same == colour).all()
    assert not np.shares_memory(same, colour)
    assert np.abs(match_colours(colour, alpha, own, own, 255).astype(int) - colour).max() <= 1


def test_full_strength_gives_the_target_s_statistics():
    """Within a percent, where gains are in bounds and colours in gamut."""
    rng = np.random.default_rng(2)
    weight = np.full((40, 40), 255, np.uint8)
    person = rng.integers(60, 160, (40, 40, 3)).astype(np.uint8)
    room = (rng.integers(90, 170, (40, 40, 3)) * [1.0, 0.95, 0.85]).astype(np.uint8)
    target = ColourStatistics.of(room, weight)
    matched = ColourStatistics.of(
        match_colours(person, weight, target, ColourStatistics.of(person, weight), 255), weight
    )
    assert np.abs(np.subtract(matched.mean, target.mean)).max() < 20
    assert matched.deviation == pytest.approx(target.deviation, rel=0.02)


def test_a_plain_room_leaves_half_of_the_differences():
    """The gain is at least a half, and at most twice."""
    rng = np.random.default_rng(3)
    weight = np.full((40, 40), 255, np.uint8)
    person = rng.integers(100, 150, (40, 40, 3)).astype(np.uint8)
    own = ColourStatistics.of(person, weight)
    for deviation, gain in ((0, 0.5), (16384, 2)):
        target = ColourStatistics(own.mean, (deviation,) * 3)
        matched = ColourStatistics.of(match_colours(person, weight, target, own, 255), weight)
        assert matched.deviation == pytest.approx([gain * v for v in own.deviation], rel=0.03)


def test_strength_is_the_share_of_the_way():
    """The mean moves in proportion, within half a level of 64 units."""
    rng = np.random.default_rng(4)
    weight = np.full((30, 30), 255, np.uint8)
    person = rng.integers(60, 160, (30, 30, 3)).astype(np.uint8)
    own = ColourStatistics.of(person, weight)
    target = ColourStatistics((own.mean[0] + 2000, own.mean[1], own.mean[2]), own.deviation)
    for strength in (51, 102, 204):
        matched = match_colours(person, weight, target, own, strength)
        assert ColourStatistics.of(matched, weight).mean[0] - own.mean[0] == pytest.approx(
            2000 * strength / 255, abs=32
        )


def test_matched_colours_stay_premultiplied():
    """Below alpha, which stays, and 0 where it is 0."""
    for seed in range(4):
        colour, alpha = some_picture(np.random.default_rng(seed), 30, 30)
        own = ColourStatistics.of(colour, alpha)
        matched = match_colours(colour, alpha, ColourStatistics((16000, 900, 900), (900, 900, 900)), own, 255)
        assert (matched <= alpha[..., None]).all()
