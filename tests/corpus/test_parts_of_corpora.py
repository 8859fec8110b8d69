"""A corpus made in parts: in any order, at the same time, and though parts are killed."""

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from support.corpora import SMALL, digest, make_corpus

from dsgen.corpus.build import CompositeResult, composite
from dsgen.errors import BusyError
from dsgen.parallel.locks import exclusive_lock
from dsgen.parallel.parts import Part


def draw_part(corpus: Path, pictures: Path, number: int, count: int = 3) -> CompositeResult:
    """Do one part of the small corpus."""
    return composite(
        corpus, pictures / "backgrounds", pictures / "foregrounds", SMALL, jobs=1, part=Part(number, count)
    )


@pytest.mark.parametrize("order", [(1, 2, 3), (3, 1, 2)])
def test_parts_make_the_same_corpus_in_any_order(tmp_path: Path, corpus: Path, pictures: Path, order: tuple[int, ...]):
    """Every part draws its own backgrounds and says what is left; all files are those of one run."""
    results = [draw_part(tmp_path / "c", pictures, number) for number in order]
    assert [result.drawn for result in results] == [24, 24, 24]
    assert [result.left for result in results] == [48, 24, 0]
    assert digest(tmp_path / "c") == digest(corpus)
    again = draw_part(tmp_path / "c", pictures, 2)
    assert (again.drawn, again.already_there) == (0, 24)


_DRAW_PART = (
    "import sys, time; from pathlib import Path; sys.path.insert(0, sys.argv[1]); from support.corpora import SMALL;"
    "from dsgen.corpus import pictures as p; from dsgen.corpus.build import composite;"
    "from dsgen.parallel.parts import parse_part; write = p._write;"
    "p._write = lambda *a: (time.sleep(0.005), write(*a));"
    "print('ready', flush=True);"
    "folders = [Path(sys.argv[3]) / kind for kind in ('backgrounds', 'foregrounds')];"
    "sys.stdin.readline();"
    "composite(Path(sys.argv[2]), *folders, SMALL, jobs=1, part=parse_part(sys.argv[4]))"
)


def start_part(corpus: Path, pictures: Path, part: str) -> subprocess.Popen:
    """Start a part in a process of its own, which starts at a line of input; it writes slowly."""
    return subprocess.Popen(
        [sys.executable, "-c", _DRAW_PART, str(Path(__file__).parent.parent), str(corpus), str(pictures), part],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_parts_may_start_at_the_same_moment_and_be_killed(tmp_path: Path, corpus: Path, pictures: Path):
    """Three processes and a fourth that does what one of them does; the one killed resumes when run again."""
    made = tmp_path / "c"
    running = {part: start_part(made, pictures, part) for part in ("1/3", "2/3", "3/3")}
    for process in running.values():
        assert process.stdout.readline() == "ready\n"
    for process in running.values():
        process.stdin.write("\n")
        process.stdin.flush()
    until = time.monotonic() + 30
    while not list(made.glob("bg_fg/bg003.*.partial")) and time.monotonic() < until:
        time.sleep(0.005)
    running["3/3"].send_signal(signal.SIGSTOP)
    for part in ("1/3", "2/3"):  # one that has not begun would be refused beside the 1/2 below
        running[part].wait(60)
    with pytest.raises(BusyError, match="another dsgen is running composite --part 3/3"):
        draw_part(made, pictures, 3)
    with pytest.raises(BusyError, match=r"(composite --part ./3 is at work|another dsgen is writing) here"):
        make_corpus(made, pictures)
    with pytest.raises(BusyError, match="divides the work differently from --part 1/2"):
        draw_part(made, pictures, 1, 2)
    running["3/3"].kill()
    said = {part: process.communicate()[1] for part, process in running.items()}
    assert [process.returncode for process in running.values()] == [0, 0, -signal.SIGKILL], said
    assert list(made.glob("bg_fg/bg003.*.partial"))
    assert draw_part(made, pictures, 3).left == 0
    assert digest(made) == digest(corpus)
    assert not list(made.rglob("*.partial"))


def test_a_part_waits_for_the_one_that_makes_the_corpus(
    tmp_path: Path, pictures: Path, caplog: pytest.LogCaptureFixture
):
    """It says so, and continues as soon as the folder's lock is free."""
    held, enough = threading.Event(), threading.Event()

    def hold() -> None:
        with exclusive_lock(tmp_path / "c"):
            held.set()
            enough.wait(20)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait(20)
    threading.Timer(1.3, enough.set).start()
    assert draw_part(tmp_path / "c", pictures, 1, 1).left == 0
    assert enough.is_set()
    assert "another dsgen is writing here, waiting for it" in caplog.text
    holder.join()
