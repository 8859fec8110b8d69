"""What all commands have in common: `--verbose`, `--quiet`, `--endpoint`, and whose stdout it is."""

import logging
import os
from typing import Any

import pytest

from dsgen.parallel.progress import progress
from dsgen.views.info import CorpusInfo

from .conftest import RESULTS, Run


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What a stage sees of its surroundings while it prints, logs and shows progress."""
    seen: dict[str, Any] = {}
    monkeypatch.delenv("DSGEN_PROGRESS", raising=False)
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)

    def describe(path: object) -> CorpusInfo:
        seen.update({name: os.environ.get(name) for name in ("DSGEN_PROGRESS", "AWS_ENDPOINT_URL")})
        print("printed")
        log = logging.getLogger("dsgen")
        for level in ("debug", "info", "warning", "error"):
            getattr(log, level)("a message")
        with progress("info", 10) as advance:
            advance(10, note="done")
        return RESULTS["dsgen.views.info.describe"]

    monkeypatch.setattr("dsgen.views.info.describe", describe)
    monkeypatch.setattr(CorpusInfo, "table", lambda _: "described")
    return seen


def test_results_alone_go_to_stdout(run: Run, seen: dict[str, Any]):
    """Notes, progress and what a stage prints go to stderr."""
    done = run("info")
    assert (done.code, done.out) == (0, "described\n")
    assert done.err.splitlines()[:3] == ["printed", "warning: a message", "error: a message"]
    assert "info: 10 of 10" in done.err
    assert seen == {"DSGEN_PROGRESS": None, "AWS_ENDPOINT_URL": None}


@pytest.mark.parametrize("arguments", [("-q", "info"), ("info", "-q"), ("--quiet", "info"), ("info", "--quiet")])
def test_quiet(arguments: tuple[str, ...], run: Run, seen: dict[str, Any]):
    """Before or after the command: errors and the result line, no progress, no notes; it ends with the command."""
    done = run(*arguments)
    assert (done.out, done.err) == ("described\n", "error: a message\n")
    assert seen["DSGEN_PROGRESS"] == "0"
    assert "DSGEN_PROGRESS" not in os.environ
    assert "warning: a message" in run("info").err


@pytest.mark.parametrize("arguments", [("-v", "info"), ("info", "-v"), ("--verbose", "info"), ("info", "--verbose")])
def test_verbose(arguments: tuple[str, ...], run: Run, seen: dict[str, Any]):
    """Before or after the command; every level says which it is."""
    done = run(*arguments)
    assert done.out == "described\n"
    assert [line for line in done.err.splitlines() if "a message" in line] == [
        f"{level}: a message" for level in ("debug", "info", "warning", "error")
    ]
    assert "debug: " not in run("info").err


@pytest.mark.parametrize(
    "command", ["train", "pack", "evaluate", "export", "info", "preview", "report", "view", "verify", "repair"]
)
def test_the_endpoint_is_an_option(command: str, run: Run):
    """Of every command that reads or writes stores."""
    assert "--endpoint" in run(command, "--help").out


def test_the_endpoint_is_set_while_the_command_runs(run: Run, seen: dict[str, Any]):
    """In the environment, which worker processes inherit; it is as before afterwards."""
    assert run("info", "s3://bucket/shards", "--endpoint", "http://localhost:9000").code == 0
    assert seen["AWS_ENDPOINT_URL"] == "http://localhost:9000"
    assert "AWS_ENDPOINT_URL" not in os.environ


def test_surroundings_are_restored_after_an_error(run: Run, monkeypatch: pytest.MonkeyPatch):
    """Level and environment."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "before")
    level = logging.getLogger("dsgen").level
    assert run("info", "nowhere", "-q", "--endpoint", "http://x").code == 1
    assert os.environ["AWS_ENDPOINT_URL"] == "before"
    assert "DSGEN_PROGRESS" not in os.environ
    assert logging.getLogger("dsgen").level == level
