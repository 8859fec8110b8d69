"""Single bits of a corpus that flip: each is seen, each is mended, and none is packed."""

import shutil
from pathlib import Path

import pytest
from support.flips import flip_and_pack, flip_and_repair, make_whole


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus with pictures, labels, flip errors and views; not to be written to."""
    path = tmp_path_factory.mktemp("whole") / "corpus"
    make_whole(path, network=False)
    return path


def test_verify_sees_every_flipped_bit(tmp_path: Path, whole: Path) -> None:
    """Anywhere in the corpus; the file is named."""
    outcomes = flip_and_repair(Path(shutil.copytree(whole, tmp_path / "c")), flips=60, seed=1, repairs=False)
    assert (outcomes.tried, outcomes.failures) == (60, [])


def test_pack_refuses_every_flipped_bit(tmp_path: Path, whole: Path) -> None:
    """Or else the store is that of the whole corpus."""
    outcomes = flip_and_pack(Path(shutil.copytree(whole, tmp_path / "c")), tmp_path / "s", flips=40, seed=1)
    assert (outcomes.tried, outcomes.failures) == (40, [])


@pytest.mark.slow
def test_every_flipped_bit_is_mended(tmp_path: Path) -> None:
    """By `repair`, or by the command that it states: every file has its original bytes again."""
    make_whole(tmp_path / "c")
    outcomes = flip_and_repair(tmp_path / "c", flips=250, seed=2)
    assert (outcomes.of("mended by repair") + outcomes.of("mended by the stated remedy"), outcomes.failures) == (
        250,
        [],
    )
