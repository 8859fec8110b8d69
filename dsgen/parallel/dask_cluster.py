"""Run blocks of work on the workers of a dask cluster."""

import logging
import os
import queue
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from dsgen import __version__
from dsgen.errors import DsgenError, InvalidValueError, MissingPackageError, raise_all, reason_of
from dsgen.parallel.locks import LOCK

if TYPE_CHECKING:
    from distributed import Client

log = logging.getLogger("dsgen")
_TIMEOUT_S = 10.0


def scheduler_address(backend: str, scheduler: str | None) -> str | None:
    """Return the address of the dask scheduler, or None for local processes.

    `backend` is local or dask; `InvalidValueError` is raised unless there is a scheduler with dask, and only then.
    """
    if backend not in ("local", "dask"):
        raise InvalidValueError("--backend", f"got {backend!r}, expected local or dask")
    if (backend == "dask") != (scheduler is not None):
        raise InvalidValueError("--backend dask, --scheduler", "got one of them, expected both", "use both or neither")
    return scheduler


def count_workers(address: str) -> int:
    """Return the number of workers of a dask cluster."""
    with _connect(address) as client:
        return len(client.nthreads())


def ask_worker(address: str, function: Callable[..., str], *arguments: Any) -> str:
    """Return `function(*arguments)` as one of the workers of a dask cluster answers it."""
    with _connect(address) as client:
        return str(client.submit(function, *arguments, pure=False).result())


def run_on_cluster(
    work: Callable[..., int], blocks: list[tuple[Any, ...]], address: str, shared: Sequence[Path]
) -> Generator[int, None, None]:
    """Yield `work(*block)` of every block as each one finishes.

    All workers must see the folders `shared`. dask repeats the blocks of a worker that died on other workers.

    joblib's dask backend is not used: in joblib 1.6 it waits forever for a block that dask has given up because every
    worker that tried it died.
    """
    from concurrent.futures import CancelledError

    if not blocks:
        return
    with _connect(address) as client:
        from distributed import Future, KilledWorker

        _check_workers(client, shared)
        finished: queue.SimpleQueue[Future] = queue.SimpleQueue()
        # drop the future of every result that was fetched: dask would compute it again if the worker that holds it died
        pending = {future.key: future for future in client.map(work, *zip(*blocks, strict=True), pure=False)}
        for future in pending.values():
            future.add_done_callback(finished.put)
        try:
            while pending:
                try:
                    future = pending.pop(finished.get(timeout=_TIMEOUT_S).key)
                except queue.Empty:
                    if client.status == "running" and not client.nthreads():
                        log.warning("%s: no workers left, waiting for one", address)
                    continue
                yield future.result()
        except KilledWorker as error:
            raise DsgenError(
                address,
                f"{error.task}: every worker that tried it died, the last on {error.last_worker.host}",
                "see the workers' logs; most often memory runs out, then start fewer workers per machine",
            ) from error
        except ModuleNotFoundError as error:
            raise DsgenError(address, f"a worker cannot import {error.name}", "install it there too") from error
        except (CancelledError, OSError) as error:
            if client.status == "running":
                raise
            # the client would log a traceback because it cannot reconnect
            logging.getLogger("distributed.client").setLevel(logging.CRITICAL)
            remedy = "restart it and repeat the command to resume"
            raise DsgenError(address, "lost the connection to the scheduler", remedy) from error


@contextmanager
def _connect(address: str) -> Iterator["Client"]:
    """Yield a client of a dask scheduler that has workers; it is closed after the block."""
    try:
        from distributed import Client
        from distributed.comm import get_address_host_port
    except ImportError as error:
        raise MissingPackageError("distributed", "not installed", "pip install 'dsgen[dask]'") from error
    try:
        get_address_host_port(address)  # refuses a malformed address, for which `Client` would fail and stay open
        client = Client(address, timeout=_TIMEOUT_S, set_as_default=False)
    except (OSError, ValueError) as error:
        raise InvalidValueError(
            "--scheduler",
            f"got {address}, expected the address of a running dask scheduler, like tcp://HOST:8786 "
            f"({reason_of(error)})",
            "start one with: dask scheduler",
        ) from error
    with client:
        try:
            client.wait_for_workers(1, timeout=_TIMEOUT_S)
        except TimeoutError as error:
            remedy = f"start some with: dask worker {address} --nthreads 1"
            raise DsgenError(address, "the scheduler has no workers", remedy) from error
        yield client


def _check_workers(client: "Client", shared: Sequence[Path]) -> None:
    """Raise, naming the workers, unless all have the same version of dsgen and see the shared folders."""

    def find_problem(version: str, marks: list[str]) -> tuple[str, str] | None:
        """Return what a worker lacks and the remedy; uses nothing of dsgen, which the worker may lack."""
        try:
            import dsgen
        except ImportError as error:
            return f"cannot import dsgen ({error})", "install it there"
        if dsgen.__version__ != version:
            return f"has dsgen {dsgen.__version__}, expected {version} as here", "install the same version"
        unseen = [os.path.dirname(mark) for mark in marks if not os.path.exists(mark)]
        if unseen:
            return f"does not see the folder {unseen[0]}", "use a folder on a file system that all machines share"
        return None

    marks = [folder.absolute() / f"{LOCK}-seen-{uuid4().hex}" for folder in shared]
    try:
        for mark in marks:
            mark.touch()
        answers = client.run(find_problem, __version__, [str(mark) for mark in marks], on_error="return")
    finally:
        for mark in marks:
            mark.unlink(missing_ok=True)
    raise_all(DsgenError(f"worker {worker}", *answer) for worker, answer in answers.items() if answer is not None)
