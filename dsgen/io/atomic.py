"""Atomic writes of files and folders.

A file or folder is written under its name plus `.partial` and then renamed, so what has its final name is whole.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from dsgen.io.json_files import encode_json


def partial_path(path: Path) -> Path:
    """Return where `path` is written until it is whole."""
    return path.with_name(path.name + ".partial")


def write_bytes(path: Path, content: bytes, *, apart: bool = False) -> None:
    """Write a file atomically: readers see the old file or the new one, never a part.

    With `apart` several may write the same file at once, each under a name of its own: the last stays.
    """
    unfinished = partial_path(path.with_name(f"{path.name}.{uuid4().hex[:12]}") if apart else path)
    try:
        with unfinished.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically, indented, keys in the order given."""
    write_bytes(path, encode_json(value))


@contextmanager
def write_folder(path: Path, *, apart: bool = False) -> Iterator[Path]:
    """Yield an empty folder to fill; it takes its final name, replacing what had it, when the block ends well.

    With `apart` several may make the same folder at once, each under a name of its own: the first stays.
    """
    unfinished = partial_path(path.with_name(f"{path.name}.{uuid4().hex[:12]}") if apart else path)
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
    """Remove what killed processes left of folders of these names."""
    for unfinished in parent.glob("*.partial"):
        if unfinished.name.split(".")[0] in names:
            shutil.rmtree(unfinished, ignore_errors=True)
