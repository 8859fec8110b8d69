"""The geometry of a pinhole camera with square pixels that looks at the centre of its picture.

A focal length in pixels is the same along both sides of a picture; a field of view, in degrees, belongs to one side.
"""

import math

ASSUMED_FOV_DEG = 63.0  # along the longer side of a picture that does not say it; phones, depth cameras: 57 to 72


def focal_px(fov_deg: float, side: float) -> float:
    """Return the focal length in pixels of a picture whose field of view is `fov_deg` along a side of `side` pixels.

    >>> round(focal_px(63.3, 640), 1)
    519.0
    """
    return side / 2 / math.tan(math.radians(fov_deg) / 2)


def fov_deg(focal_px: float, side: float) -> float:
    """Return the field of view in degrees along a side of `side` pixels; the inverse of `focal_px`.

    >>> round(fov_deg(26, 36), 1)  # a lens of 26 mm before a frame of 36 mm
    69.4
    """
    return math.degrees(2 * math.atan(side / 2 / focal_px))


def fov_along(fov_deg_of_side: float, side: float, other: float) -> float:
    """Return the field of view along a length of `other` pixels of a picture, or of a centred cut-out of it.

    `fov_deg_of_side` is that along `side` pixels.
    """
    return fov_deg_of_side if other == side else fov_deg(focal_px(fov_deg_of_side, side), other)


def is_fov(degrees: float) -> bool:
    """Whether a number can be a field of view: above 0 and below 180 degrees."""
    return 0 < degrees < 180
