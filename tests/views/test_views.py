"""Info and preview of a corpus or a store."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dsgen.errors import DsgenError, NotFoundError
from dsgen.store.packing import pack
from dsgen.views.info import CorpusInfo, StoreInfo, describe
from dsgen.views.preview import preview


def lines(path: Path) -> dict[str, str]:
    """The description as text, by the first word of each line."""
    return dict(line.split(None, 1) for line in describe(path).table().splitlines())


def test_info_of_a_corpus(corpus: Path, labelled_corpus: Path):
    """Counts, completeness, splits; with labels their percentiles."""
    told = lines(corpus)
    assert told["rows"].startswith("72 = 3 backgrounds x 3 foregrounds x 2 (mirrored too) x 4 positions")
    assert told["pictures"] == "complete, 72 drawn"
    assert told["depth"].startswith("not labelled")
    assert "unused" in told["splits"]
    labelled = lines(labelled_corpus)["depth"]
    assert labelled.startswith("complete, 72 labelled, by drawn")
    assert "50th" in labelled


def test_info_of_a_corpus_as_fields(corpus: Path, labelled_corpus: Path):
    """The same facts as numbers, which fit into JSON."""
    info = describe(labelled_corpus)
    assert isinstance(info, CorpusInfo)
    assert (info.kind, info.rows, info.drawn_rows, info.size, info.label_size) == ("corpus", 72, 72, 48, 96)
    assert info.backgrounds * info.foregrounds * 2 * info.positions == 72
    assert sum(info.splits.values()) == 72
    assert info.depth is not None
    assert (info.depth.labelled_rows, info.depth.model, info.depth.metric) == (72, "drawn", True)
    assert info.depth.percentiles_m == tuple(sorted(info.depth.percentiles_m or ()))
    assert all(0.5 <= metres <= 6.1 for metres in info.depth.percentiles_m or ())
    assert json.loads(json.dumps(asdict(info)))["depth"]["model"] == "drawn"
    assert describe(corpus).depth is None


def test_info_of_a_store(labelled_corpus: Path, tmp_path: Path):
    """Shards, rows, bytes, statistics in their units."""
    pack(labelled_corpus, tmp_path / "s", shards=2, jobs=1)
    told = lines(tmp_path / "s")
    assert "complete, 2 shards" in told["store"]
    assert told["rows"] == "72"
    assert told["fields"] == "image, mask, depth, background"
    for field in ("image", "mask", "background"):
        assert "mean" in told[field]
        assert "std" in told[field]
    info = describe(tmp_path / "s")
    assert isinstance(info, StoreInfo)
    assert (info.kind, info.content, info.shards, info.rows, info.zipped) == ("store", "pixels", 2, 72, False)
    assert info.bytes == sum(path.stat().st_size for path in (tmp_path / "s").rglob("*") if path.is_file())
    assert info.statistics.keys() == set(info.fields)
    assert json.loads(json.dumps(asdict(info)))["splits"] == info.splits


def test_what_is_neither_is_refused(tmp_path: Path):
    """A missing folder and an empty one name both commands; an unfinished store or corpus names its own."""
    both = "run dsgen composite .* for a corpus, or dsgen pack --out .* for a store"
    for view in (describe, lambda path: preview(path, tmp_path / "p.png")):
        with pytest.raises(NotFoundError, match=f"no such folder, expected a corpus or a store; {both}"):
            view(tmp_path / "nowhere")
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(NotFoundError, match=f"an empty folder, expected a corpus or a store; {both}"):
            view(tmp_path / "empty")
        (tmp_path / "file").write_bytes(b"")
        with pytest.raises(DsgenError, match="a file, expected a corpus or a store"):
            view(tmp_path / "file")
        (tmp_path / "store/shard-00000-of-00002.zarr.partial").mkdir(parents=True, exist_ok=True)
        with pytest.raises(DsgenError, match=r"an unfinished store .*; run dsgen pack"):
            view(tmp_path / "store")
        (tmp_path / "corpus/sources.zarr.partial").mkdir(parents=True, exist_ok=True)
        with pytest.raises(DsgenError, match="an unfinished corpus; run dsgen composite"):
            view(tmp_path / "corpus")


def test_preview_is_seeded_and_shows_depth(labelled_corpus: Path, corpus: Path, tmp_path: Path):
    """The same seed gives the same sheet, another one another; a store and its corpus show the same rows."""
    first = preview(labelled_corpus, tmp_path / "1.png", count=5, seed=3)
    one = first.out.read_bytes()
    assert preview(labelled_corpus, tmp_path / "2.png", count=5, seed=3).out.read_bytes() == one
    assert preview(labelled_corpus, tmp_path / "3.png", count=5, seed=4).out.read_bytes() != one
    with Image.open(tmp_path / "1.png") as with_depth:
        pixels = np.asarray(with_depth.convert("RGB")).astype(int)
    plain = preview(corpus, tmp_path / "4.png", count=5, seed=3)
    with Image.open(plain.out) as without:
        assert without.size[0] < pixels.shape[1]
    pack(labelled_corpus, tmp_path / "s", shards=2, jobs=1)
    stored = preview(tmp_path / "s", tmp_path / "5.png", count=5, seed=3)
    assert first.rows == plain.rows == stored.rows == tuple(sorted(set(first.rows)))
    assert len(first.rows) == 5
    assert sorted(p.suffix for p in tmp_path.iterdir() if p.is_file()) == [".png"] * 5


def test_impossible_sheets_are_refused(corpus: Path, tmp_path: Path):
    """No rows, a name that does not end in .png, a missing folder."""
    with pytest.raises(DsgenError, match="--count: got 0"):
        preview(corpus, tmp_path / "p.png", count=0)
    with pytest.raises(DsgenError, match="expected a name ending in"):
        preview(corpus, tmp_path / "p.jpg")
    with pytest.raises(DsgenError, match="no such folder"):
        preview(tmp_path / "nowhere", tmp_path / "p.png")


def test_paths_are_drawn_as_they_are(corpus: Path, tmp_path: Path):
    """No formula is read in a path with two dollars, and what the font lacks is a box."""
    odd = tmp_path / r"c$\foo$ 東京"
    shutil.copytree(corpus, odd)
    assert preview(odd, tmp_path / "p.png", count=2).out.stat().st_size > 10_000
