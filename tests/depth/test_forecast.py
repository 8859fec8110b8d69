"""What labelling will cost: time and space, told once."""

import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import zarr

from dsgen.depth.forecast import Forecast, in_hours
from dsgen.depth.label_corpus import label_corpus
from dsgen.errors import DsgenError


def forecast(left: int) -> Forecast:
    """One of labels of 8x8 pixels that are not compressed, 128 bytes each."""
    array = zarr.create_array({}, shape=(100, 8, 8), chunks=(5, 8, 8), dtype="uint16", compressors=None)
    return Forecast(array, Path(), left)


@pytest.mark.parametrize(("left", "told"), [(100_020, True), (500, False)])
def test_what_it_will_cost(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], left: int, told: bool):
    """From the second batch on, once, and only where more than a minute is left."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setenv("DSGEN_PROGRESS", "1")
    cost = forecast(left)
    now[0] = 50.0  # preparing
    for _ in range(9):
        cost.add(np.ones((10, 8, 8), np.uint16))
        now[0] += 1.0
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == told
    if told:
        assert lines[0].startswith("depth: 99,990 rows at 10/s: about 2 h 47 min, 0.0 GB")


def test_times_are_in_words():
    """Rounded to minutes."""
    assert [in_hours(s) for s in (61, 3599, 3600, 6600)] == ["1 min", "1 h 0 min", "1 h 0 min", "1 h 50 min"]


def test_a_disk_that_is_too_small_is_refused(tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch):
    """Before a block is written."""
    path = Path(shutil.copytree(corpus, tmp_path / "c"))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 1000))  # type: ignore[attr-defined]

    def wall(pictures: np.ndarray) -> np.ndarray:
        return pictures.mean(-1) / 100 + 1

    with pytest.raises(DsgenError, match=r"labels of 72 rows need about 0.0 GB, 0.0 GB are free; free some space"):
        label_corpus(path, model=wall, device="cpu")
    assert not list((path / "depth.zarr").rglob("c/*"))
