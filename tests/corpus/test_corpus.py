"""Opening a corpus, and rendering from it."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.corpora import earlier_manifest
from support.damage import delete, flip, linked, put, truncate

from dsgen.corpus.corpus import Corpus
from dsgen.errors import DamagedError, NotFoundError


def test_sources_agree_at_both_sizes(corpus: Path):
    """The label size shows the same picture, twice as large: foregrounds at exactly twice the location and shape."""
    opened = Corpus(corpus)
    _, small = opened.render(opened.plan)
    image, large = opened.render(opened.plan, opened.label_size)
    assert image.shape == (len(opened), 96, 96, 3)
    shrunk = large.reshape(-1, 48, 2, 48, 2).mean(axis=(2, 4))
    assert (np.abs(shrunk - small) > 128).mean() < 0.005


def test_an_unfinished_corpus_is_refused_by_what_comes_after(tmp_path: Path):
    """Opening names the missing manifest and the command."""
    with pytest.raises(NotFoundError, match="expected a corpus; run dsgen composite"):
        Corpus(tmp_path)
    os.makedirs(tmp_path / "sources.zarr")
    with pytest.raises(NotFoundError, match="an unfinished corpus"):
        Corpus(tmp_path)


SOURCES = (
    "sources.zarr/zarr.json",
    "sources.zarr/background_48/zarr.json",
    "sources.zarr/background_48/c/0/0/0/0",
    "sources.zarr/foreground_48/c/0/0/0/0",
    "sources.zarr/foreground_shape/c/0/0",
)


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("damage", [flip, truncate, delete])
def test_damaged_sources_are_not_drawn(tmp_path: Path, corpus: Path, name: str, damage: Callable[[Path], None]):
    """Each file is compared with its hash when it is read; the error names it and the command that mends it."""
    path = linked(corpus, tmp_path / "c")
    damage(path / name)
    opened = Corpus(path)
    with pytest.raises(DamagedError, match=rf"^{path / name}: .*; run dsgen repair {path}, with --backgrounds"):
        opened.render(opened.plan)


@pytest.mark.parametrize("damage", [truncate, delete])
def test_without_recorded_hashes_lost_sources_are_not_drawn_black(
    tmp_path: Path, corpus: Path, damage: Callable[[Path], None]
):
    """As zarr by itself would read a missing file."""
    path = linked(corpus, tmp_path / "c")
    put(path / "corpus.json", earlier_manifest(path, sha256=None))
    damage(path / SOURCES[2])
    opened = Corpus(path)
    with pytest.raises(DamagedError, match=rf"^{path}/sources.zarr/background_48.*; run dsgen repair"):
        opened.render(opened.plan)


@pytest.mark.parametrize(
    ("column", "value"),
    [("background", 3), ("foreground", 3), ("flip", 2), ("position", 4), ("top", 48), ("left", 47), ("split", 4)],
)
def test_numbers_of_the_plan_are_in_range(tmp_path: Path, corpus: Path, column: str, value: int):
    """Without a recorded hash too: nothing is drawn from rows that cannot be."""
    path = linked(corpus, tmp_path / "c")
    plan = np.load(path / "plan.npy")
    plan[column][-1] = value
    delete(path / "plan.npy")
    np.save(path / "plan.npy", plan)
    with pytest.raises(DamagedError, match=r"its hash differs from the one in corpus\.json; run dsgen repair"):
        Corpus(path)
    put(path / "corpus.json", earlier_manifest(path, sha256=None))
    with pytest.raises(DamagedError, match=rf"plan.npy: damaged, ({column}|a foreground lies).*; run dsgen repair"):
        Corpus(path).foreground(0)
