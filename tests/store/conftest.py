"""Small stores that every test of the package may read; none may be written to."""

from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from support.corpora import SMALL, draw_background, draw_cutout

from dsgen.corpus.build import composite
from dsgen.store.packing import pack


@pytest.fixture(scope="session")
def three_shards(tmp_path_factory: pytest.TempPathFactory, labelled_corpus: Path) -> Path:
    """A store of three shards with depth, 72 rows in 6 chunks; not to be written to."""
    out = tmp_path_factory.mktemp("store") / "shards"
    pack(labelled_corpus, out, shards=3, jobs=1)
    return out


@pytest.fixture(scope="session")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of 10 backgrounds x 12 foregrounds x 2 flips x 4 positions at 32 pixels, 960 rows in 48 chunks."""
    folder = tmp_path_factory.mktemp("many")
    for kind in ("backgrounds", "foregrounds"):
        (folder / kind).mkdir()
    for n in range(10):
        Image.fromarray(draw_background(n)).save(folder / "backgrounds" / f"room{n}.png")
    for n in range(12):
        Image.fromarray(draw_cutout(n)).save(folder / "foregrounds" / f"person{n}.png")
    parameters = replace(SMALL, size=32, label_size=32, fg_height=12)
    composite(folder / "c", folder / "backgrounds", folder / "foregrounds", parameters, jobs=1, pictures=False)
    pack(folder / "c", folder / "shards", shards=2, jobs=1)
    return folder / "shards"
