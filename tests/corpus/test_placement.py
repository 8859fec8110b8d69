"""Placing people: a pure function of seed and names; on the floor, as large as their distance says, and to be seen."""

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.corpora import draw_cutout
from support.rooms import STANDING, draw_room_depth, make_room_corpus

from dsgen.camera import focal_px
from dsgen.corpus.build import Parameters, composite
from dsgen.corpus.corpus import Corpus
from dsgen.corpus.figures import UNIT, Figure
from dsgen.corpus.floor import Floor
from dsgen.corpus.placement import FLOOR, RANDOM, PlacedPlan, Rules, Silhouette, place_people
from dsgen.corpus.plan import make_plan
from dsgen.corpus.scene import Room, draw_scenes
from dsgen.io.assets import asset

SIZE = 96
FOV = 60.0
FOCAL = focal_px(FOV, SIZE)
CAMERA_M, PITCH = 1.5, 12.0
UP = np.array([0.0, -np.cos(np.radians(PITCH)), -np.sin(np.radians(PITCH))])


class KnownRooms:
    """Rooms with the same floor, seen by the same camera; `box` hides people, `lacking` have no floor."""

    def __init__(self, box: tuple[float, float, float] | None = None, lacking: tuple[int, ...] = ()):
        geometry: dict[str, Any] = {"camera_m": CAMERA_M, "pitch_deg": PITCH}
        self.depth = draw_room_depth(SIZE, SIZE, box=box, **geometry)
        empty = draw_room_depth(SIZE, SIZE, wall_m=1e6, **geometry)
        self.mask = np.isclose(self.depth, empty, rtol=1e-4)
        self.lacking = lacking

    def floor(self, number: int, size: int) -> Floor | None:
        """The same plane in all rooms."""
        assert size == SIZE
        return None if number in self.lacking else Floor(UP, CAMERA_M, self.mask)

    def focal_px(self, number: int, size: int) -> float:  # noqa: ARG002
        """The same camera in all rooms."""
        return FOCAL

    def room(self, number: int, image: np.ndarray) -> Room:  # noqa: ARG002
        """The same depth in all rooms."""
        depth = np.rint(self.depth * 1000).astype(np.uint16)
        return Room.of(image, depth, np.where(self.mask, 255, 0).astype(np.uint8), 20, round(CAMERA_M * 1000))


CUTOUTS = [draw_cutout(n, 80, 30 + 8 * n) for n in range(6)]
BACKGROUNDS, FOREGROUNDS = ["hall", "attic", "cellar"], [f"person{n}" for n in range(6)]


