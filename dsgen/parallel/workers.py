"""Worker processes that end with the process that started them, however that one ends."""

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

_PR_SET_PDEATHSIG = 1
_WATCH_INTERVAL_S = 0.2


@contextmanager
def block_interrupts() -> Iterator[None]:
    """Put Ctrl-C off until the end of the block, in which worker processes are started: they never get it.

    Ctrl-C reaches every process of a terminal. A worker leaves it to its parent, which ends its workers; without this
    it would print a traceback if it came while the worker imports its modules.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    from multiprocessing import resource_tracker as tracker_of_python

    from joblib.externals.loky.backend import resource_tracker

    warnings_before = os.environ.get("PYTHONWARNINGS")
    # after an error they print what they clean up, which is their work and nobody's concern
    os.environ["PYTHONWARNINGS"] = ",".join(filter(None, [warnings_before, "ignore::UserWarning"]))
    try:
        for tracker in (tracker_of_python, resource_tracker):  # whose start, with the first worker, would end the block
            tracker.ensure_running()
    finally:
        if warnings_before is None:
            del os.environ["PYTHONWARNINGS"]
        else:
            os.environ["PYTHONWARNINGS"] = warnings_before
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end_with_parent(parent: int) -> None:
    """Make this worker process, whose parent is the process `parent`, end when its parent ends.

    On Linux the kernel kills the worker, even one that is stopped. Elsewhere a thread watches the parent.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if not _die_by_signal() and sys.platform != "win32":  # on Windows the parent of a process never changes
        threading.Thread(target=_watch, args=(parent,), daemon=True).start()
    exit_without_parent(parent)


def exit_without_parent(parent: int) -> None:
    """End this process if the process `parent` is not its parent: that one has ended."""
    if os.getppid() != parent:
        os._exit(1)


def _die_by_signal() -> bool:
    """Ask the kernel to kill this process when the thread that started it ends; say whether it will."""
    if sys.platform != "linux":
        return False
    try:
        return ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0) == 0
    except (OSError, AttributeError):
        return False


def _watch(parent: int) -> None:
    while True:
        exit_without_parent(parent)
        time.sleep(_WATCH_INTERVAL_S)
