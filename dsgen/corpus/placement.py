"""Place people: the column `people` of a plan, with slots for the people of every row.

    foreground, flip   which cut-out, mirrored or not
    look               how it is blended in, an index into `dsgen.corpus.looks.BLENDS`
    height, top, left  how high the whole cut-out is drawn and where its upper left corner lies, in 1/64 pixel of the
                       stored size; an empty slot has height 0
    distance           of their feet along the optical axis, in millimetres; 0 = not known
    tilt               clockwise turn about the middle of the lower edge, in 1/100 degree

Slot 0 has the row's own foreground. On a floor with normal n and the camera h metres above it, a foot is drawn on a
pixel of the floor, with a probability proportional to the square metres that the pixel shows,
Z^2 / (f^2 (-n . r)), or the same for all pixels; r is the pixel's ray with z = 1. There the floor is
Z = h / (-n . r) away, and a person of H metres is f H / Z pixels high. What shows less than the least visible share,
or sticks out of the picture, is drawn again, up to `DRAWS` times; then the draw that shows most is kept. If none shows
any of the row's own foreground, it may stick out of the picture, and if that is of no use either, it has the random
place of its row; so no row is without it.

The draws of a row depend only on the seed, on the names of its background and foreground, and on what is known of the
room. The others of a row come from the foregrounds of the same split: a ring of hashes of their names, so that another
picture takes its share of the rows and changes no other.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from dsgen.corpus.figures import UNIT
from dsgen.corpus.floor import Floor
from dsgen.corpus.plan import PERSON, key_of, plan_dtype, scramble
from dsgen.corpus.scene import Room

RANDOM, FLOOR = "random", "floor"
PLACES = (RANDOM, FLOOR)
SPREADS = ("area", "pixels")
DRAWS = 64  # of a place, before the best one is taken
LEAST_PIXELS = 12  # of a person's height at the stored size
_GRID = 32  # cells of a silhouette along both sides
_POINTS = 64  # of a silhouette, at which it is looked up what hides it
_RING_POINTS = 32  # of every foreground
_PLACE_UNITS = 2**16  # of weights of pixels to the heaviest one


@dataclass(frozen=True)
class Rules:
    """How people are placed; see `dsgen.corpus.build.Parameters`, whose fields these are."""

    place: str = RANDOM
    least_people: int = 1
    most_people: int = 1
    spread: str = "area"
    min_visible: float = 0.5
    truncate: bool = False
    least_height: int = 110
    most_height: int = 110
    tilt_deg: float = 0.0
    height_jitter: float = 0.0
    blends: tuple[int, ...] = (0,)


@dataclass(frozen=True)
class Silhouette:
    """The shape of a cut-out: what placing people needs to know of it.

    `height` and `width` in pixels; `foot` the column of the middle of its feet, in 1/65536 of the width; `points` (n,2)
    u2 y and x of points of its solid pixels, in 1/65536 of height and width; `cells` (32,32) bool where it is solid.
    """

    height: int
    width: int
    foot: int
    points: np.ndarray
    cells: np.ndarray

    @classmethod
    def of(cls, rgba: np.ndarray) -> "Silhouette":
        """Take the shape of an (h,w,4) u1 cut-out, trimmed."""
        solid = rgba[..., 3] >= 128
        height, width = solid.shape
        y, x = np.nonzero(solid)
        lowest = int(y.max())
        feet = x[y >= lowest - height // 20]
        foot = (2 * (int(feet.min()) + int(feet.max()) + 1)) * 65536 // (4 * width)
        chosen = (2 * np.arange(_POINTS) + 1) * len(y) // (2 * _POINTS)
        points = np.stack([(2 * y[chosen] + 1) * 65536 // (2 * height), (2 * x[chosen] + 1) * 65536 // (2 * width)], 1)
        rows, columns = ((2 * np.arange(_GRID) + 1) * side // (2 * _GRID) for side in (height, width))
        return cls(height, width, foot, points, solid[rows[:, None], columns])


class RoomsToPlan(Protocol):
    """What is known of the rooms; see `dsgen.corpus.rooms.Rooms`."""

    def floor(self, number: int, size: int) -> Floor | None:
        """Return the floor of a background at a stored size, None where none was found."""

    def focal_px(self, number: int, size: int) -> float:
        """Return the focal length of a background in pixels of a square of `size`."""

    def room(self, number: int, image: np.ndarray) -> Room:
        """Return a background (S,S,3) u1 as a room that people are drawn into."""


@dataclass(frozen=True)
class PlacedPlan:
    """A plan with the column `people`; how many rows show less of their foreground than wanted, or too few people."""

    plan: np.ndarray
    little_visible: int
    too_few: int


def place_people(
    plan: np.ndarray,
    backgrounds: Sequence[str],
    foregrounds: Sequence[str],
    silhouettes: Sequence[Silhouette],
    heights_m: Sequence[float],
    groups: np.ndarray,
    rooms: RoomsToPlan | None,
    rules: Rules,
    size: int,
    seed: int,
) -> PlacedPlan:
    """Add the column `people` to a plan of random places; raise nothing, but count what shows too little.

    `backgrounds` and `foregrounds` are names, `silhouettes` and `heights_m` those of the foregrounds, and `groups`
    (foregrounds,) their splits, which the people of a row have in common. Backgrounds without floor keep the random
    place of their row.
    """
    placed = np.zeros(len(plan), plan_dtype(rules.most_people))
    for name in plan.dtype.names or ():
        placed[name] = plan[name]
    shapes = _Shapes(silhouettes, heights_m)
    crowd = _Crowd(foregrounds, groups, seed)
    little = 0
    edges = np.flatnonzero(np.diff(plan["background"], prepend=-1, append=-1))
    for start, stop in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        rows = placed[start:stop]
        number = int(rows["background"][0])
        keys = _row_keys(rows, backgrounds[number], foregrounds, seed)
        ground = None
        if rooms is not None and rules.place == FLOOR:
            floor = rooms.floor(number, size)
            if floor is not None:
                room = rooms.room(number, np.empty((size, size, 3), np.uint8))
                ground = _Ground.of(floor, room, rooms.focal_px(number, size), rules.spread)
        little += _place_rows(rows, keys, shapes, crowd, ground, rules, size)
    too_few = int(((placed["people"]["height"] > 0).sum(axis=1) < rules.least_people).sum())
    return PlacedPlan(placed, little, too_few)


def _row_keys(rows: np.ndarray, background: str, foregrounds: Sequence[str], seed: int) -> np.ndarray:
    """Return a key for every row (n,) u8, of which all its draws are made."""
    pairs = np.stack([rows["foreground"], rows["flip"]], axis=1)
    found, which = np.unique(pairs, axis=0, return_inverse=True)
    keys = np.array([key_of("people", seed, background, foregrounds[f], m) for f, m in found.tolist()], np.uint64)
    return scramble(keys[which.ravel()] + rows["position"].astype(np.uint64) + np.uint64(1))


def _draw(keys: np.ndarray, purpose: int) -> np.ndarray:
    """Return a number of 32 random bits (n,) i8 for every key and a purpose."""
    with np.errstate(over="ignore"):
        return (scramble(keys + np.uint64(0x9E37_79B9) * np.uint64(purpose)) >> np.uint64(32)).astype(np.int64)


def _below(bits: np.ndarray, bound: np.ndarray | int) -> np.ndarray:
    """Turn 32 random bits into a number from 0 to below a bound of at most 2^31."""
    return bits * bound >> 32


class _Shapes:
    """The silhouettes and heights of all foregrounds, as arrays."""

    def __init__(self, silhouettes: Sequence[Silhouette], heights_m: Sequence[float]):
        self.height = np.array([each.height for each in silhouettes], np.int64)
        self.width = np.array([each.width for each in silhouettes], np.int64)
        self.foot = np.array([each.foot for each in silhouettes], np.int64)
        self.points = np.stack([each.points for each in silhouettes]).astype(np.int64)
        self.cells = np.stack([each.cells for each in silhouettes])
        self.height_m = np.array(heights_m, np.float64)

    def drawn_width(self, foreground: np.ndarray, height: np.ndarray) -> np.ndarray:
        """Return the widths in 1/64 pixel of cut-outs drawn with these heights, rounded up."""
        return -(-height * self.width[foreground] // self.height[foreground])


class _Crowd:
    """Who else is in a row: a foreground of the same group, by a ring of hashes of names."""

    def __init__(self, foregrounds: Sequence[str], groups: np.ndarray, seed: int):
        names = np.array([key_of("crowd", seed, name) for name in foregrounds], np.uint64)
        with np.errstate(over="ignore"):
            hashes = scramble(names[:, None] + np.arange(1, _RING_POINTS + 1, dtype=np.uint64))
        self._rings = {}
        for group in np.unique(groups).tolist():
            members = np.flatnonzero(groups == group)
            owners = np.repeat(members, _RING_POINTS)
            order = np.argsort(hashes[members].ravel(), kind="stable")
            self._rings[group] = hashes[members].ravel()[order], owners[order]
        self._groups = groups

    def draw(self, of: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """Draw a foreground (n,) of the group of each foreground `of`."""
        found = np.empty(len(of), np.int64)
        for group, (points, owners) in self._rings.items():
            ours = self._groups[of] == group
            found[ours] = owners[np.searchsorted(points, scramble(keys[ours])) % len(owners)]
        return found


@dataclass(frozen=True)
class _Ground:
    """The floor of a background: its pixels, with the running sum of their weights, its plane and what hides people."""

    pixels: np.ndarray  # (n,2) row and column
    sums: np.ndarray  # (n,) i8
    normal: np.ndarray
    height_m: float
    focal_px: float
    room: Room

    @classmethod
    def of(cls, floor: Floor, room: Room, focal_px: float, spread: str) -> "_Ground | None":
        pixels = np.argwhere(floor.mask)
        if not len(pixels):
            return None
        weights = np.ones(len(pixels), np.int64)
        if spread == "area":
            areas = floor.areas_m2(focal_px)[floor.mask]
            weights = np.maximum(1, np.rint(areas / areas.max() * _PLACE_UNITS)).astype(np.int64)
        return cls(pixels, np.cumsum(weights), floor.normal, floor.height_m, focal_px, room)

    def draw_feet(self, bits: np.ndarray, fine: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Draw points on the floor: rows and columns in 1/64 pixel, and the floor's depth there in metres."""
        total = int(self.sums[-1])
        chosen = np.searchsorted(self.sums, bits * total >> 32, side="right")
        y = self.pixels[chosen, 0] * UNIT + (fine & 63)
        x = self.pixels[chosen, 1] * UNIT + (fine >> 6 & 63)
        side = self.room.image.shape[0]
        ray_x, ray_y = ((each / UNIT - side / 2) / self.focal_px for each in (x, y))
        downwards = -(ray_x * self.normal[0] + ray_y * self.normal[1] + self.normal[2])
        with np.errstate(divide="ignore"):
            depth_m = np.where(downwards > 0, self.height_m / np.maximum(downwards, 1e-9), np.inf)
        return y, x, depth_m


