"""Store: the schema, and that nothing missing or damaged is ever read as zeros."""

import hashlib
import json
import pickle
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import xarray
import zarr

from dsgen.corpus.chunks import chunk_rows
from dsgen.corpus.corpus import Corpus
from dsgen.errors import DsgenError, NotFoundError
from dsgen.parallel.locks import LOCK
from dsgen.store.codecs import encode_block, split_block
from dsgen.store.packing import pack
from dsgen.store.reader import Shard, Store
from dsgen.store.schema import block_rows, read_sums


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory, labelled_corpus: Path) -> Path:
    """A store of two shards with depth; not to be written to."""
    out = tmp_path_factory.mktemp("store") / "shards"
    pack(labelled_corpus, out, shards=2, jobs=1)
    return out


@pytest.fixture
def copy(tmp_path: Path, shards: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(shards, tmp_path / "shards"))


@pytest.mark.parametrize("size", [16, 224, 1024, 8192])
@pytest.mark.parametrize("positions", [1, 3, 4, 19, 20, 21, 30, 47, 1000, 65535])
def test_chunks_are_bounded(positions: int, size: int) -> None:
    """A chunk has 10 to 30 samples unless they are large; a block is whole chunks."""
    chunk = chunk_rows(positions, size)
    assert 10 <= chunk <= 30 or (chunk == max(1, 2**24 // (size * size * 3)) and chunk < 30)
    block = block_rows(chunk, size)
    assert block % chunk == 0
    assert block == chunk or block * size * size * 3 <= 2**25


def test_natural_runs_are_kept() -> None:
    """A chunk is one run of a pair at 20 positions, and whole runs below."""
    assert [chunk_rows(p, 224) for p in (20, 4, 3, 7)] == [20, 20, 18, 14]


def test_xarray_reads_metres(shards: Path, labelled_corpus: Path) -> None:
    """xarray gives named dimensions and depth in metres, plain zarr the raw millimetres, neither with a warning."""
    path = sorted(shards.glob("*.zarr"))[1]
    dataset = xarray.open_zarr(path)
    assert dataset.image.dims == ("sample", "y", "x", "channel")
    assert dataset.mask.dims == dataset.depth.dims == ("sample", "y", "x")
    assert dataset.background.dims == ("picture", "y", "x", "channel")
    assert dataset.depth.attrs["units"] == "m"
    labels = Corpus(labelled_corpus).depth
    assert labels is not None
    rows = dataset.row.values
    expected = labels[:][rows]
    np.testing.assert_allclose(dataset.depth.values, np.where(expected == 0, np.nan, expected / 1000), rtol=1e-6)
    raw = zarr.open_group(path, mode="r")["depth"]
    assert raw.dtype == np.uint16
    np.testing.assert_array_equal(raw[:], expected)


def test_invalid_depth_is_nan(copy: Path) -> None:
    """A stored 0 is no depth: xarray says NaN."""
    path = next(copy.glob("*.zarr"))
    zarr.open_group(path, mode="r+")["depth"][3, 5, 7] = 0
    depth = xarray.open_zarr(path).depth.values
    assert np.argwhere(np.isnan(depth)).tolist() == [[3, 5, 7]]


def test_read_crosses_shards(shards: Path, labelled_corpus: Path) -> None:
    """Any range of rows, also over the end of a shard, is what the corpus draws."""
    store, corpus = Store(shards), Corpus(labelled_corpus)
    edge = int(store.first_rows[1])
    for first, last in ((0, store.rows), (edge - 3, edge + 5), (edge, edge + 1), (store.rows - 1, store.rows)):
        got = store.read(first, last)
        image, mask = corpus.render(corpus.plan[first:last])
        np.testing.assert_array_equal(got["image"], image)
        np.testing.assert_array_equal(got["mask"], mask)
        np.testing.assert_array_equal(got["depth"], corpus.depth[first:last])
        np.testing.assert_array_equal(got["row"], np.arange(first, last))
        expected = [corpus.background(b) for b in corpus.plan["background"][first:last].tolist()]
        np.testing.assert_array_equal(got["background"], np.stack(expected))
    np.testing.assert_array_equal(store.plan, corpus.plan)
    with pytest.raises(DsgenError, match=f"rows 5 to 5, expected a range within 0 to {store.rows}"):
        store.read(5, 5)


def test_reading_is_what_zarr_reads(shards: Path) -> None:
    """Every range over a shard's chunks, as plain zarr gives it."""
    for path in shards.glob("*.zarr"):
        shard, group = Shard(path), zarr.open_group(path, mode="r")
        for part in ("image", "mask", "depth"):
            expected = group[part][:]
            for first, last in ((0, shard.rows), (0, 20), (19, 21), (3, 4), (25, shard.rows)):
                np.testing.assert_array_equal(shard.read(part, first, last), expected[first:last])


def test_store_can_be_pickled(shards: Path) -> None:
    """A store crosses to another process."""
    store = pickle.loads(pickle.dumps(Store(shards)))
    np.testing.assert_array_equal(store.read(2, 3)["image"], Store(shards).read(2, 3)["image"])


def test_all_zero_mask_is_written() -> None:
    """A chunk of zeros is a chunk like any other, not one left out; what a block has not is."""
    content = encode_block("mask", np.zeros((6, 8, 8), np.uint8), 4, 12)
    chunks = split_block(content, 4, 12)
    assert len(chunks) == 2
    assert all(len(chunk) > 10 for chunk in chunks)


def test_damaged_block_is_not_taken_apart() -> None:
    """The table of a block has a checksum."""
    content = bytearray(encode_block("mask", np.zeros((6, 8, 8), np.uint8), 4, 12))
    content[-20] ^= 1
    with pytest.raises(ValueError, match="checksum"):
        split_block(bytes(content), 4, 12)


def test_unfinished_store_is_refused(copy: Path, tmp_path: Path) -> None:
    """Without an index there is no store."""
    (copy / "index.json").unlink()
    with pytest.raises(NotFoundError, match=r"an unfinished store \(no index.json\); run dsgen pack --out"):
        Store(copy)
    with pytest.raises(NotFoundError, match=r"expected a store; run dsgen pack --out"):
        Store(tmp_path / "nowhere")


def test_corpus_in_place_of_a_store(corpus: Path) -> None:
    """Is called one, with the command that packs it."""
    with pytest.raises(NotFoundError, match=rf"a corpus, expected a store; run dsgen pack {corpus}, and pass"):
        Store(corpus)


def test_other_format_is_refused(copy: Path) -> None:
    """A store of another dsgen says so."""
    index = json.loads((copy / "index.json").read_text())
    (copy / "index.json").write_text(json.dumps(index | {"format": 99}))
    with pytest.raises(DsgenError, match="format 99, expected 1"):
        Store(copy)


def test_lost_shard_is_named(copy: Path) -> None:
    """A shard that the index lists and that is gone."""
    shutil.rmtree(copy / "shard-00001-of-00002.zarr")
    with pytest.raises(DsgenError, match=r"shard-00001-of-00002\.zarr: missing"):
        Store(copy)


@pytest.mark.parametrize(
    "name", ["image/c/0/0/0/0", "mask/c/0/0/0", "depth/c/0/0/0", "background/c/0/0/0/0", "split/c/0"]
)
def test_missing_chunk_is_refused(copy: Path, name: str) -> None:
    """Each kind of file, when gone, is an error on opening, and on reading when it goes later."""
    path = copy / "shard-00000-of-00002.zarr"
    before = Store(copy)
    (path / name).unlink()
    with pytest.raises(DsgenError, match=f"1 files missing, the first {name}"):
        Store(copy)
    if not name.startswith("split"):
        with pytest.raises(DsgenError, match=f"cannot read {name.split('/')[0]}"):
            before.read(0, 2)


@pytest.mark.parametrize("part", ["image", "mask", "depth", "background"])
@pytest.mark.parametrize("damage", ["flip", "cut"])
def test_damaged_chunk_is_refused(copy: Path, part: str, damage: str) -> None:
    """A flipped bit in coded pixels, or a file cut short, is an error and never a picture."""
    path = min(p for p in (copy / "shard-00000-of-00002.zarr" / part / "c").rglob("*") if p.is_file())
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[len(content) // 4] ^= 16
    else:
        del content[len(content) // 2 :]
    path.write_bytes(content)
    with pytest.raises(DsgenError, match=f"cannot read {part}"):
        Store(copy).read(0, 20)


def test_sums_are_those_of_the_files(copy: Path) -> None:
    """`SHA256SUMS` names every file but the two last with its hash, as `sha256sum -c` reads it."""
    sums = read_sums(Store(copy).files)
    last = ("SHA256SUMS", "index.json")
    files = [p for p in copy.rglob("*") if p.is_file() and p.name not in last and not p.name.startswith(LOCK)]
    assert sums == {p.relative_to(copy).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}
    checked = subprocess.run(["sha256sum", "-c", "--quiet", "SHA256SUMS"], cwd=copy, capture_output=True, text=True)
    assert (checked.returncode, checked.stdout) == (0, "")
    content = (copy / "SHA256SUMS").read_bytes()
    assert hashlib.sha256(content).hexdigest() == Store(copy).index["sums_sha256"]


def test_foreign_coding_is_refused(copy: Path) -> None:
    """An array that dsgen did not code is named, not misread."""
    path = copy / "shard-00000-of-00002.zarr/zarr.json"
    text = path.read_text()
    path.write_text(text.replace('"bitshuffle"', '"bitshuffle"').replace('"name": "zstd"', '"name": "gzip"'))
    with pytest.raises(DsgenError, match="is coded by bytes, gzip"):
        Store(copy)


def test_store_in_memory_of_fsspec(shards: Path) -> None:
    """A store behind any URL of fsspec reads as the same store on the disk."""
    import fsspec

    fs = fsspec.filesystem("memory")
    fs.put(f"{shards}/", "/remote/shards/", recursive=True)
    try:
        remote, local = Store("memory://remote/shards"), Store(shards)
        assert remote.sha256 == local.sha256
        for name, values in local.read(0, local.rows).items():
            np.testing.assert_array_equal(remote.read(0, local.rows)[name], values)
        np.testing.assert_array_equal(remote.plan, local.plan)
        fs.rm("/remote/shards/shard-00000-of-00002.zarr/mask/c/0/0/0")
        with pytest.raises(DsgenError, match="1 files missing, the first mask"):
            Store("memory://remote/shards")
        with pytest.raises(DsgenError, match="cannot read mask"):
            remote.read(0, 2)
    finally:
        fs.rm("/remote", recursive=True)


def test_unusable_urls() -> None:
    """A protocol nobody knows and one whose package is missing are errors that say what to do."""
    with pytest.raises(DsgenError, match="not a URL that can be used"):
        Store("nonsense://somewhere")
    with pytest.raises(DsgenError, match="expected a store"):
        Store("memory://nowhere")
