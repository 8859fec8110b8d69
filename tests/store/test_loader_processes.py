"""Loader across processes: the same batches under fork, spawn and forkserver; no hang whatever happens to a process."""

import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.loading import order
from torch.utils.data import DataLoader

from dsgen.errors import DsgenError
from dsgen.store.loader import Loader
from dsgen.store.packing import pack

# newer Pythons warn of a fork beside threads, torch of more workers than cores: both are what is tested here
pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
]


def through(loader: Loader, workers: int, context: str = "fork", **options: Any) -> "DataLoader[Any]":
    """A plain DataLoader with workers."""
    return DataLoader(loader, batch_size=None, num_workers=workers, multiprocessing_context=context, **options)


def in_fork(work: Callable[[], bool]) -> bool:
    """Do something in a bare fork and say whether it answered true, in 60 seconds at most."""
    child = os.fork()
    if child == 0:
        try:
            os._exit(0 if work() else 1)
        finally:
            os._exit(2)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status) == 0
        time.sleep(0.02)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise AssertionError("the forked process hangs")


@pytest.mark.parametrize("count", [1, 2, 3])
def test_dataloader_gives_the_same_batches_for_any_workers(three_shards: Path, count: int) -> None:
    """Forked workers of a parent that has read before, whole epoch and from the middle on."""
    loader = Loader(three_shards, None, 7, seed=5)
    expected = order(loader)
    loader.set_epoch(0)
    batches = through(loader, count)
    assert order(batches) == expected
    exact = list(loader)
    for batch, whole in zip(batches, exact, strict=True):
        assert all(torch.equal(batch[name], whole[name]) for name in ("image", "background", "mask", "row"))
        assert (batch["depth"].numpy() == whole["depth"].numpy()).all()
    loader.load_state_dict({"seed": 5, "epoch": 0, "samples": 28})
    assert order(through(loader, count)) == expected[4:]


@pytest.mark.parametrize("context", [pytest.param(name, marks=pytest.mark.slow) for name in ("spawn", "forkserver")])
def test_dataloader_that_does_not_fork(three_shards: Path, context: str) -> None:
    """The same batches in processes made afresh, which are told of a new epoch too when they stay alive."""
    loader = Loader(three_shards, None, 7, seed=5)
    batches = through(loader, 1, context, persistent_workers=True)
    for epoch in range(2):
        loader.set_epoch(epoch)
        expected = order(loader)
        loader.set_epoch(epoch)
        assert order(batches) == expected


def test_persistent_workers_are_told_the_epoch(three_shards: Path) -> None:
    """Forked workers that stay alive follow `set_epoch`."""
    loader = Loader(three_shards, None, 7)
    batches = through(loader, 2, persistent_workers=True)
    seen = []
    for epoch in range(2):
        loader.set_epoch(epoch)
        seen.append(order(batches))
        assert seen[-1] == order(loader)
    assert seen[0] != seen[1]


def test_floats_in_forked_workers(three_shards: Path) -> None:
    """Also after the parent has computed with torch."""
    loader = Loader(three_shards, None, 9, floats=True)
    expected = list(loader)
    for batch, whole in zip(through(loader, 2), expected, strict=True):
        assert all(torch.equal(batch[name], whole[name]) for name in whole)


@pytest.mark.parametrize("workers", [0, 2])
def test_bare_fork_after_reading(three_shards: Path, workers: int) -> None:
    """A forked process gets the right batches from the loader its parent has read with."""
    loader = Loader(three_shards, None, 6, seed=5, workers=workers)
    expected = order(loader)
    assert in_fork(lambda: order(loader) == expected)


@pytest.mark.parametrize("workers", [0, 2])
def test_bare_fork_while_reading(three_shards: Path, workers: int) -> None:
    """In a fork an iterator of the parent raises, a new one works, and the parent's continues."""
    loader = Loader(three_shards, None, 6, seed=5, workers=workers)
    expected = order(loader)
    iterator = iter(loader)
    first = [next(iterator)["row"].tolist()]

    def child() -> bool:
        try:
            next(iterator)
        except DsgenError as error:
            return "made before a fork" in str(error) and order(loader) == expected
        return False

    assert in_fork(child)
    assert first + order(iterator) == expected


