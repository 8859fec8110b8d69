"""Atomic writes of files and folders.

Everything is written under another name, which ends with `.partial`, and then renamed, so whatever has its final name
is complete. A killed process leaves nothing but a `.partial` behind. No two writers share one: the names of folders,
and of files that several processes write at once, hold the writer's process and a random number; a file of any other
name is locked while it is written. No other module makes or takes apart such names.
"""

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4

from dsgen.io.json_files import encode_json

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_UNFINISHED = re.compile(r"(.+?)(\.(\d+-)?[0-9a-f]{12})?\.partial")


def partial_path(path: Path) -> Path:
    """Return the path that `path` is written to until it is complete, unless another process is writing it."""
    return path.with_name(path.name + ".partial")


def unfinished_path(path: Path) -> Path:
    """Return a path that `path` can be written to until it is complete, which no other writer uses."""
    return partial_path(path.with_name(f"{path.name}.{os.getpid()}-{uuid4().hex[:12]}"))


def final_name(name: str) -> str:
    """Return the name that an unfinished file or folder was to get; any other name as it is.

    >>> final_name("plan.npy.4711-0123456789ab.partial"), final_name("plan.npy.partial"), final_name("plan.npy")
    ('plan.npy', 'plan.npy', 'plan.npy')
    """
    unfinished = _UNFINISHED.fullmatch(name)
    return unfinished[1] if unfinished else name


def is_unfinished(name: str) -> bool:
    """Return whether a file or folder has the name of an unfinished one."""
    return final_name(name) != name


@contextmanager
def name_in_errors(path: Path) -> Iterator[None]:
    """Give errors of the system that name no file, such as that of a full disk, the name of this one."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(path)
        raise


@contextmanager
def write_file(path: Path, *, apart: bool = False) -> Iterator[BinaryIO]:
    """Yield a file to write to; it replaces `path` when the block ends without an error, and is removed otherwise.

    Readers see the old file or the new one, never half of one. Several processes may write the same file at once: the
    last one wins. What killed processes leave is written over by the next one; with `apart`, which suits files that
    several processes do write at once, it stays until it is removed with `clear_unfinished`.
    """
    with name_in_errors(path):
        unfinished, file, shared = _open_unfinished(path, apart)
        try:
            with file:
                yield file
                file.flush()
                os.fsync(file.fileno())
                if shared:  # while it is locked
                    unfinished.replace(path)
            if not shared:
                unfinished.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                unfinished.unlink(missing_ok=True)
            raise


def _open_unfinished(path: Path, apart: bool) -> tuple[Path, BinaryIO, bool]:
    """Open the file that is to become `path`; return its path, and whether other writers use the same name.

    That name is used unless `apart`, and only with a lock: a writer that finds it locked takes a name of its own.
    """
    if not apart and fcntl is not None:
        unfinished = partial_path(path)
        descriptor = os.open(unfinished, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(descriptor), os.stat(unfinished)):  # not renamed since it was opened
                os.ftruncate(descriptor, 0)
                return unfinished, os.fdopen(descriptor, "wb"), True
        except OSError:  # locked by another writer, renamed by it, or on a file system without locks
            pass
        os.close(descriptor)
    unfinished = unfinished_path(path)
    return unfinished, unfinished.open("wb"), False


def write_bytes(path: Path, content: bytes | memoryview, *, apart: bool = False) -> None:
    """Write a file atomically; `apart` as in `write_file`."""
    with write_file(path, apart=apart) as file:
        file.write(content)


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically, indented, with the keys in the order given."""
    write_bytes(path, encode_json(value))


@contextmanager
def write_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder to fill; it replaces `path` when the block ends without an error, and is removed otherwise.

    The caller must be the only process that makes this folder: what killed ones left of it is removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    clear_unfinished(path.parent, {path.name})
    with _unfinished_folder(path) as unfinished:
        yield unfinished
        _remove_folder(path)
        unfinished.rename(path)


@contextmanager
def fill_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder to write files to, which `path` has when the block ends without an error.

    A folder that does not exist gets all files at once. To one that exists each file is moved, in place of one of the
    same name, and other files stay. Several processes may fill the same folder at once.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with _unfinished_folder(path) as unfinished:
        yield unfinished
        try:
            unfinished.rename(path)
        except OSError:
            if not path.is_dir():
                raise
            for file in unfinished.iterdir():
                target = path / file.name
                if target.is_dir():
                    _remove_folder(target)
                file.replace(target)


@contextmanager
def _unfinished_folder(path: Path) -> Iterator[Path]:
    """Yield a new folder for what `path` will hold; it is removed after the block if it is still there."""
    unfinished = unfinished_path(path)
    unfinished.mkdir()
    try:
        with name_in_errors(path):
            yield unfinished
    finally:
        _remove_folder(unfinished)


def clear_unfinished(parent: Path, names: set[str]) -> None:
    """Remove what killed processes left in `parent` of the folders and files of these names."""
    for path in parent.glob("*.partial"):
        if final_name(path.name) in names:
            _remove_folder(path) if path.is_dir() else path.unlink(missing_ok=True)


def _remove_folder(path: Path) -> None:
    """Remove a folder, if it exists: rename it first, so that a process that still writes to it can neither finish it
    nor find it incomplete under its own name.
    """
    doomed = unfinished_path(path.with_name(final_name(path.name)))
    try:
        path.rename(doomed)
    except OSError:  # not there, or renamed by its writer
        return
    shutil.rmtree(doomed, ignore_errors=True)
