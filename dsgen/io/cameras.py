"""What is known of the cameras of pictures in a folder: their fields of view, and where these are from.

In this order: the column `fov_deg` of a CSV file beside the folder that is named like it (`rooms.csv` of `rooms/`),
EXIF, the `--fov` that was given for those that do not say theirs, and an assumption. Degrees are along the width of a
picture as it is displayed.
"""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from dsgen.camera import ASSUMED_FOV_DEG, fov_along, is_fov
from dsgen.errors import DsgenError, InvalidValueError
from dsgen.io.folders import beside
from dsgen.io.picture_files import read_size_and_fov
from dsgen.io.picture_tables import NumberColumn, read_columns, read_picture_table

CSV, EXIF, OPTION, ASSUMED = "csv", "exif", "option", "assumed"
_RULE = "degrees above 0 and below 180"
_FOV = NumberColumn("fov_deg", _RULE, is_fov)


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
    table = beside(folder, ".csv")
    listed: dict[Path, dict[str, str]] = {}
    if _FOV.name in read_columns(table):
        listed = read_picture_table(table, folder, [*paths, *known], _FOV)

    def read(path: Path) -> Camera | None:
        try:
            (height, width), exif_fov_deg = read_size_and_fov(path)
        except DsgenError:  # decoding the picture raises the error to report
            return None
        assumed = fov_along(ASSUMED_FOV_DEG, max(height, width), width)
        choices = ((_FOV.value(listed.get(path, {})), CSV), (exif_fov_deg, EXIF), (fov_deg, OPTION), (assumed, ASSUMED))
        degrees, source = next((degrees, source) for degrees, source in choices if degrees is not None)
        return Camera(height, width, _short(degrees), source)

    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(read, paths))


def _short(degrees: float) -> float:
    """Round to six digits, so that the same camera has the same number whichever way it was computed."""
    return float(f"{degrees:.6g}")
