"""Drawing rows with people: equal to a slow renderer to the bit, hidden by what is nearer, in front of what is not."""

from itertools import pairwise

import numpy as np
import pytest
from support.slow_drawing import slow_div255, slow_scene, slow_visible, some_cutout

from dsgen.corpus import looks
from dsgen.corpus.colour_matching import ColourStatistics, match_colours
from dsgen.corpus.figures import UNIT, Figure
from dsgen.corpus.plan import plan_dtype
from dsgen.corpus.scene import PLAIN, Looks, Room, draw_scenes, drawing_order

SIZE = 32
FIELDS = ("image", "mask", "instance", "depth")


def some_room(rng: np.random.Generator, side: int, permille: int = 20) -> Room:
    """Noise with blocks of depth, some unknown, and a floor below."""
    image = rng.integers(0, 256, (side, side, 3), np.uint8)
    depth = np.kron(rng.integers(500, 6000, (8, 8)), np.ones((side // 8, side // 8), int)).astype(np.uint16)
    depth[rng.random((side, side)) < 0.1] = 0
    floor = np.where(rng.random((side, side)) < 0.2, 255, 0).astype(np.uint8)
    floor[-side // 3 :] = 255
    return Room.of(image, depth, floor, permille, 1400, int(rng.integers(-600_000, 200_000)))


def some_rows(rng: np.random.Generator, count: int, slots: int = 3, look: int = 0) -> np.ndarray:
    """Rows with people anywhere, partly outside, between pixels, some turned, some at no distance, some absent."""
    rows = np.zeros(count, plan_dtype(slots))
    people = rows["people"]
    shape = people.shape
    people["foreground"], people["flip"] = rng.integers(0, 2, shape), rng.integers(0, 2, shape)
    people["height"] = rng.integers(3 * UNIT, 40 * UNIT, shape)
    people["top"], people["left"] = rng.integers(-10 * UNIT, 28 * UNIT, (2, *shape))
    people["distance"] = rng.integers(600, 6000, shape) * (rng.random(shape) < 0.8)
    people["tilt"] = rng.integers(-3000, 3001, shape) * (rng.random(shape) < 0.3)
    people["look"] = look
    people["height"][:, 1:][rng.random((count, slots - 1)) < 0.2] = 0
    return rows


def some_figures() -> tuple[dict, dict]:
    """Two cut-outs and their mirror images: straight RGBA, and prepared."""
    cutouts = {}
    for number, shape in enumerate(((24, 15), (11, 19))):
        rgba = some_cutout(number, *shape)
        cutouts[number, 0], cutouts[number, 1] = rgba, np.ascontiguousarray(rgba[:, ::-1])
    return cutouts, {key: Figure(rgba) for key, rgba in cutouts.items()}


@pytest.mark.parametrize(("seed", "scale"), [(0, 1), (1, 1), (2, 1), (3, 2), (4, 1)])
def test_scenes_equal_a_slow_renderer(seed, scale):
    """To the bit: images, masks, instances and depth of 0 to 3 people at once."""
    rng = np.random.default_rng(seed)
    room = some_room(rng, SIZE * scale, 20 if seed % 2 else 100)
    rows = some_rows(rng, 4 // scale)
    cutouts, figures = some_figures()
    depths = rng.integers(1, 9000, (len(rows), 3)).astype(np.uint16) if seed % 2 else None
    drawn = draw_scenes(rows, {0: room}, figures, SIZE, scale, fields=FIELDS, depths=depths)
    for i, row in enumerate(rows):
        expected = slow_scene(row, room, cutouts, SIZE, scale, None if depths is None else depths[i])
        for name in FIELDS:
            np.testing.assert_array_equal(drawn[name][i], expected[name], err_msg=name)


def test_a_room_of_which_nothing_is_known_hides_nobody():
    """Without depth, people are drawn whole at any distance, and depth is 0 but for theirs."""
    rng = np.random.default_rng(5)
    cutouts, figures = some_figures()
    room = Room(rng.integers(0, 256, (SIZE, SIZE, 3), np.uint8))
    rows = some_rows(rng, 2)
    drawn = draw_scenes(rows, {0: room}, figures, SIZE, fields=FIELDS)
    for i, row in enumerate(rows):
        expected = slow_scene(row, room, cutouts, SIZE)
        assert all((drawn[name][i] == expected[name]).all() for name in FIELDS)


def slow_person_with_looks(image, room, figure, person, scale, look):
    """Draw a person with looks into an image (S,S,3); return what is seen of alpha before any look, (S,S)."""
    _, _, blend, height, top, left, distance, tilt = person.tolist()
    side, pad = len(image), 8
    window = figure.window(height, top, left, tilt, SIZE, scale)
    if window.empty:
        return np.zeros((side, side), int)
    wide = window.padded(pad)
    rgba = figure.draw(wide, height, top, left, tilt, scale)
    colour, alpha = rgba[..., :3], rgba[..., 3]
    visible = slow_visible(room, distance, (top + height) * scale)
    seen = np.zeros((side, side), int)
    inner = np.s_[pad:-pad, pad:-pad]
    for (i, j), a in np.ndenumerate(alpha[inner]):
        y, x = window.top + i, window.left + j
        seen[y, x] = slow_div255(int(a) * int(visible[y, x]))
    if look.colours:
        near = window.padded(16 * scale).within(side)
        around = room.image[near.slices][::2, ::2]
        target = ColourStatistics.of(around, np.full(around.shape[:2], 255, np.uint8))
        colour = match_colours(colour, alpha, target, figure.colours, look.colours)
    if look.feather:
        colour, alpha = looks.feather(colour, alpha, look.feather)
    if blend == looks.GAUSSIAN:
        colour, alpha = (part[1:-1, 1:-1] for part in looks.gaussian_blend(colour, alpha))
    shown = np.dstack([colour, alpha])[inner].copy()
    for i, j in np.ndindex(shown.shape[:2]):
        v = int(visible[window.top + i, window.left + j])
        shown[i, j] = [slow_div255(int(value) * v) for value in shown[i, j]]
    below = image[window.slices]
    colour, alpha = np.ascontiguousarray(shown[..., :3]), np.ascontiguousarray(shown[..., 3])
    if blend == looks.POISSON:
        below[...] = looks.poisson_blend(below.copy(), colour, alpha)
    else:
        below[...] = looks.premultiplied_over(below.copy(), colour, alpha)
    return seen


def slow_looks(row, room, figures, scale, look):
    """Draw a row with looks: all shadows first, then people from the farthest on."""
    side = SIZE * scale
    image, mask, instance, depth = room.image.copy(), *np.zeros((2, side, side), int), room.depth.astype(int)
    slots = [slot for slot, person in enumerate(row["people"]) if person["height"] > 0]
    slots.sort(key=lambda slot: (int(row["people"][slot]["distance"]) or -1, slot), reverse=True)
    for slot in slots if look.shadow else ():
        person = row["people"][slot]
        figure = figures[int(person["foreground"]), int(person["flip"])]
        _, _, _, height, top, left, distance, _ = person.tolist()
        for contact in figure.contacts if distance else ():
            flatness = min(1024, 1024 * room.camera_mm // distance)
            ellipse = contact.ellipse(figure.height, top * scale, left * scale, height * scale, flatness)
            image = looks.contact_shadow(image, room.floor, ellipse, look.shadow)
    for slot in slots:
        person = row["people"][slot]
        figure = figures[int(person["foreground"]), int(person["flip"])]
        solid = slow_person_with_looks(image, room, figure, person, scale, look) >= 128
        mask[solid], instance[solid], depth[solid] = 255, slot + 1, person["distance"]
    return {"image": image, "mask": mask, "instance": instance, "depth": depth}


@pytest.mark.parametrize("scale", [1, 2])
@pytest.mark.parametrize("blend", range(3), ids=looks.BLENDS)
@pytest.mark.parametrize(
    "look", [Looks(), Looks(shadow=150), Looks(feather=2), Looks(colours=100), Looks(255, 255, 3)], ids=str
)
def test_scenes_with_looks_equal_a_slow_renderer(blend, look, scale):
    """To the bit, with every look alone and together, beyond borders too."""
    rng = np.random.default_rng(blend)
    room = some_room(rng, SIZE * scale)
    rows = some_rows(rng, 2, look=blend)
    _, figures = some_figures()
    drawn = draw_scenes(rows, {0: room}, figures, SIZE, scale, fields=FIELDS, looks=look)
    for i, row in enumerate(rows):
        expected = slow_looks(row, room, figures, scale, look)
        for name in FIELDS:
            np.testing.assert_array_equal(drawn[name][i], expected[name], err_msg=name)


def test_looks_do_not_change_masks():
    """Masks, instances and depth are those of people without looks."""
    rng = np.random.default_rng(11)
    room, rows = some_room(rng, SIZE), some_rows(rng, 6)
    _, figures = some_figures()
    plain = draw_scenes(rows, {0: room}, figures, SIZE, fields=FIELDS, looks=PLAIN)
    for blend in range(3):
        rows["people"]["look"] = blend
        drawn = draw_scenes(rows, {0: room}, figures, SIZE, fields=FIELDS, looks=Looks(200, 200, 3))
        assert (drawn["image"] != plain["image"]).any()
        assert all((drawn[name] == plain[name]).all() for name in FIELDS[1:])


def block(height: int, width: int) -> np.ndarray:
    """An opaque white cut-out."""
    return np.full((height, width, 4), 255, np.uint8)


def one_person(distance: int, *others: tuple[int, int, int], left: int = 8) -> np.ndarray:
    """A row whose first person is 20x10 pixels at (6, left); `others` are distance, top and left."""
    row = np.zeros(1, plan_dtype(1 + len(others)))
    people = row["people"][0]
    people["height"] = 20 * UNIT
    for person, (far, top, column) in zip(people, [(distance, 6, left), *others], strict=True):
        person["distance"], person["top"], person["left"] = far, top * UNIT, column * UNIT
    return row


def box_room(box: np.ndarray, box_mm: int, floor: np.ndarray | None = None, permille: int = 20) -> Room:
    """A black wall 5 m away with a nearer box (S,S) bool before it."""
    depth = np.where(box, box_mm, 5000).astype(np.uint16)
    floor = np.zeros((SIZE, SIZE), np.uint8) if floor is None else floor
    return Room.of(np.zeros((SIZE, SIZE, 3), np.uint8), depth, floor, permille, 1500)


def test_a_box_hides_the_person_behind_it():
    """The mask is the person without the box, to the pixel; depth is the box's there; the edge is soft in colour."""
    box = np.zeros((SIZE, SIZE), bool)
    box[16:, 12:] = True
    figures = {(0, 0): Figure(block(20, 10))}
    drawn = draw_scenes(one_person(3000), {0: box_room(box, 2000)}, figures, SIZE, fields=FIELDS)
    person = np.zeros((SIZE, SIZE), bool)
    person[6:26, 8:18] = True
    seen = person & ~box
    seen[16, 12] = True  # the corner itself: five of the nine pixels around it are in view
    assert ((drawn["mask"][0] == 255) == seen).all()
    assert ((drawn["instance"][0] == 1) == seen).all()
    assert (drawn["depth"][0] == np.where(seen, 3000, np.where(box, 2000, 5000))).all()
    column = drawn["image"][0, :, 15, 0].tolist()
    assert column[14:18] == [255, 170, 85, 0]  # (255 n + 4) / 9 with 9, 6, 3 and 0 pixels in view
    assert drawn["image"][0, 20, 8:16, 0].tolist() == [255, 255, 255, 170, 85, 0, 0, 0]


@pytest.mark.parametrize(
    ("box_mm", "permille", "hidden"),
    [(2910, 20, False), (2909, 20, True), (2670, 100, False), (2669, 100, True), (3001, 20, False), (0, 20, False)],
)
def test_what_is_within_the_margin_or_unknown_hides_nothing(box_mm, permille, hidden):
    """At 3 m the margins are 3 cm and 20 or 100 permille."""
    room = box_room(np.ones((SIZE, SIZE), bool), box_mm, permille=permille)
    drawn = draw_scenes(one_person(3000), {0: room}, {(0, 0): Figure(block(20, 10))}, SIZE)
    assert drawn["mask"].any() != hidden


def test_the_floor_never_hides_shoes():
    """Where the floor is seen a person is drawn though it is nearer than their feet, and no pixel is lost beside it."""
    floor = np.zeros((SIZE, SIZE), np.uint8)
    floor[14:] = 255
    room = box_room(floor > 0, 1000, floor)
    drawn = draw_scenes(one_person(3000), {0: room}, {(0, 0): Figure(block(20, 10))}, SIZE, fields=FIELDS)
    assert (drawn["mask"][0, 6:26, 8:18] == 255).all()
    assert (drawn["image"][0, 6:26, 8:18] == 255).all()


def test_nearer_people_are_in_front():
    """Whatever their slots; the farther ones are hidden where they overlap."""
    figures = {(0, 0): Figure(block(20, 10))}
    room = box_room(np.zeros((SIZE, SIZE), bool), 0)
    row = one_person(3000, (2000, 8, 12), (4000, 4, 4))
    instance = draw_scenes(row, {0: room}, figures, SIZE, fields=("instance",))["instance"][0]
    expected = np.zeros((SIZE, SIZE), int)
    expected[4:24, 4:14] = 3
    expected[6:26, 8:18] = 1
    expected[8:28, 12:22] = 2
    assert (instance == expected).all()


def test_people_at_no_distance_are_in_front_of_all():
    """In the order of their slots, the first in front; the room does not hide them."""
    figures = {(0, 0): Figure(block(20, 10))}
    room = box_room(np.ones((SIZE, SIZE), bool), 300)
    row = one_person(0, (0, 8, 12), (320, 4, 4))
    drawn = draw_scenes(row, {0: room}, figures, SIZE, fields=("instance", "depth"), depths=np.array([[7, 8, 9]], "u2"))
    expected = np.zeros((SIZE, SIZE), int)
    expected[4:24, 4:14] = 3
    expected[8:28, 12:22] = 2
    expected[6:26, 8:18] = 1
    assert (drawn["instance"][0] == expected).all()
    assert (drawn["depth"][0] == np.array([300, 7, 8, 9])[expected]).all()


def test_drawing_order_is_from_the_farthest_to_the_nearest():
    """By any distances; empty slots are left out; equal distances keep the first in front."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        row = np.zeros(1, plan_dtype(6))
        row["people"]["height"] = rng.integers(0, 3, 6)
        row["people"]["distance"] = rng.integers(0, 4, 6)
        slots = row["people"][0].tolist()
        order = drawing_order(slots)
        assert sorted(slot for slot, _ in order) == [i for i, person in enumerate(slots) if person[3]]
        for (one, a), (other, b) in pairwise(order):
            far, near = a[6], b[6]
            assert (near == 0 and far > 0) or far > near > 0 or (far == near and other < one)


def test_scenes_are_drawn_into_the_memory_given():
    """The arrays are used, not copies; what was in them does not matter."""
    rng = np.random.default_rng(8)
    room, rows = some_room(rng, SIZE), some_rows(rng, 3)
    _, figures = some_figures()
    expected = draw_scenes(rows, {0: room}, figures, SIZE, fields=FIELDS)
    out = {name: np.full_like(values, 77) for name, values in expected.items()}
    drawn = draw_scenes(rows, {0: room}, figures, SIZE, fields=FIELDS, out=out)
    for name in FIELDS:
        assert drawn[name] is out[name]
        assert (out[name] == expected[name]).all()
    part = draw_scenes(rows, {0: room}, figures, SIZE, fields=("instance",), out={"instance": out["instance"]})
    assert list(part) == ["instance"]
    assert (part["instance"] == expected["instance"]).all()


def test_a_person_outside_the_picture_changes_nothing():
    """Beyond any border."""
    rng = np.random.default_rng(9)
    room = some_room(rng, SIZE)
    _, figures = some_figures()
    for top, left in ((-60, 0), (60, 0), (0, -60), (0, 60)):
        row = one_person(2000)
        row["people"]["top"], row["people"]["left"] = top * UNIT, left * UNIT
        for look in range(3):
            row["people"]["look"] = look
            drawn = draw_scenes(row, {0: room}, figures, SIZE, fields=FIELDS, looks=Looks(255, 255, 3))
            assert not drawn["mask"].any()
            assert (drawn["depth"][0] == room.depth).all()
            assert (drawn["image"][0] == room.image).all()
