"""Stores and a corpus with depth views, shared by the tests of verify and repair; none may be written to."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.damage import KINDS

from dsgen.corpus.depth_views import draw_views
from dsgen.store import schema
from dsgen.store.packing import pack


@contextmanager
def one_chunk_blocks() -> Iterator[None]:
    """Make every chunk a block, so that small shards have several."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(schema, "_BLOCK_SAMPLES", 1)
        yield


@pytest.fixture(scope="module", autouse=True)
def small_blocks() -> Iterator[None]:
    """Use small blocks in every test of this folder."""
    with one_chunk_blocks():
        yield


@pytest.fixture(scope="session")
def stores(tmp_path_factory: pytest.TempPathFactory, labelled_corpus: Path) -> Path:
    """A store of every kind, two shards each."""
    folder = tmp_path_factory.mktemp("stores")
    with one_chunk_blocks():
        for kind, options in KINDS.items():
            pack(labelled_corpus, folder / kind, shards=2, jobs=1, **options)
    return folder


@pytest.fixture(scope="session")
def viewed(tmp_path_factory: pytest.TempPathFactory, labelled_corpus: Path) -> Path:
    """The labelled corpus with depth views."""
    path = Path(shutil.copytree(labelled_corpus, tmp_path_factory.mktemp("viewed") / "corpus"))
    for background in range(3):
        draw_views(str(path), background)
    return path
