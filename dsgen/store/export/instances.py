"""The instances of a row: which pixels each has, its class, and what the plan says of it.

A store with the field `instance` may have several a row, numbered from 1 by their slot in the plan. Any other has one,
its mask. Without a visible pixel there is none.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from dsgen.errors import DamagedError
from dsgen.io.people import PERSON
from dsgen.store.layout import INDEX_JSON
from dsgen.store.reader import Store
from dsgen.store.schema import repair_or_pack

CLASS_OF_PICTURES = "foreground"
"""The class of what is masked in pictures that are no composites."""
TINY_PIXELS = 16
"""Instances with fewer pixels are counted as tiny."""


@dataclass(frozen=True)
class Instance:
    """An instance: its `number` in the row, from 1, its pixels, and what is known of it."""

    number: int
    mask: np.ndarray
    """Of the whole picture, (S,S) u1, 0 or 1."""
    category: int
    """Index of its class, among those of the store in alphabetical order."""
    about: dict[str, Any]
    """Of a composite `foreground`, its name, and `flip`, 0 or 1; `distance_m`, if it is known."""

    @property
    def area(self) -> int:
        """How many pixels it has."""
        return int(np.count_nonzero(self.mask))

    @property
    def box(self) -> tuple[int, int, int, int]:
        """First column and row, width and height, in pixels."""
        columns, rows = (np.flatnonzero(self.mask.any(axis=axis)) for axis in (0, 1))
        left, top = int(columns[0]), int(rows[0])
        return left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top


class InstanceLabels:
    """What a store tells of the instances of its rows. `classes` are their names, in alphabetical order."""

    def __init__(self, store: Store):
        self._path, self._plan = store.path, store.plan
        attributes = store.shards[0].attributes
        self._foregrounds: list[dict[str, Any]] = attributes.get("foregrounds", [])
        self._backgrounds: list[dict[str, Any]] = attributes.get("backgrounds", [])
        self._pictures: list[str] = attributes.get("pictures", [])
        named = sorted({record.get("class", PERSON) for record in self._foregrounds})
        self.classes: list[str] = named or [CLASS_OF_PICTURES]

    def about_picture(self, row: int) -> dict[str, str]:
        """Return the name of a composite's background, or that of the picture which the row was packed from."""
        if self._pictures:
            return {"picture": self._pictures[row]}
        return {"background": self._backgrounds[int(self._plan["background"][row])]["name"]}

    def find(self, row: int, arrays: Mapping[str, np.ndarray]) -> list[Instance]:
        """Return the instances of a row in the order of their numbers; `arrays` are those of the row, by field."""
        numbers = arrays["instance"] if "instance" in arrays else (arrays["mask"] >= 128).astype(np.uint8)
        found = (np.flatnonzero(np.bincount(numbers.ravel(), minlength=2)[1:]) + 1).tolist()
        return [self._describe(row, number, (numbers == number).astype(np.uint8)) for number in found]

    def _describe(self, row: int, number: int, mask: np.ndarray) -> Instance:
        if not self._foregrounds:
            return Instance(number, mask, 0, {})
        person = planned = self._plan[row]
        if "people" in (self._plan.dtype.names or ()):
            if number > len(planned["people"]):
                reason = f"row {row} has instance {number}, expected at most {len(planned['people'])}"
                raise DamagedError(self._path, reason, repair_or_pack(f"{self._path}/{INDEX_JSON}"))
            person = planned["people"][number - 1]
        record = self._foregrounds[int(person["foreground"])]
        about: dict[str, Any] = {"foreground": record["name"], "flip": int(person["flip"])}
        if "distance" in (person.dtype.names or ()) and person["distance"]:
            about["distance_m"] = int(person["distance"]) / 1000
        return Instance(number, mask, self.classes.index(record.get("class", PERSON)), about)
