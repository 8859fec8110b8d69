"""Exact depth of simple rooms, traced ray by ray: a box seen from inside, with boxes in it."""

from collections.abc import Sequence

import numpy as np

Box = tuple[tuple[float, float, float], tuple[float, float, float]]  # least and greatest corner

# metres: x to the right, y up from the floor, z ahead; the camera is above the origin
ROOM: Box = ((-3.0, 0.0, -2.0), (3.0, 2.7, 6.0))


def camera_axes(pitch_deg: float = 0.0, roll_deg: float = 0.0) -> np.ndarray:
    """Return the camera's axes right, down and ahead (3,3), one a row, in the room's coordinates."""
    pitch, roll = np.radians([pitch_deg, roll_deg])
    ahead = np.array([0.0, np.sin(pitch), np.cos(pitch)])
    right, down = np.array([1.0, 0.0, 0.0]), -np.array([0.0, np.cos(pitch), -np.sin(pitch)])
    return np.array([np.cos(roll) * right + np.sin(roll) * down, np.cos(roll) * down - np.sin(roll) * right, ahead])


def trace_room(
    height: int,
    width: int,
    focal_px: float,
    *,
    camera_m: float = 1.5,
    pitch_deg: float = 0.0,
    roll_deg: float = 0.0,
    boxes: Sequence[Box] = (),
    room: Box = ROOM,
) -> np.ndarray:
    """Return the depth (h,w) f4 in metres along the optical axis of a room with boxes, `camera_m` above its floor."""
    rows, columns = np.indices((height, width))
    rays = np.dstack(
        [(columns - (width - 1) / 2) / focal_px, (rows - (height - 1) / 2) / focal_px, np.ones((height, width))]
    ) @ camera_axes(pitch_deg, roll_deg)
    camera = np.array([0.0, camera_m, 0.0])
    depth = _distances(rays, camera, room)[1]
    for box in boxes:
        enter, leave = _distances(rays, camera, box)
        depth = np.where((enter > 0) & (enter < leave) & (enter < depth), enter, depth)
    return depth.astype(np.float32)


def _distances(rays: np.ndarray, camera: np.ndarray, box: Box) -> tuple[np.ndarray, np.ndarray]:
    """Return where every ray enters a box and leaves it, in multiples of the ray."""
    with np.errstate(divide="ignore"):
        near, far = ((np.array(corner) - camera) / rays for corner in box)
    return np.minimum(near, far).max(axis=2), np.maximum(near, far).min(axis=2)