def place(
    rules: Rules,
    backgrounds: list[str] = BACKGROUNDS,
    foregrounds: list[str] = FOREGROUNDS,
    *,
    positions: int = 10,
    rooms: KnownRooms | None = None,
    groups: np.ndarray | None = None,
    heights_m: list[float] | None = None,
    seed: int = 0,
) -> PlacedPlan:
    """Place people for all pairs; foregrounds are the cut-outs by their names' number."""
    cutouts = [CUTOUTS[int(name.removeprefix("person"))] for name in foregrounds]
    shapes = np.array([[30, max(1, 30 * cutout.shape[1] // cutout.shape[0])] for cutout in cutouts])
    plan = make_plan(backgrounds, foregrounds, shapes, size=SIZE, positions=positions, seed=seed)
    return place_people(
        plan,
        backgrounds,
        foregrounds,
        [Silhouette.of(cutout) for cutout in cutouts],
        heights_m or [1.7] * len(foregrounds),
        np.zeros(len(foregrounds), int) if groups is None else groups,
        rooms,
        rules,
        SIZE,
        seed,
    )


def by_name(placed: PlacedPlan, backgrounds: list[str], foregrounds: list[str]) -> dict[tuple, tuple]:
    """What every row holds, by the names of what it shows."""
    found = {}
    for row in placed.plan:
        people = tuple((foregrounds[p[0]], *p[1:]) for p in row["people"].tolist() if p[3])
        key = backgrounds[row["background"]], foregrounds[row["foreground"]], int(row["flip"]), int(row["position"])
        found[key] = people, int(row["top"]), int(row["left"])
    return found


MODES = {
    "random": (Rules(RANDOM, 1, 3, least_height=20, most_height=40, tilt_deg=5, blends=(0, 1, 2)), None),
    "floor": (Rules(FLOOR, 1, 3, height_jitter=0.1), KnownRooms((0.3, 0.6, 2.5))),
}


@pytest.mark.parametrize("mode", MODES)
def test_a_row_depends_on_its_own_names_alone(mode: str):
    """Other backgrounds, other orders and more positions leave every row that was there as it is."""
    rules, rooms = MODES[mode]
    before = by_name(place(rules, rooms=rooms), BACKGROUNDS, FOREGROUNDS)
    assert by_name(place(rules, rooms=rooms), BACKGROUNDS, FOREGROUNDS) == before
    more = ["zoo", *reversed(BACKGROUNDS), "bath"]
    after = by_name(place(rules, more, rooms=rooms), more, FOREGROUNDS)
    assert before.items() <= after.items()
    longer = by_name(place(rules, positions=25, rooms=rooms), BACKGROUNDS, FOREGROUNDS)
    assert before.items() <= longer.items()
    shuffled = list(reversed(FOREGROUNDS))
    assert by_name(place(rules, BACKGROUNDS, shuffled, rooms=rooms), BACKGROUNDS, shuffled) == before
    assert by_name(place(rules, rooms=rooms, seed=1), BACKGROUNDS, FOREGROUNDS) != before


@pytest.mark.parametrize("mode", MODES)
def test_another_foreground_changes_only_rows_that_it_joins(mode: str):
    """All rows without it are as before, and it joins about its share."""
    rules, rooms = MODES[mode]
    before = by_name(place(rules, foregrounds=FOREGROUNDS[:5], rooms=rooms), BACKGROUNDS, FOREGROUNDS[:5])
    placed = place(rules, rooms=rooms)
    after = by_name(placed, BACKGROUNDS, FOREGROUNDS)
    joined = 0
    for key, row in zip(after, placed.plan, strict=True):
        if key not in before:
            continue
        if (row["people"]["foreground"] == 5).any():
            joined += 1
        else:
            assert after[key] == before[key], key
    assert 0.1 < joined / len(before) < 0.4


def test_people_of_a_row_are_of_one_group_and_not_the_same():
    """Whatever the groups; a group of one has nobody else."""
    groups = np.array([0, 0, 0, 1, 1, 2])
    plan = place(Rules(RANDOM, 3, 3, least_height=20, most_height=20), groups=groups).plan
    there = plan["people"]["height"] > 0
    for row, seen in zip(plan, there, strict=True):
        own = row["people"]["foreground"][seen].tolist()
        assert own[0] == row["foreground"]
        assert row["people"]["flip"][0] == row["flip"]
        assert len(set(own)) == len(own)
        assert {groups[n] for n in own} == {groups[row["foreground"]]}
    counts = there.sum(axis=1)
    assert (counts[plan["foreground"] == 5] == 1).all()
    assert (counts[groups[plan["foreground"]] == 1] == 2).all()
    assert (counts[groups[plan["foreground"]] == 0] == 3).mean() > 0.95


def test_splits_of_a_corpus_are_kept(tmp_path: Path, room_pictures: Path):
    """Everybody in a row is of the split of the row's own foreground."""
    path = make_room_corpus(tmp_path / "c", room_pictures, replace(STANDING, place="random", people=3, positions=8))
    corpus = Corpus(path)
    splits = np.array([record["split"] for record in corpus.manifest["foregrounds"]])
    people = corpus.plan["people"]
    assert len(set(splits)) == 2
    same = splits[people["foreground"]] == splits[corpus.plan["foreground"]][:, None]
    assert same[people["height"] > 0].all()
    assert (people["height"][:, 1] > 0).any()


@pytest.mark.parametrize("least", [1, 2])
def test_the_number_of_people_is_spread_evenly(least: int):
    """In random mode, where there is room for all."""
    plan = place(Rules(RANDOM, least, 4, least_height=20, most_height=20), positions=40).plan
    counts = np.bincount((plan["people"]["height"] > 0).sum(axis=1), minlength=5)
    assert counts[:least].sum() == 0
    assert np.abs(counts[least:] / len(plan) - 1 / (5 - least)).max() < 0.05


def test_heights_of_people_at_random_places():
    """From least to most, spread evenly; everybody is within the picture; the first keeps the plan's place if fixed."""
    plan = place(Rules(RANDOM, 2, 2, least_height=20, most_height=60), positions=40).plan
    people = plan["people"]
    height = people["height"].astype(int)
    width = -(-height * np.array([c.shape[1] for c in CUTOUTS])[people["foreground"]] // 80)
    assert height.min() < 21 * UNIT
    assert height.max() > 59 * UNIT
    assert height.min() >= 20 * UNIT
    assert height.max() <= 60 * UNIT
    assert height.mean() == pytest.approx(40 * UNIT, rel=0.02)
    assert (people["top"] >= 0).all()
    assert (people["left"] >= 0).all()
    assert (people["top"] + height <= SIZE * UNIT).all()
    assert (people["left"] + width <= SIZE * UNIT).all()
    assert not people["distance"].any()
    fixed = place(Rules(RANDOM, 1, 2, least_height=30, most_height=30)).plan
    first = fixed["people"][:, 0]
    assert (first["height"] == 30 * UNIT).all()
    shapes = np.array([[30, max(1, 30 * cutout.shape[1] // cutout.shape[0])] for cutout in CUTOUTS])
    plain = make_plan(BACKGROUNDS, FOREGROUNDS, shapes, size=SIZE, positions=10, seed=0)
    for name in ("top", "left"):
        assert (first[name] == plain[name].astype(int) * UNIT).all()
        assert (fixed[name] == plain[name]).all()


def test_people_stand_on_the_floor_as_large_as_they_are():
    """Feet on the plane to 2 mm, at its depth; f H / Z pixels high to a thousandth; on pixels of the floor."""
    heights = [1.7, 1.5, 1.9, 1.2, 1.8, 1.6]
    rooms = KnownRooms((0.4, 0.7, 2.8))
    plan = place(Rules(FLOOR, 1, 2, min_visible=0.3), rooms=rooms, heights_m=heights, positions=30).plan
    for person in plan["people"].ravel():
        if not person["height"]:
            continue
        z = person["distance"] / 1000
        expected = FOCAL * heights[person["foreground"]] / z
        assert person["height"] / UNIT == pytest.approx(expected, abs=0.01 + expected * 0.0005 / z)
        shape = Silhouette.of(CUTOUTS[person["foreground"]])
        share = shape.foot / 65536
        width = person["height"] * shape.width / shape.height
        column = (person["left"] + width * (1 - share if person["flip"] else share)) / UNIT
        row = (int(person["top"]) + int(person["height"])) / UNIT
        assert rooms.mask[min(int(row), SIZE - 1), int(np.clip(column, 0, SIZE - 1))] or abs(column % 1 - 0.5) > 0.4
        point = z * np.array([(column - SIZE / 2) / FOCAL, (row - SIZE / 2) / FOCAL, 1])
        assert abs(point @ UP + CAMERA_M) < 0.002


def test_height_jitter_is_within_its_bounds():
    """And reaches them; the size follows."""
    plan = place(Rules(FLOOR, height_jitter=0.2, truncate=True, min_visible=0.0), rooms=KnownRooms(), positions=40).plan
    people = plan["people"][:, 0]
    ratio = people["height"] / UNIT * people["distance"] / 1000 / FOCAL / 1.7
    assert 0.799 < ratio.min() < 0.81
    assert 1.19 < ratio.max() < 1.201
    assert ratio.mean() == pytest.approx(1, abs=0.02)


def test_tilts_are_within_their_bounds():
    """Either way, spread evenly; none without."""
    tilts = place(Rules(RANDOM, tilt_deg=7.5, least_height=20, most_height=20), positions=40).plan["people"]["tilt"]
    assert tilts.min() < -720
    assert tilts.max() > 720
    assert np.abs(tilts.astype(int)).max() <= 750
    assert abs(tilts.mean()) < 30
    assert not place(Rules(RANDOM, least_height=20, most_height=20)).plan["people"]["tilt"].any()


def test_looks_are_drawn_evenly():
    """Of those that are mixed, for every person alone."""
    looks = place(Rules(RANDOM, 2, 2, blends=(0, 2), least_height=20, most_height=20), positions=40).plan["people"]
    assert set(np.unique(looks["look"])) == {0, 2}
    assert (looks["look"] == 2).mean() == pytest.approx(0.5, abs=0.05)
    assert 0.4 < (looks["look"][:, 0] == looks["look"][:, 1]).mean() < 0.6


def true_distances(count: int = 400_000) -> np.ndarray:
    """Depths of points drawn evenly over the floor in metres, of those that the camera sees."""
    rng = np.random.default_rng(0)
    across, ahead = rng.uniform(-5, 5, count), rng.uniform(0, 7, count)
    cos, sin = np.cos(np.radians(PITCH)), np.sin(np.radians(PITCH))
    z, y = ahead * cos + CAMERA_M * sin, CAMERA_M * cos - ahead * sin
    u, v = FOCAL * across / z, FOCAL * y / z
    return z[(np.abs(u) < SIZE / 2) & (np.abs(v) < SIZE / 2) & (ahead < 6)]


def test_feet_are_spread_over_the_floor_s_area():
    """Distances have the quantiles of points spread evenly in metres; by pixels people stand nearer, evenly in rows."""
    rules = Rules(FLOOR, truncate=True, min_visible=0.0, spread="area")
    rooms = KnownRooms()
    options: dict[str, Any] = {"rooms": rooms, "positions": 200, "heights_m": [1.2] * 6}
    by_area = place(rules, **options).plan["people"][:, 0]
    shares = [0.05, 0.25, 0.5, 0.75, 0.95]
    expected = np.quantile(true_distances(), shares)
    np.testing.assert_allclose(np.quantile(by_area["distance"] / 1000, shares), expected, rtol=0.02)
    by_pixels = place(replace(rules, spread="pixels"), **options).plan["people"][:, 0]
    rows = (by_pixels["top"].astype(int) + by_pixels["height"]) / UNIT
    expected_rows = np.quantile(np.nonzero(rooms.mask)[0] + 0.5, shares)
    np.testing.assert_allclose(np.quantile(rows, shares), expected_rows, atol=1)
    assert np.median(by_pixels["distance"]) < 0.8 * np.median(by_area["distance"])


def seen_shares(plan: np.ndarray, room: Room | None = None) -> np.ndarray:
    """The share of every person's solid pixels that is seen, (rows, slots), NaN without one."""
    figures = {(n, 0): Figure(cutout) for n, cutout in enumerate(CUTOUTS)}
    figures |= {(n, 1): Figure(np.ascontiguousarray(cutout[:, ::-1])) for n, cutout in enumerate(CUTOUTS)}
    rooms = dict.fromkeys(range(3), room or Room(np.zeros((SIZE, SIZE, 3), np.uint8)))
    instance = draw_scenes(plan, rooms, figures, SIZE, fields=("instance",))["instance"]
    shares = np.full(plan["people"].shape, np.nan)
    for (i, slot), person in np.ndenumerate(plan["people"]):
        if person["height"]:
            cutout = CUTOUTS[person["foreground"]]
            whole = (cutout[..., 3] >= 128).sum() * (person["height"] / UNIT / len(cutout)) ** 2
            shares[i, slot] = (instance[i] == slot + 1).sum() / whole
    return shares


@pytest.mark.parametrize("truncate", [False, True])
@pytest.mark.parametrize("wanted", [0.3, 0.6, 0.9])
def test_enough_is_seen_of_everybody(wanted: float, truncate: bool):
    """By drawing them: behind a box, before others, at the border; and hidden places are not avoided altogether."""
    rooms = KnownRooms((0.2, 0.75, 2.4))
    placed = place(Rules(FLOOR, 1, 3, min_visible=wanted, truncate=truncate), rooms=rooms)
    assert placed.little_visible == 0
    people = placed.plan["people"]
    shares = seen_shares(placed.plan, rooms.room(0, np.zeros((SIZE, SIZE, 3), np.uint8)))
    alone = ((people["height"] > 0).sum(axis=1) == 1)[:, None] & (people["height"] > 0)
    assert np.nanmin(shares[alone]) > wanted - 0.12
    assert np.nanquantile(shares[alone], 0.02) > wanted - 0.06
    assert np.nanmin(shares) > wanted / 2 - 0.12  # those who came later hide at most half of those before
    assert wanted == 0.9 or (shares[alone] < 0.97).any()


def test_people_are_within_the_picture_unless_truncated():
    """Heads and shoulders stay in; with truncation they may leave it, feet never."""
    rules = Rules(FLOOR, min_visible=0.3)
    widths = np.array([c.shape[1] for c in CUTOUTS])
    for truncate in (False, True):
        people = place(replace(rules, truncate=truncate), rooms=KnownRooms(), positions=40).plan["people"][:, 0]
        height, top, left = (people[name].astype(int) for name in ("height", "top", "left"))
        width = -(-height * widths[people["foreground"]] // 80)
        inside = (top >= 0) & (left >= 0) & (left + width <= SIZE * UNIT)
        assert inside.all() != truncate
        assert ((top + height > 0) & (top + height <= SIZE * UNIT)).all()


def test_what_cannot_be_placed_is_counted():
    """Giants fit nowhere: the best place is kept, and the rows are counted."""
    placed = place(Rules(FLOOR, min_visible=0.5), rooms=KnownRooms(), heights_m=[9.0] * 6, positions=2)
    assert placed.little_visible == len(placed.plan)


@pytest.mark.parametrize("people", [1, 2])
def test_rooms_without_floor_keep_random_places(people: int):
    """At no distance, where the plan has them; other rooms are as if they were alone."""
    rules = Rules(FLOOR, people, people, least_height=30, most_height=30)
    placed = place(rules, rooms=KnownRooms(lacking=(1,))).plan
    lacking = placed["background"] == 1
    assert not placed["people"]["distance"][lacking].any()
    assert (placed["people"]["distance"][~lacking][:, 0] > 0).all()
    at_random = place(replace(rules, place=RANDOM)).plan
    assert (placed["people"][lacking] == at_random["people"][lacking]).all()
    assert (placed[~lacking] == place(rules, rooms=KnownRooms()).plan[~lacking]).all()


def test_foreground_corner_of_a_row_is_within_the_picture():
    """`top` and `left` of a row are the first pixel of its own person, cut at the border."""
    plan = place(Rules(FLOOR, truncate=True, min_visible=0.2), rooms=KnownRooms(), positions=30).plan
    first = plan["people"][:, 0]
    for name in ("top", "left"):
        assert (plan[name] == np.clip(first[name] // UNIT, 0, SIZE - 1)).all()


def test_silhouettes_know_feet_and_shape():
    """The foot is the middle of what is lowest; points are spread over solid pixels alone."""
    rgba = np.zeros((100, 60, 4), np.uint8)
    rgba[:90, 5:55, 3] = 255
    rgba[90:100, 40:50, 3] = 255
    shape = Silhouette.of(rgba)
    assert (shape.height, shape.width) == (100, 60)
    assert shape.foot / 65536 * 60 == pytest.approx(45, abs=0.01)
    y, x = shape.points[:, 0] * 100 // 65536, shape.points[:, 1] * 60 // 65536
    assert (rgba[y, x, 3] == 255).all()
    assert len(shape.points) == 64
    assert shape.cells.mean() == pytest.approx((rgba[..., 3] > 0).mean(), abs=0.05)


def bundled_errors(tmp_path: Path, rooms: int, people: int, positions: int) -> tuple[np.ndarray, np.ndarray]:
    """How far feet are from the true floor in metres, and heights from the pinhole's, relatively; of bundled rooms."""
    parameters = Parameters(positions=positions, place="floor", people="1-2")
    limits = {"max_backgrounds": rooms, "max_foregrounds": people}
    composite(tmp_path / "c", parameters=parameters, pictures=False, jobs=2, **limits)
    corpus = Corpus(tmp_path / "c")
    with (asset("backgrounds").parent / "backgrounds.csv").open() as file:
        truth = {row["name"]: row for row in csv.DictReader(file)}
    records, heights = corpus.manifest["backgrounds"], corpus.manifest["foregrounds"]
    off, relative = [], []
    for row in corpus.plan:
        about = truth[records[row["background"]]["name"]]
        focal, pitch = focal_px(float(about["fov_deg"]), 224), np.radians(-float(about["pitch_deg"]))
        for person in row["people"]:
            if not person["distance"]:
                continue
            z = person["distance"] / 1000
            line = (int(person["top"]) + int(person["height"])) / UNIT
            down = z * ((line - 112) / focal * np.cos(pitch) + np.sin(pitch))
            off.append(abs(down - float(about["cam_height_m"])))
            pinhole = focal * heights[person["foreground"]]["height_m"] / z
            relative.append(abs(person["height"] / UNIT - pinhole) / pinhole)
    return np.array(off), np.array(relative)


def test_people_stand_in_bundled_rooms(tmp_path: Path):
    """Feet within 3 cm of the true floor, heights within 1 % of f H / Z, at all of the places drawn."""
    off, relative = bundled_errors(tmp_path, rooms=4, people=4, positions=3)
    assert len(off) > 90
    assert off.max() < 0.03
    assert relative.max() < 0.01


@pytest.mark.slow
def test_people_stand_in_all_bundled_rooms(tmp_path: Path):
    """95 of 100 feet within 3 cm of the true floor, all heights within 1 % of f H / Z."""
    off, relative = bundled_errors(tmp_path, rooms=100, people=5, positions=2)
    assert (off < 0.03).mean() > 0.95
    assert relative.max() < 0.01


def test_a_person_is_drawn_as_high_as_the_pinhole_says(tmp_path: Path):
    """By the mask of a cut-out that is solid to its edges, in an empty room: f H / Z pixels to a pixel."""
    folder = tmp_path / "pictures"
    for kind in ("backgrounds", "foregrounds", "depths"):
        (folder / kind).mkdir(parents=True)
    solid = np.full((102, 34, 4), 255, np.uint8)
    solid[0] = solid[-1] = solid[:, 0] = solid[:, -1] = 0
    for name, grey in (("one", 255), ("two", 90), ("three", 30)):
        solid[..., :3] = grey
        Image.fromarray(solid).save(folder / "foregrounds" / f"{name}.png")
    Image.fromarray(np.zeros((96, 96, 3), np.uint8)).save(folder / "backgrounds/room.png")
    np.save(folder / "depths/room.npy", draw_room_depth(96, 96, pitch_deg=0))
    parameters = replace(STANDING, people=1, positions=6, size=96, split_by="foreground")
    path = make_room_corpus(tmp_path / "c", folder, parameters)
    corpus = Corpus(path)
    _, masks = corpus.render(corpus.plan)
    for row, mask in zip(corpus.plan, masks, strict=True):
        seen = np.flatnonzero(mask.any(axis=1))
        expected = focal_px(60, 96) * 1.7 / (row["people"][0]["distance"] / 1000)
        assert abs(len(seen) - expected) <= 1
