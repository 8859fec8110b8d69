"""Exclusive locks on folders, as lock files. The operating system releases the locks of a killed process."""

import logging
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dsgen.errors import BusyError, DsgenError

log = logging.getLogger("dsgen")
LOCK = ".dsgen.lock"


@contextmanager
def exclusive_lock(
    folder: Path, name: str = LOCK, wait: bool = False, activity: str = "writing here"
) -> Iterator[None]:
    """Hold the lock file `name` in a folder, which is created if necessary, so that one process at a time works there.

    Lock files of different names, which all start with `LOCK`, are independent. If another process holds this one,
    `BusyError` is raised, or, with `wait`, a warning is logged and the lock awaited. `activity` describes in both
    messages what the other process is doing. If the block raises a `DsgenError` and nothing but the lock file is in
    the folder, the folder is removed again.
    """
    from filelock import FileLock, Timeout

    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / name, timeout=1 if wait else 0)
    try:
        lock.acquire()
    except Timeout as error:
        if not wait:
            raise BusyError(folder, f"another dsgen is {activity}", "wait for it or stop it") from error
        log.warning("%s: another dsgen is %s, waiting for it", folder, activity)
        lock.acquire(timeout=-1)
    try:
        yield
    except DsgenError:
        if [path.name for path in folder.iterdir()] == [name]:  # refused before anything was written
            shutil.rmtree(folder)
        raise
    finally:
        lock.release()


def held_locks(folder: Path, pattern: str) -> list[str]:
    """Return the names of the lock files, matched by a regular expression, that another process holds."""
    from filelock import FileLock, Timeout

    held = []
    for name in sorted(path.name for path in folder.iterdir() if re.fullmatch(pattern, path.name)):
        try:
            with FileLock(folder / name, timeout=0):
                pass
        except Timeout:
            held.append(name)
    return held
