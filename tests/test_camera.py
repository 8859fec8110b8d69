"""The pinhole camera: focal lengths and fields of view."""

import pytest

from dsgen.camera import focal_px, fov_along, fov_deg, is_fov


def test_known_cameras() -> None:
    """A phone of 26 mm (35 mm equivalent) at 4000 x 3000; NYU's Kinect, 640 x 480 with a focal length of 518.86."""
    assert fov_deg(26, 36) == pytest.approx(69.39, abs=0.01)
    assert focal_px(69.39, 4000) == pytest.approx(26 / 36 * 4000, rel=1e-3)
    assert fov_deg(518.86, 640) == pytest.approx(63.33, abs=0.01)
    assert fov_along(63.33, 640, 480) == pytest.approx(49.64, abs=0.01)


def test_square_pixels() -> None:
    """The focal length follows from either side; 90 degrees see twice as wide as it is far."""
    assert focal_px(90, 100) == pytest.approx(50)
    assert focal_px(fov_along(70, 640, 480), 480) == pytest.approx(focal_px(70, 640))
    for degrees in (1.0, 55.5, 120.0, 179.0):
        assert fov_deg(focal_px(degrees, 448), 448) == pytest.approx(degrees)
        assert fov_along(degrees, 448, 448) == degrees


def test_what_a_field_of_view_can_be() -> None:
    """Above 0, below 180."""
    assert [is_fov(x) for x in (0, 1e-3, 179.9, 180, -60, float("nan"), float("inf"))] == [False, True, True] + 4 * [
        False
    ]
