"""Atomic writes: complete or not at all, and nothing left over."""

import errno
import os
from pathlib import Path
from typing import BinaryIO

import pytest

from dsgen.io.atomic import (
    clear_unfinished,
    fill_folder,
    final_name,
    unfinished_path,
    write_bytes,
    write_file,
    write_folder,
)
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


@pytest.mark.parametrize("apart", [False, True])
def test_of_two_writers_of_one_file_the_last_wins(tmp_path: Path, apart: bool):
    """Neither disturbs the other."""
    with write_file(tmp_path / "f", apart=apart) as one, write_file(tmp_path / "f", apart=apart) as two:
        one.write(b"last to finish")
        two.write(b"first to finish")
    assert [path.name for path in tmp_path.iterdir()] == ["f"]
    assert (tmp_path / "f").read_bytes() == b"last to finish"


@pytest.mark.parametrize("apart", [False, True])
def test_content_is_on_the_disk_before_it_has_its_name(tmp_path: Path, apart: bool, monkeypatch: pytest.MonkeyPatch):
    """Whole, flushed and synchronised; or the name could outlive a power cut that the content does not."""
    synchronised = []

    def note(number: int) -> None:
        synchronised.append(os.fstat(number).st_size)
        assert not (tmp_path / "f").exists()

    monkeypatch.setattr(os, "fsync", note)
    write_bytes(tmp_path / "f", b"all of it", apart=apart)
    assert synchronised == [len(b"all of it")]


def test_a_killed_writer_leaves_nothing_that_stays(tmp_path: Path):
    """What it left is written over, even if it was longer."""
    (tmp_path / "f.partial").write_bytes(b"half of something long")
    write_bytes(tmp_path / "f", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["f"]
    assert (tmp_path / "f").read_bytes() == b"new"


def test_two_may_fill_one_folder_at_once(tmp_path: Path):
    """Neither disturbs the other, what either wrote is there, and nothing is left over."""
    with fill_folder(tmp_path / "f") as one, fill_folder(tmp_path / "f") as two:
        (one / "a").write_text("same")
        (two / "a").write_text("same")
        (two / "b").write_text("more")
    assert [path.name for path in tmp_path.iterdir()] == ["f"]
    assert {path.name: path.read_text() for path in (tmp_path / "f").iterdir()} == {"a": "same", "b": "more"}


def test_filling_a_folder_keeps_what_else_is_in_it(tmp_path: Path):
    """Files of the same name are replaced, even a folder in their place; others stay, also if the block fails."""
    (tmp_path / "f" / "b").mkdir(parents=True)
    for name in ("a", "notes"):
        (tmp_path / "f" / name).write_text("old")
    with pytest.raises(OSError, match="disk full"), fill_folder(tmp_path / "f") as folder:
        write_half((folder / "a").open("wb", buffering=0))
    assert (tmp_path / "f" / "a").read_text() == "old"
    with fill_folder(tmp_path / "f") as folder:
        for name in ("a", "b"):
            (folder / name).write_text("new")
    assert [path.name for path in tmp_path.iterdir()] == ["f"]
    found = {path.name: path.read_text() for path in (tmp_path / "f").iterdir()}
    assert found == {"a": "new", "b": "new", "notes": "old"}


def test_a_folder_that_is_removed_while_it_is_written_never_gets_its_name(tmp_path: Path):
    """A writer whose run was taken for dead fails, instead of leaving an incomplete folder under the final name."""

    def write(names: str) -> None:
        with fill_folder(tmp_path / "f") as folder:
            for name in names:
                (folder / name).write_text(name)
                clear_unfinished(tmp_path, {"f"})

    for names in ("a", "ab"):
        with pytest.raises(FileNotFoundError):
            write(names)
        assert not list(tmp_path.iterdir())


def test_the_names_of_unfinished_folders_are_unique_and_tell_the_final_one(tmp_path: Path):
    """Two writers never share one, and a name says what it was to become, also as earlier versions made it."""
    with fill_folder(tmp_path / "f.zarr") as one, write_folder(tmp_path / "g") as other:
        assert f".{os.getpid()}-" in one.name
        assert one != unfinished_path(tmp_path / "f.zarr")
        assert [final_name(path.name) for path in (one, other)] == ["f.zarr", "g"]
    names = ("a.b.partial", "a.b.0123456789ab.partial", "a.b", "a.partial.txt", ".partial")
    assert [final_name(name) for name in names] == ["a.b", "a.b", "a.b", "a.partial.txt", ".partial"]


def test_an_error_of_the_system_names_the_file(tmp_path: Path):
    """A full disk says nothing of the file it happened at."""
    for write in (write_file, write_folder, fill_folder):
        with pytest.raises(OSError, match="No space left") as caught, write(tmp_path / "f"):
            raise OSError(errno.ENOSPC, "No space left on device")
        assert caught.value.filename == str(tmp_path / "f")
    assert not list(tmp_path.iterdir())


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
    for name in ("a", "a.partial", "a.0123456789ab.partial", "a.1-0123456789ab.partial", "b.partial", "a.x.partial"):
        (tmp_path / name).mkdir()
    clear_unfinished(tmp_path, {"a"})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "a.x.partial", "b.partial"]


def test_a_zip_is_written_atomically_and_read_back(tmp_path: Path):
    """The same entries give the same bytes; an error half way leaves nothing."""
    entries = [("a", b"first"), ("folder/b", b"second" * 1000)]
    for name in ("one.zip", "two.zip"):
        write_zip(tmp_path / name, entries)
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()
    files = ZipFiles(LocalFiles(tmp_path), "one.zip")
    assert [(name, files.read(name)) for name in files.sizes()] == entries
    assert files.read_range("folder/b", -3, 2) == b"on"
    with pytest.raises(FileNotFoundError, match=r"no such entry.*one\.zip/c"):
        files.read("c")

    def broken():
        yield entries[0]
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_zip(tmp_path / "three.zip", broken())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.zip", "two.zip"]
