"""The page's own reader, with the bundled zarrita, in node: every array equal, and every damage refused."""

import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from support.web import PlainHandler, served, serving_files

from dsgen.store.packing import pack
from dsgen.views.view import PAGE

NODE = shutil.which("node")
READER = Path(__file__).with_name("read_arrays.mjs")
pytestmark = pytest.mark.skipif(NODE is None, reason="node is not installed")


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory, labelled_corpus: Path) -> Path:
    """A store of the labelled corpus, of one shard."""
    out = tmp_path_factory.mktemp("reads") / "s"
    pack(labelled_corpus, out, shards=1, jobs=1)
    return out


def read(address: str, *shards: str, rows: int = 0) -> subprocess.CompletedProcess[str]:
    """Read shards with node."""
    command = [str(NODE), str(READER), str(PAGE), address, *shards]
    environment = os.environ | {"ROWS": str(rows)}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)


def hashes(store: Path, shard: str) -> dict[str, str]:
    """The SHA-256 of every array as zarr reads it."""
    if shard.endswith(".zip"):
        group = zarr.open_group(zarr.storage.ZipStore(store / shard, mode="r"), mode="r")
    else:
        group = zarr.open_group(store / shard, mode="r")
    arrays: dict[str, Any] = dict(group.arrays())
    return {
        f"{shard}/{name}": hashlib.sha256(np.ascontiguousarray(array[:]).tobytes()).hexdigest()
        for name, array in arrays.items()
    }


@pytest.mark.parametrize("compact", [False, True])
@pytest.mark.parametrize("kind", ["labelled_corpus", pytest.param("floor_corpus", marks=pytest.mark.slow)])
def test_every_array_of_a_store(kind: str, compact: bool, request: pytest.FixtureRequest, tmp_path: Path):
    """Sharded and not, blosc and zstd, all dtypes, depth as differences: as zarr reads them."""
    pack(request.getfixturevalue(kind), tmp_path / "s", shards=2, jobs=1, compact=compact)
    shards = sorted(path.name for path in (tmp_path / "s").glob("*.zarr"))
    with served(tmp_path / "s") as address:
        done = read(f"{address}data/0/", *shards)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {**hashes(tmp_path / "s", shards[0]), **hashes(tmp_path / "s", shards[1])}


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # zarr leaves zip files open
def test_every_array_of_a_zip_file(labelled_corpus: Path, tmp_path: Path):
    """In place, from a server of files."""
    pack(labelled_corpus, tmp_path / "z", shards=1, zipped=True, jobs=1)
    (shard,) = (path.name for path in (tmp_path / "z").glob("*.zip"))
    with serving_files(tmp_path / "z") as address:
        done = read(address, shard, rows=72)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == hashes(tmp_path / "z", shard)


def flip(path: Path, place: int) -> None:
    """Change a byte of a file."""
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("depth chunk", "checksum wrong"),
        pytest.param("depth table", "checksum wrong", marks=pytest.mark.slow),
        ("image table", "checksum wrong"),
        pytest.param("image chunk", "cannot be read", marks=pytest.mark.slow),
        ("column", "cannot be read"),
        pytest.param("missing file", "missing (status 404)", marks=pytest.mark.slow),
        ("missing chunk", "a chunk is missing"),
        pytest.param("cut short", "checksum wrong", marks=pytest.mark.slow),
    ],
)
def test_damage_is_found(damage: str, said: str, packed: Path, tmp_path: Path):
    """Where zarrita would give wrong numbers, or zeros."""
    import google_crc32c

    shutil.copytree(packed, tmp_path / "s")
    (shard,) = (tmp_path / "s").glob("*.zarr")
    image, depth = shard / "image/c/0/0/0/0", shard / "depth/c/0/0/0"
    if damage == "depth chunk":
        flip(depth, 100)
    elif damage.endswith("table"):
        flip(depth if damage.startswith("depth") else image, -12)
    elif damage == "image chunk":
        flip(image, 200)
    elif damage == "column":
        flip(shard / "row/c/0", -2)
    elif damage == "missing file":
        image.unlink()
    elif damage == "cut short":
        image.write_bytes(image.read_bytes()[:-1])
    else:
        content = image.read_bytes()
        rows = json.loads((shard / "image/zarr.json").read_text())
        count = (
            rows["chunk_grid"]["configuration"]["chunk_shape"][0]
            // rows["codecs"][0]["configuration"]["chunk_shape"][0]
        )
        table = b"\xff" * 16 + content[-16 * count - 4 : -4][16:]
        image.write_bytes(content[: -16 * count - 4] + table + google_crc32c.value(table).to_bytes(4, "little"))
    with serving_files(tmp_path / "s") as address:
        done = read(address, shard.name)
    assert done.returncode == 1
    assert said in done.stderr, done.stderr


def test_a_server_without_ranges_is_found(packed: Path):
    """It answers with whole files, which must not be taken for parts of them."""
    (shard,) = packed.glob("*.zarr")
    with serving_files(packed, PlainHandler) as address:
        done = read(address, shard.name)
    assert done.returncode == 1
    assert "this web server ignores Range requests" in done.stderr


def test_the_bundle_is_small_and_licensed():
    """At most 1.5 MB, with the licence of everything in it, and made by a script whose versions are fixed."""
    vendor = PAGE / "vendor"
    assert (vendor / "zarrita.js").stat().st_size <= 1_500_000
    licences = (vendor / "LICENCES.txt").read_text()
    lock = json.loads((vendor / "package-lock.json").read_text())["packages"]
    assert lock["node_modules/zarrita"]["version"] == "0.7.5"
    for part in ("zarrita 0.7.5", "numcodecs 0.3.2", "fflate", "c-blosc", "LZ4", "Snappy", "zlib", "Zstandard", "musl"):
        assert part in licences
