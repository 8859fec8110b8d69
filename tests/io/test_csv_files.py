"""CSV files: UTF-8 in any locale, and one line for what cannot be read."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dsgen.errors import DamagedError
from dsgen.io.csv_files import encode_csv, read_csv


def test_what_is_written_is_read(tmp_path: Path):
    """Any text, line feeds and quotes included."""
    rows = [("a\nb", 'say "x", é'), ("", "東京")]
    path = tmp_path / "t.csv"
    path.write_bytes(encode_csv(("name", "text"), rows))
    assert [tuple(row.values()) for row in read_csv(path, "")] == rows


def test_a_byte_order_mark_and_short_rows(tmp_path: Path):
    """As Excel writes them; a missing cell is empty."""
    (tmp_path / "t.csv").write_bytes("\ufeffname,room\r\né,1\r\nb\r\n".encode())
    assert read_csv(tmp_path / "t.csv", "", ("name", "room")) == [
        {"name": "é", "room": "1"},
        {"name": "b", "room": ""},
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("name,room\né,1\n".encode("latin-1"), r"t.csv: not UTF-8 \(.* at byte \d+\); remedy$"),
        (b"nom,room\na,1\n", r"t.csv: no column name, got nom, room; remedy$"),
        (b"", r"t.csv: no column name and no column room, got an empty file; remedy$"),
        (b"name,room\na,1,2\n", r"t.csv: line 2 has more values than there are columns; remedy$"),
        (b'name,room\n"a,1\n', r"t.csv: no CSV file \(unexpected end of data\); remedy$"),
        (b'name,room\n"' + b"x" * 200_000 + b'",1\n', r"t.csv: no CSV file \(field larger .*\); remedy$"),
    ],
)
def test_what_cannot_be_read_is_one_line(tmp_path: Path, content: bytes, message: str):
    """Another encoding, other columns, nothing at all, a cell too many, and what no program wrote."""
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(DamagedError, match=message):
        read_csv(tmp_path / "t.csv", "remedy", ("name", "room"))


def test_the_locale_does_not_matter(tmp_path: Path):
    """In a process whose locale has ASCII only."""
    (tmp_path / "t.csv").write_bytes("name\né\n".encode())
    code = "from pathlib import Path; from dsgen.io.csv_files import *\n"
    code += "rows = read_csv(Path('t.csv'), ''); Path('u.csv').write_bytes(encode_csv(['name'], [rows[0].values()]))"
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONPATH": os.getcwd()}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, env=os.environ | plain)
    assert (tmp_path / "u.csv").read_bytes() == (tmp_path / "t.csv").read_bytes()
