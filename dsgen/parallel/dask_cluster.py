"""Run blocks of work on the workers of a dask cluster."""

import logging
import os
import queue
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from dsgen import __version__
from dsgen.errors import DsgenError, InvalidValueError, MissingPackageError, raise_all
from dsgen.parallel.locks import LOCK

if TYPE_CHECKING:
    from distributed import Client

log = logging.getLogger("dsgen")
_PATIENCE_S = 10.0


def scheduler_address(backend: str, scheduler: str | None) -> str | None:
    """Return the address of the dask scheduler that was asked for, or None for local processes."""
    if backend not in ("local", "dask"):
        raise InvalidValueError("--backend", f"got {backend!r}, expected local or dask")
    if (backend == "dask") != (scheduler is not None):
        raise InvalidValueError("--backend dask, --scheduler", "got one of them, expected both", "give both or neither")
    return scheduler


def count_workers(address: str) -> int:
    """Count the workers of a dask cluster."""
    with _connect(address) as client:
        return len(client.nthreads())


def run_on_cluster(
    work: Callable[..., int], blocks: list[tuple[Any, ...]], address: str, shared: Sequence[Path]
) -> Iterator[int]:
    """Yield the results of all blocks as they come; dask runs the blocks of a worker that dies on others.

    Not with joblib's dask backend: that of joblib 1.6 waits for ever for a block that dask has given up because every
    worker that tried it died.
    """
    from concurrent.futures import CancelledError

    if not blocks:
        return
    with _connect(address) as client:
        from distributed import Future, KilledWorker

        _check_workers(client, shared)
        finished: queue.SimpleQueue[Future] = queue.SimpleQueue()
        # a result that was fetched is let go of: else, should the worker that holds it die, it would be made again
        waiting = {future.key: future for future in client.map(work, *zip(*blocks, strict=True), pure=False)}
        for future in waiting.values():
            future.add_done_callback(finished.put)
        try:
            while waiting:
                try:
                    future = waiting.pop(finished.get(timeout=_PATIENCE_S).key)
                except queue.Empty:
                    if client.status == "running" and not client.nthreads():
                        log.warning("%s: no worker is left, waiting for one", address)
                    continue
                yield future.result()
        except KilledWorker as error:
            raise DsgenError(
                address,
                f"{error.task}: every worker that tried it died, the last on {error.last_worker.host}",
                "look into the workers' logs, most often memory runs out: fewer workers a machine need less",
            ) from error
        except ModuleNotFoundError as error:
            raise DsgenError(address, f"a worker cannot import {error.name}", "install it there too") from error
        except (CancelledError, OSError) as error:
            if client.status == "running":
                raise
            # it would report, with a traceback, that it cannot connect again
            logging.getLogger("distributed.client").setLevel(logging.CRITICAL)
            raise DsgenError(
                address, "the scheduler is gone", "start it again and repeat the command to go on"
            ) from error


@contextmanager
def _connect(address: str) -> Iterator["Client"]:
    """Connect to a dask scheduler that has workers, for the length of a `with` block."""
    try:
        from distributed import Client
        from distributed.comm import get_address_host_port
    except ImportError as error:
        raise MissingPackageError("distributed", "not installed", "pip install 'dsgen[dask]'") from error
    try:
        get_address_host_port(address)  # what is no address a client that is never closed would stumble on
        client = Client(address, timeout=_PATIENCE_S, set_as_default=False)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise InvalidValueError(
            "--scheduler",
            f"got {address}, expected the address of a running dask scheduler, like tcp://HOST:8786 ({reason})",
            "start one with: dask scheduler",
        ) from error
    with client:
        try:
            client.wait_for_workers(1, timeout=_PATIENCE_S)
        except TimeoutError as error:
            raise DsgenError(
                address, "the scheduler has no workers", f"start some with: dask worker {address} --nthreads 1"
            ) from error
        yield client


def _check_workers(client: "Client", shared: Sequence[Path]) -> None:
    """Refuse to start unless all workers have this dsgen and see the shared folders; name those that do not."""

    def lacking(version: str, marks: list[str]) -> tuple[str, str] | None:
        """Return what a worker lacks and the remedy; it may lack dsgen, so this refers to nothing of it."""
        try:
            import dsgen
        except ImportError as error:
            return f"cannot import dsgen ({error})", "install it there"
        if dsgen.__version__ != version:
            return f"has dsgen {dsgen.__version__}, expected {version} as here", "install the same"
        unseen = [os.path.dirname(mark) for mark in marks if not os.path.exists(mark)]
        if unseen:
            return f"does not see the folder {unseen[0]}", "use a folder on a file system that all machines share"
        return None

    marks = [folder.absolute() / f"{LOCK}-seen-{uuid4().hex}" for folder in shared]
    try:
        for mark in marks:
            mark.touch()
        answers = client.run(lacking, __version__, [str(mark) for mark in marks], on_error="return")
    finally:
        for mark in marks:
            mark.unlink(missing_ok=True)
    raise_all(DsgenError(f"worker {worker}", *answer) for worker, answer in answers.items() if answer is not None)
