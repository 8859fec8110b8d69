"""Atomic writes: complete or not at all, and nothing left over."""

from pathlib import Path
from typing import BinaryIO

import pytest

from dsgen.io.atomic import clear_unfinished, write_bytes, write_file, write_folder
from dsgen.io.filesystem import LocalFiles
from dsgen.io.zip_files import ZipFiles, write_zip


def write_half(file: BinaryIO) -> None:
    """Write something, then fail."""
    with file:
        file.write(b"half of the n")
        raise OSError("disk full")


@pytest.mark.parametrize("apart", [False, True])
def test_a_failed_write_keeps_the_old_file(tmp_path: Path, apart: bool):
    """An error inside the block leaves the old content, and no `.partial`."""
    write_bytes(tmp_path / "f", b"old", apart=apart)
    with pytest.raises(OSError, match="disk full"), write_file(tmp_path / "f", apart=apart) as file:
        write_half(file)
    assert [path.name for path in tmp_path.iterdir()] == ["f"]
    assert (tmp_path / "f").read_bytes() == b"old"


def test_of_two_writers_of_one_file_the_last_wins(tmp_path: Path):
    """Neither disturbs the other."""
    with write_file(tmp_path / "f", apart=True) as one, write_file(tmp_path / "f", apart=True) as two:
        one.write(b"last to finish")
        two.write(b"first to finish")
    assert [path.name for path in tmp_path.iterdir()] == ["f"]
    assert (tmp_path / "f").read_bytes() == b"last to finish"


def test_of_two_that_make_one_folder_the_first_stays(tmp_path: Path):
    """Neither disturbs the other, and nothing is left over."""
    with write_folder(tmp_path / "f", apart=True) as one, write_folder(tmp_path / "f", apart=True) as two:
        (one / "a").write_text("later")
        (two / "a").write_text("first")
    assert [path.name for path in tmp_path.iterdir()] == ["f"]
    assert (tmp_path / "f" / "a").read_text() == "first"


def test_a_failed_folder_keeps_the_old_one(tmp_path: Path):
    """The old folder is replaced only by a complete one."""
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "a").write_text("old")
    with pytest.raises(OSError, match="disk full"), write_folder(tmp_path / "f") as folder:
        write_half((folder / "a").open("wb", buffering=0))
    assert [path.name for path in tmp_path.iterdir()] == ["f"]
    assert (tmp_path / "f" / "a").read_text() == "old"


def test_only_unfinished_folders_of_the_names_are_removed(tmp_path: Path):
    """Folders of other names, and finished ones, stay."""
    for name in ("a", "a.partial", "a.0123.partial", "b.partial"):
        (tmp_path / name).mkdir()
    clear_unfinished(tmp_path, {"a"})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b.partial"]


def test_a_zip_is_written_atomically_and_read_back(tmp_path: Path):
    """The same entries give the same bytes; an error half way leaves nothing."""
    entries = [("a", b"first"), ("folder/b", b"second" * 1000)]
    for name in ("one.zip", "two.zip"):
        write_zip(tmp_path / name, entries)
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()
    files = ZipFiles(LocalFiles(tmp_path), "one.zip")
    assert [(name, files.read(name)) for name in files.sizes()] == entries
    assert files.read_range("folder/b", -3, 2) == b"on"
    with pytest.raises(FileNotFoundError, match="no entry c"):
        files.read("c")

    def broken():
        yield entries[0]
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_zip(tmp_path / "three.zip", broken())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.zip", "two.zip"]