def _place_rows(
    rows: np.ndarray,
    keys: np.ndarray,
    shapes: _Shapes,
    crowd: _Crowd,
    ground: _Ground | None,
    rules: Rules,
    size: int,
) -> int:
    """Place the people of the rows of a background; return how many rows show too little of their own foreground."""
    people = rows["people"]
    count = rules.least_people + _below(_draw(keys, 1), rules.most_people - rules.least_people + 1)
    little = 0
    for slot in range(rules.most_people):
        base = 16 + slot * 4096  # of the numbers of the draws of this slot
        here = np.flatnonzero(count > slot)
        foreground, flip = rows["foreground"][here].astype(np.int64), rows["flip"][here].astype(np.int64)
        if slot:
            foreground, fresh = _others(people[here, :slot], foreground, crowd, keys[here], base)
            flip = _draw(keys[here], base + 8) & 1
            here, foreground, flip = here[fresh], foreground[fresh], flip[fresh]
        if not len(here):
            continue
        slots = np.zeros(len(here), PERSON)
        slots["foreground"], slots["flip"] = foreground, flip
        blends = np.array(rules.blends, np.uint8)
        slots["look"] = blends[_below(_draw(keys[here], base + 1), len(blends))]
        if rules.tilt_deg:
            most = round(rules.tilt_deg * 100)
            slots["tilt"] = _below(_draw(keys[here], base + 2), 2 * most + 1) - most
        if ground is None:
            first = rows[here] if slot == 0 else None
            enough = _place_anywhere(slots, first, keys[here], base, shapes, rules, size)
        else:
            enough = _place_on_floor(slots, people[here, :slot], keys[here], base, shapes, ground, rules, size)
        if slot == 0:
            little += int((~enough).sum())
            _place_the_rest(slots, rows[here], keys[here], base, shapes, ground, rules, size)
        else:  # a row has fewer people rather than one that is not to be seen
            slots["height"][~enough] = 0
        people[here, slot] = slots
    _note_corner(rows, size)
    return little


