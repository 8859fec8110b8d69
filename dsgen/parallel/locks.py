"""Exclusive locks on folders, as lock files. The operating system releases the locks of a killed process."""

import contextlib
import logging
import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from dsgen.errors import BusyError, DsgenError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger("dsgen")
LOCK = ".dsgen.lock"
WORKERS = "-workers"  # ends the name of the lock file that the worker processes of a lock's holder share
_PATIENCE_S = 10.0  # the workers of a killed process end within a moment
_POLL_S = 0.02

_held: list[Path] = []


@contextmanager
def exclusive_lock(
    folder: Path, name: str = LOCK, wait: bool = False, activity: str = "writing here"
) -> Iterator[None]:
    """Hold the lock file `name` in a folder, which is created if necessary, so that one process at a time works there.

    Lock files of different names, which all start with `LOCK`, are independent. If another process holds this one,
    `BusyError` is raised, or, with `wait`, a warning is logged and the lock awaited. `activity` describes in both
    messages what the other process is doing. The lock is free only once the worker processes of its last holder have
    ended, even if that one was killed. If the block raises a `DsgenError` and nothing but the lock file is in the
    folder, what this call created is removed again: the lock file and the folders.
    """
    from filelock import FileLock, Timeout

    created = _create_folder(folder)
    is_new = not (folder / name).exists()
    lock = FileLock(folder / name, timeout=1 if wait else 0)
    try:
        lock.acquire()
    except Timeout as error:
        if not wait:
            raise BusyError(folder, f"another dsgen is {activity}", "wait for it or stop it") from error
        log.warning("%s: another dsgen is %s, waiting for it", folder, activity)
        lock.acquire(timeout=-1)
    workers = folder / f"{name}{WORKERS}"
    _held.append(folder / name)
    try:
        if not _await_workers(workers, None if wait else _PATIENCE_S):
            raise BusyError(
                folder,
                f"the worker processes of a dsgen that was killed are still {activity}",
                "wait for them or end them",
            )
        yield
    except DsgenError:
        if is_new and [path.name for path in folder.iterdir()] == [name]:  # refused before anything was written
            (folder / name).unlink()
            for path in created:
                with contextlib.suppress(OSError):  # not empty
                    path.rmdir()
        raise
    finally:
        _held.remove(folder / name)
        if workers.exists() and _await_workers(workers, 0):
            workers.unlink(missing_ok=True)
        lock.release()


def locks_of_this_process() -> tuple[str, ...]:
    """Return the absolute paths of the lock files that this process holds."""
    return tuple(str(path.absolute()) for path in _held)


@contextmanager
def share_locks(locks: Sequence[str]) -> Iterator[None]:
    """Keep the locks that the parent of this worker process holds from becoming free in the block.

    Locks of a file system without shared locks are not shared.
    """
    with ExitStack() as stack:
        for lock in locks:
            descriptor = os.open(f"{lock}{WORKERS}", os.O_RDWR | os.O_CREAT, 0o666)
            stack.callback(os.close, descriptor)
            if fcntl is not None:
                with contextlib.suppress(OSError):
                    fcntl.flock(descriptor, fcntl.LOCK_SH)
        yield


def _await_workers(path: Path, patience_s: float | None) -> bool:
    """Wait until no worker process shares the lock file; return whether that is so after `patience_s` at most."""
    try:
        descriptor = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return True
    started = time.monotonic()
    try:
        while fcntl is not None:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            except BlockingIOError:
                if patience_s is not None and time.monotonic() - started >= patience_s:
                    return False
                time.sleep(_POLL_S)
            except OSError:  # a file system without locks
                return True
        return True
    finally:
        os.close(descriptor)


def _create_folder(folder: Path) -> list[Path]:
    """Create a folder and those it is in; return the created ones, the innermost first."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return missing


def held_locks(folder: Path, pattern: str) -> list[str]:
    """Return the names of the lock files, matched by a regular expression, that another process holds.

    A lock that only worker processes of a killed process hold is one, unless they end within a moment.
    """
    from filelock import FileLock, Timeout

    held = []
    for name in sorted(path.name for path in folder.iterdir()):
        if not re.fullmatch(pattern, name.removesuffix(WORKERS)):
            continue
        if name.endswith(WORKERS):
            if name.removesuffix(WORKERS) not in held and not _await_workers(folder / name, _PATIENCE_S):
                held.append(name.removesuffix(WORKERS))
            continue
        try:
            with FileLock(folder / name, timeout=0):
                pass
        except Timeout:
            held.append(name)
    return held
