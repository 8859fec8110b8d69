"""Where the floor of a room is, from a depth map: what people are put on.

Coordinates are those of the camera, in metres: x to the right, y down, z along the optical axis. A pixel (row, column)
of depth Z is the point ((column - (w - 1) / 2) Z / f, (row - (h - 1) / 2) Z / f, Z), f the focal length in pixels.
"""

from dataclasses import dataclass

import numpy as np

_GRID = 112  # samples along the longer side that the plane is looked for in
_DRAWS = 300
_STEEPEST = np.cos(
    np.radians(38)
)  # of the angle between a floor's normal and the picture's up: pitch and roll of a camera
_ALIKE = np.cos(np.radians(20))  # of the angle between the normal at a pixel of the floor and the floor's
_STRAIGHT = np.cos(np.radians(6))  # of the angle between the floor's normal and the mean of those at its pixels
_NEAR_M, _NEAR_SHARE = 0.02, 0.012  # distance to the plane of a pixel of the floor: metres, and share of its depth
_BELOW_M, _BELOW_SHARE = 0.12, 0.03  # the same of a pixel that is clearly below a plane
_MOST_BELOW = 0.02  # share of all pixels that may lie below a floor: noise, and what is seen through windows
_LEAST_SHARE = 0.015  # of all pixels that are floor
_LOWEST_M, _HIGHEST_M = 0.25, 4.0  # of a camera above the floor


@dataclass(frozen=True)
class Floor:
    """A plane `normal` . P + `height_m` = 0, `normal` (3,) f8 of length 1 pointing up, `height_m` below the camera.

    `mask` (h,w) bool are the pixels where the floor itself is seen.
    """

    normal: np.ndarray
    height_m: float
    mask: np.ndarray

    def depth_m(self, focal_px: float) -> np.ndarray:
        """Return the plane's depth (h,w) f8 at every pixel of the mask's picture, inf at and above its horizon."""
        downwards = -(rays(*self.mask.shape, focal_px) @ self.normal)
        with np.errstate(divide="ignore"):
            return np.where(downwards > 1e-6, self.height_m / np.maximum(downwards, 1e-6), np.inf)

    def areas_m2(self, focal_px: float) -> np.ndarray:
        """Return the square metres (h,w) f8 of floor that each pixel shows, 0 outside the mask.

        A pixel's solid angle, 1 / (f^2 |r|^3) with r its ray of z = 1, times distance squared over the cosine of the
        angle of incidence: Z^2 / (f^2 (-n . r)).
        """
        directions = rays(*self.mask.shape, focal_px)
        downwards = -(directions @ self.normal)
        area = self.depth_m(focal_px) ** 2 / (focal_px**2 * np.maximum(downwards, 1e-6))
        return np.where(self.mask, area, 0.0)


def rays(height: int, width: int, focal_px: float) -> np.ndarray:
    """Return the rays (h,w,3) f8 of all pixels, scaled to z = 1: times depth they are the points seen."""
    x = (np.arange(width) - (width - 1) / 2) / focal_px
    y = (np.arange(height) - (height - 1) / 2) / focal_px
    return np.dstack([*np.meshgrid(x, y), np.ones((height, width))])


def find_floor(depth_m: np.ndarray, focal_px: float, seed: int = 0) -> Floor | None:
    """Find the floor in a planar depth map (h,w) f4 in metres, 0 where it is not known; None if there is none.

    The floor is the plane with the most pixels among those that are nearly level, below the camera, and have hardly a
    pixel below them (RANSAC, Fischler and Bolles 1981), fitted to its pixels by least squares. A desk's top is none,
    since the room goes on below it. The answer depends on the arguments alone.
    """
    step = max(1, round(max(depth_m.shape) / _GRID))
    points, normals = _points_and_normals(depth_m, focal_px, step)
    valid = points[:, 2] > 0
    candidates = np.flatnonzero(valid & (normals[:, 1] < -_STEEPEST))
    if len(candidates) < max(8, _LEAST_SHARE * len(points)):
        return None
    plane = _best_plane(points[valid], points[candidates], normals[candidates], len(points), seed)
    if plane is None:
        return None
    normal, height_m = plane
    points, normals = _points_and_normals(depth_m, focal_px, 1)
    on_plane = np.abs(points @ normal + height_m) < _NEAR_M + _NEAR_SHARE * points[:, 2]
    mask = on_plane & (normals @ normal > _ALIKE) & (points[:, 2] > 0)
    return Floor(normal, height_m, mask.reshape(depth_m.shape))


