"""What a store can be packed from."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

RoomParts = tuple[np.ndarray, np.ndarray, int, int, int]
"""Depth (S,S) u2, floor (S,S) u1, and `margin_permille`, `camera_mm` and `lean` of a `dsgen.corpus.scene.Room`."""


class Source(Protocol):
    """Rows to pack: the plan that lists them, and their pixels."""

    plan: np.ndarray
    size: int  # side of the images in pixels
    chunk: int  # rows in a chunk
    fields: tuple[str, ...]  # which of image, mask, depth and background it has
    made_from: dict[str, Any]  # what the bytes of the store depend on; part of its index
    attributes: dict[str, Any]  # further attributes of every shard
    key: "SourceKey"  # how a worker process opens it
    drawn: tuple[str, ...]  # the fields that a recipe does not store, since they can be drawn
    people: int  # slots for people in a row of the plan, 0 without such
    rooms: bool  # whether drawing needs to know the backgrounds as rooms
    folders: list[Path]  # what a worker on another machine must see

    def pictures(self, first: int, last: int, out: Mapping[str, np.ndarray] | None = None) -> dict[str, np.ndarray]:
        """Return the arrays of rows `first` to `last`, exclusive: `image`, and the others of its fields.

        With them come `person_box` (n,slots,4) u2 where there are slots for people, and `person_depth` (n,slots) u2
        where a recipe draws the depth. What is drawn may be drawn into the arrays of `out`, by field.
        """

    def background(self, number: int) -> np.ndarray:
        """Return a background, (S,S,3) u1."""

    def coded_depth(self, first: int, last: int) -> list[bytes] | None:
        """Return the encoded chunks of these rows' depth if it has them just as a store encodes them, else None."""

    def room(self, number: int) -> RoomParts:
        """Return a background as a room."""

    def cutouts(self) -> tuple[np.ndarray, np.ndarray]:
        """Return all foregrounds, (f,H,W,4) u1, and their heights and widths, (f,2), for a recipe."""


@dataclass(frozen=True)
class SourceKey:
    """How to open a source in another process: call `make` with `arguments`. Hashable, so that workers can cache it.

    `state` differs where the same arguments open something else than before, as a corpus that was labelled meanwhile.
    """

    make: Callable[..., Source]
    arguments: tuple[Any, ...]
    state: str = ""

    def open(self) -> Source:
        """Open the source."""
        return self.make(*self.arguments)


def comparable(made_from: Mapping[str, Any]) -> dict[str, Any]:
    """Return what decides whether two stores are the same: all of `made_from` but what only versions differ in.

    Earlier versions noted no layout, and repeated the unit of the labels.
    """
    values = {name: value for name, value in made_from.items() if name != "layout"}
    if isinstance(values.get("depth"), dict):
        values["depth"] = {name: value for name, value in values["depth"].items() if name != "units"}
    return values
