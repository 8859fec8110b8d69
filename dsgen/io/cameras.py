"""What is known of the cameras of pictures in a folder: their fields of view, and where these are from.

In this order: the column `fov_deg` of a CSV file beside the folder that is named like it (`rooms.csv` of `rooms/`),
EXIF, the `--fov` that was given for those that do not say theirs, and an assumption. Degrees are along the width of a
picture as it is displayed.
"""

import csv
import math
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from dsgen.camera import ASSUMED_FOV_DEG, fov_along, is_fov
from dsgen.errors import DamagedError, DsgenError, InvalidValueError, raise_all
from dsgen.io.csv_files import read_csv
from dsgen.io.folders import beside, match_key, names_in_words
from dsgen.io.picture_files import read_size_and_fov

CSV, EXIF, OPTION, ASSUMED = "csv", "exif", "option", "assumed"
_NAME, _FOV = "name", "fov_deg"  # columns
_RULE = "degrees above 0 and below 180"


@dataclass(frozen=True)
class Camera:
    """The camera of a picture: its size as displayed, the field of view along its width, and where that is from."""

    height: int
    width: int
    fov_deg: float
    fov_from: str

    def square_fov_deg(self) -> float:
        """Return the field of view of the picture's largest centred square."""
        return _short(fov_along(self.fov_deg, self.width, min(self.height, self.width)))


def check_fov(fov_deg: float | None) -> None:
    """Raise `InvalidValueError` for a `--fov` that is no field of view."""
    if fov_deg is not None and not is_fov(fov_deg):
        raise InvalidValueError.expected("fov", f"{fov_deg:g}", _RULE)


def read_cameras(
    folder: Path, paths: list[Path], fov_deg: float | None, workers: int, known: Iterable[Path] = ()
) -> list[Camera | None]:
    """Find the cameras of the pictures `paths` of a folder, in order; None for one whose header cannot be read.

    `fov_deg` is the `--fov`, if any. `known` are other files that the CSV file may name. Raises errors about that file
    together: for a name that is no picture's or that is there twice, and for what is no field of view.
    """
    listed = _read_listing(folder, [*paths, *known])

    def read(path: Path) -> Camera | None:
        try:
            (height, width), exif_fov_deg = read_size_and_fov(path)
        except DsgenError:  # decoding the picture raises the error to report
            return None
        assumed = fov_along(ASSUMED_FOV_DEG, max(height, width), width)
        choices = ((listed.get(path), CSV), (exif_fov_deg, EXIF), (fov_deg, OPTION), (assumed, ASSUMED))
        degrees, source = next((degrees, source) for degrees, source in choices if degrees is not None)
        return Camera(height, width, _short(degrees), source)

    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(read, paths))


def _read_listing(folder: Path, paths: list[Path]) -> dict[Path, float]:
    """Read the fields of view in the CSV file of a folder, by picture; empty where there is no such file or column."""
    listing = beside(folder, ".csv")
    if _FOV not in _columns(listing):
        return {}
    remedy = f"correct it; {_NAME} is that of a picture within {folder}"
    by_name = _by_name(folder, paths)
    found: dict[Path, float] = {}
    errors: list[DsgenError] = []
    for row in read_csv(listing, remedy, (_NAME, _FOV)):
        name, text = row[_NAME], row[_FOV].strip()
        matching = by_name.get(match_key(name), [])
        if not matching:
            errors.append(DamagedError(listing, f"{name!r} is no picture of {folder}", remedy))
        elif len(matching) > 1:
            shown = names_in_words([path.name for path in matching])
            errors.append(
                DamagedError(listing, f"{name!r} is the name of several pictures ({shown})", "add the ending")
            )
        elif matching[0] in found:
            errors.append(DamagedError(listing, f"{name!r} is there twice", "remove one of the lines"))
        else:
            degrees = _to_degrees(text)
            found[matching[0]] = degrees
            if text and not is_fov(degrees):
                errors.append(DamagedError(listing, f"{_FOV} of {name!r} is {text}, expected {_RULE}", "correct it"))
    raise_all(errors)
    return {path: degrees for path, degrees in found.items() if is_fov(degrees)}


def _columns(listing: Path) -> list[str]:
    """Return the header of a CSV file, which may belong to something else; empty where there is none."""
    if not listing.is_file():
        return []
    try:
        with listing.open(encoding="utf-8-sig", errors="replace", newline="") as file:
            return next(csv.reader(file), [])
    except csv.Error:
        return []


def _by_name(folder: Path, paths: list[Path]) -> dict[str, list[Path]]:
    """Map the names of pictures within a folder, with their endings and without, to the pictures that have them."""
    named = {match_key(path.relative_to(folder).as_posix()): [path] for path in paths}
    bare = defaultdict(list)
    for path in dict.fromkeys(paths):
        bare[match_key(path.relative_to(folder).with_suffix("").as_posix())].append(path)
    return bare | named


def _short(degrees: float) -> float:
    """Round to six digits, so that the same camera has the same number whichever way it was computed."""
    return float(f"{degrees:.6g}")


def _to_degrees(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
