"""Exit codes, and errors as people see them: a few lines on stderr, no traceback."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dsgen.cli.app import exit_code, main
from dsgen.errors import ConflictError, DsgenError, InvalidValueError, NotFoundError, SeveralErrors
from dsgen.parallel import signals
from dsgen.parallel.signals import REMEDY

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
        (
            ("depth", "nowhere"),
            1,
            "error: nowhere: no such folder, expected a corpus or a folder of pictures; check the path",
        ),
        (("info", "nowhere"), 1, "error: nowhere: no such folder"),
        (("preview", "nowhere"), 1, "error: nowhere: no such folder"),
        (("report", "nowhere"), 1, "error: nowhere: no such folder, expected a store; run dsgen pack --out nowhere"),
        (("report", "nowhere", "x.pdf"), 2, "error: OUT: got x.pdf, expected a name ending in .html"),
        (("view", "nowhere"), 1, "error: nowhere: no such folder, expected a corpus, a store or a run; run dsgen"),
        (("view", "x", "--data-url", "y"), 2, "error: --data-url: not used when the page is served; leave it out, or"),
        (("view", "x", "--export", "y", "--port", "1"), 2, "error: --port: not used when the page is exported"),
        (("pack", "nowhere"), 1, "error: nowhere: no such folder, expected a corpus; run dsgen composite nowhere"),
        (("train", "nowhere"), 1, "error: nowhere: no such folder, expected a store; run dsgen pack --out"),
        (
            ("export", "nowhere", "out"),
            1,
            "error: nowhere: no such folder, expected a store; run dsgen pack --out",
        ),
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
        ("composit",),
        ("predict", "run"),
        ("info", "one", "two"),
        ("weights", "convert", "only-one.h5"),
        (),
    ],
)
def test_a_command_line_that_does_not_parse_exits_2(arguments: tuple[object, ...], run: Run):
    """Unknown options and commands, missing and superfluous arguments."""
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
    ("error", "message"),
    [
        (
            OSError(errno.EACCES, "Permission denied", "corpus/plan.npy"),
            "corpus/plan.npy: Permission denied (during dsgen info); change the permissions, or choose another place",
        ),
        (
            OSError(errno.ENOSPC, "No space left on device", "corpus/depth.zarr"),
            "corpus/depth.zarr: No space left on device (during dsgen info); free some space, and run the same command "
            "again",
        ),
        (
            OSError(errno.EDQUOT, "Disk quota exceeded"),
            "dsgen info: Disk quota exceeded; remove some files or ask for a larger quota, and run the same command "
            "again",
        ),
        (
            OSError(errno.EMFILE, "Too many open files"),
            "dsgen info: Too many open files; raise the limit, for example with ulimit -n 4096, and run the same "
            "command again",
        ),
        (
            OSError(errno.EIO, "Input/output error", "http://me:pw@host/x"),
            "http://***@host/x: Input/output error (during dsgen info); check the disk or the network file system, and "
            "run the same command again",
        ),
        (
            MemoryError("Unable to allocate 93.1 GiB"),
            "dsgen info: not enough memory (Unable to allocate 93.1 GiB); close other programs or use fewer --jobs, "
            "and run the same command again",
        ),
        (OSError("of a library"), "dsgen info: of a library"),
    ],
)
def test_an_error_of_the_system_is_one_line(error: Exception, message: str, run: Run, monkeypatch: pytest.MonkeyPatch):
    """It names the file where that is known, the stage, and what to do."""

    def fail(path: object) -> str:
        raise error

    monkeypatch.setattr("dsgen.views.info.describe", fail)
    done = run("info")
    assert (done.code, done.out, done.err) == (1, "", f"error: {message}\n")


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


@pytest.mark.parametrize(("number", "said"), [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "terminated")])
@pytest.mark.parametrize("moment", ["imports", "work", "exit"])
def test_a_signal_ends_every_stage_with_one_line(number: signal.Signals, said: str, moment: str, tmp_path: Path):
    """Whenever it comes: no traceback, 128 and the signal's number as exit code, and with --json one object."""
    code = (
        "import os, sys, time, atexit, builtins, dsgen.__main__ as program\n"
        "def strike(*_): os.kill(os.getpid(), NUMBER); time.sleep(5)\n"
        "def imports():\n"
        "    real = builtins.__import__\n"
        "    def hook(name, *rest): strike() if name == 'typer' else None; return real(name, *rest)\n"
        "    builtins.__import__ = hook\n"
        "def work(): import dsgen.views.info as info; info.describe = strike\n"
        "def exit():\n"
        "    import dsgen.views.info, dsgen.cli.app as cli\n"
        "    real = cli.main\n"
        "    def run(): atexit.register(strike); real()\n"
        "    cli.main = run\n"
        "MOMENT()\n"
        "program.main()\n"
    )
    code = code.replace("NUMBER", str(int(number))).replace("MOMENT", moment)
    command = [sys.executable, "-c", code, *(["--version"] if moment == "exit" else ["info", "--json"])]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 128 + number, done.stderr
    if moment == "exit":
        assert done.stderr == ""
        return
    assert done.stderr == f"{said}; run the same command again to resume\n"
    error = json.loads(done.stdout)["error"]
    assert (error["type"], error["remedy"]) == (said.capitalize(), "run the same command again to resume")


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        (("view", "corpus"), ""),
        (("-q", "view", "--port", "0"), ""),
        (("view", "shards", "--export", "page"), REMEDY),
        (("view", "shards", "--export=page"), REMEDY),
        (("pack", "view"), REMEDY),
        (("composite", "--export", "view"), REMEDY),
    ],
)
def test_a_page_that_is_served_is_not_resumed(words: tuple[str, ...], remedy: str, monkeypatch: pytest.MonkeyPatch):
    """Nothing is left to do after a signal; an export of the page is continued as any work is."""
    monkeypatch.setattr(sys, "argv", ["dsgen", *words])
    assert signals.remedy() == remedy


