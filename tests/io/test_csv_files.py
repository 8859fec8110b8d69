"""CSV files with a header: what is none is refused by name."""

import pytest

from dsgen.errors import DamagedError
from dsgen.io.csv_files import read_csv


def test_lines_are_read_by_column(tmp_path):
    """With the mark that spreadsheets write; what a line lacks is empty."""
    (tmp_path / "a.csv").write_bytes("\ufeffname,room\ncafé,1\nb\n".encode())
    assert read_csv(tmp_path / "a.csv", ("name",)) == [{"name": "café", "room": "1"}, {"name": "b", "room": ""}]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "got columns none, expected name, room"),
        (b"name\na\n", "got columns name, expected name, room"),
        (b"name,room\na,1,2\n", "line 2 has more values than there are columns"),
        (b"name,room\ncaf\xe9,1\n", "cannot be read as CSV in UTF-8"),
        (b'name,room\n"a,1\n', "cannot be read as CSV in UTF-8"),
        (b"name,room\n" + b"x" * 200_000 + b",1\n", "cannot be read as CSV in UTF-8"),
    ],
)
def test_what_is_no_such_file_is_refused(tmp_path, content, reason):
    """Empty, without a column, in another encoding, with an open quote, with an endless value."""
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(DamagedError, match=reason):
        read_csv(tmp_path / "a.csv", ("name", "room"))
