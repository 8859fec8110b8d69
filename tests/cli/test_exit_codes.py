"""Exit codes, and errors as people see them: a few lines on stderr, no traceback."""

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from dsgen.cli.app import exit_code
from dsgen.errors import ConflictError, DsgenError, InvalidValueError, NotFoundError, SeveralErrors

from .conftest import Run, Stages, changed

INVALID = InvalidValueError("--size", "got 0")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (DsgenError("corpus", "broken"), 1),
        (NotFoundError("nowhere", "no corpus"), 1),
        (ConflictError("corpus", "made with other inputs", "", [], "corpus"), 1),
        (INVALID, 2),
        (NotFoundError("--weights", "w does not exist"), 2),
        (SeveralErrors([INVALID, INVALID]), 2),
        (SeveralErrors([INVALID, DsgenError("room.png", "broken")]), 1),
    ],
)
def test_exit_code(error: DsgenError, code: int):
    """A wrong option value is 2, also several of them; work that failed is 1."""
    assert exit_code(error) == code


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("depth", "nowhere"), 1, "error: nowhere: no corpus"),
        (("info", "nowhere"), 1, "error: nowhere: no such folder"),
        (("preview", "nowhere"), 1, "error: nowhere: no such folder"),
        (("pack", "nowhere"), 1, "error: nowhere: no corpus"),
        (("train", "nowhere"), 1, "error: nowhere: no store (no index.json); run dsgen pack --out nowhere"),
        (("export", "nowhere", "out"), 1, "error: nowhere: no store (no index.json); run dsgen pack --out nowhere"),
        (("verify", "nowhere"), 1, "error: nowhere: no such folder"),
        (("composite", "--positions", 0), 2, "error: --positions: got 0"),
        (("composite", "--backgrounds", "nowhere"), 2, "error: --backgrounds: nowhere is no folder"),
        (("train", "--sizes", "big,bigger"), 2, "error: --sizes: got big,bigger, expected whole numbers"),
        (("train-depth", "frames", "--epochs", "1,x"), 2, "error: --epochs: got 1,x, expected whole numbers"),
        (("pack", "--part", "9/8"), 2, "error: --part: got '9/8'"),
        (("-q", "-v", "info"), 2, "error: --verbose, --quiet: got both"),
        (("info", "-qv"), 2, "error: --verbose, --quiet: got both"),
    ],
)
def test_errors_are_one_line_on_stderr(arguments: tuple[object, ...], code: int, message: str, run: Run):
    """No traceback, nothing on stdout."""
    done = run(*arguments)
    assert (done.code, done.out) == (code, ""), done.err
    assert done.err.startswith(message), done.err
    assert done.err.count("\n") == 1, done.err


def test_several_errors_are_listed(run: Run):
    """All wrong values at once, a line each."""
    done = run("composite", "--positions", 0, "--quality", 0)
    assert done.code == 2
    assert done.err.splitlines() == [
        "error: 2 problems, nothing was written:",
        "  --positions: got 0, expected 1 to 65535",
        "  --quality: got 0, expected 1 to 100",
    ]


def test_other_settings_on_a_corpus_take_a_line_each(run: Run, corpus: Path):
    """Only what differs is named."""
    done = run("composite", corpus, "--config", corpus / "corpus.json", "--seed", 7, "--max-backgrounds", 1)
    assert done.code == 1
    assert len(done.err.splitlines()) <= 4, done.err
    assert "  --seed 7 (the corpus has 0)\n" in done.err
    assert max(map(len, done.err.replace(str(corpus), "corpus").splitlines())) <= 120, done.err


@pytest.mark.parametrize(
    "arguments",
    [
        ("composite", "--no-such-option"),
        ("composite", "--positions", "many"),
        ("composit",),
        ("predict", "run"),
        ("info", "one", "two"),
        ("weights", "convert", "only-one.h5"),
        (),
    ],
)
def test_a_command_line_that_does_not_parse_exits_2(arguments: tuple[object, ...], run: Run):
    """Unknown options and commands, values of another type, missing and superfluous arguments."""
    done = run(*arguments)
    assert (done.code, done.out) == (2, "")
    assert "Usage: dsgen" in done.err


