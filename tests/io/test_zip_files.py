"""Zip files that are not what dsgen writes are refused, whatever they claim."""

import struct
import warnings
import zipfile

import pytest

from dsgen.errors import DamagedError
from dsgen.io.filesystem import LocalFiles
from dsgen.io.zip_files import ZipFiles, write_zip


def _open(folder):
    return ZipFiles(LocalFiles(folder), "a.zip")


@pytest.mark.parametrize("name", ["../a", "/a", "b/../../a", "C:/a", "b\\a"])
def test_names_that_point_outside_are_refused(tmp_path, name):
    """Whoever unpacks such a file would write beside the folder."""
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(name, b"x")
    with pytest.raises(DamagedError, match="points outside"):
        _open(tmp_path).sizes()


def test_an_entry_that_is_in_it_twice_is_refused(tmp_path):
    """Readers differ in which they take."""
    with warnings.catch_warnings(), zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        warnings.simplefilter("ignore")
        archive.writestr("a", b"x")
        archive.writestr("a", b"y")
    with pytest.raises(DamagedError, match="entry 'a' is in it twice"):
        _open(tmp_path).sizes()


def test_a_compressed_entry_is_refused(tmp_path):
    """A small one may stand for gigabytes."""
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a", bytes(10**7))
    with pytest.raises(DamagedError, match="a is compressed, expected uncompressed entries"):
        _open(tmp_path).read("a")


@pytest.mark.parametrize("field", [20, 24, 42])
def test_an_entry_larger_than_the_file_is_refused(tmp_path, field):
    """Its sizes and its offset in the table of contents are checked before anything is read."""
    write_zip(tmp_path / "a.zip", [("a", b"content")])
    content = bytearray((tmp_path / "a.zip").read_bytes())
    directory = content.rindex(b"PK\x01\x02")
    content[directory + field : directory + field + 4] = struct.pack("<I", 2**31)
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(DamagedError, match=r"larger than the file has room for|no readable zip file"):
        _open(tmp_path).read("a")


def test_an_entry_with_a_long_extra_field_is_read(tmp_path):
    """Other programs write them."""
    entry = zipfile.ZipInfo("a")
    entry.extra = b"\x99\x99" + struct.pack("<H", 500) + bytes(500)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(entry, b"content")
        archive.writestr("b", b"more")
    assert _open(tmp_path).read("a") == b"content"
    assert _open(tmp_path).read_range("a", -4, 4) == b"tent"
