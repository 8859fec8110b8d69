"""Object storage: packing to and reading from an S3 server on the loopback address, kills included."""

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pytest
from joblib.externals.loky import get_reusable_executor

from dsgen.errors import DsgenError
from dsgen.io.filesystem import UrlFiles
from dsgen.parallel.locks import LOCK
from dsgen.store.packing import pack
from dsgen.store.reader import Store

_PROGRAM = (
    "import sys; from pathlib import Path; from dsgen.store import packing, schema\n"
    "schema._BLOCK_SAMPLES = 1\n"
    "packing.pack(Path(sys.argv[1]), sys.argv[2], shards=2, jobs=1)\n"
)


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """The URL of an empty bucket on a server of its own; its address and credentials are in the environment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    environment = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "someone",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        try:
            until = time.monotonic() + 60
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port), 1).close()
                    break
                except OSError:
                    assert time.monotonic() < until, "the S3 server did not start"
                    time.sleep(0.1)
            # worker processes that earlier tests left do not know the environment of now
            get_reusable_executor().shutdown(wait=True)
            boto3.client("s3").create_bucket(Bucket="pictures")
            yield "s3://pictures"
        finally:
            server.kill()
            server.wait()


def contents(files: Any) -> dict[str, bytes]:
    """Every file of a tree but locks, by name."""
    return {name: files.read(name) for name in files.sizes() if LOCK not in name}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, labelled_corpus: Path) -> dict[str, bytes]:
    """The files of an undisturbed local run: two shards, every chunk a block."""
    from dsgen.io.filesystem import LocalFiles
    from dsgen.store import schema

    out = tmp_path_factory.mktemp("whole") / "s"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(schema, "_BLOCK_SAMPLES", 1)
        pack(labelled_corpus, out, shards=2, jobs=1)
    return contents(LocalFiles(out))


def test_packed_to_s3_is_the_local_store(bucket: str, labelled_corpus: Path, tmp_path: Path) -> None:
    """Two processes, a bucket: the local store's bytes, read by Store, Loader and plain zarr."""
    import xarray
    import zarr

    from dsgen.store.loader import Loader

    url = f"{bucket}/a/shards"
    result = pack(labelled_corpus, url, shards=2, jobs=2)
    pack(labelled_corpus, tmp_path / "s", shards=2, jobs=1)
    assert result.packed == 72
    assert pack(labelled_corpus, url, shards=2, jobs=1).packed == 0
    local, remote = Store(tmp_path / "s"), Store(url)
    assert contents(remote.files) == contents(local.files)
    expected = local.read(0, 72)
    for name, values in remote.read(0, 72).items():
        np.testing.assert_array_equal(values, expected[name])
    group = zarr.open_group(f"{url}/shard-00000-of-00002.zarr", mode="r")
    np.testing.assert_array_equal(group["image"][3:7], expected["image"][3:7])
    tree = xarray.open_datatree(url, engine="zarr", chunks={})
    np.testing.assert_array_equal(tree["shard-00001-of-00002.zarr/mask"][5], local.shards[1].read("mask", 5, 6)[0])
    assert tree.background_name.values.tolist() == ["room0", "room1", "room2"]
    assert zarr.open_group(url, mode="r")["foreground_name"][1] == "person1"
    rows = [row for batch in Loader(url, None, 8) for row in batch["row"].tolist()]
    assert sorted(rows) == list(range(72))


def test_recipe_on_s3(bucket: str, labelled_corpus: Path) -> None:
    """A recipe in a bucket draws what the corpus draws."""
    from dsgen.corpus.corpus import Corpus

    pack(labelled_corpus, f"{bucket}/recipe", shards=2, recipe=True, jobs=1)
    corpus = Corpus(labelled_corpus)
    got = Store(f"{bucket}/recipe").read(30, 50)
    image, mask = corpus.render(corpus.plan[30:50])
    np.testing.assert_array_equal(got["image"], image)
    np.testing.assert_array_equal(got["mask"], mask)


