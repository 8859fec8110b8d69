"""Rows to pixels."""

import pickle
from fractions import Fraction

import numpy as np
import pytest

from dsgen.corpus.plan import DTYPE, make_plan
from dsgen.corpus.render import Cutout, blend, render


def slow_render(row, background, rgba, scale):
    """One pixel at a time, in exact fractions."""
    size = background.shape[0]
    image, mask = background.copy(), np.zeros((size, size), np.uint8)
    rgba = rgba[:, ::-1] if row["flip"] else rgba
    for y in range(rgba.shape[0]):
        for x in range(rgba.shape[1]):
            alpha = int(rgba[y, x, 3])
            at = int(row["top"]) * scale + y, int(row["left"]) * scale + x
            for channel in range(3):
                exact = Fraction(int(background[at][channel]) * (255 - alpha) + int(rgba[y, x, channel]) * alpha, 255)
                image[at][channel] = int(exact + Fraction(1, 2))
            mask[at] = 255 if alpha >= 128 else 0
    return image, mask


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("scale", [1, 2])
def test_render_equals_a_slow_loop(scale, compiled, request):
    """Every pixel of image and mask, at the stored and at a larger size, with mirror images, compiled or not."""
    if not compiled:
        request.getfixturevalue("without_numba")
    rng = np.random.default_rng(0)
    backgrounds = rng.integers(0, 256, (2, 16 * scale, 16 * scale, 3), np.uint8)
    rgba = [rng.integers(0, 256, (7 * scale, w * scale, 4), np.uint8) for w in (5, 9)]
    plan = make_plan(["a", "b"], ["c", "d"], np.array([[7, 5], [7, 9]]), size=16, positions=2)
    cutouts = {(f, m): Cutout.from_rgba(rgba[f][:, ::-1] if m else rgba[f]) for f in (0, 1) for m in (0, 1)}
    image, mask = render(plan, dict(enumerate(backgrounds)), cutouts, 16, scale)
    for i, row in enumerate(plan):
        expected = slow_render(row, backgrounds[row["background"]], rgba[row["foreground"]], scale)
        assert (image[i] == expected[0]).all()
        assert (mask[i] == expected[1]).all()


@pytest.mark.parametrize("compiled", [True, False])
def test_pictures_are_drawn_into_what_is_given(compiled, request):
    """Into an array, into a list of arrays in any order, of one row or none, and nothing beside them changes."""
    if not compiled:
        request.getfixturevalue("without_numba")
    rng = np.random.default_rng(0)
    backgrounds = {3: rng.integers(0, 256, (24, 24, 3), np.uint8)}
    cutouts = {(0, 0): Cutout.from_rgba(rng.integers(0, 256, (24, 7, 4), np.uint8))}
    rows = make_plan(["a"], ["c"], np.array([[24, 7]]), size=24, positions=4, flip=False)
    rows["background"] = 3
    images, masks = render(rows, backgrounds, cutouts, 24)
    for count in (4, 1, 0):
        memory = {"image": np.full((6, 24, 24, 3), 9, np.uint8), "mask": np.full((6, 24, 24), 9, np.uint8)}
        out = {name: [array[5 - k] for k in range(count)] for name, array in memory.items()}
        render(rows[:count], backgrounds, cutouts, 24, out=out)
        for name, drawn in (("image", images), ("mask", masks)):
            assert (memory[name][6 - count :] == drawn[:count][::-1]).all()
            assert (memory[name][: 6 - count] == 9).all()


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("beyond", ["top", "left"])
def test_a_cutout_beyond_its_picture_is_refused(compiled, beyond, request):
    """As what is compiled would write past the end of it."""
    if not compiled:
        request.getfixturevalue("without_numba")
    rows = make_plan(["a"], ["c"], np.array([[5, 7]]), size=16, positions=1, flip=False)
    rows[beyond] = 16 - {"top": 5, "left": 7}[beyond] + 1
    with pytest.raises(ValueError, match=r"partly outside its picture|could not be broadcast"):
        render(rows, {0: np.zeros((16, 16, 3), np.uint8)}, {(0, 0): Cutout.from_rgba(np.ones((5, 7, 4), np.uint8))}, 16)