def _points_and_normals(depth_m: np.ndarray, focal_px: float, step: int) -> tuple[np.ndarray, np.ndarray]:
    """Return every `step`-th pixel's point and unit normal, (n,3) f8 each; normals face the camera, 0 = unknown."""
    grid = (slice(step // 2, None, step), slice(step // 2, None, step))
    points = (rays(*depth_m.shape, focal_px) * depth_m[..., None])[grid]
    known = points[..., 2] > 0
    normals = np.zeros_like(points)
    across, along = points[1:-1, 2:] - points[1:-1, :-2], points[2:, 1:-1] - points[:-2, 1:-1]
    inner = np.cross(along, across)
    length = np.linalg.norm(inner, axis=2, keepdims=True)
    usable = known[1:-1, 1:-1] & known[1:-1, 2:] & known[1:-1, :-2] & known[2:, 1:-1] & known[:-2, 1:-1]
    inner = np.where(usable[..., None] & (length > 0), inner / np.maximum(length, 1e-12), 0.0)
    inner[(inner * points[1:-1, 1:-1]).sum(axis=2) > 0] *= -1
    normals[1:-1, 1:-1] = inner
    normals[0], normals[-1] = normals[1], normals[-2]
    normals[:, 0], normals[:, -1] = normals[:, 1], normals[:, -2]
    return points.reshape(-1, 3), normals.reshape(-1, 3)


def _best_plane(
    seen: np.ndarray, candidates: np.ndarray, normals: np.ndarray, pixels: int, seed: int
) -> tuple[np.ndarray, float] | None:
    """Return the plane (normal, height of the camera) that is a floor and has the most candidates on it."""
    rng = np.random.default_rng(seed)
    best, best_count = None, max(8.0, _LEAST_SHARE * pixels)
    near = _NEAR_M + _NEAR_SHARE * candidates[:, 2]
    for draw in range(_DRAWS):
        chosen = rng.integers(len(candidates), size=3)
        plane = _through(candidates[chosen]) if draw % 2 else _oriented(normals[chosen[0]], candidates[chosen[0]])
        for _ in range(3):  # least squares, each time of what the plane before has on it
            if plane is None:
                break
            normal, height_m = plane
            on_plane = (np.abs(candidates @ normal + height_m) < near) & (normals @ normal > _ALIKE)
            if on_plane.sum() <= best_count:
                break
            plane = _fit(candidates[on_plane]) if _agree(normal, normals[on_plane]) else None
        else:
            if plane is not None and _is_floor(seen, *plane, pixels):
                best, best_count = plane, on_plane.sum()
    return best


def _agree(normal: np.ndarray, normals: np.ndarray) -> bool:
    """Whether a plane's normal is the mean of those of its pixels: a slope from a floor up to a desk is no plane."""
    mean = normals.mean(axis=0)
    return bool(normal @ mean > _STRAIGHT * np.linalg.norm(mean))


def _through(points: np.ndarray) -> tuple[np.ndarray, float] | None:
    normal = np.cross(points[1] - points[0], points[2] - points[0])
    return _oriented(normal, points[0])


def _fit(points: np.ndarray) -> tuple[np.ndarray, float] | None:
    """Return the plane of least squared distances, each weighted by 1 / depth as errors of depth grow with it."""
    weights = 1 / points[:, 2:]
    middle = (weights * points).sum(axis=0) / weights.sum()
    return _oriented(np.linalg.svd(weights * (points - middle), full_matrices=False)[2][2], middle)


def _oriented(normal: np.ndarray, point: np.ndarray) -> tuple[np.ndarray, float] | None:
    """Return a plane with its normal upwards, None if it is too steep or not where a floor can be."""
    length = np.linalg.norm(normal)
    if length < 1e-12:
        return None
    normal = normal / (length if normal[1] < 0 else -length)
    height_m = float(-(normal @ point))
    return (normal, height_m) if -normal[1] > _STEEPEST and _LOWEST_M < height_m < _HIGHEST_M else None


def _is_floor(seen: np.ndarray, normal: np.ndarray, height_m: float, pixels: int) -> bool:
    below = -(seen @ normal + height_m) > _BELOW_M + _BELOW_SHARE * seen[:, 2]
    return bool(below.sum() <= _MOST_BELOW * pixels)
