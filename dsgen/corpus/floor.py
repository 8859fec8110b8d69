"""Where the floor of a room is, from a depth map: what people are put on.

Coordinates are those of the camera, in metres: x to the right, y down, z along the optical axis. A pixel (row, column)
of depth Z is the point ((column - (w - 1) / 2) Z / f, (row - (h - 1) / 2) Z / f, Z), f the focal length in pixels.
"""

from dataclasses import dataclass

import numpy as np

_BAND_PIXELS = 2**17  # of a map at a time
_LEAST_SIDE = 3  # of a map, and of the grid
_GRID = 112  # samples along the longer side that the plane is looked for in
_DRAWS, _FITS = 300, 3
_STEEPEST = np.cos(
    np.radians(38)
)  # of the angle between a floor's normal and the picture's up: pitch and roll of a camera
_ALIKE = np.cos(np.radians(20))  # of the angle between the normal at a pixel of the floor and the floor's
_STRAIGHT = np.cos(np.radians(6))  # of the angle between the floor's normal and the mean of those at its pixels
_NEAR_M, _NEAR_SHARE = 0.02, 0.012  # distance to the plane of a pixel of the floor: metres, and share of its depth
_BELOW_M, _BELOW_SHARE = 0.12, 0.03  # the same of a pixel that is clearly below a plane
_LEVEL, _UPRIGHT = np.cos(np.radians(10)), np.sin(np.radians(10))  # of the angle between a surface and the floor
_MOST_BELOW = 0.02  # share of all pixels that may lie below a floor: noise, and what is seen through windows
_LEAST_SHARE = 0.015  # of all pixels that are floor
_LOWEST_M, _HIGHEST_M = 0.25, 4.0  # of a camera above the floor


@dataclass(frozen=True)
class Floor:
    """A plane `normal` . P + `height_m` = 0, with the camera `height_m` above it.

    `normal` (3,) f8 has length 1 and points up. `mask` (h,w) bool are the pixels where the floor itself is seen.
    """

    normal: np.ndarray
    height_m: float
    mask: np.ndarray

    def depth_m(self, focal_px: float) -> np.ndarray:
        """Return the plane's depth (h,w) f8 at every pixel of the mask's picture, inf at and above its horizon."""
        downwards = -_along_rays(self.normal, *_ray_slopes(self.mask.shape, focal_px))
        with np.errstate(divide="ignore"):
            return np.where(downwards > 1e-6, self.height_m / np.maximum(downwards, 1e-6), np.inf)

    def areas_m2(self, focal_px: float) -> np.ndarray:
        """Return the square metres (h,w) f8 of floor that each pixel shows, 0 outside the mask.

        A pixel's solid angle, 1 / (f^2 |r|^3) with r its ray of z = 1, times distance squared over the cosine of the
        angle of incidence: Z^2 / (f^2 (-n . r)).
        """
        downwards = -_along_rays(self.normal, *_ray_slopes(self.mask.shape, focal_px))
        area = self.depth_m(focal_px) ** 2 / (focal_px**2 * np.maximum(downwards, 1e-6))
        return np.where(self.mask, area, 0.0)