def error_through_workers(loader: Loader, kill: bool = False) -> str:
    """The error that reading through two workers, of which one may be killed, ends with; for a process about to end."""
    iterator = iter(through(loader, 2, prefetch_factor=1))
    try:
        if kill:
            next(iterator)
            os.kill(iterator._workers[0].pid, signal.SIGKILL)  # type: ignore[attr-defined]
        order(iterator)
        return "none"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    finally:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would raise for these too
        for worker in iterator._workers:  # type: ignore[attr-defined]
            worker.kill()


def test_killed_worker_is_an_error(three_shards: Path) -> None:
    """A worker that the kernel takes away stops the epoch, by whichever of the errors its pipes end with."""
    assert in_fork(lambda: error_through_workers(Loader(three_shards, None, 1), kill=True) != "none")


@pytest.mark.parametrize("harm", ["truncated", "deleted"])
def test_damage_seen_by_a_worker(tmp_path: Path, three_shards: Path, harm: str) -> None:
    """What a worker cannot read is the same error as in one process."""
    path = Path(shutil.copytree(three_shards, tmp_path / "shards"))
    loader = Loader(path, None, 7)
    file = path / "shard-00001-of-00003.zarr/image/c/0/0/0/0"
    if harm == "truncated":
        file.write_bytes(file.read_bytes()[:-100])
        expected = r"DamagedError: .*shard-00001-of-00003\.zarr: cannot read image"
    else:
        shutil.rmtree(path)
        expected = "NotFoundError: .*expected a store"
    assert in_fork(lambda: re.search(expected, error_through_workers(loader), re.DOTALL) is not None)


def test_cuda_in_a_worker_is_refused(three_shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Devices are for the main process."""
    monkeypatch.setattr("dsgen.store.loader.get_worker_info", lambda: SimpleNamespace(id=0, num_workers=1))
    loader = Loader(three_shards, None, 7)
    loader.device = torch.device("cuda", 0)
    with pytest.raises(DsgenError, match="got cuda:0 in a DataLoader worker, expected None"):
        order(loader)


def test_left_early_workers_and_threads_end(three_shards: Path) -> None:
    """Of a DataLoader dropped in mid-epoch no process stays."""
    iterator: Iterator[Any] = iter(through(Loader(three_shards, None, 1), 2))
    next(iterator)
    workers = list(iterator._workers)  # type: ignore[attr-defined]
    del iterator
    for worker in workers:
        worker.join(30)
        assert not worker.is_alive()
    assert not [t.name for t in threading.enumerate() if t.name.startswith("dsgen-")]


@pytest.mark.parametrize("how", ["end", pytest.param("raise KeyboardInterrupt", marks=pytest.mark.slow)])
def test_interpreter_ends_with_an_iterator_open(three_shards: Path, how: str) -> None:
    """The process ends, with the status it would have and not a word, also of iterators that outlive most modules."""
    program = f"""
        import logging, threading
        import dsgen.store.loader
        iterator, logging.kept, threading.kept, dsgen.store.loader.kept = (
            iter(dsgen.store.loader.Loader({str(three_shards)!r}, None, 4)) for _ in range(4)
        )
        for begun in (iterator, logging.kept, threading.kept, dsgen.store.loader.kept):
            next(begun)
        print("read")
        {"pass" if how == "end" else how}
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout == "read\n"
    assert done.returncode == (0 if how == "end" else -signal.SIGINT)
    assert "Exception ignored" not in done.stderr
    assert how != "end" or done.stderr == ""


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2, 4])
@pytest.mark.parametrize("memory_mb", [150, 300])
def test_memory_stays_below_what_was_allowed(tmp_path: Path, workers: int, memory_mb: int) -> None:
    """What reading adds to the memory of the process, at its highest, is no more than `memory_mb`, and most of that."""
    from dsgen.corpus.build import composite

    composite(tmp_path / "c", jobs=1, max_backgrounds=6, max_foregrounds=10, pictures=False)
    pack(tmp_path / "c", tmp_path / "s", shards=2, jobs=1)
    program = f"""
        from pathlib import Path
        import numpy as np
        from dsgen.store.loader import Loader
        loader = Loader({str(tmp_path / "s")!r}, None, 16, memory_mb={memory_mb}, workers={workers})
        loader._store.backgrounds(np.arange(1))
        def used():
            return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6
        before = used()
        print(max(used() for epoch in range(2) for batch in loader) - before)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=200, check=True
    )
    added_mb = float(done.stdout)
    assert memory_mb * 0.4 < added_mb < memory_mb
