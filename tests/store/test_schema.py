"""`index.json`, records and shards' metadata are read against their schemas."""

import copy
import json
import shutil
from pathlib import Path

import pytest
from support.damage import put

from dsgen.errors import DamagedError, DsgenError
from dsgen.io.json_files import parse_as
from dsgen.store.packing import pack
from dsgen.store.reader import Shard, Store
from dsgen.store.records import BlockRecord, FileEntry
from dsgen.store.schema import MadeFrom, parse_index


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, labelled_corpus: Path) -> Path:
    """A store of two shards."""
    out = tmp_path_factory.mktemp("schema") / "store"
    pack(labelled_corpus, out, shards=2, jobs=1)
    return out


def test_an_index_is_returned_as_it_is(store):
    """With its keys in order, also those that the schema does not name."""
    content = (store / "index.json").read_bytes()
    index = {"more": [1], **json.loads(content)}
    assert list(parse_index(json.dumps(index).encode(), "x").items()) == list(index.items())


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda _: [], r"content: got an array of 0, expected an object"),
        (lambda _: {"format": 1}, r"damaged, dsgen is missing, rows is missing, size is missing and 6 more"),
        (lambda i: i | {"format": 4}, r"format 4, expected 1, 2 or 3; use the version of dsgen that made it"),
        (lambda i: i | {"format": None}, r"format: got null"),
        (lambda i: i | {"rows": 10**11}, r"got 100,000,000,000 rows, but its shards have 72"),
        (lambda i: i | {"rows": -1}, r"rows: got -1, expected greater than or equal to 1"),
        (lambda i: i | {"size": 10**6}, r"size: got 1000000"),
        (lambda i: i | {"splits": {"train": 72, "other": 0}}, r"splits\.other"),
        (lambda i: i | {"splits": {"train": 5}}, r"got 72 rows, but its splits have 5"),
        (lambda i: i | {"shards": []}, r"shards: got an array of 0"),
        (lambda i: i | {"shards": i["shards"][::-1]}, r"shard-00001-of-00002\.zarr starts at row 40, expected 0"),
        (lambda i: i | {"shards": [i["shards"][0] | {"name": "../../etc"}]}, r'shards\.0\.name: got "\.\./\.\./etc"'),
        (lambda i: i | {"made_from": {}}, r"made_from\.chunk_rows is missing"),
        (lambda i: i | {"statistics": {"depth": 3}}, r"statistics\.depth"),
    ],
)
def test_another_index_is_refused(store, change, reason):
    """By the value, and by what contradicts itself."""
    index = json.loads((store / "index.json").read_bytes())
    with pytest.raises(DamagedError, match=reason):
        parse_index(json.dumps(change(index)).encode(), "index.json")


@pytest.mark.parametrize("content", [b"{}", b"[]", b'{"sums": {}, "files": {"a": [1]}}', b'{"sums": 1, "files": {}}'])
def test_a_damaged_record_is_refused(content):
    """It names the file."""
    with pytest.raises(DamagedError, match=r"^packing/x\.json: damaged, .*; remove it and run dsgen pack again"):
        BlockRecord.parse(content, "packing/x.json")


def test_a_changed_sum_in_a_record_is_refused():
    """No schema sees another number, but statistics would be made of it."""
    record = BlockRecord({"image": {"count": 3, "sum": [10, 20, 30]}}, {"image/c/0": FileEntry(5, "0" * 64)})
    assert BlockRecord.parse(record.encode(), "packing/x.json") == record
    with pytest.raises(
        DamagedError, match=r"^packing/x\.json: damaged, its content differs from the hash in it; remove"
    ):
        BlockRecord.parse(record.encode().replace(b"20", b"21"), "packing/x.json")


def _edited(store: Path, tmp_path: Path, edit) -> Path:
    """Copy the first shard, and edit its metadata."""
    shard = tmp_path / "shard"
    shutil.copytree(store / "shard-00000-of-00002.zarr", shard)
    root = json.loads((shard / "zarr.json").read_bytes())
    before = copy.deepcopy(root)
    edit(root["consolidated_metadata"]["metadata"])
    assert root != before
    put(shard / "zarr.json", json.dumps(root).encode())
    return shard


@pytest.mark.parametrize(
    "edit",
    [
        lambda arrays: arrays["image"].update(shape=[10**11, 48, 48, 3]),
        lambda arrays: arrays["image"].update(shape=[36, 48]),
        lambda arrays: arrays["background"]["chunk_grid"]["configuration"].update(chunk_shape=[10**11, 48, 48, 3]),
        lambda arrays: arrays["image"]["chunk_grid"]["configuration"].update(chunk_shape=[0, 48, 48, 3]),
        lambda arrays: arrays["image"].update(data_type="object"),
        lambda arrays: arrays["mask"].update(data_type="uint16"),
        lambda arrays: arrays["depth"].update(codecs=[]),
        lambda arrays: arrays["row"].update(codecs=[{"name": "bytes"}, {"name": "gzip"}]),
        lambda arrays: arrays["row"]["chunk_grid"]["configuration"].update(chunk_shape=[2**40]),
        lambda arrays: arrays.pop("row"),
        lambda arrays: arrays.pop("image") and arrays.pop("background") and arrays.pop("depth"),
    ],
)
def test_a_shard_with_other_arrays_is_refused(store, tmp_path, edit):
    """Before memory is taken for what they claim."""
    with pytest.raises(DamagedError, match="damaged"):
        Shard(_edited(store, tmp_path, edit))


def test_the_files_of_a_shard_of_far_too_many_rows_are_not_listed(store, tmp_path):
    """All arrays agree on the rows; what is missing is named as far as is useful."""

    def enlarge(arrays):
        for about in arrays.values():
            if about["shape"][0] == 40:
                about["shape"][0] = 10**11

    shard = Shard(_edited(store, tmp_path, enlarge))
    assert shard.rows == 10**11
    assert 0 < len(shard.missing_files()) < 5000


def test_a_store_whose_shard_differs_from_the_index_is_refused(store, tmp_path):
    """In its rows."""
    copied = tmp_path / "store"
    shutil.copytree(store, copied)
    shutil.rmtree(copied / "shard-00000-of-00002.zarr")

    def enlarge(arrays):
        for about in arrays.values():
            if about["shape"][0] == 40:
                about["shape"][0] = 10**11

    shutil.copytree(_edited(store, tmp_path, enlarge), copied / "shard-00000-of-00002.zarr")
    with pytest.raises(DsgenError, match=r"100000000000 rows of size 48, expected 40 of 48 by index\.json"):
        Store(copied)


def test_a_layout_that_is_no_number_is_refused():
    """In what a store is made from, which a resumed pack reads."""
    made_from = {"chunk_rows": 1, "block_rows": 1, "depth": None, "shards": 1, "recipe": False, "zip": False}
    for layout in ([], "2", 0, None, 1.5):
        with pytest.raises(DamagedError, match=r"made_from\.json: damaged, layout: got"):
            parse_as(MadeFrom, json.dumps(made_from | {"layout": layout}).encode(), "made_from.json")
