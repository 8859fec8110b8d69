"""The floor of a room in its depth map: rooms traced exactly, with noise and holes, and the bundled backgrounds."""

import time
import tracemalloc

import numpy as np
import pytest
from support.traced_rooms import Box, camera_axes, trace_room

from dsgen.camera import focal_px
from dsgen.corpus.floor import Floor, find_floor
from dsgen.io import images
from dsgen.io.assets import asset
from dsgen.io.csv_files import read_csv

DESK: Box = ((-1.8, 0.71, 0.4), (1.8, 0.74, 1.7))
CUPBOARD: Box = ((1.2, 0.0, 3.0), (3.0, 2.0, 6.0))
STAIRS: list[Box] = [((-3.0, 0.0, 2.6 + 0.28 * n), (0.0, 0.17 * (n + 1), 6.0)) for n in range(10)]


def assert_is_floor(floor: Floor | None, camera_m: float, pitch_deg: float, roll_deg: float, metres: float = 0.03):
    """Check height and direction of a floor, the latter within 1 degree, or 4 where more than 3 cm are allowed."""
    assert floor is not None
    assert floor.height_m == pytest.approx(camera_m, abs=metres)
    up = -camera_axes(pitch_deg, roll_deg) @ [0.0, -1.0, 0.0]
    assert np.degrees(np.arccos(np.clip(floor.normal @ up, -1, 1))) < (1 if metres <= 0.03 else 4)
    assert np.linalg.norm(floor.normal) == pytest.approx(1)


@pytest.mark.parametrize(("height", "width"), [(224, 224), (180, 320), (320, 180), (75, 100)])
@pytest.mark.parametrize("fov_deg", [40, 62, 100])
def test_fields_of_view_and_proportions(height: int, width: int, fov_deg: float):
    """Of phones and of wide lenses; the floor's pixels are those of the room's, but for a line at its edges."""
    length_px = focal_px(fov_deg, width)
    depth_m = trace_room(height, width, length_px, pitch_deg=-12, boxes=[CUPBOARD])
    floor = find_floor(depth_m, length_px)
    assert_is_floor(floor, 1.5, -12, 0)
    truth = floor_pixels(depth_m, length_px, pitch_deg=-12)
    assert (floor.mask & ~truth).sum() <= 0.02 * truth.sum()
    assert (truth & ~floor.mask).sum() <= 0.1 * truth.sum()


def floor_pixels(
    depth_m: np.ndarray, length_px: float, camera_m: float = 1.5, pitch_deg: float = 0.0, roll_deg: float = 0.0
) -> np.ndarray:
    """Return the pixels (h,w) bool of the floor of a traced room: those that a room without anything in it has too."""
    height, width = depth_m.shape
    endless = trace_room(
        height,
        width,
        length_px,
        camera_m=camera_m,
        pitch_deg=pitch_deg,
        roll_deg=roll_deg,
        room=((-99, 0, -99), (99, 99, 99)),
    )
    return np.isclose(depth_m, endless, rtol=1e-4) & (endless < 10)


@pytest.mark.parametrize("camera_m", [0.6, 1.5, 2.4])
@pytest.mark.parametrize("roll_deg", [-5, 0, 5])
@pytest.mark.parametrize("pitch_deg", [-35, -20, -5, 0])
def test_cameras_that_look_down_or_are_tilted(camera_m: float, roll_deg: float, pitch_deg: float):
    """From a child's height to a tall tripod."""
    length_px = focal_px(62, 200)
    depth_m = trace_room(160, 200, length_px, camera_m=camera_m, pitch_deg=pitch_deg, roll_deg=roll_deg)
    assert_is_floor(find_floor(depth_m, length_px), camera_m, pitch_deg, roll_deg)


def test_a_desk_larger_than_the_floor_is_none():
    """Its top fills more pixels, but the room goes on below it."""
    length_px = focal_px(62, 224)
    depth_m = trace_room(224, 224, length_px, camera_m=1.2, pitch_deg=-20, boxes=[DESK])
    floor = find_floor(depth_m, length_px)
    assert_is_floor(floor, 1.2, -20, 0)
    truth = floor_pixels(depth_m, length_px, 1.2, -20)
    desk = depth_m < trace_room(224, 224, length_px, camera_m=1.2, pitch_deg=-20)
    assert desk.sum() > 9 * truth.sum()
    assert not (floor.mask & desk).any()


def test_stairs_are_none():
    """Neither a tread nor the slope over all of them, where the floor before them is seen."""
    length_px = focal_px(62, 224)
    depth_m = trace_room(224, 224, length_px, pitch_deg=-15, boxes=STAIRS)
    floor = find_floor(depth_m, length_px)
    assert_is_floor(floor, 1.5, -15, 0)
    assert (floor.mask & ~floor_pixels(depth_m, length_px, pitch_deg=-15)).sum() < 0.01 * floor.mask.sum()


