"""Drawing cut-outs at any size: equal to a slow loop to the bit, nothing cut off, and at its own size the cut-out."""

import numpy as np
import pytest
from support.corpora import draw_cutout
from support.slow_drawing import slow_draw, some_cutout

from dsgen.corpus.figures import UNIT, Figure, Window

SIZE = 40


CASES = [  # shape of the cut-out, height, top, left
    ((24, 17), 24 * UNIT, 0, 0),
    ((24, 17), 24 * UNIT, 5 * UNIT, 7 * UNIT),
    ((24, 17), 24 * UNIT + 1, 130, -77),
    ((24, 17), 12 * UNIT, 333, 1001),  # exactly the second level
    ((24, 17), 12 * UNIT + 1, 333, 1001),
    ((24, 17), 3 * UNIT, 777, 901),  # an eighth
    ((33, 21), 17 * UNIT + 13, 91, 640),
    ((9, 30), 36 * UNIT, -300, -700),  # four times
    ((7, 5), 28 * UNIT - 5, 200, 300),
    ((1, 1), 6 * UNIT, 700, 801),
    ((40, 3), 30 * UNIT + 31, 1200, 2300),  # beyond two borders
    ((64, 64), 9 * UNIT + 7, 777, 777),
]


@pytest.mark.parametrize("scale", [1, 2])
@pytest.mark.parametrize("case", range(len(CASES)))
def test_drawing_equals_a_slow_loop(case, scale):
    """To the bit: smaller, larger, between pixels, mirrored, beyond borders, at both scales."""
    shape, height, top, left = CASES[case]
    rgba = some_cutout(case, *shape)
    for cutout in (rgba, np.ascontiguousarray(rgba[:, ::-1])):
        figure = Figure(cutout)
        window = figure.window(height, top, left, 0, SIZE, scale)
        drawn = figure.draw(window, height, top, left, 0, scale)
        assert drawn.dtype == np.uint8
        np.testing.assert_array_equal(drawn, slow_draw(cutout, window, height, top, left, 0, scale))


@pytest.mark.parametrize("tilt", [1, -1, 700, -1234, 4500, 9000, -18000])
@pytest.mark.parametrize("case", [1, 4, 6, 8])
def test_turned_drawing_equals_a_slow_loop(case, tilt):
    """To the bit, at any angle."""
    shape, height, top, left = CASES[case]
    rgba, scale = some_cutout(case, *shape), 1 + case % 2
    figure = Figure(rgba)
    window = figure.window(height, top, left, tilt, SIZE, scale)
    drawn = figure.draw(window, height, top, left, tilt, scale)
    np.testing.assert_array_equal(drawn, slow_draw(rgba, window, height, top, left, tilt, scale))


def test_at_its_own_size_it_is_the_cutout():
    """At whole pixels every pixel is that of the file, premultiplied to the nearest."""
    rgba = some_cutout(1, 21, 13)
    alpha = rgba[..., 3:].astype(int)
    expected = np.concatenate([np.rint(rgba[..., :3] * alpha / 255).astype(int), alpha], axis=2)
    figure = Figure(rgba)
    drawn = figure.draw(Window(2, 23, 5, 18), 21 * UNIT, 2 * UNIT, 5 * UNIT, 0, 1)
    np.testing.assert_array_equal(drawn, expected)
    twice = figure.draw(Window(4, 25, 10, 23), 21 * UNIT // 2, 2 * UNIT, 5 * UNIT, 0, 2)
    np.testing.assert_array_equal(twice, expected)


@pytest.mark.parametrize("seed", range(40))
def test_the_window_holds_all_that_is_drawn(seed):
    """Drawing far beyond it finds nothing more, at an eighth to eight times of the own size, turned or not."""
    rng = np.random.default_rng(seed)
    shape = int(rng.integers(1, 50)), int(rng.integers(1, 30))
    figure = Figure(np.full((*shape, 4), 255, np.uint8))
    height = max(UNIT, round(shape[0] * UNIT * 2 ** rng.uniform(-3, 3)))
    size, scale = 300, 1 + seed % 2
    top, left = (int(value) for value in rng.integers(20 * UNIT, 120 * UNIT, 2))
    tilt = 0 if seed % 3 else int(rng.integers(-18000, 18001))
    window = figure.window(height, top, left, tilt, size, scale)
    all_of_it = figure.draw(Window(0, size * scale, 0, size * scale), height, top, left, tilt, scale)
    inside = all_of_it[window.slices].copy()
    np.testing.assert_array_equal(inside, figure.draw(window, height, top, left, tilt, scale))
    all_of_it[window.slices] = 0
    assert not all_of_it.any()


def test_the_window_is_tight_and_within_the_picture():
    """At most some pixels more than what is drawn; beyond the picture it is empty."""
    figure = Figure(np.full((20, 10, 4), 255, np.uint8))
    window = figure.window(10 * UNIT, 4 * UNIT, 6 * UNIT, 0, 40, 1)
    assert (window.top, window.bottom, window.left, window.right) == (3, 15, 5, 12)
    assert figure.window(10 * UNIT, -9 * UNIT, 6 * UNIT, 0, 40, 1).top == 0
    assert figure.window(10 * UNIT, 50 * UNIT, 6 * UNIT, 0, 40, 1).empty
    assert figure.window(10 * UNIT, 0, -20 * UNIT, 0, 40, 2).empty


def test_a_tilted_figure_stays_on_its_feet():
    """The middle of the lower edge stays; a quarter turn clockwise lays the head to the right."""
    rgba = np.zeros((20, 10, 4), np.uint8)
    rgba[...] = 255
    figure = Figure(rgba)
    whole = Window(0, 60, 0, 60)
    upright = figure.draw(whole, 20 * UNIT, 10 * UNIT, 25 * UNIT, 0, 1)[..., 3]
    lying = figure.draw(whole, 20 * UNIT, 10 * UNIT, 25 * UNIT, 9000, 1)[..., 3]
    assert (upright[10:30, 25:35] == 255).all()
    assert upright.sum() == lying.sum() == 20 * 10 * 255
    assert (lying[25:35, 30:50] == 255).all()


def test_reduced_figures_keep_their_mean():
    """A person drawn at a third of the size is as opaque in all as the cut-out, within 2 %."""
    rgba = draw_cutout(1, 180, 90)
    figure = Figure(rgba)
    drawn = figure.draw(Window(0, 80, 0, 80), 60 * UNIT, 5 * UNIT + 17, 9 * UNIT + 5, 0, 1)
    assert drawn[..., 3].sum(dtype=float) * 9 == pytest.approx(rgba[..., 3].sum(dtype=float), rel=0.02)


@pytest.mark.parametrize("height", [3 * UNIT, 11 * UNIT + 3, 100 * UNIT])
def test_colour_stays_below_alpha(height):
    """Premultiplied colours never exceed their alpha, so that pasting cannot overflow."""
    rgba = some_cutout(9, 31, 22)
    rgba[..., :3] = 255
    drawn = Figure(rgba).draw(Window(0, 120, 0, 90), height, 77, 33, 100 if height < 12 * UNIT else 0, 1)
    assert (drawn[..., :3] <= drawn[..., 3:]).all()
