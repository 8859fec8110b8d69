"""Show how far a stage is: count, rate and time left, on stderr."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress(title: str, total: int, done: int = 0) -> Iterator[Callable[..., None]]:
    """Yield `advance(count, note="")`; count, rate and time left go to stderr.

    On a terminal a live bar, elsewhere a line now and then, so that a log file stays readable.
    """
    if os.environ.get("DSGEN_PROGRESS") == "0":  # `dsgen --quiet`
        yield lambda *_, **__: None
        return
    if not sys.stderr.isatty():
        yield _LineProgress(title, total, done)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    started, made = time.monotonic(), 0
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=total, completed=done, rate="", note="")

        def advance(count: int, note: str = "") -> None:
            nonlocal made
            made += count
            rate = f"{made / max(time.monotonic() - started, 1e-9):,.0f}/s"
            bar.update(task, advance=count, rate=rate, note=note)

        yield advance


class _LineProgress:
    """One line to stderr every ten seconds and at the end."""

    def __init__(self, title: str, total: int, done: int):
        self._title, self._total, self._done, self._made = title, total, done, 0
        self._started = self._spoke = time.monotonic()

    def __call__(self, count: int, note: str = "") -> None:
        self._made += count
        self._done += count
        now = time.monotonic()
        if now - self._spoke < 10 and self._done < self._total:
            return
        self._spoke = now
        rate = self._made / max(now - self._started, 1e-9)
        left = (self._total - self._done) / rate if rate else float("inf")
        print(
            f"{self._title}: {self._done:,} of {self._total:,}, {rate:,.0f}/s, {left:,.0f} s left {note}".rstrip(),
            file=sys.stderr,
            flush=True,
        )
