"""Measure a Loader over a store in a bucket: through fsspec, as dsgen reads URLs, and through obstore.

    python tests/benchmarks/bench_s3.py STORE [--split train] [--delay-ms 0 20] [--cores 1 2] [--threads 2 8]

A server in a process of its own serves the local STORE as a bucket, with a delay before each answer if asked. It speaks
as much S3 as reading takes: lists, and GET with ranges, from the disk cache. The Loader runs in a process of its own,
which opens the store and reads every row twice, the second time with its memory mapped already. "CPU" is what that
process takes in the second pass, without the server's share; `local` reads the folder itself.
Needs s3fs, obstore and aiohttp: pip install 'dsgen[s3]' obstore
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import subprocess
import sys
import time
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from record import circumstances

BUCKET = "bench"
CLIENTS = ("local", "fsspec", "obstore")


def serve(folder: Path, delay_s: float, ready: Connection) -> None:
    """Serve a folder as the bucket `BUCKET`; send the port when it listens."""
    from aiohttp import web

    def listing(prefix: str) -> str:
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        named = [(path.relative_to(folder).as_posix(), path.stat().st_size) for path in files]
        entries = "".join(
            f"<Contents><Key>{escape(name)}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
            f"<ETag>&quot;{size}&quot;</ETag><Size>{size}</Size><StorageClass>STANDARD</StorageClass></Contents>"
            for name, size in named
            if name.startswith(prefix)
        )
        return (
            '<?xml version="1.0"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
            f"<Name>{BUCKET}</Name><IsTruncated>false</IsTruncated>{entries}</ListBucketResult>"
        )

    async def answer(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(delay_s)
        name = request.match_info["name"].strip("/")
        if not name:
            return web.Response(text=listing(request.query.get("prefix", "")), content_type="application/xml")
        path = folder / name
        return web.FileResponse(path) if path.is_file() else web.Response(status=404)

    async def main() -> None:
        application = web.Application()
        application.router.add_get(f"/{BUCKET}{{name:.*}}", answer)
        runner = web.AppRunner(application, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        ready.send(runner.addresses[0][1])
        await asyncio.Event().wait()

    asyncio.run(main())


class ObstoreFiles:
    """The files below a URL, through obstore: what reading a store takes of `dsgen.io.filesystem.UrlFiles`."""

    def __init__(self, url: str):
        import obstore

        self.url = url
        self.store = obstore.store.from_url(url, client_options={"allow_http": True}, config={"endpoint": endpoint()})

    def __str__(self) -> str:
        return self.url

    def child(self, name: str) -> "ObstoreFiles":
        """Return the tree below one of the folders."""
        return ObstoreFiles(f"{self.url}/{name}")

    def read(self, name: str) -> bytes:
        """Return a whole file."""
        return bytes(self.store.get(name).bytes())

    def read_range(self, name: str, start: int, length: int) -> bytes:
        """Return `length` bytes from `start` on; a negative `start` counts from the end."""
        if start < 0:
            return bytes(self.store.get(name, options={"range": {"suffix": -start}}).bytes())[:length]
        return bytes(self.store.get_range(name, start=start, length=length))

    def expect(self, name: str, start: int, length: int) -> None:
        """Do nothing, as through fsspec."""

    def sizes(self) -> dict[str, int]:
        """Return the bytes of every file, in order of name."""
        found = {entry["path"]: entry["size"] for batch in self.store.list() for entry in batch}
        return dict(sorted(found.items()))


def endpoint() -> str:
    """The address of the server."""
    return os.environ["AWS_ENDPOINT_URL"]


def read_twice(client: str, url: str, split: str | None, threads: int) -> dict[str, float]:
    """Open the store and read every row of a split twice."""
    from dsgen.store import reader
    from dsgen.store.loader import Loader

    if client != "local":
        import_module("obstore.store" if client == "obstore" else "s3fs")  # before the clock starts
    if client == "obstore":
        reader.open_files = ObstoreFiles  # type: ignore[assignment]
    started = time.perf_counter()
    loader = Loader(url, split, 64, workers=threads)
    result = {"open_s": time.perf_counter() - started}
    for name in ("first", "second"):
        started, cpu = time.perf_counter(), time.process_time()
        rows = sum(len(batch["row"]) for batch in loader)
        result |= {
            name: rows / (time.perf_counter() - started),
            f"{name}_cpu_ms": 1000 * (time.process_time() - cpu) / rows,
        }
    return result


def measure(
    folder: Path, split: str | None, delay_ms: float, cores: int, threads: int, client: str
) -> dict[str, float]:
    """Measure one pass, by a process that has so many cores."""
    context = multiprocessing.get_context("spawn")
    parent, child = context.Pipe()
    server = context.Process(target=serve, args=(folder, delay_ms / 1000, child), daemon=True)
    server.start()
    environment = os.environ | {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{parent.recv()}",
        "AWS_ACCESS_KEY_ID": "someone",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    available = sorted(os.sched_getaffinity(0))

    def pin() -> None:
        os.sched_setaffinity(0, available[:cores])

    place = str(folder) if client == "local" else f"s3://{BUCKET}"
    command = [sys.executable, __file__, "--client", client, place, "--threads", str(threads)]
    command += ["--split", split] if split else []
    try:
        done = subprocess.run(
            command, env=environment, preexec_fn=pin, stdout=subprocess.PIPE, text=True, check=True, timeout=600
        )
    finally:
        server.kill()
        server.join()
    result: dict[str, float] = json.loads(done.stdout)
    return result


def main() -> None:
    """Measure every combination, alternating the clients, and print a table of the best rounds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store")
    parser.add_argument("--split", help="the rows to read; by default all")
    parser.add_argument("--delay-ms", type=float, nargs="+", default=[0, 20])
    parser.add_argument("--cores", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--threads", type=int, nargs="+", default=[2, 8])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--client", choices=CLIENTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.client:
        print(json.dumps(read_twice(options.client, options.store, options.split, options.threads[0])))
        return
    print(circumstances(["aiohttp", "fsspec", "obstore", "s3fs", "zarr"]))
    print("| delay | cores | threads | client | first pass | second | CPU ms a row | opening |")
    print("|---|---|---|---|---|---|---|---|")
    cases: list[Any] = [
        (delay, cores, threads) for delay in options.delay_ms for cores in options.cores for threads in options.threads
    ]
    for delay, cores, threads in cases:
        found: dict[str, list[dict[str, float]]] = {client: [] for client in CLIENTS}
        for _ in range(options.rounds):
            for client, runs in found.items():
                runs.append(measure(Path(options.store).resolve(), options.split, delay, cores, threads, client))
        for client, runs in found.items():
            best = {name: max(run[name] for run in runs) for name in ("first", "second")}
            least = {name: min(run[name] for run in runs) for name in ("second_cpu_ms", "open_s")}
            cells = [f"{delay:g} ms", f"{cores}", f"{threads}", client]
            cells += [f"{best['first']:,.0f}", f"{best['second']:,.0f}", f"{least['second_cpu_ms']:.2f}"]
            print("| " + " | ".join([*cells, f"{least['open_s']:.2f} s"]) + " |", flush=True)


if __name__ == "__main__":
    main()
