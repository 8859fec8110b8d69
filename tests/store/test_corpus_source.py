"""A corpus as a source: labels are copied chunk by chunk, and damaged ones are not."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.corpora import SMALL, files
from support.damage import delete, flip, linked, truncate

from dsgen.corpus.build import composite
from dsgen.depth.label_corpus import label_corpus
from dsgen.errors import DamagedError
from dsgen.store.corpus_source import CorpusSource
from dsgen.store.packing import pack


def brightness(images: np.ndarray) -> np.ndarray:
    """Answer 1 to 4 m for pictures."""
    return (1 + images.mean(axis=3) / 85).astype(np.float32)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> Path:
    """A corpus with 25 positions, labelled with flip errors; not to be written to."""
    path = tmp_path_factory.mktemp("source") / "corpus"
    folders = pictures / "backgrounds", pictures / "foregrounds"
    composite(path, *folders, replace(SMALL, positions=25), max_backgrounds=2, pictures=False, jobs=1)
    label_corpus(path, model=brightness, check_flip=True, device="cpu")
    return path


def test_labels_are_copied_whatever_the_positions(tmp_path: Path, labelled: Path, monkeypatch: pytest.MonkeyPatch):
    """Chunks of labels are those of the store, for more than 20 positions too, and the store is the same."""
    source = CorpusSource(labelled)
    assert source.coded_depth(0, 50) is not None
    pack(labelled, tmp_path / "copied", shards=2, jobs=1)
    monkeypatch.setattr(CorpusSource, "coded_depth", lambda *_: None)
    pack(labelled, tmp_path / "encoded", shards=2, jobs=1)
    assert files(tmp_path / "copied") == files(tmp_path / "encoded")


@pytest.mark.parametrize("damage", [flip, truncate, delete])
@pytest.mark.parametrize("copied", [True, False])
def test_damaged_labels_are_not_packed(
    tmp_path: Path, labelled: Path, damage: Callable[[Path], None], copied: bool, monkeypatch: pytest.MonkeyPatch
):
    """The error names the file, also when its chunks are read a second time to be copied."""
    path = linked(labelled, tmp_path / "c")
    if not copied:
        monkeypatch.setattr(CorpusSource, "_label_layout", None)
    source = CorpusSource(path)
    source.pictures(0, 300)
    damage(path / "depth.zarr/depth/c/0/0/0")
    reads: list[Callable[[], object]] = [lambda: source.pictures(0, 300)]
    if copied:
        reads.append(lambda: source.coded_depth(0, 300))
    for read in reads:
        with pytest.raises(DamagedError, match=rf"^{path}/depth.zarr/depth/c/0/0/0: .*; run dsgen repair {path}$"):
            read()


def test_lost_flip_errors_are_not_taken_for_small_ones(tmp_path: Path, labelled: Path):
    """No value is above any limit, so the rows would stay in their split."""
    path = Path(shutil.copytree(labelled, tmp_path / "c"))
    delete(path / "depth.zarr/flip_error/c/0")
    with pytest.raises(DamagedError, match=rf"^{path}/depth.zarr/flip_error/c/0: missing; run dsgen repair"):
        CorpusSource(path, max_flip_error=0.2)