def find_floor(depth_m: np.ndarray, focal_px: float, seed: int = 0) -> Floor | None:
    """Find the floor in a planar depth map (h,w) f4 in metres, 0 where it is not known; None if there is none.

    The floor is a plane with many pixels among those that are nearly level and have hardly a pixel below them (RANSAC,
    Fischler and Bolles 1981), fitted to its pixels by least squares. A desk's top is none, since the room goes on below
    it. What else is seen, such as walls and desks, must be mostly level or upright to it, as it is not to a ramp. The
    answer depends on the arguments alone. Besides the mask, memory does not grow with the map.
    """
    if min(depth_m.shape) < _LEAST_SIDE:
        return None
    step = max(1, round(max(depth_m.shape) / _GRID))
    x, y = _ray_slopes(depth_m.shape, focal_px)
    grid = slice(step // 2, None, step)
    coarse = depth_m[grid, grid], x[grid], y[grid]
    if min(coarse[0].shape) < _LEAST_SIDE:
        return None
    pixels = np.indices(coarse[0].shape).reshape(2, -1)
    points, normals = _points(*coarse, *pixels), _normals(*coarse, *pixels)
    valid = points[:, 2] > 0
    candidates = np.flatnonzero(valid & (normals[:, 1] < -_STEEPEST))
    if len(candidates) < max(8, _LEAST_SHARE * len(points)):
        return None
    plane = _best_plane(points[valid], normals[normals.any(axis=1)], points[candidates], normals[candidates], seed)
    return None if plane is None else Floor(*plane, _find_pixels(depth_m, x, y, step, *plane))


def _find_pixels(
    depth_m: np.ndarray, x: np.ndarray, y: np.ndarray, step: int, normal: np.ndarray, height_m: float
) -> np.ndarray:
    """Return the pixels (h,w) bool of a plane: those near it where the surface has its direction.

    That is measured from pixel to pixel, which is right up to edges, or over `step` pixels, where noise and rounding to
    millimetres matter less.
    """
    mask = np.zeros(depth_m.shape, bool)
    rows_each = max(1, _BAND_PIXELS // depth_m.shape[1])
    for start in range(0, len(depth_m), rows_each):
        known = _known(depth_m[start : start + rows_each])
        distance = known * _along_rays(normal, x, y[start : start + rows_each]) + height_m
        rows, columns = np.nonzero((np.abs(distance) < _NEAR_M + _NEAR_SHARE * known) & (known > 0))
        rows += start
        for reach in dict.fromkeys((1, step)):
            alike = _normals(depth_m, x, y, rows, columns, reach) @ normal > _ALIKE
            mask[rows[alike], columns[alike]] = True
            rows, columns = rows[~alike], columns[~alike]
    return mask


def _ray_slopes(shape: tuple[int, ...], focal_px: float) -> tuple[np.ndarray, np.ndarray]:
    """Return x (w,) and y (h,) of all pixels' rays (x, y, 1): times depth, these are the points seen."""
    height, width = shape
    return (np.arange(width) - (width - 1) / 2) / focal_px, (np.arange(height) - (height - 1) / 2) / focal_px


def _along_rays(normal: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the product (h,w) f8 of a vector and all rays (x, y, 1)."""
    product: np.ndarray = normal[0] * x + (normal[1] * y + normal[2])[:, None]
    return product


def _known(depth_m: np.ndarray) -> np.ndarray:
    """Return depth as f8, 0 for all that is none."""
    return np.where(np.isfinite(depth_m) & (depth_m > 0), depth_m, 0).astype(np.float64)


def _points(depth_m: np.ndarray, x: np.ndarray, y: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Return the points (n,3) f8 that pixels of a map (h,w) with the rays (x, y, 1) show; 0 where depth is none."""
    z = _known(depth_m[rows, columns])
    return np.stack([z * x[columns], z * y[rows], z], axis=1)


def _normals(
    depth_m: np.ndarray, x: np.ndarray, y: np.ndarray, rows: np.ndarray, columns: np.ndarray, reach: int = 1
) -> np.ndarray:
    """Return the unit normals (n,3) f8 at pixels of a map (h,w) with the rays (x, y, 1); 0 where unknown.

    They are those of the neighbours `reach` pixels away, and look at the camera. Pixels at the border have the normals
    of those beside them.
    """
    height, width = depth_m.shape
    rows, columns = rows.clip(reach, height - 1 - reach), columns.clip(reach, width - 1 - reach)
    here = _points(depth_m, x, y, rows, columns)
    left, right = (_points(depth_m, x, y, rows, columns + offset) for offset in (-reach, reach))
    above, below = (_points(depth_m, x, y, rows + offset, columns) for offset in (-reach, reach))
    normals = np.cross(below - above, right - left)
    length = np.linalg.norm(normals, axis=1)
    usable = (length > 0) & np.all([points[:, 2] > 0 for points in (here, left, right, above, below)], axis=0)
    normals = np.where(usable[:, None], normals / np.maximum(length, 1e-12)[:, None], 0.0)
    normals[(normals * here).sum(axis=1) > 0] *= -1
    return normals


def _best_plane(
    seen: np.ndarray, surfaces: np.ndarray, candidates: np.ndarray, normals: np.ndarray, seed: int
) -> tuple[np.ndarray, float] | None:
    """Return the plane (normal, height of the camera) that is the likeliest floor of all that are drawn.

    `seen` and `surfaces` are all points and all normals, `candidates` and `normals` those that may be the floor's.
    """
    best, best_score = None, 0.0
    near = _NEAR_M + _NEAR_SHARE * candidates[:, 2]
    for plane in _draw_planes(candidates, normals, near, seed):
        for _ in range(_FITS):  # least squares, each time of what the plane before has on it
            normal, height_m = plane
            on_plane = (np.abs(candidates @ normal + height_m) < near) & (normals @ normal > _ALIKE)
            count = on_plane.sum()
            if count < _LEAST_SHARE * len(seen) or count <= best_score:  # the score is at most the count
                break
            score = count * _squareness(normal, surfaces) ** 2
            if score <= best_score or not _agree(normal, normals[on_plane]):
                break
            fitted = _fit(candidates[on_plane])
            if fitted is None:
                break
            plane = fitted
        else:
            if _is_floor(seen, *plane):
                best, best_score = plane, score
    return best


def _draw_planes(
    candidates: np.ndarray, normals: np.ndarray, near: np.ndarray, seed: int
) -> list[tuple[np.ndarray, float]]:
    """Draw planes at random, half of them through three points, half through one with its normal; the best first."""
    chosen = np.random.default_rng(seed).integers(len(candidates), size=(_DRAWS, 3))
    points = candidates[chosen]
    directions = np.cross(points[:, 1] - points[:, 0], points[:, 2] - points[:, 0])
    directions[::2] = normals[chosen[::2, 0]]
    drawn = [_oriented(direction, point) for direction, point in zip(directions, points[:, 0], strict=True)]
    planes = [plane for plane in drawn if plane is not None]
    counts = [np.count_nonzero(np.abs(candidates @ normal + height_m) < near) for normal, height_m in planes]
    return [planes[index] for index in np.argsort(counts, kind="stable")[::-1]]


def _squareness(normal: np.ndarray, surfaces: np.ndarray) -> float:
    """Return the share of surfaces that are parallel to a plane or at right angles to it, nearly."""
    cosines = np.abs(surfaces @ normal)
    return float(((cosines < _UPRIGHT) | (cosines > _LEVEL)).mean())


def _agree(normal: np.ndarray, normals: np.ndarray) -> bool:
    """Whether a plane's normal is the mean of those of its pixels: a slope from a floor up to a desk is no plane."""
    mean = normals.mean(axis=0)
    return bool(normal @ mean > _STRAIGHT * np.linalg.norm(mean))


def _fit(points: np.ndarray) -> tuple[np.ndarray, float] | None:
    """Return the plane of least squared distances, each weighted by 1 / depth as errors of depth grow with it."""
    weights = 1 / points[:, 2:]
    middle = (weights * points).sum(axis=0) / weights.sum()
    scattered = weights * (points - middle)
    return _oriented(np.linalg.eigh(scattered.T @ scattered).eigenvectors[:, 0], middle)


def _oriented(normal: np.ndarray, point: np.ndarray) -> tuple[np.ndarray, float] | None:
    """Return a plane with its normal upwards, None if it is too steep or not where a floor can be."""
    length = np.linalg.norm(normal)
    if length < 1e-12:
        return None
    normal = normal / (length if normal[1] < 0 else -length)
    height_m = float(-(normal @ point))
    return (normal, height_m) if -normal[1] > _STEEPEST and _LOWEST_M < height_m < _HIGHEST_M else None


def _is_floor(seen: np.ndarray, normal: np.ndarray, height_m: float) -> bool:
    below = -(seen @ normal + height_m) > _BELOW_M + _BELOW_SHARE * seen[:, 2]
    return bool(below.mean() <= _MOST_BELOW)