def test_a_signal_before_a_page_is_served_promises_no_resuming():
    """While modules are imported: one word, and with --json an object without a remedy."""
    code = (
        "import os, signal, dsgen.parallel.signals as signals\n"
        "signals.exit_at_once(announce=True)\n"
        "os.kill(os.getpid(), signal.SIGTERM)\n"
    )
    command = [sys.executable, "-c", code, "view", "corpus", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (143, "terminated\n")
    assert json.loads(done.stdout) == {
        "error": {"type": "Terminated", "what": "terminated", "reason": "", "remedy": ""}
    }


@pytest.mark.parametrize("stopped", [False, True])
def test_what_fails_in_a_thread_after_a_signal_is_not_shown(stopped: bool, tmp_path: Path):
    """Threads of joblib may fail while a command is stopped; without a signal it is a bug, shown without secrets."""
    code = (
        "import os, signal, sys, threading, time, dsgen.views.info as info, dsgen.__main__ as program\n"
        "def fail(): raise KeyError('s3://KEY:SECRET@bucket')\n"
        "def work(path):\n"
        f"    if {stopped}:\n"
        "        signal.signal(signal.SIGINT, signal.getsignal(signal.SIGTERM))\n"
        "        try: os.kill(os.getpid(), signal.SIGINT); time.sleep(5)\n"
        "        finally: run()\n"
        "    run()\n"
        "    raise SystemExit(0)\n"
        "def run():\n"
        "    thread = threading.Thread(target=fail); thread.start(); thread.join()\n"
        "info.describe = work\n"
        "program.main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code, "info"], cwd=tmp_path, capture_output=True, text=True)
    if stopped:
        assert (done.returncode, done.stderr) == (130, "interrupted; run the same command again to resume\n")
    else:
        assert "KeyError: 's3://***@bucket'" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_after_the_end_changes_nothing(number: signal.Signals, tmp_path: Path):
    """While the interpreter takes its modules apart: the work is done, and the exit code says so."""
    code = (
        "import os, sys, dsgen.__main__ as program\n"
        "class Late:\n"
        f"    def __del__(self, kill=os.kill, process=os.getpid()): kill(process, {int(number)})\n"
        "sys.modules['late'] = Late()\n"
        "program.main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code, "--version"], cwd=tmp_path, capture_output=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_workers_end_with_the_main_process(number: signal.Signals, tmp_path: Path):
    """Whatever ends it, nothing writes after it: even workers that are stopped end."""
    options = (
        "--jobs 2 --max-backgrounds 4 --max-foregrounds 20 --positions 40 --size 64 --label-size 64 --fg-height 30"
    )
    command = [sys.executable, "-m", "dsgen", "composite", *options.split()]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, env=environment) as process:
        until = time.monotonic() + 60
        while not list(tmp_path.glob("corpus/bg_fg/*.partial")) and time.monotonic() < until:
            time.sleep(0.005)
        workers = [pid for pid in children(process.pid) if "popen_loky" in command_line(pid)]
        assert len(workers) >= 2
        os.kill(workers[0], signal.SIGSTOP)
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
        assert process.returncode == (-number if number == signal.SIGKILL else 128 + number)
        assert "Traceback" not in said
    until = time.monotonic() + 5
    while any(map(command_line, workers)) and time.monotonic() < until:
        time.sleep(0.01)
    assert not [pid for pid in workers if command_line(pid)]
    if number != signal.SIGKILL:
        assert not list(tmp_path.rglob("*.partial"))


def children(parent: int) -> list[int]:
    """Return the processes that a process has started."""
    return [int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]


def command_line(pid: int) -> str:
    """Return the command of a living process; that of a dead one is empty."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def test_only_a_missing_system_library_is_reported_as_one(monkeypatch, capsys):
    """Other failed imports are bugs, whatever is in their text."""
    for text, told in (
        ("libGL.so.1: cannot open shared object file: No such file or directory", "apt-get install libgl1"),
        (
            "libfoo.so.2: cannot open shared object file: No such file or directory",
            "install the package of your system",
        ),
        ("cannot import name 'library' from 'lib'", None),
        ("No module named 'matplotlib'", None),
    ):

        def fail(error: str = text, **_: object) -> None:
            raise ImportError(error)

        monkeypatch.setattr("dsgen.cli.app.app", fail)
        with pytest.raises(SystemExit if told else ImportError):
            main()
        assert (told or "") in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (
            ("composite", "--positions", "6x"),
            "error: --positions: got 6x, expected a whole number; see dsgen",
        ),
        (("composite", "--test-share=much"), "error: --test-share: got much, expected a number; see dsgen composite"),
        (("train", "nowhere", "--epochs", "1e3"), "error: --epochs: got 1e3, expected a whole number; see dsgen train"),
        (("train", "nowhere", "--width", "0"), "error: --width: got 0, expected 1 to 4096"),
    ],
)
def test_wrong_values_are_told(run, arguments, told):
    """The value that was given, before anything is opened."""
    done = run(*arguments)
    assert done.code == 2
    assert done.err.startswith(told)


def test_preview_into_no_folder(run):
    """Its name is told, not that of an unfinished file."""
    done = run("preview", "corpus", "--out", "nodir/x.png")
    assert (done.code, done.err.splitlines()[0]) == (
        1,
        "error: nodir: no such folder, expected the one for x.png; make it, or change --out",
    )
