"""How Ctrl-C (SIGINT) and SIGTERM end the program: with one line, and an exit code of 128 and the signal's number.

While a command works, both raise `KeyboardInterrupt`, so that worker processes are ended and unfinished files removed.
Before that, while modules are imported, and after it, they end the process at once. In the last moment, in which
nothing is left to do, they are ignored.
"""

import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

REMEDY = "run the same command again to resume"
_NAMES = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
SIGNAL_EXIT_CODES = tuple(128 + number for number in _NAMES)
_received: list[int] | None = None  # a list once the program runs


def note_signal(number: int) -> None:
    """Note that a signal asked the program, if it is dsgen, to stop."""
    if _received is not None:
        _received.append(number)


def stopped_by() -> signal.Signals | None:
    """Return the signal that asked the program to stop: the last one noted, or None."""
    return signal.Signals(_received[-1]) if _received else None


def name_of(number: int) -> str:
    """Say in a word what a signal did to the program: `interrupted` or `terminated`."""
    return _NAMES[signal.Signals(number)]


def exit_code(number: int) -> int:
    """Return the exit code of a program that a signal ended: 130 for Ctrl-C, 143 for SIGTERM."""
    return 128 + number


def remedy() -> str:
    """Return what to do after a signal ended the program: nothing after `dsgen view`, unless it exports the page.

    Only the command line is asked, unparsed, since a signal may come while modules are imported.
    """
    words = sys.argv[1:]
    command = next((word for word in words if not word.startswith("-")), "")
    served = command == "view" and not any(word.partition("=")[0] == "--export" for word in words)
    return "" if served else REMEDY


def exit_at_once(announce: bool) -> None:
    """Let both signals end the process at once from here on; `announce` says so on stderr, and with --json on stdout.

    Worker processes end with this one.
    """

    def handle(number: int, _: FrameType | None) -> None:
        if announce:
            said, told = name_of(number), remedy()
            os.write(2, f"{said}; {told}\n".encode() if told else f"{said}\n".encode())
            if "--json" in sys.argv[1:]:
                error = {"type": said.capitalize(), "what": said, "reason": "", "remedy": told}
                os.write(1, f"{json.dumps({'error': error})}\n".encode())
        os._exit(exit_code(number))

    for number in _NAMES:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as for a job that a shell runs in the background
            signal.signal(number, handle)


def ignore_signals() -> None:
    """Ignore both signals from here on: the work is done, and only the interpreter is left to end.

    Python takes its handlers away while it ends. A signal would then end the process as if it came in the middle.
    """
    for number in _NAMES:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def raise_on_signals() -> Iterator[None]:
    """Let both signals raise `KeyboardInterrupt` in the block, and note which one came; only in the main thread."""

    def handle(number: int, _: FrameType | None) -> None:
        note_signal(number)
        raise KeyboardInterrupt

    global _received
    _received = []
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in _NAMES}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