@pytest.mark.parametrize("slope_deg", [8, 15, 30])
def test_a_ramp_is_none(slope_deg: float):
    """One of 2 m width that rises from the floor right ahead: the walls do not stand upright on it."""
    length_px = focal_px(62, 224)
    depth_m = trace_room(224, 224, length_px)
    rise = np.tan(np.radians(slope_deg))
    u, v = (np.indices((224, 224))[::-1] - 111.5) / length_px
    ramp = (1.5 + 3 * rise) / np.maximum(v + rise, 1e-3)  # 1.5 m - v z = rise (z - 3 m)
    seen = (ramp > 3) & (ramp < depth_m) & (np.abs(u * ramp) < 1)
    floor = find_floor(np.where(seen, ramp, depth_m).astype(np.float32), length_px)
    assert_is_floor(floor, 1.5, 0, 0)
    assert seen.sum() > 0.3 * floor.mask.sum()
    assert ((1.5 - v * ramp)[floor.mask & seen] < 0.08).all()  # what is nearly on the floor


@pytest.mark.parametrize(
    "depth_m",
    [
        np.full((100, 120), 3, np.float32),  # a wall
        trace_room(100, 120, 110, pitch_deg=60),  # a ceiling
        trace_room(100, 120, 110, pitch_deg=0, boxes=[((-2.9, 0, 0.5), (2.9, 2.6, 5))]),  # a cupboard right ahead
        np.zeros((100, 120), np.float32),
        np.full((100, 120), np.nan, np.float32),
        np.full((100, 120), np.inf, np.float32),
        np.random.default_rng(0).uniform(0.5, 8, (100, 120)).astype(np.float32),
        np.ones((2, 500), np.float32),
        np.ones((500, 1), np.float32),
        np.ones((3, 900), np.float32),
    ],
)
def test_without_a_floor_there_is_none(depth_m: np.ndarray):
    """Of walls, ceilings, nothing, noise, and maps too thin to have one."""
    assert find_floor(depth_m, 110) is None


@pytest.mark.parametrize("pitch_deg", [-25, -8])
def test_noise_of_five_per_cent(pitch_deg: float):
    """Smooth waves, as networks make: the camera's height within 10 cm; and grain as sensors have, 1 per cent."""
    length_px = focal_px(62, 224)
    depth_m = trace_room(224, 224, length_px, pitch_deg=pitch_deg, boxes=[CUPBOARD])
    rng = np.random.default_rng(1)
    waves = images.resize(rng.integers(0, 256, (8, 8, 3), np.uint8), 224, 224)[..., 0] / 255 - 0.5
    for noise in (waves / waves.std() * 0.05, rng.normal(0, 0.01, depth_m.shape)):
        floor = find_floor((depth_m * (1 + noise)).astype(np.float32), length_px)
        assert_is_floor(floor, 1.5, pitch_deg, 0, 0.1)


@pytest.mark.parametrize(("side", "noise", "least"), [(1344, 0.0, 0.9), (448, 0.005, 0.9), (448, 0.01, 0.6)])
def test_fine_grain_leaves_most_of_the_floor(side: int, noise: float, least: float):
    """Rounding to millimetres in a large map, and the noise of sensors, turn the surface from pixel to pixel."""
    length_px = focal_px(62, side)
    exact_m = trace_room(side, side, length_px, pitch_deg=-12)
    grain = np.random.default_rng(3).normal(0, noise, exact_m.shape)
    floor = find_floor((np.round(exact_m * (1 + grain) * 1000) / 1000).astype(np.float32), length_px)
    assert_is_floor(floor, 1.5, -12, 0)
    truth = floor_pixels(exact_m, length_px, pitch_deg=-12)
    assert (floor.mask & truth).sum() > least * truth.sum()


def test_holes_are_no_floor_and_hide_none():
    """A third of the pixels unknown, in blocks and one by one: 0, not a number, infinite."""
    length_px = focal_px(62, 224)
    depth_m = trace_room(224, 224, length_px, pitch_deg=-12)
    rng = np.random.default_rng(2)
    holes = np.kron(rng.random((28, 28)) < 0.3, np.ones((8, 8), bool)) | (rng.random((224, 224)) < 0.03)
    for value in (0, np.nan, np.inf, -1):
        floor = find_floor(np.where(holes, np.float32(value), depth_m), length_px)
        assert_is_floor(floor, 1.5, -12, 0)
        assert not (floor.mask & holes).any()
        assert floor.mask.sum() > 0.3 * floor_pixels(depth_m, length_px, pitch_deg=-12).sum()


