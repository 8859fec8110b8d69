"""Folder mode: labels for any pictures."""

import csv
import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from support.corpora import draw_background

from dsgen.depth.label_folder import label_folder
from dsgen.depth.labellers import DenseDepthLabeller
from dsgen.errors import DsgenError


def test_folder_mode_labels_any_picture_at_its_own_size(tmp_path: Path, weights: Path):
    """Sizes, formats and subfolders are kept; the table has a line for each; bad files are named."""
    (tmp_path / "in" / "deep").mkdir(parents=True)
    Image.fromarray(draw_background(0, 50, 90)).save(tmp_path / "in" / "wide.jpg")
    Image.fromarray(draw_background(1, 130, 40)).convert("L").save(tmp_path / "in" / "deep" / "tall.png")
    (tmp_path / "in" / "bad.png").write_bytes(b"no picture")
    result = label_folder(tmp_path / "in", weights=weights, device="cpu")
    out = tmp_path / "in_depth"
    assert result.labelled == 2
    assert len(result.failed) == 1
    assert "bad.png" in result.failed[0]
    millimetres, tall = (cv2.imread(str(out / name), -1) for name in ("wide.png", "deep/tall.png"))
    assert (millimetres.shape, tall.shape) == ((50, 90), (130, 40))
    assert millimetres.dtype == np.uint16
    assert millimetres.max() > 255
    with (out / "depth.csv").open() as file:
        table = {row["picture"]: row for row in csv.DictReader(file)}
    assert float(table["wide.jpg"]["median_m"]) == pytest.approx(np.median(millimetres) / 1000)
    assert "bad.png" in table["bad.png"]["error"]
    assert not list(out.rglob("*.partial"))


def test_what_is_neither_corpus_nor_pictures_is_refused(tmp_path: Path, weights: Path):
    """Missing and empty folders."""
    with pytest.raises(DsgenError, match="no such folder"):
        label_folder(tmp_path / "nowhere", weights=weights)
    with pytest.raises(DsgenError, match="neither a corpus nor a folder with pictures"):
        label_folder(tmp_path, weights=weights)


def fill(folder: Path, count: int = 3) -> Path:
    """Write some pictures of one size."""
    folder.mkdir()
    for n in range(count):
        Image.fromarray(draw_background(n, 40, 60)).save(folder / f"p{n}.png")
    return folder


def test_results_that_are_there_are_skipped(tmp_path: Path, weights: Path):
    """A second run does nothing. After a change of picture, label or parameters just those are labelled again."""
    folder = fill(tmp_path / "in")
    first = label_folder(folder, weights=weights, device="cpu")
    table = (tmp_path / "in_depth" / "depth.csv").read_bytes()
    again = label_folder(folder, weights=weights, device="cpu")
    assert (first.labelled, again.labelled, again.already_there) == (3, 0, 3)
    assert (tmp_path / "in_depth" / "depth.csv").read_bytes() == table
    os.utime(folder / "p1.png")
    (tmp_path / "in_depth" / "p2.png").unlink()
    assert label_folder(folder, weights=weights, device="cpu").labelled == 2
    assert label_folder(folder, weights=weights, device="cpu", average_flip=True).labelled == 3
    assert json.loads((tmp_path / "in_depth" / "depth.json").read_text())["flip_averaged"] is True


def test_pictures_of_one_size_go_in_batches(tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch):
    """Five and one: two batches of at most four, and one for the odd size; the same labels one by one."""
    folder = fill(tmp_path / "in", 5)
    Image.fromarray(draw_background(9, 70, 50)).save(folder / "odd.png")
    seen: list[int] = []
    answer = DenseDepthLabeller._answer
    monkeypatch.setattr(
        DenseDepthLabeller, "_answer", lambda self, b, *a: (seen.append(len(b)), answer(self, b, *a))[1]
    )
    label_folder(folder, tmp_path / "a", weights=weights, device="cpu", batch_size=4)
    assert sorted(seen) == [1, 1, 4]
    label_folder(folder, tmp_path / "b", weights=weights, device="cpu", batch_size=1)
    for path in sorted((tmp_path / "a").glob("*.png")):
        ours, theirs = (cv2.imread(str(p), -1).astype(int) for p in (path, tmp_path / "b" / path.name))
        assert np.abs(ours - theirs).max() <= 1


def test_arrays_and_views(tmp_path: Path, weights: Path):
    """Float metres as npy agree with the PNG; a view in colours stands beside each."""
    folder = fill(tmp_path / "in", 1)
    label_folder(folder, tmp_path / "png", weights=weights, device="cpu")
    label_folder(folder, tmp_path / "npy", weights=weights, device="cpu", file_format="npy", previews=True)
    metres = np.load(tmp_path / "npy" / "p0.npy")
    assert metres.dtype == np.float32
    assert np.abs(cv2.imread(str(tmp_path / "png" / "p0.png"), -1) / 1000 - metres).max() <= 0.00051
    with Image.open(tmp_path / "npy" / "p0.view.jpg") as view:
        assert view.width > 400


def test_turned_photographs_keep_their_shown_size(tmp_path: Path, weights: Path):
    """EXIF orientation 6: stored wide, shown tall, labelled tall."""
    (tmp_path / "in").mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(draw_background(0, 40, 90)).save(tmp_path / "in" / "phone.jpg", exif=exif)
    label_folder(tmp_path / "in", weights=weights, device="cpu")
    assert cv2.imread(str(tmp_path / "in_depth" / "phone.png"), -1).shape == (90, 40)


def test_folder_options_are_checked(tmp_path: Path, weights: Path):
    """Unknown formats, the folder itself, several devices."""
    folder = fill(tmp_path / "in", 1)
    with pytest.raises(DsgenError, match="--format: got 'exr', expected one of png, npy"):
        label_folder(folder, weights=weights, file_format="exr")
    with pytest.raises(DsgenError, match="is the folder of pictures itself"):
        label_folder(folder, folder, weights=weights)
    with pytest.raises(DsgenError, match="expected one device for a folder"):
        label_folder(folder, weights=weights, device="cpu,cpu")