def test_failed_pictures_exit_1(run: Run, stages: Stages):
    """The result is printed all the same, an error for each picture before it."""
    result = stages.results["dsgen.evaluation.predict.predict"]
    stages.results["dsgen.evaluation.predict.predict"] = changed(result, failed=("a.png: broken", "b.png: broken"))
    done = run("predict", "run", "shots", "-q")
    assert (done.code, done.err) == (1, "error: a.png: broken\nerror: b.png: broken\n")
    assert done.out.endswith("34 already existed, 2 failed (run/checkpoints/best.pt)\n")


def test_a_network_that_learnt_nothing_is_no_failure(run: Run, stages: Stages):
    """Training did what it was told: exit code 0; `evaluate` finds the masks wrong: exit code 1."""
    trained = stages.results["dsgen.training.fit.train"]
    stages.results["dsgen.training.fit.train"] = changed(trained, learnt_masks=False)
    assert run("train").code == 0
    stages.results["dsgen.evaluation.evaluate.evaluate"] = changed(
        stages.results["dsgen.evaluation.evaluate.evaluate"], blank=True
    )
    assert run("evaluate").code == 1


def test_a_damaged_corpus_exits_1(run: Run, corpus: Path, tmp_path: Path):
    """What `verify` finds is listed on stdout, the summary last."""
    import shutil

    shutil.copytree(corpus, "damaged")
    next(Path("damaged/bg_fg").rglob("*.jpeg")).unlink()
    done = run("verify", "damaged", "--fast", "--jobs", 1)
    assert done.code == 1
    assert "missing" in done.out
    assert done.out.splitlines()[-1].startswith("damaged: 1 finding (1 file or folder missing); ")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            PermissionError(13, "Permission denied", "corpus/plan.npy"),
            "corpus/plan.npy: Permission denied; check its permissions",
        ),
        (
            OSError(errno.EIO, "Input/output error", "http://me:pw@host/x"),
            "http://***@host/x: Input/output error; check the disk and its connection, then run the same command again",
        ),
        (
            MemoryError("Unable to allocate 93.1 GiB"),
            "memory: not enough of it (Unable to allocate 93.1 GiB); free some memory, or use fewer workers or a "
            "smaller batch",
        ),
    ],
)
def test_an_error_of_the_system_is_one_line(run: Run, monkeypatch: pytest.MonkeyPatch, error: Exception, line: str):
    """A folder that may not be read, a broken disk, too little memory: with what to do."""

    def fail(path: object) -> str:
        raise error

    monkeypatch.setattr("dsgen.views.info.describe", fail)
    done = run("info")
    assert (done.code, done.err) == (1, f"error: {line}\n")


def test_a_file_that_ends_too_early_is_no_interruption(run: Run, monkeypatch: pytest.MonkeyPatch):
    """typer takes an `EOFError` for Ctrl-D; where one is not expected it is a bug."""

    def fail(path: object) -> str:
        raise EOFError("No data left in file")

    monkeypatch.setattr("dsgen.views.info.describe", fail)
    with pytest.raises(EOFError, match="No data left"):
        run("info")


def test_a_bug_keeps_its_traceback(run: Run, monkeypatch: pytest.MonkeyPatch):
    """What a user cannot put right is not hidden."""
    monkeypatch.setattr("dsgen.views.info.describe", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run("info")


def test_interrupt_exits_130(tmp_path: Path):
    """Ctrl-C says how to resume."""
    code = (
        "import dsgen.views.info, dsgen.cli.app\n"
        "def stop(path): raise KeyboardInterrupt\n"
        "dsgen.views.info.describe = stop; dsgen.cli.app.main()"
    )
    command = [sys.executable, "-c", code, "info"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout) == (130, "")
    assert result.stderr == "interrupted; run the same command again to resume\n"
