"""A short version of the kill campaign, tests/benchmarks/kills.py."""

import subprocess
import sys
from pathlib import Path

import pytest

KILLS = Path(__file__).parents[1] / "benchmarks" / "kills.py"


@pytest.mark.slow
def test_composite_killed_and_run_again_at_once_leaves_the_same_bytes():
    """Main process alone and whole group, by every signal: no difference, no traceback."""
    command = [sys.executable, str(KILLS), "--kills", "2", "--stages", "composite"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert (done.returncode, done.stderr) == (0, "")
    rows = [line for line in done.stdout.splitlines() if line.startswith("| composite")]
    assert len(rows) == 6
    assert all(row.endswith("| 0 |") for row in rows)