@pytest.mark.parametrize("compiled", [True, False])
def test_any_memory_is_drawn_into_or_refused(compiled, request):
    """Parts of larger pictures and mirrored backgrounds are drawn; what is read-only or too short is refused."""
    if not compiled:
        request.getfixturevalue("without_numba")
    rng = np.random.default_rng(0)
    background = rng.integers(0, 256, (16, 16, 3), np.uint8)
    cutouts = {(0, 0): Cutout.from_rgba(rng.integers(0, 256, (5, 7, 4), np.uint8))}
    rows = make_plan(["a"], ["c"], np.array([[5, 7]]), size=16, positions=3, flip=False)
    image, mask = render(rows, {0: background}, cutouts, 16)
    larger = np.full((3, 20, 20, 3), 9, np.uint8)
    render(rows, {0: background}, cutouts, 16, out={"image": larger[:, 2:18, 2:18]})
    assert (larger[:, 2:18, 2:18] == image).all()
    larger[:, 2:18, 2:18] = 9
    assert (larger == 9).all()
    seen = render(rows, {0: background}, cutouts, 16, out={"mask": np.empty((3, 16, 16), bool)})[1]
    assert (seen.view(np.uint8) == mask // 255).all()
    mirrored = np.ascontiguousarray(background[:, ::-1])[:, ::-1]
    assert (render(rows, {0: mirrored}, cutouts, 16)[0] == image).all()
    fixed = np.zeros((3, 16, 16, 3), np.uint8)
    fixed.flags.writeable = False
    for out in (fixed, np.zeros((1, 16, 16, 3), np.uint8), np.zeros((4, 16, 16, 3), np.uint8)):
        with pytest.raises(ValueError, match=r"read-only|expected 3|argument 2 is"):
            render(rows, {0: background}, cutouts, 16, out={"image": out})
    assert not fixed.any()


def test_a_copied_cutout_is_drawn_from_its_own_memory():
    """Also one that has been drawn before it was copied, when the first is gone."""
    rng = np.random.default_rng(0)
    rows, background = np.zeros(1, DTYPE), {0: np.zeros((16, 16, 3), np.uint8)}
    cutout = Cutout.from_rgba(rng.integers(0, 256, (16, 16, 4), np.uint8))
    image, _ = render(rows, background, {(0, 0): cutout}, 16)
    other = pickle.loads(pickle.dumps(cutout))
    cutout.weighted[:] = 0
    assert (render(rows, background, {(0, 0): other}, 16)[0] == image).all()


def test_blend_is_exactly_rounded_for_every_input():
    """All alphas against all colours for some backgrounds, compared with rational rounding."""
    alpha, colour = np.meshgrid(np.arange(256, dtype=np.uint8), np.arange(256, dtype=np.uint8), indexing="ij")
    rgba = np.dstack([colour, colour, colour, alpha])
    for below in (0, 1, 77, 128, 254, 255):
        background = np.full((256, 256, 3), below, np.uint8)
        exact = (2 * (below * (255 - alpha.astype(int)) + colour.astype(int) * alpha) + 255) // 510
        assert (blend(background, Cutout.from_rgba(rgba)) == exact[..., None]).all()
        rows = np.zeros(1, DTYPE)
        drawn, _ = render(rows, {0: background}, {(0, 0): Cutout.from_rgba(rgba)}, 256)
        assert (drawn[0] == exact[..., None]).all()


def test_no_seams_at_the_ends_of_alpha():
    """Alpha 0 leaves the background, alpha 255 gives the foreground, to the bit."""
    rng = np.random.default_rng(1)
    background = rng.integers(0, 256, (8, 8, 3), np.uint8)
    rgba = rng.integers(0, 256, (8, 8, 4), np.uint8)
    rgba[..., 3] = 0
    assert (blend(background, Cutout.from_rgba(rgba)) == background).all()
    rgba[..., 3] = 255
    assert (blend(background, Cutout.from_rgba(rgba)) == rgba[..., :3]).all()


def test_mask_begins_at_half():
    """127 is outside, 128 inside."""
    rgba = np.zeros((1, 2, 4), np.uint8)
    rgba[0, :, 3] = 127, 128
    assert Cutout.from_rgba(rgba).mask.tolist() == [[0, 255]]
