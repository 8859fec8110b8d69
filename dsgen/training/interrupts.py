"""Checkpoints in mid-epoch: at intervals, and before Ctrl-C or SIGTERM stops the run."""

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from dsgen.parallel.signals import note_signal

log = logging.getLogger("dsgen")


class Autosave:
    """Saves in mid-epoch: every `interval_s` seconds, and before the run stops because a signal asked for it.

    `stop_requested` says whether a signal came, `save_checkpoint` writes the checkpoint, and `run` is the run's folder.
    """

    def __init__(
        self, stop_requested: Callable[[], bool], interval_s: float, save_checkpoint: Callable[[], None], run: Path
    ):
        self.stop_requested, self._interval_s, self._save_checkpoint = stop_requested, interval_s, save_checkpoint
        self._run, self._saved_at = run, time.monotonic()

    def restart(self) -> None:
        """Restart the interval, after a checkpoint was written elsewhere."""
        self._saved_at = time.monotonic()

    def due(self) -> bool:
        """Say whether the interval is over."""
        return time.monotonic() - self._saved_at >= self._interval_s

    def save(self, stop: bool) -> None:
        """Save; then raise `KeyboardInterrupt` if the run is to `stop`."""
        self._save_checkpoint()
        self.restart()
        if stop:
            log.warning("%s: stopping as requested, the checkpoint is written", self._run)
            raise KeyboardInterrupt

    def stop_if_requested(self) -> None:
        """Save and stop if a signal came."""
        if self.stop_requested():
            self.save(stop=True)


@contextmanager
def catch_signals(ignore_repeats: bool) -> Iterator[Callable[[], bool]]:
    """Catch Ctrl-C and SIGTERM; yield a function that says whether one came. A second signal stops at once.

    With `ignore_repeats` it does not: under torchrun one Ctrl-C arrives twice. Outside the main thread Python allows no
    signal handlers, so nothing is caught.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    requested = False

    def handle(number: int, _: FrameType | None) -> None:
        nonlocal requested
        note_signal(number)
        if requested and not ignore_repeats:
            raise KeyboardInterrupt
        requested = True

    handlers_before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: requested
    finally:
        for number, handler in handlers_before.items():
            signal.signal(number, handler)
