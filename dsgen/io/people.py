"""What is known of the subjects of cut-outs in a folder: their heights, where these are from, and their classes.

The height is that of the whole cut-out, from its lowest pixel that counts to its highest, as if it stood upright on the
floor: of a seated person the chair's feet are part of it, of a waving one the raised hand. In this order: the column
`height_m` of a CSV file beside the folder, which is named like it (`staff.csv` of `staff/`) or else `people.csv`; an
assumption by its column `pose` or `poses`, which may name several people's (`sit+stand`); the assumption for one who
stands.
"""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from dsgen.errors import printable
from dsgen.io.folders import beside, class_of, names_in_words
from dsgen.io.picture_tables import NumberColumn, read_columns, read_picture_table

CSV, ASSUMED = "csv", "assumed"
PERSON = "person"  # the class of what has none
STANDING_M, SEATED_M = 1.7, 1.3
LOWEST_M, HIGHEST_M = 0.2, 3.0
_HEIGHT = NumberColumn(
    "height_m", f"metres from {LOWEST_M:g} to {HIGHEST_M:g}", lambda metres: LOWEST_M <= metres <= HIGHEST_M
)
_POSES = ("poses", "pose")
_SEATED = {"sit", "sitting", "seated"}
_SHARED_TABLE = "people.csv"

log = logging.getLogger("dsgen")


@dataclass(frozen=True)
class Person:
    """The subject of a cut-out: its height, where that is from, and its class."""

    height_m: float
    height_from: str
    label: str


def read_people(folder: Path, paths: list[Path], known: Iterable[Path] = ()) -> list[Person]:
    """Find the heights and classes of the cut-outs `paths` of a folder, in order.

    `known` are other files that the CSV file may name. Raises errors about that file together: for a name that is no
    picture's or that is there twice, and for what is no height. One warning names the pictures of other classes than
    people whose heights are assumed.
    """
    table = _find_table(folder)
    rows: dict[Path, dict[str, str]] = {}
    if table is not None:
        own = beside(folder, ".csv")
        otherwise = "" if table == own else f", or describe its pictures in {own}, which is read instead"
        rows = read_picture_table(table, folder, [*paths, *known], _HEIGHT, otherwise)
    people = [_describe(rows.get(path, {}), class_of(folder, path) or PERSON) for path in paths]
    _warn_of_assumed(folder, paths, people)
    return people


def is_seated(poses: str) -> bool:
    """Return whether all whose poses are named, joined by plus signs, sit.

    >>> is_seated("sit"), is_seated("Sitting"), is_seated("sit+stand"), is_seated("")
    (True, True, False, False)
    """
    return all(pose.strip().lower() in _SEATED for pose in poses.split("+"))


def _find_table(folder: Path) -> Path | None:
    """Return the first CSV file beside a folder that says something of people; others belong to something else."""
    tables = (beside(folder, ".csv"), beside(folder, "").with_name(_SHARED_TABLE))
    wanted = {_HEIGHT.name, *_POSES}
    return next((table for table in tables if not wanted.isdisjoint(read_columns(table))), None)


def _describe(row: dict[str, str], label: str) -> Person:
    height_m = _HEIGHT.value(row)
    if height_m is not None:
        return Person(height_m, CSV, label)
    seated = any(is_seated(row.get(column, "")) for column in _POSES)
    return Person(SEATED_M if seated else STANDING_M, ASSUMED, label)


def _warn_of_assumed(folder: Path, paths: list[Path], people: list[Person]) -> None:
    """Name the pictures of other classes whose heights are assumed: a chair is not as high as a person."""
    assumed = [
        path.relative_to(folder).as_posix()
        for path, person in zip(paths, people, strict=True)
        if person.label != PERSON and person.height_from == ASSUMED
    ]
    if assumed:
        log.warning(
            "%s: taken to be %g m high, as a person is: %s; give their heights in the column %s of %s",
            printable(folder),
            STANDING_M,
            names_in_words(assumed),
            _HEIGHT.name,
            printable(beside(folder, ".csv")),
        )
