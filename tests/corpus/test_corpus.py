"""Opening a corpus, and rendering from it."""

import os
from pathlib import Path

import numpy as np
import pytest

from dsgen.corpus.corpus import Corpus
from dsgen.errors import NotFoundError


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
