"""Verify a store: every damaged, missing and added file is named, every row compared with the corpus."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.corpora import files
from support.damage import DAMAGES, KINDS, add, delete, flip, linked, named, picked, put, truncate

from dsgen.corpus.corpus import Corpus
from dsgen.integrity.verify import verify
from dsgen.io.filesystem import LocalFiles, hash_tree
from dsgen.store import codecs, reader, schema
from dsgen.store.layout import shard_name
from dsgen.store.packing import pack
from dsgen.store.records import FileEntry
from dsgen.store.sealing import open_shard, store_files


@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_store_has_no_findings(stores: Path, labelled_corpus: Path, kind: str) -> None:
    """Every file is hashed and every row compared, without a finding and without a change."""
    before = files(stores / kind)
    report = verify(stores / kind, labelled_corpus, jobs=1)
    assert report.findings == ()
    assert report.notes == ()
    assert (report.rows, report.files) == (72, len(before))
    assert report.bytes == sum(map(len, before.values()))
    assert report.summary().startswith(f"{stores / kind}: no findings; {len(before)} files, ")
    assert ", 72 rows compared (" in report.summary()
    assert ", 72 rows decoded (" in verify(stores / kind, jobs=1).summary()
    assert files(stores / kind) == before


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_of_a_store_is_named(
    tmp_path: Path, stores: Path, kind: str, damage: Callable[[Path], None]
) -> None:
    """One file of every array at a time, and of hashes and index: that file and no other."""
    path = linked(stores / kind, tmp_path / "s")
    whole = files(path)
    for name, content in {name: whole[name] for name in picked(list(whole))}.items():
        damage(path / name)
        wrong = f"{name}.copy" if damage is add else name
        assert named(verify(path, fast=True, jobs=1)) == {wrong}, name
        (path / wrong).unlink(missing_ok=True)
        put(path / name, content)
    assert verify(path, fast=True, jobs=1).findings == ()


def test_a_shard_that_cannot_be_opened_affects_no_other(tmp_path: Path, stores: Path, labelled_corpus: Path) -> None:
    """Its rows are skipped with a note, and its one damaged file is one finding."""
    path = linked(stores / "folder", tmp_path / "s")
    root = f"{shard_name(0, 2)}/zarr.json"
    for old, new in (("block_rows", "block_rose"), ('"first_row": 0', '"first_row": "x"'), ("{", "[")):
        put(path / root, (stores / "folder" / root).read_bytes().replace(old.encode(), new.encode()))
        report = verify(path, labelled_corpus, jobs=1)
        assert named(report) == {root}
        assert report.rows == 32
        assert f"{shard_name(0, 2)}: no pixels checked (its zarr.json is missing or damaged)" in report.notes


def test_a_missing_file_is_reported_with_its_rows(tmp_path: Path, labelled_corpus: Path, monkeypatch: Any) -> None:
    """All its rows are in one finding, though they are several chunks."""
    monkeypatch.setattr(schema, "_BLOCK_SAMPLES", 40)
    pack(labelled_corpus, tmp_path / "s", shards=1, jobs=1)
    image = f"{shard_name(0, 1)}/image/c/0/0/0/0"
    delete(tmp_path / "s" / image)
    found = {(finding.file, finding.what) for finding in verify(tmp_path / "s", labelled_corpus, jobs=1).findings}
    assert found == {(image, "missing"), (image, "rows 0 to 39: image cannot be read (its file is missing)")}


def rewrite(path: Path, name: str, content: bytes) -> None:
    """Replace the content of a file of a store, and update the hashes."""
    put(path / name, content)
    sizes = {file: size for file, size in LocalFiles(path).sizes().items() if file.startswith("shard-")}
    digests = dict(hash_tree(LocalFiles(path), sizes, 1))
    names = sorted({file.partition("/")[0] for file in sizes})
    shards = {shard: open_shard(LocalFiles(path), shard) for shard in names}
    tables = {
        shard: {file: FileEntry(sizes[file], str(digests[file])) for file in sizes if file.startswith(shard)}
        for shard in names
    }
    plan = reader.Store(path).plan
    for file, content in store_files(plan, shards, tables).items():
        put(path / file, content)


@pytest.mark.parametrize(
    ("part", "what"),
    [
        ("image", "row 40: image differs from the corpus"),
        ("mask", "row 40: mask differs from the corpus"),
        ("depth", "row 40: depth differs from the corpus"),
        ("background", "differs from background 1 of the corpus"),
        ("top", "differs from the plan of the corpus"),
    ],
)
def test_pixels_are_compared_with_the_corpus(
    tmp_path: Path, stores: Path, labelled_corpus: Path, part: str, what: str
) -> None:
    """A store with correct hashes and one wrong row."""
    path = linked(stores / "folder", tmp_path / "s")
    shard = open_shard(LocalFiles(path), shard_name(1, 2))
    if part == "background":
        picture = shard.background(0).copy()
        picture[3, 4, 1] ^= 1
        name = f"{shard_name(1, 2)}/background/c/0/0/0/0"
        content = dict(schema.background_files(np.array([0]), lambda _: picture))["background/c/0/0/0/0"]
    elif part == "top":
        plan = Corpus(labelled_corpus).plan[40:].copy()
        plan["top"][7] ^= 1
        name = f"{shard_name(1, 2)}/top/c/0"
        content = dict(schema.column_files(plan, 40))["top/c/0"]
    else:
        values = shard.read(part, 0, 20).copy()
        values[0, 20, 20] ^= 255
        name = f"{shard_name(1, 2)}/{schema.block_name(part, 0)}"
        content = codecs.encode_block(part, values, 20, 20)
    assert shard.attributes["first_row"] == 40
    rewrite(path, name, content)
    assert verify(path, jobs=1).findings == ()
    found = verify(path, labelled_corpus, jobs=1).findings
    assert [(f.file.partition("/c/")[0], f.what) for f in found] == [(name.partition("/c/")[0], what)]


@pytest.mark.parametrize(
    ("part", "what"), [("sample", "differs from the rows"), ("picture", "differs from the rows' backgrounds")]
)
def test_coordinates_are_checked(tmp_path: Path, stores: Path, labelled_corpus: Path, part: str, what: str) -> None:
    """One that is wrong is named though its hash is right; so is one that cannot be read."""
    path = linked(stores / "folder", tmp_path / "s")
    plan = Corpus(labelled_corpus).plan[40:]
    wrong = dict(schema.coordinate_files(plan, 41, np.unique(plan["background"]) + 1))
    rewrite(path, f"{shard_name(1, 2)}/{part}/c/0", wrong[f"{part}/c/0"])
    found = verify(path, jobs=1).findings
    assert [(finding.file, finding.what) for finding in found] == [(f"{shard_name(1, 2)}/{part}", what)]
    rewrite(path, f"{shard_name(1, 2)}/{part}/c/0", wrong[f"{part}/c/0"][:-3])
    (finding,) = verify(path, jobs=1).findings
    assert finding.file == f"{shard_name(1, 2)}/{part}"
    assert finding.what.startswith("column cannot be read")


def test_a_column_that_cannot_be_read_is_named(tmp_path: Path, stores: Path) -> None:
    """The column is named, and its file, whose hash differs; the rows are still checked."""
    path = linked(stores / "folder", tmp_path / "s")
    column = f"{shard_name(1, 2)}/row"
    truncate(path / column / "c/0")
    report = verify(path, jobs=1)
    assert named(report) == {column, f"{column}/c/0"}
    assert report.rows == 72


@pytest.mark.parametrize("part", ["image", "mask", "depth", "background"])
def test_every_chunk_is_decoded(tmp_path: Path, stores: Path, part: str) -> None:
    """A file that cannot be decoded is named with its rows, though its hash is right."""
    path = linked(stores / "folder", tmp_path / "s")
    name = f"{shard_name(1, 2)}/{'background/c/1/0/0/0' if part == 'background' else schema.block_name(part, 1)}"
    content = bytearray((path / name).read_bytes())
    content[len(content) // 3] ^= 4
    rewrite(path, name, bytes(content))
    assert verify(path, fast=True, jobs=1).findings == ()
    (found,) = verify(path, jobs=1).findings
    assert found.file == name
    assert found.what.startswith("" if part == "background" else f"rows 60 to 71: {part} cannot be read (")
    assert "cannot be read" in found.what


def test_threads_find_the_same(tmp_path: Path, stores: Path, labelled_corpus: Path) -> None:
    """Three threads find what one does."""
    path = linked(stores / "recipe", tmp_path / "s")
    flip(path / shard_name(1, 2) / "depth/c/0/0/0")
    one, three = (verify(path, labelled_corpus, jobs=jobs) for jobs in (1, 3))
    assert sorted(one.findings) == sorted(three.findings)
    assert one.rows == three.rows == 72
    assert len(one.findings) == 2  # the hash, and the rows it is about
