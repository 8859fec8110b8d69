"""Ctrl-C and the clock: checkpoints in mid-epoch."""

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

log = logging.getLogger("dsgen")


class Pauses:
    """When to save in mid-epoch: when the clock says so, and before stopping, when a signal asks for it."""

    def __init__(self, asked: Callable[[], bool], every_s: float, save: Callable[[], None], run: Path):
        self.asked, self._every_s, self._save, self._run = asked, every_s, save, run
        self._saved = time.monotonic()

    def restart(self) -> None:
        """Count from now."""
        self._saved = time.monotonic()

    def due(self) -> bool:
        """Say whether it has been long since the last time."""
        return time.monotonic() - self._saved >= self._every_s

    def save(self, stop: bool) -> None:
        """Save; raise `KeyboardInterrupt` to stop."""
        self._save()
        self.restart()
        if stop:
            log.warning("%s: stopping as asked, the checkpoint is written", self._run)
            raise KeyboardInterrupt

    def stop_if_asked(self) -> None:
        """Save and stop if a signal came."""
        if self.asked():
            self.save(stop=True)


@contextmanager
def interrupts(patient: bool) -> Iterator[Callable[[], bool]]:
    """Turn Ctrl-C and SIGTERM into a question that is asked between steps; the second one stops at once.

    Not so for the `patient`: from torchrun one Ctrl-C comes twice. Outside the main thread there are no signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    asked = False

    def note(*_: Any) -> None:
        nonlocal asked
        if asked and not patient:
            raise KeyboardInterrupt
        asked = True

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
