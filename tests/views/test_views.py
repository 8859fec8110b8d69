"""Looking at a corpus or a store: `info` and `preview`."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dsgen.errors import DsgenError
from dsgen.store.packing import pack
from dsgen.views.info import describe
from dsgen.views.preview import preview


def lines(path: Path) -> dict[str, str]:
    """The description as a table."""
    return dict(line.split(None, 1) for line in describe(path).splitlines())


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


def test_info_of_a_store(labelled_corpus: Path, tmp_path: Path):
    """Shards, rows, bytes, statistics in their units."""
    pack(labelled_corpus, tmp_path / "s", shards=2, jobs=1)
    told = lines(tmp_path / "s")
    assert "complete, 2 shards" in told["store"]
    assert told["rows"] == "72"
    assert told["parts"] == "image, mask, depth, background"
    for part in ("image", "mask", "background"):
        assert "mean" in told[part]
        assert "std" in told[part]


def test_what_is_neither_is_refused(tmp_path: Path):
    """Nowhere, and an empty folder."""
    with pytest.raises(DsgenError, match="no such folder, expected a corpus or a store"):
        describe(tmp_path / "nowhere")
    with pytest.raises(DsgenError, match="no corpus"):
        describe(tmp_path)
    (tmp_path / "shard-00000-of-00002.zarr.partial").mkdir()
    with pytest.raises(DsgenError, match="an unfinished store"):
        describe(tmp_path)


def test_preview_is_seeded_and_shows_depth(labelled_corpus: Path, corpus: Path, tmp_path: Path):
    """Same seed same sheet, another seed another; a store and its corpus show the same rows' pictures."""
    one = preview(labelled_corpus, tmp_path / "1.png", count=5, seed=3).read_bytes()
    assert preview(labelled_corpus, tmp_path / "2.png", count=5, seed=3).read_bytes() == one
    assert preview(labelled_corpus, tmp_path / "3.png", count=5, seed=4).read_bytes() != one
    with Image.open(tmp_path / "1.png") as with_depth:
        pixels = np.asarray(with_depth.convert("RGB")).astype(int)
    plain = preview(corpus, tmp_path / "4.png", count=5, seed=3)
    with Image.open(plain) as without:
        assert without.size[0] < pixels.shape[1]
    pack(labelled_corpus, tmp_path / "s", shards=2, jobs=1)
    preview(tmp_path / "s", tmp_path / "5.png", count=5, seed=3)
    assert sorted(p.suffix for p in tmp_path.iterdir() if p.is_file()) == [".png"] * 5


def test_impossible_sheets_are_refused(corpus: Path, tmp_path: Path):
    """No rows, no folder, or a name that is no PNG."""
    with pytest.raises(DsgenError, match="--count: got 0"):
        preview(corpus, tmp_path / "p.png", count=0)
    with pytest.raises(DsgenError, match="expected a name ending in"):
        preview(corpus, tmp_path / "p.jpg")
    with pytest.raises(DsgenError, match="no such folder"):
        preview(tmp_path / "nowhere", tmp_path / "p.png")
