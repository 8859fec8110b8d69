"""Exclusive locks on folders."""

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from dsgen.errors import BusyError, DsgenError
from dsgen.parallel import locks
from dsgen.parallel.locks import LOCK, exclusive_lock, held_locks


def test_a_held_lock_refuses_others_and_says_why(tmp_path: Path):
    """The error has the activity; a lock of another name is free; all is free afterwards."""
    with exclusive_lock(tmp_path / "c", activity="counting"):
        with pytest.raises(BusyError, match="c: another dsgen is counting; wait for it or stop it"):
            exclusive_lock(tmp_path / "c", activity="counting").__enter__()
        with exclusive_lock(tmp_path / "c", f"{LOCK}-other"):
            pass
    with exclusive_lock(tmp_path / "c"):
        pass


def test_a_waiting_lock_is_acquired_once_it_is_free(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """It waits for the holder, and says so."""
    held, release = threading.Event(), threading.Event()

    def hold() -> None:
        with exclusive_lock(tmp_path / "c"):
            held.set()
            release.wait(20)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait(20)
    threading.Timer(1.3, release.set).start()
    with exclusive_lock(tmp_path / "c", wait=True):
        assert release.is_set()
    assert "another dsgen is writing here, waiting for it" in caplog.text
    holder.join()


def test_a_folder_is_removed_if_nothing_was_written_to_it(tmp_path: Path):
    """Only after a `DsgenError`, and only if nothing but the lock is in it."""
    for name, content in (("a", None), ("b", "text")):
        with pytest.raises(DsgenError, match="refused"), exclusive_lock(tmp_path / name):
            write_and_refuse(tmp_path / name / "file", content)
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_a_folder_that_was_there_is_never_removed(tmp_path: Path):
    """Nor are those around it; of new ones only those that hold nothing else."""
    (tmp_path / "mine" / "empty").mkdir(parents=True)
    for name in ("mine/empty", "mine/new/inner", "mine/empty"):
        with pytest.raises(DsgenError, match="refused"), exclusive_lock(tmp_path / name):
            write_and_refuse(tmp_path / name / "file", None)
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")) == ["mine", "mine/empty"]


WORKER = """
import sys
from dsgen.parallel.locks import share_locks
with share_locks([sys.argv[1]]):
    print("shared", flush=True)
    sys.stdin.readline()
"""


def test_a_lock_is_free_only_once_the_workers_of_its_holder_have_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Those of a holder that was killed keep others out; afterwards no trace of them is left."""
    monkeypatch.setattr(locks, "_PATIENCE_S", 0.1)
    command = [sys.executable, "-c", WORKER, str(tmp_path / LOCK)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as worker:
        assert worker.stdout is not None
        worker.stdout.readline()
        with pytest.raises(BusyError, match="the worker processes of a dsgen that was killed are still writing here"):
            exclusive_lock(tmp_path).__enter__()
        assert held_locks(tmp_path, r"\.dsgen\.lock") == [LOCK]
        threading.Timer(0.5, worker.kill).start()
        with exclusive_lock(tmp_path, wait=True):
            assert worker.wait(20) != 0
    assert held_locks(tmp_path, r"\.dsgen\.lock") == []
    assert [path.name for path in tmp_path.iterdir()] == [LOCK]


def write_and_refuse(path: Path, content: str | None) -> None:
    """Write a file, if there is content, and raise an error."""
    if content is not None:
        path.write_text(content)
    raise DsgenError("pictures", "refused")


def test_held_locks_are_those_of_living_processes(tmp_path: Path):
    """A killed process leaves its lock file, but does not hold the lock."""
    code = (
        "import sys; from pathlib import Path; from dsgen.parallel.locks import exclusive_lock\n"
        "with exclusive_lock(Path(sys.argv[1]), '.dsgen.lock-x-1-of-2'):\n"
        "    print('held', flush=True); sys.stdin.readline()"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert held_locks(tmp_path, r"\.dsgen\.lock-x-.*") == [".dsgen.lock-x-1-of-2"]
        assert held_locks(tmp_path, r"\.dsgen\.lock-y-.*") == []
        process.kill()
    assert held_locks(tmp_path, r"\.dsgen\.lock-x-.*") == []
    assert (tmp_path / ".dsgen.lock-x-1-of-2").exists()
