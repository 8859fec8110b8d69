"""Rooms of known geometry, with their depth, and corpora of people in them."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from support.corpora import draw_background, draw_cutout

from dsgen.camera import focal_px
from dsgen.corpus.build import Parameters, composite

FOV_DEG = 60.0
STANDING = Parameters(
    positions=1,
    size=48,
    label_size=96,
    fg_height=20,
    validation_share=0.34,
    test_share=0,
    place="floor",
    people="1-3",
    min_visible=0.4,
)


def draw_room_depth(
    height: int = 96,
    width: int = 96,
    *,
    camera_m: float = 1.5,
    pitch_deg: float = 10.0,
    wall_m: float = 6.0,
    box: tuple[float, float, float] | None = None,
    fov_deg: float = FOV_DEG,
) -> np.ndarray:
    """The planar depth (h,w) f4 of a floor and a wall, of a camera that looks down by `pitch_deg`.

    `box` are the left and the right end, as shares of the width, of what stands on the floor, 0.8 m high, and how far
    away it is. The field of view is that of the centre square.
    """
    focal = focal_px(fov_deg, min(height, width))
    y, x = (2 * np.arange(n) + 1 - n for n in (height, width))
    y, x = np.meshgrid(y / 2 / focal, x / 2 / focal, indexing="ij")
    cos, sin = np.cos(np.radians(pitch_deg)), np.sin(np.radians(pitch_deg))
    down, ahead = y * cos + sin, cos - y * sin  # of the ray, in the room's directions
    depth = np.where(ahead > 0, wall_m / np.maximum(ahead, 1e-9), 99.0)
    depth = np.minimum(depth, np.where(down > 1e-6, camera_m / np.maximum(down, 1e-6), 99.0))
    if box is not None:
        left, right, far = box
        there = far / ahead
        inside = (camera_m - 0.8 <= there * down) & (there * down <= camera_m) & (there < depth)
        columns = (np.arange(width) >= left * width) & (np.arange(width) < right * width)
        depth = np.where(inside & columns, there, depth)
    return depth.astype(np.float32)


def write_room_pictures(folder: Path, *, people: int = 5, side: int = 96) -> Path:
    """Write `backgrounds`, their `depths`, and `foregrounds`: an empty room, one with a box, and a wall close by."""
    for kind in ("backgrounds", "depths", "foregrounds"):
        (folder / kind).mkdir(parents=True)
    rooms = (
        draw_room_depth(side, side),
        draw_room_depth(side, side, pitch_deg=15, box=(0.4, 0.8, 2.6)),
        np.full((side, side), 2.0, np.float32),
    )
    for n, depth in enumerate(rooms):
        Image.fromarray(draw_background(n, side, side)).save(folder / "backgrounds" / f"room{n}.png")
        np.save(folder / "depths" / f"room{n}.npy", depth)
    for n in range(people):
        Image.fromarray(draw_cutout(n, 60, 24 + 6 * n)).save(folder / "foregrounds" / f"person{n}.png")
    return folder


def make_room_corpus(path: Path, pictures: Path, parameters: Parameters = STANDING, **options: Any) -> Path:
    """Make a corpus of such pictures; people stand in the rooms if the parameters say so."""
    if parameters.place == "floor":
        options = {"background_depths": pictures / "depths"} | options
    options = {"pictures": False, "jobs": 1, "fov_deg": FOV_DEG} | options
    composite(path, pictures / "backgrounds", pictures / "foregrounds", parameters, **options)
    return path
