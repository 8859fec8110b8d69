"""Exclusive locks on folders; a killed process holds none."""

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
def exclusive_lock(folder: Path, name: str = LOCK, wait: bool = False, doing: str = "writing here") -> Iterator[None]:
    """Keep a second dsgen from writing to the folder, which is made if need be; a killed process holds no lock.

    Another `name`, which begins with `LOCK`, is a lock of its own. With `wait` the second waits for the first, and
    says so. `doing` says in the error what the other is doing.
    """
    from filelock import FileLock, Timeout

    folder.mkdir(parents=True, exist_ok=True)
    held = FileLock(folder / name, timeout=1 if wait else 0)
    try:
        held.acquire()
    except Timeout as error:
        if not wait:
            raise BusyError(folder, f"another dsgen is {doing}", "wait for it or stop it") from error
        log.warning("%s: another dsgen is %s, waiting for it", folder, doing)
        held.acquire(timeout=-1)
    try:
        yield
    except DsgenError:
        if [path.name for path in folder.iterdir()] == [name]:  # refused before anything was written
            shutil.rmtree(folder)
        raise
    finally:
        held.release()


def held_locks(folder: Path, pattern: str) -> list[str]:
    """Return the names of locks, matched by a regular expression, that another process holds."""
    from filelock import FileLock, Timeout

    held = []
    for name in sorted(path.name for path in folder.iterdir() if re.fullmatch(pattern, path.name)):
        try:
            with FileLock(folder / name, timeout=0):
                pass
        except Timeout:
            held.append(name)
    return held
