"""CSV files: UTF-8 whatever the locale, with or without a byte order mark, one line per row ending in a line feed."""

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

from dsgen.errors import DamagedError, reason_of


def read_csv(path: Path, remedy: str, required: Sequence[str] = ()) -> list[dict[str, str]]:
    """Read the rows of a CSV file with a header, as dicts; a missing cell is "".

    Raises `DamagedError` with the `remedy` for what is not UTF-8 or no CSV, a line with more values than columns, and
    where a `required` column is missing.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, restval="", strict=True)
            columns = list(reader.fieldnames or ())
            rows = []
            for row in reader:
                if None in row:
                    reason = f"line {reader.line_num} has more values than there are columns"
                    raise DamagedError(path, reason, remedy)
                rows.append(row)
    except UnicodeDecodeError as error:
        raise DamagedError(path, f"not UTF-8 ({error.reason} at byte {error.start})", remedy) from error
    except csv.Error as error:
        raise DamagedError(path, f"no CSV file ({reason_of(error)})", remedy) from error
    lacking = [name for name in required if name not in columns]
    if lacking:
        reason = f"no column {' and no column '.join(lacking)}, got {', '.join(columns) or 'an empty file'}"
        raise DamagedError(path, reason, remedy)
    return rows


def encode_csv(columns: Sequence[str], rows: Iterable[Iterable[object]]) -> bytes:
    """Encode a header and rows as CSV."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return text.getvalue().encode("utf-8")