def _place_the_rest(
    slots: np.ndarray,
    rows: np.ndarray,
    keys: np.ndarray,
    base: int,
    shapes: _Shapes,
    ground: _Ground | None,
    rules: Rules,
    size: int,
) -> None:
    """Place those of whom nothing would be in view: on the floor but cut off by the border, else at a random place."""
    if ground is not None and not rules.truncate:
        nowhere = np.flatnonzero(slots["height"] == 0)
        some = slots[nowhere]
        _place_on_floor(
            some, some[:, None][:, :0], keys[nowhere], base, shapes, ground, replace(rules, truncate=True), size
        )
        slots[nowhere] = some
    nowhere = np.flatnonzero(slots["height"] == 0)
    some = slots[nowhere]
    _place_anywhere(some, rows[nowhere], keys[nowhere], base, shapes, rules, size)
    slots[nowhere] = some


def _others(
    earlier: np.ndarray, of: np.ndarray, crowd: _Crowd, keys: np.ndarray, base: int
) -> tuple[np.ndarray, np.ndarray]:
    """Draw further foregrounds (n,), each unlike those of the slots before; say for which rows that was possible."""
    found = np.zeros(len(of), np.int64)
    fresh = np.zeros(len(of), bool)
    for attempt in range(8):
        todo = ~fresh
        if not todo.any():
            break
        found[todo] = crowd.draw(of[todo], _draw(keys[todo], base + 16 + attempt).astype(np.uint64))
        there = (earlier["foreground"] == found[:, None]) & (earlier["height"] > 0)
        fresh = ~there.any(axis=1)
    return found, fresh


