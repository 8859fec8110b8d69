"""Blocks of work, threads ahead, progress."""

import threading
from pathlib import Path

import pytest

from dsgen.errors import DsgenError
from dsgen.parallel.dask_cluster import scheduler_address
from dsgen.parallel.locks import LOCK
from dsgen.parallel.parts import Part, lock_stage, parse_part, select_part
from dsgen.parallel.pool import run_blocks, worker_count
from dsgen.parallel.prefetch import prefetch
from dsgen.parallel.progress import progress


def count(number: int) -> int:
    """A block of so many samples; three is one too many."""
    if number == 3:
        raise DsgenError("row 3", "cannot be")
    return number


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


def test_ahead_keeps_order_and_bounds():
    """Never more than asked for is made before it is wanted."""
    made = []

    def items():
        for n in range(20):
            made.append(n)
            yield n

    taken = 0
    for n in prefetch(items(), 3):
        assert n == taken
        taken += 1
        assert len(made) <= taken + 3 + 1  # queued, and one in the hand of the thread
    assert taken == 20


def test_ahead_hands_errors_on_in_order():
    """What was made before the error is yielded first."""

    def items():
        yield 1
        raise ValueError("two")

    ready = prefetch(items(), 4)
    assert next(ready) == 1
    with pytest.raises(ValueError, match="two"):
        next(ready)


def test_leaving_early_stops_the_thread():
    """No thread is left behind."""
    before = threading.active_count()

    def endless():
        n = 0
        while True:
            yield n
            n += 1

    ready = prefetch(endless(), 2)
    assert next(ready) == 0
    ready.close()
    assert threading.active_count() == before


def test_progress_shows_rate_and_note_in_a_log(capsys: pytest.CaptureFixture[str]):
    """Off a terminal: one plain line at the end."""
    with progress("train", 4) as advance:
        advance(2)
        advance(2, note="loss 0.5")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("train: 4 of 4")
    assert lines[0].endswith("loss 0.5")


def test_jobs_are_checked():
    """Every core unless given; zero is refused."""
    assert worker_count(None) >= 1
    assert worker_count(3) == 3
    with pytest.raises(DsgenError, match="--jobs: got -1, expected 1 or more"):
        worker_count(-1)


@pytest.mark.parametrize("count", [1, 3, 8, 20])
def test_shares_are_disjoint_cover_all_and_differ_by_one_at_most(count: int):
    """In order, for more parts than blocks too."""
    blocks = list(range(13))
    shares = [select_part(blocks, parse_part(f"{number + 1}/{count}")) for number in range(count)]
    assert [block for part in shares for block in part] == blocks
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("text", ["0/8", "9/8", "x", "3", "3/", "-1/8", "3/0", "1.5/2", ""])
def test_parts_that_cannot_be_are_refused(text: str):
    """The text is shown with an example."""
    assert parse_part("3/8") == Part(3, 8)
    with pytest.raises(DsgenError, match=f"--part: got '{text}', expected K/N with K from 1 to N, like 3/8"):
        parse_part(text)


def test_a_refused_part_keeps_nobody_out(tmp_path: Path):
    """Its lock files stay, empty; itself, another division and a run without parts may begin."""
    with pytest.raises(DsgenError, match="pictures: bad"), lock_stage(tmp_path / "c", "composite", Part(1, 2)):
        raise DsgenError("pictures", "bad")
    assert {path.name: path.stat().st_size for path in (tmp_path / "c").iterdir()} == {
        LOCK: 0,
        f"{LOCK}-composite-1-of-2": 0,
    }
    for part in (Part(1, 2), Part(1, 3), None):
        with lock_stage(tmp_path / "c", "composite", part):
            pass


def test_backend_and_scheduler_belong_together():
    """An address without dask, dask without an address, and a backend there is not."""
    assert scheduler_address("local", None) is None
    assert scheduler_address("dask", "tcp://host:8786") == "tcp://host:8786"
    for backend, scheduler in (("local", "tcp://host:8786"), ("dask", None)):
        with pytest.raises(DsgenError, match="got one of them, expected both"):
            scheduler_address(backend, scheduler)
    with pytest.raises(DsgenError, match="--backend: got 'mpi', expected local or dask"):
        scheduler_address("mpi", None)