def test_the_same_map_has_the_same_floor():
    """To the bit, whatever was found before; another seed finds the same plane by other draws."""
    length_px = focal_px(62, 224)
    depth_m = trace_room(224, 224, length_px, pitch_deg=-12, boxes=[CUPBOARD, DESK])
    first = find_floor(depth_m, length_px)
    find_floor(depth_m[::-1], length_px)
    second, other = find_floor(depth_m, length_px), find_floor(depth_m, length_px, seed=1)
    assert (first.normal == second.normal).all()
    assert first.height_m == second.height_m
    assert (first.mask == second.mask).all()
    assert other.height_m == pytest.approx(first.height_m, abs=0.001)


def test_depth_and_areas_are_those_of_the_floor():
    """The plane's depth is the room's; the floor's square metres are counted right by its pixels."""
    length_px = focal_px(75, 300)
    depth_m = trace_room(240, 300, length_px, pitch_deg=-30, roll_deg=4)
    floor = find_floor(depth_m, length_px)
    np.testing.assert_allclose(floor.depth_m(length_px)[floor.mask], depth_m[floor.mask], rtol=0.02)
    truth = floor_pixels(depth_m, length_px, pitch_deg=-30, roll_deg=4)
    np.testing.assert_allclose(floor.depth_m(length_px)[truth], depth_m[truth], rtol=0.001)
    assert np.isinf(trace_horizon(floor, length_px))
    areas = floor.areas_m2(length_px)
    assert (areas[~floor.mask] == 0).all()
    rng = np.random.default_rng(0)
    places = np.stack([rng.uniform(-3, 3, 400_000), np.zeros(400_000), rng.uniform(-2, 6, 400_000)], axis=1)
    x, y, z = camera_axes(-30, 4) @ (places - [0, 1.5, 0]).T
    seen = (z > 0) & (np.abs(x / z * length_px) < 150) & (np.abs(y / z * length_px) < 120)
    assert areas.sum() == pytest.approx(6 * 8 * seen.mean(), rel=0.03)


def trace_horizon(floor: Floor, length_px: float) -> float:
    """The plane's depth in the first row of a picture whose camera sees above the horizon."""
    return float(Floor(np.array([0.0, -1.0, 0.0]), floor.height_m, floor.mask).depth_m(length_px)[0, 0])


def test_large_maps_need_little_memory():
    """Besides the map and the mask; of 1 and of 4 megapixels about the same."""
    peaks = []
    for side in (1024, 2048):
        small = trace_room(256, 256, focal_px(62, 256), pitch_deg=-12)
        depth_m = np.kron(small, np.ones((side // 256, side // 256), np.float32))
        tracemalloc.start()
        find_floor(depth_m, focal_px(62, side))
        peaks.append(tracemalloc.get_traced_memory()[1] - depth_m.size)  # without the mask
        tracemalloc.stop()
    assert max(peaks) < 100 * 2**20
    assert peaks[1] < 1.3 * peaks[0]


def heights_found(names: list[str]) -> list[float | None]:
    """Return the errors in metres of the camera's height over the floors of bundled backgrounds, None for no floor."""
    rows = {row["name"]: row for row in read_csv(asset("backgrounds").with_suffix(".csv"), "")}
    errors: list[float | None] = []
    for name in names:
        depth_m = images.read_depth_png(bundled_depth() / f"{name}.png").astype(np.float32) / 1000
        floor = find_floor(depth_m, focal_px(float(rows[name]["fov_deg"]), depth_m.shape[1]))
        errors.append(None if floor is None else abs(floor.height_m - float(rows[name]["cam_height_m"])))
    return errors


def bundled_depth():
    """Return the folder of the bundled backgrounds' exact depth; skip where there is none."""
    folder = asset("backgrounds").with_name("backgrounds_depth")
    if not folder.is_dir():
        pytest.skip("the bundled backgrounds have no exact depth here")
    return asset("backgrounds_depth")


def test_floors_of_some_bundled_backgrounds():
    """Eight of them, evenly spaced."""
    names = sorted(path.stem for path in bundled_depth().glob("*.png"))
    assert max(heights_found(names[:: len(names) // 8])) < 0.03


@pytest.mark.slow
def test_floors_of_the_bundled_backgrounds():
    """At least 95 of 100 are found, their heights within 3 cm; in a tenth of a second each, twice that when busy."""
    names = sorted(path.stem for path in bundled_depth().glob("*.png"))
    started = time.process_time()
    errors = heights_found(names)
    assert sum(error is not None and error < 0.03 for error in errors) >= 0.95 * len(names)
    assert (time.process_time() - started) / len(names) < 0.25
