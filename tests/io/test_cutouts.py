"""What counts of a cut-out."""

import numpy as np
import pytest

from dsgen.io import images
from dsgen.io.cutouts import drop_loose_pixels


def person(height: int = 400, width: int = 400) -> np.ndarray:
    """An ellipse with an edge through all alphas, (height,width,4) u1, and a transparent margin on every side."""
    y, x = np.ogrid[:height, :width]
    radius = np.hypot((y - height / 2) / (height / 4), (x - width / 2) / (width / 8), dtype=np.float32)
    rgba = np.full((height, width, 4), 99, np.uint8)
    rgba[..., 0] = y % 256
    rgba[..., 3] = ((1.05 - radius) * 2000).clip(0, 255)
    return rgba


def far_away(rgba: np.ndarray) -> np.ndarray:
    """Where specks may lie: outside the middle, in which the person is, (h,w) bool."""
    height, width = rgba.shape[:2]
    outside = np.ones((height, width), bool)
    outside[height // 5 : -height // 5, width // 4 : -width // 4] = False
    return outside


def test_a_clean_cutout_keeps_every_byte():
    """Soft edge and hair included."""
    rgba = person()
    rgba[100:140, 190:230, 3] = np.maximum(rgba[100:140, 190:230, 3], 40)
    before = rgba.copy()
    assert drop_loose_pixels(rgba) == 0
    assert (rgba == before).all()


@pytest.mark.parametrize("size", [400, 2100])
@pytest.mark.parametrize(("least", "most"), [(1, 9), (10, 127), (128, 255)])
def test_specks_change_nothing(size: int, least: int, most: int):
    """Faint ones, stronger ones, and single solid pixels: the result is that of the clean cut-out, to the byte."""
    clean, rgba = person(size, size), person(size, size)
    rng = np.random.default_rng(0)
    specks = far_away(rgba) & (rng.random(rgba.shape[:2]) < (0.02 if most < 10 else 20 / size**2))
    rgba[specks] = rng.integers(least, most + 1, (specks.sum(), 4))
    assert drop_loose_pixels(rgba) == specks.sum()
    assert (images.trim(rgba) == images.trim(clean)).all()


def test_haze_over_the_whole_frame_is_left_out():
    """A person with a hard edge comes out as without the haze, to the byte."""
    clean = person()
    clean[clean[..., 3] < 128] = 0
    rgba = clean.copy()
    hazy = rgba[..., 3] == 0
    rgba[hazy] = np.random.default_rng(0).integers(1, 10, (hazy.sum(), 4))
    assert drop_loose_pixels(rgba) == hazy.sum()
    assert (images.trim(rgba)[..., 3] == images.trim(clean)[..., 3]).all()


def test_soft_hair_and_what_is_held_stay():
    """Strands with small gaps beside the head, and a second, detached subject."""
    rgba = person()
    rgba[101:104, 150:190:6, 3] = 30
    rgba[300:320, 330:350, 3] = 255
    before = rgba.copy()
    assert drop_loose_pixels(rgba) == 0
    assert (rgba == before).all()


def test_a_cutout_without_solid_pixels_is_left_as_it_is():
    """Whether it can be used is for others to say."""
    rgba = person()
    rgba[..., 3] //= 3
    assert drop_loose_pixels(rgba) == 0


def test_specks_close_to_the_person_change_nothing():
    """They lie within the margin, yet touch nothing that counts."""
    clean = np.zeros((400, 300, 4), np.uint8)
    clean[50:350, 100:200] = 255
    rgba = clean.copy()
    rgba[150:250:20, 97] = rgba[150:250:20, 202] = rgba[47, 120:180:20] = 9
    assert drop_loose_pixels(rgba) == 13
    assert (rgba == np.where(clean[..., 3:] > 0, clean, rgba * [1, 1, 1, 0])).all()
    assert images.trim(rgba).shape == (300, 100, 4)