def stop_and_resume(url: str, after: int, corpus: Path, whole: dict[str, bytes]) -> None:
    """Stop a pack after so many uploads: nothing opens that is not whole, and a second pack makes the whole."""
    original, calls = UrlFiles.write, 0

    def write(self: UrlFiles, name: str, content: bytes) -> None:
        nonlocal calls
        calls += 1
        if calls > after:
            raise KeyboardInterrupt
        original(self, name, content)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(UrlFiles, "write", write)
        with pytest.raises(KeyboardInterrupt):
            pack(corpus, url, shards=2, jobs=1)
    with pytest.raises(DsgenError, match=r"an unfinished store \(no index\.json\)"):
        Store(url)
    there = UrlFiles(url).sizes()
    for shard in ("shard-00000-of-00002.zarr", "shard-00001-of-00002.zarr"):
        missing = {name for name in whole if name.startswith(shard)}.difference(there)
        assert (f"{shard}/zarr.json" in missing) == bool(missing), (after, missing)
        assert "zarr.json" not in there or not missing, (after, missing)
    pack(corpus, url, shards=2, jobs=1)
    assert contents(UrlFiles(url)) == whole, after


@pytest.mark.slow
def test_interrupted_upload_is_no_store(
    bucket: str, labelled_corpus: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped at any upload there is no store, and no shard that opens before it is whole; the next run resumes.

    At one moment in a bucket, at many in memory, which is written to the same way and answers at once.
    """
    from dsgen.store import schema

    monkeypatch.setattr(schema, "_BLOCK_SAMPLES", 1)
    stop_and_resume(f"{bucket}/stopped", 30, labelled_corpus, whole)
    for after in (1, 2, *range(9, len(whole) - 8, 12), *range(len(whole) - 8, len(whole))):
        stop_and_resume(f"memory://stopped{after}/s", after, labelled_corpus, whole)


def kill_and_resume(arguments: list[str], seconds: float) -> bool:
    """Kill a run after a while; say whether it was still running."""
    process = subprocess.Popen([sys.executable, "-c", _PROGRAM, *arguments], stderr=subprocess.DEVNULL)
    try:
        process.wait(seconds)
        return False
    except subprocess.TimeoutExpired:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        return True


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("where", ["local", "s3"])
def test_killed_at_twenty_moments(
    bucket: str, labelled_corpus: Path, whole: dict[str, bytes], tmp_path: Path, where: str
) -> None:
    """SIGKILL at 20 random moments of a pack, one after the other, then a run to the end: the same hashes."""
    from dsgen.io.filesystem import open_files

    store = f"{bucket}/killed" if where == "s3" else str(tmp_path / "s")
    rng = random.Random(where)
    started = time.monotonic()
    subprocess.run([sys.executable, "-c", _PROGRAM, str(labelled_corpus), store + "-timed"], check=True)
    takes = time.monotonic() - started
    killed, tries = 0, 0
    while killed < 20 and tries < 80:
        # from the beginning when a run came to its end, otherwise resuming what exists
        if kill_and_resume([str(labelled_corpus), store], rng.uniform(0.3, 1) * takes):
            killed += 1
        else:
            open_files(store).remove("")
        tries += 1
    subprocess.run([sys.executable, "-c", _PROGRAM, str(labelled_corpus), store], check=True)
    assert killed == 20
    assert contents(open_files(store)) == whole


def test_errors_name_the_address(bucket: str, labelled_corpus: Path) -> None:
    """A bucket that does not exist and a server that does not answer are one line each, and no store is started."""
    with pytest.raises(DsgenError, match=r"s3://nobody/s"):
        pack(labelled_corpus, "s3://nobody/s", shards=2, jobs=1)
    with pytest.raises(DsgenError, match=r"expected a store"):
        Store(f"{bucket}/nothing/here")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{closed.getsockname()[1]}"
        # in a process of its own: connections are kept for as long as a process lives
        environment = {**os.environ, "AWS_ENDPOINT_URL": address, "AWS_MAX_ATTEMPTS": "1"}
        program = "from dsgen.store.reader import Store; Store('s3://pictures/a')"
        ended = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert "DsgenError: s3://pictures/a: cannot be reached or used" in ended.stderr
