"""Show the progress of a stage on stderr: count, rate and time left."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from dsgen.secrets import hide_secrets

if TYPE_CHECKING:
    from rich.console import Console

_LINE_INTERVAL_S = 10.0
# in columns of the terminal
_BAR_WIDTH = 10  # at least
_TIME_WIDTH = len("-:--:--")
_NOTE_WIDTH = 12  # a note cut shorter than this says nothing


def shows_progress() -> bool:
    """Return whether progress is shown; `dsgen --quiet` switches it off."""
    return os.environ.get("DSGEN_PROGRESS") != "0"


def note(text: str) -> None:
    """Show a line on stderr, above the progress, unless that is switched off."""
    if shows_progress():
        print(hide_secrets(text), file=sys.stderr, flush=True)


@contextmanager
def progress(title: str, total: int, done: int = 0) -> Iterator[Callable[..., None]]:
    """Yield `advance(count, note="")`, to be called whenever `count` more samples are done.

    `done` samples of `total` were done earlier and do not count for the rate. `note` is a remark on the current state,
    such as the loss. On a terminal a live bar is shown, elsewhere a line every ten seconds, so that log files stay
    readable.
    """
    title = hide_secrets(title)
    if not shows_progress():
        yield lambda *_, **__: None
        return
    if not sys.stderr.isatty():
        yield _LineProgress(title, total, done)
        return
    from rich.console import Console

    with live_progress(Console(stderr=True), title, total, done) as advance:
        yield advance


@contextmanager
def live_progress(console: "Console", title: str, total: int, done: int = 0) -> Iterator[Callable[..., None]]:
    """Yield `advance` as `progress` does, with a live bar on a terminal.

    Bar, count and time left are always shown. Rate and note are shown as far as the terminal is wide enough for them:
    the note is shortened first, then dropped, then the rate. The title is shortened last.
    """
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.table import Column
    from rich.text import Text

    count_width = 2 * len(str(total)) + 1
    needed = _BAR_WIDTH + count_width + _TIME_WIDTH + 3  # with a space before each of the three

    class Details(ProgressColumn):
        """Rate and note, as far as there is space for them."""

        def render(self, task: Task) -> Text:
            left = console.width - min(len(title), max(console.width - needed, 1)) - needed - 1
            rate, note = task.fields["rate"], task.fields["note"]
            if len(rate) > left:
                return Text()
            left -= len(rate) + 1
            if not note or left < min(len(note), _NOTE_WIDTH):
                return Text(rate)
            return Text(f"{rate} {note if len(note) <= left else note[: left - 1] + '…'}")

    started, made = time.monotonic(), 0
    title_column = Column(no_wrap=True, overflow="ellipsis", max_width=max(console.width - needed, 1))
    columns = (
        TextColumn("{task.description}", markup=False, table_column=title_column),
        BarColumn(bar_width=None, table_column=Column(ratio=1, min_width=_BAR_WIDTH)),
        MofNCompleteColumn(table_column=Column(no_wrap=True)),
        TimeRemainingColumn(table_column=Column(no_wrap=True)),
        Details(table_column=Column(no_wrap=True)),
    )
    with Progress(*columns, console=console, expand=True) as bar:
        task = bar.add_task(title, total=total, completed=done, rate="", note="")

        def advance(count: int, note: str = "") -> None:
            nonlocal made
            made += count
            rate = f"{made / max(time.monotonic() - started, 1e-9):,.0f}/s"
            bar.update(task, advance=count, rate=rate, note=note)

        yield advance


class _LineProgress:
    """Print a line to stderr every ten seconds and at the end."""

    def __init__(self, title: str, total: int, done: int):
        self._title, self._total, self._done, self._made = title, total, done, 0
        self._started = self._printed = time.monotonic()

    def __call__(self, count: int, note: str = "") -> None:
        self._made += count
        self._done += count
        now = time.monotonic()
        if now - self._printed < _LINE_INTERVAL_S and self._done < self._total:
            return
        self._printed = now
        rate = self._made / max(now - self._started, 1e-9)
        left_s = (self._total - self._done) / rate if rate else float("inf")
        print(
            f"{self._title}: {self._done:,} of {self._total:,}, {rate:,.0f}/s, {left_s:,.0f} s left {note}".rstrip(),
            file=sys.stderr,
            flush=True,
        )
