"""Composites, labels and shards made on a dask cluster of worker processes."""

import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.corpora import SMALL, digest, label_files, make_corpus
from typer.testing import CliRunner

from dsgen.cli.app import app
from dsgen.corpus import labels
from dsgen.corpus.build import composite
from dsgen.depth.label_corpus import label_corpus
from dsgen.errors import DsgenError
from dsgen.parallel import dask_cluster, parts
from dsgen.parallel.pool import run_blocks
from dsgen.store.packing import pack

distributed: Any = pytest.importorskip("distributed")

WORKERS = 2


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Worker processes with one thread each, which a nanny starts again when they die."""
    with distributed.LocalCluster(
        n_workers=WORKERS, threads_per_worker=1, processes=True, dashboard_address=None, host="127.0.0.1"
    ) as started:
        yield started


@pytest.fixture
def client(cluster: Any) -> Iterator[Any]:
    """To reach into the workers; all are there."""
    with distributed.Client(cluster.scheduler_address, set_as_default=False) as connected:
        connected.wait_for_workers(WORKERS, timeout=60)
        yield connected


def run(work: Callable[..., int], blocks: list[tuple], address: str, shared: tuple[Path, ...] = ()) -> int:
    """Run blocks on a cluster."""
    return run_blocks(work, blocks, jobs=1, title="work", total=len(blocks), cluster=address, shared=shared)


def kill_a_worker_when(client: Any, begun: Callable[[], bool]) -> threading.Thread:
    """Send SIGKILL to a worker that is at work as soon as the work is seen to have begun."""
    processes = client.run(os.getpid)

    def kill() -> None:
        until = time.monotonic() + 60
        while not begun() and time.monotonic() < until:
            time.sleep(0.005)
        busy = [worker for worker, tasks in client.processing().items() if tasks]
        os.kill(processes[busy[0]], signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    return thread


def test_a_cluster_draws_the_same_bytes_though_a_worker_is_killed(
    tmp_path: Path, client: Any, corpus: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
):
    """SIGKILL in mid-run; the corpus is named relative to a folder in which no worker runs."""

    def slow_down() -> None:
        import time

        from dsgen.corpus import pictures

        write = pictures._write
        pictures._write = lambda *block: (time.sleep(0.01), write(*block))

    client.run(slow_down)
    monkeypatch.chdir(tmp_path)
    killer = kill_a_worker_when(client, lambda: any((tmp_path / "c").glob("bg_fg/*.partial")))
    folders = pictures / "backgrounds", pictures / "foregrounds"
    result = composite(Path("c"), *folders, SMALL, cluster=client.scheduler.address)
    killer.join()
    assert (result.drawn, result.left) == (72, 0)
    assert digest(tmp_path / "c") == digest(corpus)


def test_a_cluster_packs_the_same_bytes(
    tmp_path: Path, client: Any, labelled_corpus: Path, monkeypatch: pytest.MonkeyPatch
):
    """By the command line, into a folder named relative to one in which no worker runs."""
    monkeypatch.chdir(tmp_path)
    pack(labelled_corpus, tmp_path / "here", shards=2, jobs=1)
    command = ["pack", str(labelled_corpus), "--out", "there", "--shards", "2"]
    elsewhere = ["--backend", "dask", "--scheduler", client.scheduler.address]
    result = CliRunner().invoke(app, [*command, *elsewhere], catch_exceptions=False)
    assert "72 packed now" in result.output
    assert digest(tmp_path / "there") == digest(tmp_path / "here")


def test_an_error_on_a_worker_is_the_runs_error(client: Any):
    """One line, as if it had happened here; the cluster can be used again."""

    def send(number: int) -> int:
        from dsgen.errors import DsgenError

        if number == 3:
            raise DsgenError("row 3", "cannot be")
        return number

    address = client.scheduler.address
    with pytest.raises(DsgenError, match=r"^row 3: cannot be$"):
        run(send, [(number,) for number in range(20)], address)
    assert run(send, [(1,), (2,)], address) == 3


def test_workers_that_lack_something_are_named(tmp_path: Path, client: Any):
    """Another dsgen, none, or a folder that is not shared; nothing is left in the folder."""

    def change(code: str) -> None:
        import builtins
        import os

        import dsgen

        if code == "folder":
            os.path.exists, os.path.was = lambda _: False, os.path.exists  # type: ignore[attr-defined]
        elif code == "version":
            dsgen.__version__, dsgen.was = "0.0.1", dsgen.__version__  # type: ignore[attr-defined]
        elif code == "dsgen":

            def without(name: str, *rest: object) -> object:
                if name == "dsgen":
                    raise ModuleNotFoundError("No module named 'dsgen'")
                return builtins.was(name, *rest)  # type: ignore[attr-defined]

            builtins.__import__, builtins.was = without, builtins.__import__  # type: ignore[attr-defined]

    def restore(code: str) -> None:
        import builtins
        import os

        if code == "dsgen":
            builtins.__import__ = builtins.was  # type: ignore[attr-defined]
        import dsgen

        if code == "folder":
            os.path.exists = os.path.was  # type: ignore[attr-defined]
        elif code == "version":
            dsgen.__version__ = dsgen.was  # type: ignore[attr-defined]

    one = next(iter(client.nthreads()))
    address = client.scheduler.address
    for code, message in (
        ("folder", f"worker {one}: does not see the folder {tmp_path}; use a folder on a file system that all"),
        ("version", f"worker {one}: has dsgen 0.0.1, expected"),
        ("dsgen", rf"worker {one}: cannot import dsgen \(No module named 'dsgen'\); install it there"),
    ):
        client.run(change, code, workers=[one])
        try:
            with pytest.raises(DsgenError, match=message):
                run(int, [(1,)], address, (tmp_path,))
        finally:
            client.run(restore, code, workers=[one])
        assert not list(tmp_path.iterdir())
    assert run(int, [(1,)], address, (tmp_path,)) == 1


def test_a_cluster_that_cannot_be_reached_is_said(monkeypatch: pytest.MonkeyPatch):
    """Nobody there, no address at all, and dask not installed."""
    monkeypatch.setattr(dask_cluster, "_TIMEOUT_S", 0.3)
    with pytest.raises(DsgenError, match=r"got tcp://127.0.0.1:9, expected the address of a running dask scheduler"):
        run(int, [(1,)], "tcp://127.0.0.1:9")
    with pytest.raises(DsgenError, match=r"got nonsense, expected the address .* \(missing port number"):
        run(int, [(1,)], "nonsense")
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(DsgenError, match=r"distributed: not installed; pip install 'dsgen\[dask\]'"):
        run(int, [(1,)], "tcp://127.0.0.1:9")


@pytest.mark.slow
def test_labels_of_a_cluster_are_those_of_one_process(
    tmp_path: Path, client: Any, corpus: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
):
    """Networks load on the workers; going on labels nothing; another network is refused there as here."""
    monkeypatch.setattr(labels, "BLOCK_ROWS", 20)
    for name in ("here", "there"):
        shutil.copytree(corpus, tmp_path / name)
    options = {"weights": weights, "device": "cpu", "batch_size": 10}
    address = client.scheduler.address
    label_corpus(tmp_path / "here", **options)
    result = label_corpus(tmp_path / "there", cluster=address, **options)
    assert (result.labelled, result.left) == (72, 0)
    assert label_files(tmp_path / "there") == label_files(tmp_path / "here")
    assert label_corpus(tmp_path / "there", cluster=address, **options).labelled == 0
    shutil.rmtree(tmp_path / "there" / "depth.zarr")
    with pytest.raises(DsgenError, match=r"--device: got 'cuda:77', this machine has"):
        label_corpus(tmp_path / "there", cluster=address, **options | {"device": "cuda:77"})


@pytest.mark.slow
def test_a_function_labels_on_a_cluster_though_a_worker_is_killed(
    tmp_path: Path, client: Any, corpus: Path, monkeypatch: pytest.MonkeyPatch
):
    """A function of the calling module travels with the work; views are drawn there too."""
    monkeypatch.setattr(labels, "BLOCK_ROWS", 20)

    def darkness(image: np.ndarray) -> np.ndarray:
        import time

        time.sleep(0.3)
        return 5 - image.mean(axis=3) / 64

    for name in ("here", "there"):
        shutil.copytree(corpus, tmp_path / name)
    options = {"model": darkness, "device": "cpu", "batch_size": 10, "pictures": True}
    label_corpus(tmp_path / "here", jobs=1, **options)
    killer = kill_a_worker_when(client, lambda: any((tmp_path / "there").glob("depth.zarr/depth/c/*/0/0")))
    label_corpus(tmp_path / "there", cluster=client.scheduler.address, **options)
    killer.join()
    assert digest(tmp_path / "there") == digest(tmp_path / "here")


@pytest.mark.slow
def test_a_block_that_kills_every_worker_ends_the_run(client: Any):
    """An error that says so, instead of waiting for ever."""

    def die(number: int) -> int:
        import os
        import signal

        if number == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return number

    with pytest.raises(DsgenError, match="every worker that tried it died"):
        run(die, [(number,) for number in range(6)], client.scheduler.address)


@pytest.mark.slow
def test_parts_and_a_cluster_together(tmp_path: Path, client: Any, corpus: Path, pictures: Path, weights: Path):
    """A part of a corpus drawn by a cluster, the rest here."""
    folders = pictures / "backgrounds", pictures / "foregrounds"
    address = client.scheduler.address
    composite(tmp_path / "c", *folders, SMALL, part=parts.Part(2, 2), cluster=address)
    make_corpus(tmp_path / "c", pictures)
    assert digest(tmp_path / "c") == digest(corpus)
