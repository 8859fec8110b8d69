"""Atomic writes of files and folders.

Everything is written under its own name plus `.partial` and then renamed, so whatever has its final name is complete.
A killed process leaves nothing but a `.partial` behind. No other module writes or renames `.partial` names.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4

from dsgen.io.json_files import encode_json


def partial_path(path: Path) -> Path:
    """Return the path that `path` is written to until it is complete."""
    return path.with_name(path.name + ".partial")


@contextmanager
def write_file(path: Path, *, apart: bool = False) -> Iterator[BinaryIO]:
    """Yield a file to write to; it replaces `path` when the block ends without an error, and is removed otherwise.

    Readers see the old file or the new one, never half of one. With `apart` several processes may write the same file
    at once, each under a unique temporary name: the last one wins.
    """
    unfinished = _unfinished_path(path, apart)
    try:
        with unfinished.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


def write_bytes(path: Path, content: bytes | memoryview, *, apart: bool = False) -> None:
    """Write a file atomically; `apart` as in `write_file`."""
    with write_file(path, apart=apart) as file:
        file.write(content)


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically, indented, with the keys in the order given."""
    write_bytes(path, encode_json(value))


@contextmanager
def write_folder(path: Path, *, apart: bool = False) -> Iterator[Path]:
    """Yield an empty folder to fill; it replaces `path` when the block ends without an error, and is removed otherwise.

    With `apart` several processes may make the same folder at once, each under a unique temporary name: the first one
    wins, and the others' folders are removed.
    """
    unfinished = _unfinished_path(path, apart)
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
        if not apart:
            shutil.rmtree(path, ignore_errors=True)
        try:
            unfinished.rename(path)
        except OSError:
            if not (apart and path.is_dir()):
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def clear_unfinished(parent: Path, names: set[str]) -> None:
    """Remove the unfinished folders of these names that killed processes left in `parent`."""
    for unfinished in parent.glob("*.partial"):
        if unfinished.name.split(".")[0] in names:
            shutil.rmtree(unfinished, ignore_errors=True)


def _unfinished_path(path: Path, unique: bool) -> Path:
    return partial_path(path.with_name(f"{path.name}.{uuid4().hex[:12]}") if unique else path)
