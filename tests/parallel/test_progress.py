"""Progress: lines in a log, a live bar on a terminal."""

import io
import re

import pytest
from rich.console import Console

from dsgen.parallel.progress import live_progress, progress

NOTE = "epoch 3 of 20, loss 0.5123, mask IoU 0.912, AbsRel 0.08"


def show(width: int, title: str, note: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the last line that a terminal of so many columns shows after 3600 of 90000 samples in 100 seconds."""
    now = [0.0]
    monkeypatch.setattr("dsgen.parallel.progress.time.monotonic", lambda: now[0])
    terminal = io.StringIO()
    console = Console(file=terminal, force_terminal=True, width=width, color_system=None, get_time=lambda: now[0])
    monkeypatch.setattr("rich.progress.monotonic", lambda: now[0], raising=False)
    with live_progress(console, title, 90_000) as advance:
        for _ in range(10):
            now[0] += 10
            advance(360, note=note)
    lines = [re.sub(r"\x1b\[[?0-9;]*[A-Za-z]", "", line) for line in re.split(r"[\r\n]", terminal.getvalue())]
    return [line for line in lines if line.strip()][-1]


def test_progress_shows_rate_and_note_in_a_log(capsys: pytest.CaptureFixture[str]):
    """Off a terminal: one plain line at the end."""
    with progress("train", 4) as advance:
        advance(2)
        advance(2, note="loss 0.5")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("train: 4 of 4")
    assert lines[0].endswith("loss 0.5")


def test_a_narrow_terminal_shows_bar_count_and_time_left(monkeypatch: pytest.MonkeyPatch):
    """60 columns: rate and note make way, and the title is whole."""
    line = show(60, "train at 224 px", NOTE, monkeypatch)
    assert len(line) <= 60
    assert re.fullmatch(r"train at 224 px [━╸╺ ]{10,} +3600/90000 0:40:00 +36/s ?", line), line


def test_a_wide_terminal_shows_the_note_too(monkeypatch: pytest.MonkeyPatch):
    """100 columns: the rate, and as much of the note as there is space for; a short note is whole."""
    line = show(100, "train at 224 px", NOTE, monkeypatch)
    assert len(line) <= 100
    assert re.fullmatch(r"train at 224 px [━╸╺ ]{10,} +3600/90000 0:40:00 36/s epoch 3 of 20, loss 0\.5123, .*…", line)
    line = show(100, "train at 224 px", "loss 0.5123", monkeypatch)
    assert re.fullmatch(r"train at 224 px [━╸╺ ]{10,} +3600/90000 0:40:00 36/s loss 0\.5123 *", line), line


def test_on_a_tiny_terminal_the_title_makes_way(monkeypatch: pytest.MonkeyPatch):
    """36 columns: bar, count and time left are whole, rate and note are gone."""
    line = show(36, "train at 224 px", NOTE, monkeypatch)
    assert re.fullmatch(r"trai… [━╸╺ ]{10,} *3600/90000 0:40:00", line), line
