"""Prediction: pairs of any size give masks and depths of that size; bad ones are listed, finished ones skipped."""

import csv
import json
import os
import shutil
import unicodedata
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from support.corpora import draw_background
from support.runs import make_run
from torch import Tensor
from typer.testing import CliRunner

from dsgen.cli.app import app
from dsgen.errors import DsgenError
from dsgen.evaluation.predict import answer_pair, fed_size, predict
from dsgen.training.checkpoint import Trained, open_trained


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of a small network for pictures of 48 pixels."""
    return make_run(tmp_path / "run")


@pytest.fixture
def by_difference(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Answer foreground where composite and background differ, 2 m there and 5 m elsewhere; list what was fed."""
    fed: list[tuple[int, ...]] = []

    def answer(self: Trained, background: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        fed.append(tuple(image.shape))
        assert background.shape == image.shape
        different = (image - background).abs().amax(1, keepdim=True) - 0.2
        return different, torch.where(different > 0, 2.0, 5.0)

    monkeypatch.setattr(Trained, "answer", answer)
    return fed


def paste(background: np.ndarray, box: tuple[slice, slice]) -> np.ndarray:
    """Invert a box of a picture."""
    picture = background.copy()
    picture[box] = np.where(picture[box] > 127, 0, 255)
    return picture


def save(path: Path, picture: np.ndarray) -> Path:
    """Write a picture, and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path)
    return path


@pytest.fixture
def scene(tmp_path: Path) -> dict[str, Any]:
    """Composites and backgrounds of three sizes, in a tree."""
    boxes = {}
    for seed, (name, height, width) in enumerate((("a", 120, 160), ("deep/b", 200, 100), ("deep/down/c", 64, 64))):
        background = draw_background(seed, height, width)
        boxes[name] = (slice(height // 4, height // 2), slice(width // 4, 3 * width // 4))
        save(tmp_path / f"rooms/{name}.png", background)
        save(tmp_path / f"pictures/{name}.png", paste(background, boxes[name]))
    return {"pictures": tmp_path / "pictures", "rooms": tmp_path / "rooms", "boxes": boxes}


def read(path: Path) -> np.ndarray:
    """Read a PNG without conversion."""
    with Image.open(path) as picture:
        return np.asarray(picture)


def lines(out: Path) -> list[dict[str, str]]:
    """Read predictions.csv."""
    with (out / "predictions.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_tree_of_pairs(run: Path, scene: dict[str, Any], by_difference: list[tuple[int, ...]], tmp_path: Path):
    """Every composite is fed with its longer side at the trained size; answers are right and have its own size."""
    done = predict(run, scene["pictures"], scene["rooms"], device="cpu")
    out = tmp_path / "pictures_predictions"
    assert done.out == out
    assert (done.predicted, done.already_there, done.failed) == (3, 0, ())
    assert sorted(by_difference) == [(1, 3, 36, 48), (1, 3, 48, 24), (1, 3, 48, 48)]
    for name, box in scene["boxes"].items():
        true = np.zeros(read(scene["pictures"] / f"{name}.png").shape[:2], bool)
        true[box] = True
        mask, depth = read(out / f"mask/{name}.png"), read(out / f"depth/{name}.png")
        assert mask.shape == depth.shape == true.shape
        assert mask.dtype == np.uint8
        assert depth.dtype == np.uint16
        assert set(np.unique(mask)) == {0, 255}
        found = mask > 0
        assert (found & true).sum() / (found | true).sum() > 0.85
        inside = cv2.erode(true.astype(np.uint8), np.ones((13, 13))) > 0
        outside = cv2.dilate(true.astype(np.uint8), np.ones((13, 13))) == 0
        assert np.median(depth[inside]) == 2000
        assert np.median(depth[outside]) == 5000
    table = lines(out)
    assert [line["picture"] for line in table] == ["a.png", "deep/b.png", "deep/down/c.png"]
    first = table[0]
    assert (first["width"], first["height"], first["fed_width"], first["fed_height"]) == ("160", "120", "48", "36")
    assert float(first["foreground_share"]) == pytest.approx((read(out / "mask/a.png") > 0).mean(), abs=1e-6)
    assert float(first["foreground_median_m"]) == 2
    assert not list(out.rglob("*.partial"))


def test_answers_are_those_of_the_network(run: Path, scene: dict[str, Any]):
    """At the trained size the answers equal the network's for the same pictures, to half a millimetre."""
    trained = open_trained(run)
    picture, background = (read(scene[kind] / "deep/down/c.png")[:48, :48] for kind in ("pictures", "rooms"))
    mask, depth_m = answer_pair(trained, background, picture, 48)
    logits, expected_m = trained.answer(
        *(torch.tensor(p).permute(2, 0, 1)[None].float() / 255 for p in (background, picture))
    )
    np.testing.assert_array_equal(mask > 0, logits[0, 0].numpy() > 0)
    np.testing.assert_allclose(depth_m, expected_m[0, 0].numpy(), atol=5e-4)


def test_half_size_answers_come_at_full_size(tmp_path: Path, scene: dict[str, Any]):
    """A grey network with answers at half the size still gives masks of the picture's size."""
    run = make_run(tmp_path / "half", output="half", colour="grey")
    predict(run, scene["pictures"] / "a.png", scene["rooms"] / "a.png", tmp_path / "out", device="cpu")
    assert read(tmp_path / "out/mask/a.png").shape == (120, 160)
    assert read(tmp_path / "out/depth/a.png").shape == (120, 160)


def test_one_background_for_all(run: Path, by_difference: list[tuple[int, ...]], tmp_path: Path):
    """A fixed camera: one background serves every composite, also if it has another size of the same proportions."""
    background = draw_background(5, 90, 120)
    room = save(tmp_path / "room.png", cv2.resize(background, (240, 180), interpolation=cv2.INTER_CUBIC))
    for k in range(3):
        save(tmp_path / f"shots/{k}.png", paste(background, (slice(20, 60), slice(10 * k, 10 * k + 40))))
    done = predict(run, tmp_path / "shots", room, device="cpu")
    assert done.predicted == 3
    for k in range(3):
        mask = read(done.out / f"mask/{k}.png") > 0
        assert mask[30:50, 10 * k + 10 : 10 * k + 30].all()
        assert mask.mean() < 0.25


def test_a_corpus_pairs_by_its_folders(run: Path, corpus: Path, by_difference: list[tuple[int, ...]], tmp_path: Path):
    """Without a background of the composite's name, that of its folder's name serves: `bg_fg` finds its own in `bg`."""
    done = predict(run, corpus / "bg_fg", corpus / "bg", tmp_path / "out", device="cpu")
    assert (done.predicted, done.failed) == (72, ())
    assert {Path(line["background"]).stem for line in lines(tmp_path / "out")} == {"bg001", "bg002", "bg003"}
    for line in lines(tmp_path / "out"):
        assert line["picture"].startswith(Path(line["background"]).stem)


def test_bad_pairs_are_listed_and_good_ones_done(run: Path, scene: dict[str, Any], tmp_path: Path):
    """A damaged picture, one without a background, one of other proportions: three errors, exit 1; the rest is done."""
    pictures, rooms = scene["pictures"], scene["rooms"]
    (pictures / "broken.png").write_bytes(b"\x89PNG")
    save(pictures / "lonely.png", draw_background(7))
    save(pictures / "wide.png", draw_background(8, 50, 100))
    for name in ("broken", "wide"):
        save(rooms / f"{name}.png", draw_background(9, 60, 60))
    arguments = ["predict", str(run), str(pictures), "--backgrounds", str(rooms), "--out", str(tmp_path / "out")]
    for predicted, there in ((3, 0), (0, 3)):
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 1
        counts = f"mask and depth of {predicted} pictures predicted at 48 px, {there} already existed, 3 failed"
        assert counts in done.output
        errors = [line for line in done.output.splitlines() if line.startswith("error: ")]
        assert "broken.png: cannot be decoded" in errors[0]
        assert f"lonely.png: no background lonely in {rooms}, with any ending; add it" in errors[1]
        assert "wide.png: 60x60 pixels, expected the proportions of" in errors[2]
        assert sum(bool(line["error"]) for line in lines(tmp_path / "out")) == 3
    assert len(list((tmp_path / "out/mask").rglob("*.png"))) == 3


def test_current_answers_are_kept(run: Path, scene: dict[str, Any], tmp_path: Path):
    """Only answers that are missing, older than their pictures, or of another background or network are renewed."""
    out = tmp_path / "out"

    def again(**options: Any) -> int:
        rooms = options.pop("rooms", scene["rooms"])
        return predict(run, scene["pictures"], rooms, out, device="cpu", **options).predicted

    assert again() == 3
    first = (out / "mask/a.png").stat().st_mtime_ns
    assert again() == 0
    assert (out / "mask/a.png").stat().st_mtime_ns == first
    (out / "depth/deep/b.png").unlink()
    assert again() == 1
    later = (out / "predictions.csv").stat().st_mtime_ns + 10**9
    os.utime(scene["rooms"] / "a.png", ns=(later, later))
    assert again() == 1
    os.utime(scene["rooms"] / "a.png", ns=(0, 0))
    assert again(views=True) == 3
    assert again(views=True) == 0
    shutil.copytree(scene["rooms"], tmp_path / "rooms2")
    assert again(rooms=tmp_path / "rooms2") == 3
    assert again(rooms=tmp_path / "rooms2", size=32) == 3
    make_run(run, mask_bias=1.0)
    assert again(rooms=tmp_path / "rooms2", size=32) == 3


def test_an_interrupted_run_resumes(run: Path, scene: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Pictures finished before the interruption are not answered again."""
    answer, done = Trained.answer, []

    def stop_at_the_third(self: Trained, *pictures: Tensor) -> tuple[Tensor, Tensor]:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(1)
        return answer(self, *pictures)

    monkeypatch.setattr(Trained, "answer", stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        predict(run, scene["pictures"], scene["rooms"], tmp_path / "out", device="cpu")
    monkeypatch.setattr(Trained, "answer", answer)
    result = predict(run, scene["pictures"], scene["rooms"], tmp_path / "out", device="cpu")
    assert (result.predicted, result.already_there) == (1, 2)
    assert len(lines(tmp_path / "out")) == 3


def test_formats_and_views(run: Path, scene: dict[str, Any], tmp_path: Path, by_difference: list[tuple[int, ...]]):
    """Depth as float32 metres, and a view in which the foreground keeps its colour."""
    predict(
        run, scene["pictures"] / "a.png", scene["rooms"], tmp_path / "out", device="cpu", file_format="npy", views=True
    )
    depth_m = np.load(tmp_path / "out/depth/a.npy")
    assert depth_m.dtype == np.float32
    assert depth_m.shape == (120, 160)
    assert (depth_m.min(), depth_m.max()) == (2, 5)
    with Image.open(tmp_path / "out/view/a.jpg") as view:
        assert view.width > 800
        assert np.asarray(view).std() > 30
    parameters = json.loads((tmp_path / "out/predictions.json").read_text())
    assert (parameters["size"], parameters["depth_units"], parameters["depth_range_m"]) == (48, "m", [0.1, 10.0])


def test_without_trained_depth_there_is_none(tmp_path: Path, scene: dict[str, Any]):
    """A network that was never trained on depth gives masks only."""
    run = make_run(tmp_path / "run", depth=False)
    done = predict(run, scene["pictures"] / "a.png", scene["rooms"] / "a.png", device="cpu", views=True)
    assert done.answers == ("mask",)
    assert done.out == scene["pictures"] / "a_predictions"
    names = sorted(path.relative_to(done.out).as_posix() for path in done.out.rglob("*.*g"))
    assert names == ["mask/a.png", "view/a.jpg"]


def test_without_backgrounds_they_are_black(
    run: Path, scene: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """A warning says so, and the network is fed zeros."""
    seen = []

    def answer(self: Trained, background: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        seen.append((background.abs().max().item(), image.max().item()))
        return image[:, :1], image[:, :1] + 1

    monkeypatch.setattr(Trained, "answer", answer)
    predict(run, scene["pictures"] / "a.png", out=tmp_path / "out", device="cpu")
    assert "no backgrounds given" in caplog.text
    assert len(seen) == 1
    assert seen[0][0] == 0
    assert seen[0][1] > 0.5


def test_sizes_that_are_fed():
    """The longer side is the size; the other keeps the proportions to the nearest pixel."""
    assert fed_size(480, 640, 192) == (144, 192)
    assert fed_size(640, 480, 192) == (192, 144)
    assert fed_size(10, 10, 192) == (192, 192)
    assert fed_size(1, 1000, 192) == (1, 192)


def test_invalid_arguments_are_refused(run: Path, scene: dict[str, Any], tmp_path: Path):
    """Each error names its cause, and nothing is written."""
    pictures, rooms, out = scene["pictures"], scene["rooms"], tmp_path / "out"
    (tmp_path / "empty").mkdir()
    for arguments, options, message in (
        ((tmp_path, pictures, rooms, out), {}, "expected a run"),
        ((run, tmp_path / "nowhere", rooms, out), {}, "nowhere: no such folder or picture"),
        ((run, tmp_path / "empty", rooms, out), {}, "empty: no pictures"),
        ((run, pictures, tmp_path / "nowhere", out), {}, "nowhere: no such folder or picture"),
        ((run, pictures, rooms, pictures), {}, "--out: .* is a folder of pictures itself"),
        ((run, pictures, rooms, out), {"size": 8}, "--size: got 8, expected 32 or more"),
        ((run, pictures, rooms, out), {"file_format": "exr"}, "--format: got exr, expected one of png, npy"),
        ((run, pictures, rooms, out), {"checkpoint": "last"}, "--checkpoint: got last, expected one of best"),
        ((run, pictures / "a.png", rooms / "deep", out), {}, r"a\.png: no background a in .*deep"),
    ):
        with pytest.raises(DsgenError, match=message):
            predict(*arguments, device="cpu", **options)
        assert not out.exists()


def test_two_backgrounds_of_one_name(run: Path, scene: dict[str, Any], tmp_path: Path):
    """The one with the composite's ending is used; where neither has it, the error names both."""
    room = scene["rooms"] / "a.png"
    save(scene["rooms"] / "a.jpg", read(room))
    done = predict(run, scene["pictures"], scene["rooms"], tmp_path / "out", device="cpu")
    assert done.failed == ()
    assert lines(tmp_path / "out")[0]["background"] == str(room)
    save(scene["rooms"] / "a.bmp", read(room))
    room.unlink()
    done = predict(run, scene["pictures"], scene["rooms"], tmp_path / "out", device="cpu")
    assert done.failed == (
        f"{scene['pictures'] / 'a.png'}: 2 backgrounds (a.bmp, a.jpg), expected 1; remove all but one",
    )


def test_one_bad_picture_does_not_stop_the_others(
    run: Path, scene: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Whatever the network raises on it, such as memory that runs out."""
    answer = Trained.answer
    errors = [RuntimeError("DefaultCPUAllocator: can't allocate memory"), MemoryError(), RuntimeError("odd\nmore")]

    def fail(self: Trained, background: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        if image.shape[-1] < image.shape[-2]:  # deep/b
            raise errors.pop()
        return answer(self, background, image)

    monkeypatch.setattr(Trained, "answer", fail)
    for message in (r"failed on it \(RuntimeError: odd\)", "does not fit the memory of cpu", "does not fit the memory"):
        done = predict(run, scene["pictures"], scene["rooms"], tmp_path / "out", device="cpu")
        assert [f"{scene['pictures']}/deep/b.png" in error for error in done.failed] == [True]
        with pytest.raises(AssertionError, match=message):
            raise AssertionError(done.failed[0])
    assert (done.predicted, done.already_there) == (0, 2)


def test_thin_pictures_are_answered(run: Path, tmp_path: Path):
    """In bounded memory, with views."""
    room = save(tmp_path / "in" / "rule.png", np.zeros((4, 4000, 3), np.uint8))
    save(tmp_path / "in" / "tall.png", np.zeros((900, 3, 3), np.uint8))
    done = predict(run, tmp_path / "in", out=tmp_path / "out", device="cpu", views=True)
    assert (done.predicted, done.failed) == (2, ())
    assert read(tmp_path / "out/mask/rule.png").shape == read(room).shape[:2]


def test_folders_are_listed_as_everywhere(run: Path, scene: dict[str, Any], tmp_path: Path):
    """Hidden and foreign files are passed by, a .jfif is a picture, answers inside the folder are none."""
    pictures = scene["pictures"]
    (pictures / "._a.png").write_bytes(b"Mac OS X")
    (pictures / ".ipynb_checkpoints").mkdir()
    shutil.copy(pictures / "a.png", pictures / ".ipynb_checkpoints" / "a-checkpoint.png")
    Image.fromarray(draw_background(0)).save(pictures / "d.jfif", "JPEG")
    for out in (pictures / "answers", tmp_path / "out"):
        done = predict(run, pictures, out=out, device="cpu")
        assert (done.predicted, done.failed) == (4, ())
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "mask.png").write_bytes(b"painted")
    with pytest.raises(
        DsgenError, match=r"--out: .*mine is not empty \(mask.png\) and has no predictions.json of dsgen"
    ):
        predict(run, pictures, out=tmp_path / "mine", device="cpu")


def test_names_match_in_every_spelling(
    run: Path, by_difference: list[tuple[int, ...]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A composite in composed form finds its background and its folder's in decomposed form; `.` names its folder."""
    background = draw_background(0, 64, 64)
    composed, apart = (unicodedata.normalize(form, "caf\u00e9") for form in ("NFC", "NFD"))
    save(tmp_path / "rooms" / f"{apart}.png", background)
    save(tmp_path / "rooms" / "$x$.png", background)
    save(tmp_path / "shots" / f"{composed}.png", paste(background, (slice(9, 40), slice(9, 40))))
    save(tmp_path / "shots" / composed / "1.png", paste(background, (slice(9, 40), slice(9, 40))))
    save(tmp_path / "shots" / "$x$.png", paste(background, (slice(9, 40), slice(9, 40))))
    monkeypatch.chdir(tmp_path / "shots")
    done = predict(run, Path(), tmp_path / "rooms", device="cpu", views=True)
    assert (done.predicted, done.failed, done.out) == (3, (), tmp_path / "shots_predictions")
    assert predict(run, tmp_path / "shots", tmp_path / "rooms", device="cpu", views=True).already_there == 3


def test_names_that_are_not_utf8(run: Path, scene: dict[str, Any], tmp_path: Path):
    """Of a picture, of a folder, of a background: one line before anything is written."""
    bad = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png"))
    shutil.copy(scene["pictures"] / "a.png", bad)
    for pictures, backgrounds in ((bad, None), (tmp_path, None), (scene["pictures"], bad)):
        with pytest.raises(DsgenError, match=r"caf\\xe9.png: the name is not UTF-8; rename it"):
            predict(run, pictures, backgrounds, tmp_path / "out", device="cpu")
    assert not (tmp_path / "out").exists()
