"""Draw rows whose people have a size and a distance of their own: in the room's depth, in front of one another.

People are drawn from the farthest to the nearest. Colour c and alpha a of a person, premultiplied (`figures`), are
multiplied by v / 255, how far the room leaves them in view, then pasted:

    image = background * (255 - a) / 255 + c        all divisions by 255 rounded to nearest
    mask  = 255 where a >= 128 for any person, else 0
    instance = 1 + the slot of the nearest such person, 0 without
    depth = the distance of that person, and the room's depth without

Per pixel a person is hidden where the room is nearer than z - margin, except by the floor and by what has no depth. A
person stands upright on a floor that the camera may look down on, so z changes from the feet to the head: at the row y
of a picture of `side` pixels, with the lower edge of the cut-out at `bottom` in 1/64 of these, z = distance +
floor(distance lean (bottom - 64 y - 32) / (2^26 side)). The margin is floor(z margin_permille / 1000) + 30 mm. v is
(255 n + 4) / 9, n the number of pixels, among the 3 x 3 around, that do not hide the person, rounded down; pixels
outside the picture hide nothing. People at distance 0 have none: they are drawn over all others, in the order of their
slots, the first in front; `dsgen.corpus.composed` has their depth.

Looks come in this order. First the shadows of all people at a distance fall on the floor. Then, for each person in the
window that `Figure.window` returns, as if it went on beyond the picture: colours are matched to those of every second
pixel of the background in the window and 16 stored pixels around it, the edge is feathered, the outline is blurred if
the blend is Gaussian, v applies, and the person is pasted, or blended if the blend is Poisson. The masks, instances and
depth are those of people without looks.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from dsgen.corpus.colour_matching import ColourStatistics, match_colours
from dsgen.corpus.figures import Figure, Window
from dsgen.corpus.looks import (
    GAUSSIAN,
    GAUSSIAN_PAD,
    POISSON,
    contact_shadow,
    feather,
    gaussian_blend,
    poisson_blend,
)
from dsgen.corpus.render import Pictures

NEVER = 65535  # in `Room.hides`: the pixel hides nobody


@dataclass(frozen=True)
class Room:
    """A background as people are drawn into it, all (S,S,...) at the drawn size.

    `image` (S,S,3) u1; `depth` (S,S) u2 millimetres, 0 = not known, `floor` (S,S) u1 255 where the floor is seen, and
    `hides` (S,S) u2 the depth that hides people, `NEVER` where nothing does, all None where nothing is known of them.
    The camera is `camera_mm` above the floor, 0 without a floor. `lean` is how much farther away the head of a person
    is than their feet who is as high as the picture, as a share of their distance in 1 / 2^20; below 0 if the camera
    looks down.
    """

    image: np.ndarray
    depth: np.ndarray | None = None
    floor: np.ndarray | None = None
    hides: np.ndarray | None = None
    margin_permille: int = 0
    camera_mm: int = 0
    lean: int = 0

    @property
    def nbytes(self) -> int:
        """Bytes in memory, without the image."""
        return sum(array.nbytes for array in (self.depth, self.floor, self.hides) if array is not None)

    @classmethod
    def of(
        cls,
        image: np.ndarray,
        depth: np.ndarray,
        floor: np.ndarray,
        margin_permille: int,
        camera_mm: int,
        lean: int = 0,
    ) -> "Room":
        """Make a room of its depth (S,S) u2 and of where its floor is seen, (S,S) u1."""
        hides = np.where((floor > 0) | (depth == 0), np.uint16(NEVER), depth)
        return cls(image, depth, floor, hides, margin_permille, camera_mm, lean)

    def least_visible(self, distance: Any, above64: Any) -> Any:
        """Return the depth that the room must have at least not to hide people, both in millimetres.

        `above64` is how far above the lower edge of their cut-outs, in 1/64 pixel of the room's image. All are
        integers, or arrays of them.
        """
        z = distance + distance * self.lean * above64 // (2**26 * self.image.shape[0])
        return z - (z * self.margin_permille // 1000 + MARGIN_MM)


MARGIN_MM = 30
_AROUND = 16  # stored pixels around a person whose colours theirs are matched to


@dataclass(frozen=True)
class Looks:
    """How people meet the room, besides the blending that each has for itself (`dsgen.corpus.looks`).

    `shadow` and `colours` are strengths in 0..255, `feather` a radius in pixels, 0 to 3.
    """

    shadow: int = 0
    colours: int = 0
    feather: int = 0

    @classmethod
    def of(cls, parameters: Mapping[str, Any]) -> "Looks":
        """Return the looks of a corpus by its parameters; those of earlier versions have none."""
        shadow, colours = (round(255 * float(parameters.get(name, 0))) for name in ("shadow", "match_colours"))
        return cls(shadow, colours, int(parameters.get("feather", 0)))


PLAIN = Looks()
DRAWN = {"image": np.uint8, "mask": np.uint8, "instance": np.uint8, "depth": np.uint16}  # fields and their types


def draw_scenes(
    rows: np.ndarray,
    rooms: Mapping[int, Room],
    figures: Mapping[tuple[int, int], Figure],
    size: int,
    scale: int = 1,
    *,
    fields: Collection[str] = ("image", "mask"),
    depths: np.ndarray | None = None,
    looks: Looks = PLAIN,
    out: Mapping[str, Pictures] | None = None,
) -> dict[str, Any]:
    """Draw rows of a plan with people, at `scale` times the stored `size`; return the `fields` asked for, by name.

    These are `image` (n,S,S,3) u1, `mask` (n,S,S) u1, `instance` (n,S,S) u1 and `depth` (n,S,S) u2. They are drawn into
    those of `out` where it has them, an array each or a list with one for each row. `depths` (n, slots) u2 are the
    depths of people, in place of their distances, which they replace where these are 0. `rooms[background]` and
    `figures[foreground, flip]` are what rows show.
    """
    drawn = {name: memory_for(name, len(rows), size * scale, out) for name in ("image", *fields)}
    image, mask, instance, depth = (drawn.get(name) for name in DRAWN)
    assert image is not None
    backgrounds, people = rows["background"].tolist(), rows["people"].tolist()
    shown = (rows["people"]["distance"] if depths is None else depths).tolist() if depth is not None else None
    for i, (background, slots) in enumerate(zip(backgrounds, people, strict=True)):
        room = rooms[background]
        image[i][...] = room.image
        if depth is not None:
            depth[i][...] = 0 if room.depth is None else room.depth
        for masks in (mask, instance):
            if masks is not None:
                masks[i][...] = 0
        order = drawing_order(slots)
        if looks.shadow and room.camera_mm:
            for _, person in order:
                _shade(image[i], room, figures[person[0], person[1]], person, size, scale, looks.shadow)
        for slot, person in order:
            window, alpha = _draw_person(image[i], room, figures[person[0], person[1]], person, size, scale, looks)
            if window.empty:
                continue
            solid = cv2.threshold(alpha, 127, 255, cv2.THRESH_BINARY)[1]
            if mask is not None:
                shape = mask[i][window.slices]
                cv2.bitwise_or(shape, solid, dst=shape)
            if instance is not None:
                _set(instance[i][window.slices], slot + 1, solid)
            if depth is not None and shown is not None:
                _set(depth[i][window.slices], shown[i][slot], solid)
    return {name: drawn[name] for name in fields}


def sample_shape(name: str, side: int) -> tuple[int, ...]:
    """Return the shape of a drawn field of one row."""
    return (side, side, 3) if name == "image" else (side, side)


def memory_for(name: str, rows: int, side: int, out: Mapping[str, Pictures] | None) -> Pictures:
    """Return what `out` has for a field, or a new array."""
    given = None if out is None else out.get(name)
    return np.empty((rows, *sample_shape(name, side)), DRAWN[name]) if given is None else given


def _draw_person(
    image: np.ndarray,
    room: Room,
    figure: Figure,
    person: tuple[int, ...],
    size: int,
    scale: int,
    looks: Looks,
) -> tuple[Window, np.ndarray]:
    """Draw a person into a picture (S,S,3) u1; return the window they are in, and what is seen of their alpha there."""
    _, _, look, height, top, left, distance, tilt = person
    bottom = (top + height) * scale
    window = figure.window(height, top, left, tilt, size, scale)
    if window.empty:
        return window, np.empty((0, 0), np.uint8)
    visible = _visible(room, window, distance, bottom)
    if not (looks.colours or looks.feather or look):
        rgba = figure.draw(window, height, top, left, tilt, scale)
        _dim(rgba, visible)
        alpha = cv2.extractChannel(rgba, 3)
        _paste(image[window.slices], rgba, alpha)
        return window, alpha
    pad = looks.feather + GAUSSIAN_PAD  # what is beyond the picture's border is no edge of the person
    wide = window.padded(pad)
    rgba = figure.draw(wide, height, top, left, tilt, scale)
    colour, alpha = cv2.cvtColor(rgba, cv2.COLOR_RGBA2RGB), cv2.extractChannel(rgba, 3)
    if looks.colours:
        around = room.image[window.padded(_AROUND * scale).within(size * scale).slices][::2, ::2]
        target = ColourStatistics.of(around, np.full(around.shape[:2], 255, np.uint8))
        colour = match_colours(colour, alpha, target, figure.colours, looks.colours)
    seen = rgba[pad : -pad or None, pad : -pad or None].copy()
    _dim(seen, visible)
    if looks.feather:
        colour, alpha = feather(colour, alpha, looks.feather)
    if look == GAUSSIAN:
        colour, alpha = (
            part[GAUSSIAN_PAD:-GAUSSIAN_PAD, GAUSSIAN_PAD:-GAUSSIAN_PAD] for part in gaussian_blend(colour, alpha)
        )
    inner = slice(pad, -pad), slice(pad, -pad)
    shown = np.ascontiguousarray(np.dstack([colour[inner], alpha[inner]]))
    _dim(shown, visible)
    below, alpha = image[window.slices], cv2.extractChannel(shown, 3)
    if look == POISSON:
        below[...] = poisson_blend(below.copy(), cv2.cvtColor(shown, cv2.COLOR_RGBA2RGB), alpha)
    else:
        _paste(below, shown, alpha)
    return window, cv2.extractChannel(seen, 3)


def _shade(
    image: np.ndarray, room: Room, figure: Figure, person: tuple[int, ...], size: int, scale: int, strength: int
) -> None:
    """Darken the floor where a person stands."""
    _, _, _, height, top, left, distance, _ = person
    if not distance or room.floor is None:
        return
    flatness1024 = min(1024, 1024 * room.camera_mm // distance)
    for contact in figure.contacts:
        ellipse = contact.ellipse(figure.height, top * scale, left * scale, height * scale, flatness1024)
        first, start, last, stop = ellipse.extent()
        window = Window(first, last, start, stop).within(size * scale)
        if not window.empty and room.floor[window.slices].any():
            below = image[window.slices]
            below[...] = contact_shadow(
                below, room.floor[window.slices], ellipse.seen_from(window.top, window.left), strength
            )


def _set(values: np.ndarray, value: int, where: np.ndarray) -> None:
    """Set integers (h,w) to a value where `where` (h,w) u1 is not 0."""
    cv2.copyTo(np.full(where.shape, value, values.dtype), where, dst=values)


def drawing_order(slots: list[tuple[int, ...]]) -> list[tuple[int, tuple[int, ...]]]:
    """Return the people of a row with the numbers of their slots, in the order in which they are drawn."""
    present = [(slot, person) for slot, person in enumerate(slots) if person[3]]
    if len(present) > 1:
        present.sort(key=lambda each: (-each[1][6] if each[1][6] else 1, -each[0]))
    return present


def _visible(room: Room, window: Window, distance: int, bottom: int) -> np.ndarray | None:
    """Return how far the room leaves a person in view, (h,w) u1, None if it hides nothing of the window.

    `bottom` is their lower edge in 1/64 pixel.
    """
    if not distance or room.hides is None:
        return None
    wide = window.padded(1).within(room.hides.shape[0])
    first, last = bottom - 64 * wide.top - 32, bottom - 64 * wide.bottom + 32
    around = room.hides[wide.slices]
    if (around >= max(room.least_visible(distance, above64) for above64 in (first, last))).all():
        return None
    least = np.clip(room.least_visible(distance, np.arange(first, last - 1, -64)), 0, NEVER).astype(np.uint16)
    hiding = (around < least[:, None]).view(np.uint8)
    count = cv2.boxFilter(hiding, -1, (3, 3), normalize=False, borderType=cv2.BORDER_CONSTANT)
    top, left = window.top - wide.top, window.left - wide.left
    inside = count[top : top + window.bottom - window.top, left : left + window.right - window.left]
    return np.asarray(cv2.LUT(inside, _VISIBLE))


def _dim(rgba: np.ndarray, visible: np.ndarray | None) -> None:
    """Multiply a drawn person (h,w,4) u1 by how far they are in view, in place."""
    if visible is not None:
        cv2.multiply(rgba, cv2.merge([visible] * 4), dst=rgba, scale=_SHARE)


# OpenCV multiplies in floats, and rounds; x / 255 is never within 1 / 510 of a tie, so the result is exact
_SHARE = 1 / 255
_VISIBLE = ((255 * np.maximum(0, 9 - np.arange(256)) + 4) // 9).astype(np.uint8)  # by the number of pixels that hide


def _paste(below: np.ndarray, rgba: np.ndarray, alpha: np.ndarray) -> None:
    """Paste a premultiplied person (h,w,4) u1 over (h,w,3) u1, in place."""
    through = cv2.cvtColor(cv2.bitwise_not(alpha), cv2.COLOR_GRAY2RGB)
    mixed = cv2.multiply(below, through, dst=through, scale=_SHARE)
    cv2.add(mixed, cv2.cvtColor(rgba, cv2.COLOR_RGBA2RGB), dst=below)
