"""Blocks of work in processes and threads."""

import os
import threading
from pathlib import Path

import pytest

from dsgen.errors import ConflictError, DamagedError, Difference, DsgenError, InvalidValueError, SeveralErrors
from dsgen.parallel.dask_cluster import scheduler_address
from dsgen.parallel.pool import map_unordered, run_blocks, worker_count

SEVERAL = SeveralErrors([DamagedError("a.png", "empty", "replace it"), InvalidValueError("--size", "got 0")])
CONFLICT = ConflictError("corpus", "made with other inputs", "use the same", [Difference("--size", 48, 224)], "corpus")


def count(number: int) -> int:
    """A block of so many samples; three is one too many."""
    if number == 3:
        raise DsgenError("row 3", "cannot be")
    return number


def fail(number: int) -> int:
    """Raise an error with fields."""
    raise (SEVERAL, CONFLICT)[number]


def where(_: int) -> tuple[int, int]:
    """Return the process and the thread."""
    return os.getpid(), threading.get_ident()


@pytest.mark.parametrize("jobs", [1, 2])
def test_blocks_are_all_run_and_counted(jobs: int, capsys: pytest.CaptureFixture[str]):
    """The sum of what the blocks return; the last progress line says all is done."""
    assert run_blocks(count, [(1,), (2,), (4,)], jobs=jobs, title="work", total=10, done=3) == 7
    assert "work: 10 of 10" in capsys.readouterr().err


@pytest.mark.parametrize("jobs", [1, 2])
def test_the_first_error_stops_the_run_as_it_is(jobs: int):
    """Also out of another process."""
    with pytest.raises(DsgenError, match="row 3: cannot be"):
        run_blocks(count, [(1,), (3,)], jobs=jobs, title="work", total=4)


@pytest.mark.parametrize("threads", [False, True])
@pytest.mark.parametrize("jobs", [1, 2])
def test_results_come_from_processes_or_threads(jobs: int, threads: bool):
    """Every block has its result; one job works in the calling thread, two in other processes or threads."""
    assert sorted(map_unordered(count, [(1,), (2,), (4,), (5,)], jobs, threads=threads)) == [1, 2, 4, 5]
    assert list(map_unordered(count, [], jobs, threads=threads)) == []
    here = where(0)
    for process, thread in map_unordered(where, [(k,) for k in range(4)], jobs, threads=threads):
        assert (process == here[0]) == (threads or jobs == 1)
        assert ((process, thread) == here) == (jobs == 1)


@pytest.mark.parametrize("threads", [False, True])
@pytest.mark.parametrize("number", [0, 1])
def test_errors_of_workers_keep_class_and_fields(number: int, threads: bool):
    """What a handler reads of an error is the same whether it was raised here or in one of two processes."""
    raised = (SEVERAL, CONFLICT)[number]
    with pytest.raises(type(raised)) as caught:
        list(map_unordered(fail, [(number,), (number,)], 2, threads=threads))
    error = caught.value
    assert type(error) is type(raised)
    assert str(error) == str(raised)
    assert (error.what, error.reason, error.remedy) == (raised.what, raised.reason, raised.remedy)
    if isinstance(error, SeveralErrors):
        assert [type(one) for one in error.errors] == [DamagedError, InvalidValueError]
        assert [(one.what, one.reason, one.remedy) for one in error.errors] == [
            ("a.png", "empty", "replace it"),
            ("--size", "got 0", ""),
        ]
    else:
        assert error.differences == CONFLICT.differences
        assert error.owner == "corpus"


def test_jobs_are_checked():
    """Every core unless given; zero is refused."""
    assert worker_count(None) >= 1
    assert worker_count(3) == 3
    with pytest.raises(InvalidValueError, match="--jobs: got -1, expected 1 or more"):
        worker_count(-1)


def test_backend_and_scheduler_belong_together():
    """An address without dask, dask without an address, and a backend that does not exist."""
    assert scheduler_address("local", None) is None
    assert scheduler_address("dask", "tcp://host:8786") == "tcp://host:8786"
    for backend, scheduler in (("local", "tcp://host:8786"), ("dask", None)):
        with pytest.raises(InvalidValueError, match="got one of them, expected both"):
            scheduler_address(backend, scheduler)
    with pytest.raises(InvalidValueError, match="--backend: got 'mpi', expected local or dask"):
        scheduler_address("mpi", None)


def write_note(name: str) -> int:
    """Write a file at a relative path."""
    Path(name).write_text("here")
    return 1


def test_relative_paths_are_those_of_the_caller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes are kept from call to call, and each call may come from another folder."""
    for folder in ("first", "second"):
        (tmp_path / folder).mkdir()
        monkeypatch.chdir(tmp_path / folder)
        assert sum(map_unordered(write_note, [("a",), ("b",), ("c",)], 2)) == 3
        assert sorted(path.name for path in (tmp_path / folder).iterdir()) == ["a", "b", "c"]
