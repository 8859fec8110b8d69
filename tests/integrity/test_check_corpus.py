"""Verify a corpus: every damaged, missing and added file is named, whatever else is damaged."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr
from support.corpora import earlier_manifest, files
from support.damage import add, delete, flip, linked, named, put, truncate

from dsgen.errors import DsgenError
from dsgen.integrity.repair import repair
from dsgen.integrity.verify import verify
from dsgen.io.json_files import encode_json


def test_a_whole_corpus_has_no_findings(viewed: Path, corpus: Path) -> None:
    """Every file is read and every picture drawn again, without a finding."""
    report = verify(viewed, jobs=1)
    assert report.findings == ()
    assert report.notes == (
        "labels of an earlier dsgen have no hash of their metadata: a changed attribute may go unnoticed",
        "labels of an earlier dsgen have no checksums (depth): a changed byte may go unnoticed",
    )
    assert report.files == len(files(viewed))
    assert (report.kind, report.rows) == ("corpus", 72)
    assert report.summary().endswith(", 72 rows compared")
    assert verify(corpus, fast=True, jobs=1).findings == ()
    assert verify(corpus, jobs=2).findings == ()


def test_damaged_sources_hide_nothing_else(tmp_path: Path, viewed: Path) -> None:
    """Beside damaged sources, names of pictures and labels are still checked; beside an extra file, everything is."""
    path = linked(viewed, tmp_path / "c")
    add(path / "sources.zarr/zarr.json")
    flip(path / "bg/bg001.jpeg")
    wrong = {"sources.zarr/zarr.json.copy", "bg/bg001.jpeg"}
    assert named(verify(path, jobs=1)) == wrong
    flip(path / "sources.zarr/background_48/c/0/0/0/0")
    truncate(path / "depth.zarr/depth/c/1/0/0")
    shutil.rmtree(path / "bg_fg/bg002")
    report = verify(path, jobs=1)
    assert named(report) == wrong - {"bg/bg001.jpeg"} | {
        "sources.zarr/background_48/c/0/0/0/0",
        "depth.zarr/depth/c/1/0/0",
        "bg_fg/bg002",
    }
    assert "pictures were not compared with the plan, since the sources are damaged" in report.notes


def test_a_picture_that_cannot_be_read_is_named(tmp_path: Path, viewed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a failing disk; the other pictures are still checked."""
    read_bytes = Path.read_bytes

    def fail(path: Path) -> bytes:
        if path.name == "bg002.jpeg":
            raise OSError(5, "Input/output error")
        return read_bytes(path)

    path = linked(viewed, tmp_path / "c")
    flip(path / "bg/bg003.jpeg")
    monkeypatch.setattr(Path, "read_bytes", fail)
    found = {finding.file: finding.what for finding in verify(path, jobs=1).findings}
    assert found.keys() == {"bg/bg002.jpeg", "bg/bg003.jpeg"}
    assert found["bg/bg002.jpeg"] == "cannot be read (Input/output error)"


CHANGED_PARAMETERS: list[dict[str, object]] = [
    {"seed": 1},
    {"seed": "1"},
    {"label_size": 48},
    {"label_size": 100},
    {"quality": 0},
    {"positions": 65535},  # verify must not draw so many positions to find it
    {"positions": 0},
    {"size": 0},
    {"fg_height": 49},
    {"flip": False},
    {"test_share": 0.9},
]


def test_a_damaged_manifest_is_found(tmp_path: Path, corpus: Path) -> None:
    """Broken JSON, another seed, another count: each is found, without the file's own hash too, and not repaired."""
    path = linked(corpus, tmp_path / "c")
    whole = (path / "corpus.json").read_bytes()
    manifest = json.loads((path / "corpus.json").read_text())
    parameters = manifest["parameters"]
    for change in (
        {"rows": 73},
        {"splits": {}},
        {"format": 9},
        {"backgrounds": []},
        {"manifest_sha25v": "0" * 64},
        *({"parameters": parameters | other} for other in CHANGED_PARAMETERS),
    ):
        for content in (encode_json(manifest | change), earlier_manifest(path, **change)):
            put(path / "corpus.json", content)
            assert named(verify(path, jobs=1)) == {"corpus.json"}, change
            with pytest.raises(
                DsgenError, match=r"corpus\.json: .*; (remove it and run dsgen composite|use the dsgen)"
            ):
                repair(path, jobs=1)
            put(path / "corpus.json", whole)
    names = [picture | {"name": "other"} for picture in manifest["backgrounds"]]
    put(path / "corpus.json", encode_json(manifest | {"backgrounds": names}))
    assert named(verify(path, jobs=1)) == {"corpus.json"}
    for content in ((json.dumps(manifest)).encode(), b"{"):
        put(path / "corpus.json", content)
        assert named(verify(path, jobs=1)) == {"corpus.json"}
    delete(path / "corpus.json")
    report = verify(path, jobs=1)
    assert [finding.what for finding in report.findings] == ["missing"]
    assert "it is lost, or the corpus is unfinished; the same dsgen composite writes it" in report.notes[0]


def test_sources_without_recorded_hashes_are_checked_as_far_as_they_can_be(tmp_path: Path, corpus: Path) -> None:
    """Metadata, shapes, lost chunks, and foregrounds larger than their images: a finding each, and no traceback."""
    path = Path(shutil.copytree(corpus, tmp_path / "c"))
    put(path / "corpus.json", earlier_manifest(path, sha256=None))
    assert named(verify(path, jobs=1)) == set()
    shapes = np.array(zarr.open_array(path / "sources.zarr/foreground_shape", mode="r")[:])
    metadata = json.loads((path / "sources.zarr/foreground_48/zarr.json").read_text())
    root, array, chunk = (
        "sources.zarr/zarr.json",
        "sources.zarr/foreground_48/zarr.json",
        "sources.zarr/background_48/c/0/0/0/0",
    )
    for name, content, found in (
        (root, b"{", "sources.zarr"),
        (root, b'{"zarr_format": 3, "node_type": "group", "attributes": 1}', "sources.zarr"),
        (array, b"[]", "sources.zarr/foreground_48"),
        (array, json.dumps(metadata | {"shape": [10**11, 20, 48, 4]}).encode(), array),
        (array, json.dumps(metadata | {"shape": [3, 20, 48, 3]}).encode(), array),
        (chunk, None, chunk),
    ):
        whole = (path / name).read_bytes()
        delete(path / name)
        if content is not None:
            put(path / name, content)
        assert named(verify(path, jobs=1)) == {found}
        put(path / name, whole)
    for value in (49, 65535):
        zarr.open_array(path / "sources.zarr/foreground_shape", mode="r+")[:] = value
        assert named(verify(path, jobs=1)) == {"sources.zarr/foreground_shape"}
    zarr.open_array(path / "sources.zarr/foreground_shape", mode="r+")[:] = shapes
    assert named(verify(path, jobs=1)) == set()