def _place_anywhere(
    slots: np.ndarray,
    rows: np.ndarray | None,
    keys: np.ndarray,
    base: int,
    shapes: _Shapes,
    rules: Rules,
    size: int,
) -> np.ndarray:
    """Place people at random, at no distance; the first of a row where the plan has it if it has the usual height."""
    foreground = slots["foreground"].astype(np.int64)
    heights = rules.least_height * UNIT + _below(
        _draw(keys, base + 3), (rules.most_height - rules.least_height) * UNIT + 1
    )
    widest = size * UNIT
    too_wide = shapes.drawn_width(foreground, heights) > widest
    heights[too_wide] = (widest * shapes.height[foreground] // shapes.width[foreground])[too_wide]
    slots["height"] = np.maximum(heights, UNIT)
    widths = shapes.drawn_width(foreground, slots["height"].astype(np.int64))
    if rows is not None and rules.least_height == rules.most_height and not rules.tilt_deg:
        slots["top"], slots["left"] = rows["top"].astype(np.int64) * UNIT, rows["left"].astype(np.int64) * UNIT
    else:
        for name, extent, purpose in (("top", slots["height"].astype(np.int64), 4), ("left", widths, 5)):
            most = np.maximum(0, size * UNIT - extent) // UNIT
            slots[name] = _below(_draw(keys, base + purpose), most + 1) * UNIT
    return np.ones(len(slots), bool)


def _place_on_floor(
    slots: np.ndarray,
    earlier: np.ndarray,
    keys: np.ndarray,
    base: int,
    shapes: _Shapes,
    ground: _Ground,
    rules: Rules,
    size: int,
) -> np.ndarray:
    """Place people on the floor; say which show enough, neither hidden by the room nor, nor hiding, those before."""
    foreground = slots["foreground"].astype(np.int64)
    height_m = shapes.height_m[foreground]
    if rules.height_jitter:
        share = (_draw(keys, base + 6) / 2**31 - 1) * rules.height_jitter
        height_m = height_m * (1 + share)
    best = np.full(len(slots), -1, np.int64)
    wanted = max(1, -(-round(rules.min_visible * 1000) * _POINTS // 1000))
    left = np.arange(len(slots))
    for attempt in range(DRAWS):
        bits, fine = (_draw(keys[left], base + 64 + 2 * attempt + k) for k in (0, 1))
        y, x, depth_m = ground.draw_feet(bits, fine)
        near = np.isfinite(depth_m) & (depth_m < 65)
        depth_m = np.where(near, depth_m, 1.0)
        tried = slots[left]
        height = np.rint(ground.focal_px * height_m[left] / depth_m * UNIT).astype(np.int64)
        width = shapes.drawn_width(foreground[left], height)
        foot = shapes.foot[foreground[left]]
        foot = np.where(tried["flip"] > 0, 65536 - foot, foot)
        tried["height"], tried["top"], tried["left"] = height, y - height, x - (foot * width >> 16)
        tried["distance"] = np.rint(depth_m * 1000)
        usable = near & (height >= LEAST_PIXELS * UNIT) & (height <= 16 * size * UNIT)
        if not rules.truncate:
            usable &= (tried["top"] >= 0) & (tried["left"] >= 0) & (tried["left"] + width <= size * UNIT)
        seen = np.zeros(len(left), np.int64)
        seen[usable] = _count_visible(tried[usable], earlier[left][usable], shapes, ground.room, wanted)
        better = usable & (seen > np.maximum(best[left], 0))
        slots[left[better]] = tried[better]
        best[left] = np.maximum(best[left], np.where(usable, seen, -1))
        left = left[best[left] < wanted]
        if not len(left):
            break
    return best >= wanted


def _count_visible(slots: np.ndarray, earlier: np.ndarray, shapes: _Shapes, room: Room, wanted: int) -> np.ndarray:
    """Count the points of people that are in view, (n,); none of people who hide too much of those before them.

    Those keep `wanted` points in view, or all that they have if these are fewer.
    """
    seen = np.empty(len(slots), np.int64)
    for start in range(0, len(slots), 4096):  # bounded memory
        some, others = slots[start : start + 4096], earlier[start : start + 4096]
        visible = _in_room(some, shapes, room)
        y, x = _points(some, shapes)
        for slot in range(others.shape[1]):
            visible &= ~_hides(others[:, slot], some, y, x, shapes)
        spoilt = np.zeros(len(some), bool)
        for slot in range(others.shape[1]):
            other = others[:, slot]
            in_view = _in_room(other, shapes, room)
            other_y, other_x = _points(other, shapes)
            for nearer in range(others.shape[1]):
                if nearer != slot:
                    in_view &= ~_hides(others[:, nearer], other, other_y, other_x, shapes)
            left = (in_view & ~_hides(some, other, other_y, other_x, shapes)).sum(axis=1)
            spoilt |= (other["height"] > 0) & (left < np.minimum(wanted, in_view.sum(axis=1)))
        seen[start : start + 4096] = np.where(spoilt, 0, visible.sum(axis=1))
    return seen


def _in_room(slots: np.ndarray, shapes: _Shapes, room: Room) -> np.ndarray:
    """Say which points (n, points) of people are inside the picture, and not hidden by the room."""
    assert room.hides is not None
    y, x = _points(slots, shapes)
    side = room.hides.shape[0]
    inside = (y >= 0) & (y < side * UNIT) & (x >= 0) & (x < side * UNIT)
    hides = room.hides[np.clip(y // UNIT, 0, side - 1), np.clip(x // UNIT, 0, side - 1)].astype(np.int64)
    bottom = slots["top"].astype(np.int64) + slots["height"].astype(np.int64)
    least = room.least_visible(slots["distance"].astype(np.int64)[:, None], bottom[:, None] - y)
    visible: np.ndarray = inside & (hides >= least)
    return visible


def _hides(nearer: np.ndarray, slots: np.ndarray, y: np.ndarray, x: np.ndarray, shapes: _Shapes) -> np.ndarray:
    """Say which points (n, points) of people in `slots` are hidden by people in `nearer`, if these are in front."""
    in_front = (nearer["height"] > 0) & (nearer["distance"] <= slots["distance"])
    hidden: np.ndarray = in_front[:, None] & _covers(nearer, y, x, shapes)
    return hidden


def _points(slots: np.ndarray, shapes: _Shapes) -> tuple[np.ndarray, np.ndarray]:
    """Return rows and columns (n, points) in 1/64 pixel of the points of drawn people."""
    foreground = slots["foreground"].astype(np.int64)
    height = slots["height"].astype(np.int64)
    width = shapes.drawn_width(foreground, height)
    points = shapes.points[foreground]
    across = np.where(slots["flip"][:, None] > 0, 65536 - points[..., 1], points[..., 1])
    y = slots["top"].astype(np.int64)[:, None] + (points[..., 0] * height[:, None] >> 16)
    return y, slots["left"].astype(np.int64)[:, None] + (across * width[:, None] >> 16)


def _covers(slots: np.ndarray, y: np.ndarray, x: np.ndarray, shapes: _Shapes) -> np.ndarray:
    """Say which points (n, points) in 1/64 pixel drawn people cover."""
    foreground = slots["foreground"].astype(np.int64)
    height = np.maximum(1, slots["height"].astype(np.int64))
    width = np.maximum(1, shapes.drawn_width(foreground, height))
    row = (y - slots["top"].astype(np.int64)[:, None]) * _GRID // height[:, None]
    column = (x - slots["left"].astype(np.int64)[:, None]) * _GRID // width[:, None]
    inside = (row >= 0) & (row < _GRID) & (column >= 0) & (column < _GRID)
    row, column = np.clip(row, 0, _GRID - 1), np.clip(column, 0, _GRID - 1)
    column = np.where(slots["flip"][:, None] > 0, _GRID - 1 - column, column)
    return inside & shapes.cells[foreground[:, None], row, column]


def _note_corner(rows: np.ndarray, size: int) -> None:
    """Set `top` and `left` of rows to the first pixel of their own foreground that is within the picture."""
    first = rows["people"][:, 0]
    for name in ("top", "left"):
        rows[name] = np.clip(first[name] // UNIT, 0, size - 1)
