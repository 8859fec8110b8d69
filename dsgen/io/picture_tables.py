"""CSV files beside a folder of pictures that say something of each: one line a picture, by its name.

The column `name` has the name of a picture within the folder, with or without the ending; an empty cell says nothing.
"""

import csv
import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from dsgen.errors import DamagedError, DsgenError, raise_all
from dsgen.io.csv_files import read_csv
from dsgen.io.folders import match_key, names_in_words

_NAME = "name"


@dataclass(frozen=True)
class NumberColumn:
    """A column of numbers: its name, and which it may hold, as a function and in words."""

    name: str
    rule: str
    allows: Callable[[float], bool]

    def value(self, row: dict[str, str]) -> float | None:
        """Return the number in a row, None if the cell is empty, lacking, or holds something else."""
        try:
            number = float(row.get(self.name, ""))
        except ValueError:
            return None
        return number if math.isfinite(number) and self.allows(number) else None

    def fault(self, row: dict[str, str]) -> str:
        """Say what is wrong with the cell of a row; empty if nothing is."""
        text = row.get(self.name, "").strip()
        if not text or self.value(row) is not None:
            return ""
        return f"{self.name} of {row[_NAME]!r} is {text}, expected {self.rule}"


def read_columns(table: Path) -> list[str]:
    """Return the header of a CSV file, which may belong to something else; empty where there is none."""
    if not table.is_file():
        return []
    try:
        with table.open(encoding="utf-8-sig", errors="replace", newline="") as file:
            return next(csv.reader(file), [])
    except csv.Error:
        return []


def read_picture_table(
    table: Path, folder: Path, paths: Iterable[Path], number: NumberColumn, otherwise: str = ""
) -> dict[Path, dict[str, str]]:
    """Read the rows of a CSV file about the pictures `paths` of a folder, by picture.

    Raises errors about the file together: for a name that is no picture's, or several pictures', or there twice, and
    for what `number` does not allow. `otherwise` is another remedy for a name that is no picture's.
    """
    remedy = f"correct it; {_NAME} is that of a picture within {folder}{otherwise}"
    by_name = _by_name(folder, paths)
    found: dict[Path, dict[str, str]] = {}
    errors: list[DsgenError] = []
    for row in read_csv(table, remedy, (_NAME,)):
        name = row[_NAME]
        matching = by_name.get(match_key(name), [])
        if not matching:
            errors.append(DamagedError(table, f"{name!r} is no picture of {folder}", remedy))
        elif len(matching) > 1:
            shown = names_in_words([path.name for path in matching])
            errors.append(DamagedError(table, f"{name!r} is the name of several pictures ({shown})", "add the ending"))
        elif matching[0] in found:
            errors.append(DamagedError(table, f"{name!r} is there twice", "remove one of the lines"))
        else:
            found[matching[0]] = row
            if fault := number.fault(row):
                errors.append(DamagedError(table, fault, "correct it"))
    raise_all(errors)
    return found


def _by_name(folder: Path, paths: Iterable[Path]) -> dict[str, list[Path]]:
    """Map the names of pictures within a folder, with their endings and without, to the pictures that have them."""
    paths = list(dict.fromkeys(paths))
    named = {match_key(path.relative_to(folder).as_posix()): [path] for path in paths}
    bare = defaultdict(list)
    for path in paths:
        bare[match_key(path.relative_to(folder).with_suffix("").as_posix())].append(path)
    return bare | named
