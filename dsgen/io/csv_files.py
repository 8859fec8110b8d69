"""CSV files with a header, UTF-8."""

import csv
from collections.abc import Sequence
from pathlib import Path

from dsgen.errors import DamagedError, reason_of


def read_csv(path: Path, required: Sequence[str] = (), remedy: str = "correct it") -> list[dict[str, str]]:
    """Read the lines of a CSV file by column; what a line lacks is "".

    Raises `DamagedError` for a file that is no text in UTF-8, has a line with more values than columns, or lacks one of
    the columns `required`.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, restval="", strict=True)
            columns = reader.fieldnames or ()
            missing = [name for name in required if name not in columns]
            if missing:
                reason = f"got columns {', '.join(columns)[:200] or 'none'}, expected {', '.join(required)}"
                raise DamagedError(path, reason, remedy)
            rows = []
            for row in reader:
                if None in row:
                    reason = f"line {reader.line_num} has more values than there are columns"
                    raise DamagedError(path, reason, remedy)
                rows.append(row)
            return rows
    except (UnicodeDecodeError, csv.Error) as error:
        raise DamagedError(path, f"cannot be read as CSV in UTF-8 ({reason_of(error)})", remedy) from error
