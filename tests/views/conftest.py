"""Stores for tests of what shows them."""

from pathlib import Path

import pytest

from dsgen.store.packing import pack


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, labelled_corpus: Path) -> Path:
    """A store of the labelled corpus."""
    out = tmp_path_factory.mktemp("view") / "shards"
    pack(labelled_corpus, out, shards=2, jobs=1)
    return out


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, floor_corpus: Path) -> Path:
    """A recipe of people on floors, with composed depth."""
    out = tmp_path_factory.mktemp("view") / "recipe"
    pack(floor_corpus, out, shards=2, recipe=True, jobs=1)
    return out
