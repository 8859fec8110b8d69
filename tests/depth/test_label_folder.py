"""Folder mode: labels for any pictures."""

import csv
import json
import os
import subprocess
import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from support.corpora import draw_background
from support.picture_files import lens_exif
from torch import Tensor
from typer.testing import CliRunner

from dsgen.camera import focal_px
from dsgen.cli.app import app
from dsgen.depth import label_folder as label_folder_module
from dsgen.depth import labellers
from dsgen.depth.label_folder import label_folder
from dsgen.depth.labellers import MOST_FED_PIXELS, DenseDepthLabeller
from dsgen.errors import DsgenError, InvalidValueError


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


def test_the_table_of_parameters_says_which_arithmetic(tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch):
    """Never "auto"; a later run follows it, and so does one that continues labels of earlier versions."""
    folder, parameters = fill(tmp_path / "in"), tmp_path / "in_depth" / "depth.json"

    def label(faster: str, **options: Any) -> tuple[int, str]:
        monkeypatch.setattr(labellers, "faster_precision", lambda *_: faster)
        result = label_folder(folder, weights=weights, device="cpu", **options)
        return result.labelled, json.loads(parameters.read_text())["precision"]

    assert label("bf16") == (3, "bf16")
    assert label("float32") == (0, "bf16")
    assert label("float32", average_flip=True) == (3, "float32")
    assert label("float32", average_flip=True, precision="bf16") == (3, "bf16")
    earlier = parameters.read_text().replace('"precision": "bf16"', '"precision": "auto"')
    times = os.stat(parameters)
    parameters.write_text(earlier)
    os.utime(parameters, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert label("float32", average_flip=True) == (0, "auto")


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


def test_thin_pictures_are_fed_small(tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch):
    """What is fed is bounded, also as a batch; what is thinner still is named, and the others labelled."""
    folder = fill(tmp_path / "in", 2)
    for n in range(3):
        Image.new("RGB", (4000, 4), (90, 80, 70)).save(folder / f"rule{n}.png")
        Image.new("RGB", (3, 900), (90, 80, 70)).save(folder / f"tall{n}.png")
    Image.new("RGB", (9000, 2)).save(folder / "thread.png")
    fed: list[tuple[int, ...]] = []

    def answer(self: DenseDepthLabeller, batch: Tensor, source: object, shape: tuple[int, int], *_: object) -> Tensor:
        fed.append(tuple(batch.shape))
        return torch.full((len(batch), *shape), 2.0)

    monkeypatch.setattr(DenseDepthLabeller, "_answer", answer)
    result = label_folder(folder, weights=weights, device="cpu", previews=True)
    assert result.labelled == 8
    assert result.failed == (
        f"{folder / 'thread.png'}: 9000x2 pixels, expected one side to be at most 4,096 times the other; crop it, or "
        "leave it out",
    )
    assert max(n * height * width for n, _, height, width in fed) <= MOST_FED_PIXELS
    assert cv2.imread(str(tmp_path / "in_depth" / "rule0.png"), -1).shape == (4, 4000)
    with Image.open(tmp_path / "in_depth" / "tall0.view.jpg") as view:
        assert max(view.size) < 2000


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: 24 GB"),
            "fed as 64x64 pixels, does not fit its memory; free some, or use another device",
        ),
        (torch.OutOfMemoryError("CUDA out of memory"), "does not fit its memory"),
        (MemoryError(), "does not fit its memory"),
        (
            RuntimeError("shape mismatch\nmore"),
            r"the network failed on it \(RuntimeError: shape mismatch\); scale or crop it",
        ),
        (ValueError("odd"), r"the network failed on it \(ValueError: odd\)"),
    ],
)
def test_one_bad_picture_of_a_batch(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, message: str
):
    """It is named, and the others of its batch are labelled; a second run tries it alone."""
    folder = fill(tmp_path / "in", 4)
    Image.new("RGB", (60, 40)).save(folder / "p1.png")  # black
    answer = DenseDepthLabeller._answer
    tried: list[int] = []

    def fail_on_black(self: DenseDepthLabeller, batch: Tensor, *sizes: object) -> Tensor:
        tried.append(len(batch))
        if not batch.flatten(1).any(1).all():
            raise error
        return answer(self, batch, *sizes)

    monkeypatch.setattr(DenseDepthLabeller, "_answer", fail_on_black)
    monkeypatch.setattr(DenseDepthLabeller, "feed_shape", lambda *_: (64, 64))
    result = label_folder(folder, weights=weights, device="cpu")
    assert result.labelled == 3
    (failure,) = result.failed
    assert failure.startswith(f"{folder / 'p1.png'}: ")
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(failure)
    with (tmp_path / "in_depth" / "depth.csv").open() as file:
        assert [row["picture"] for row in csv.DictReader(file) if row["error"]] == ["p1.png"]
    tried.clear()
    again = label_folder(folder, weights=weights, device="cpu")
    assert (again.labelled, again.already_there, again.failed) == (0, 3, (failure,))
    assert tried == [1]


def test_a_label_that_cannot_be_written_is_named(tmp_path: Path, weights: Path):
    """A name that leaves no room for what a file is called while it is written; the others are labelled."""
    folder = fill(tmp_path / "in", 1)
    os.rename(folder / "p0.png", folder / f"{'x' * 251}.png")
    Image.fromarray(draw_background(1, 40, 60)).save(folder / "ok.png")
    result = label_folder(folder, weights=weights, device="cpu")
    assert result.labelled == 1
    assert "its label cannot be written (File name too long); rename the picture" in result.failed[0]


def test_a_damaged_label_is_made_again(tmp_path: Path, weights: Path):
    """Without its table, as after a kill, a label is read; a cut one is not kept."""
    folder, out = fill(tmp_path / "in"), tmp_path / "in_depth"
    label_folder(folder, weights=weights, device="cpu")
    whole = (out / "p1.png").read_bytes()
    (out / "p1.png").write_bytes(whole[:40])
    (out / "depth.csv").unlink()
    result = label_folder(folder, weights=weights, device="cpu")
    assert (result.labelled, result.already_there) == (1, 2)
    assert (out / "p1.png").read_bytes() == whole


def test_files_of_others_are_not_overwritten(tmp_path: Path, weights: Path):
    """A folder with depth maps of another origin is refused before anything is written."""
    folder, out = fill(tmp_path / "in", 1), tmp_path / "mine"
    out.mkdir()
    (out / "p0.png").write_bytes(b"measured")
    with pytest.raises(
        DsgenError, match=r"mine is not empty \(p0.png\) and has no depth.json of dsgen; choose another"
    ):
        label_folder(folder, out, weights=weights, device="cpu")
    assert [path.name for path in out.iterdir()] == ["p0.png"]
    assert (out / "p0.png").read_bytes() == b"measured"


def test_labels_inside_the_folder_are_not_labelled(tmp_path: Path, weights: Path):
    """Whether they are of this run or of one with another folder of labels."""
    folder = fill(tmp_path / "in", 2)
    assert label_folder(folder, folder / "labels", weights=weights, device="cpu").labelled == 2
    assert label_folder(folder, Path(os.path.relpath(folder / "labels")), weights=weights, device="cpu").labelled == 0
    assert label_folder(folder, weights=weights, device="cpu").labelled == 2
    assert sorted(path.name for path in (tmp_path / "in_depth").glob("*.png")) == ["p0.png", "p1.png"]


def test_a_folder_from_a_mac(tmp_path: Path, weights: Path):
    """Resource forks and checkpoints are passed by, a .jfif is a JPEG, names keep the accents they have."""
    folder = fill(tmp_path / "in", 1)
    name = unicodedata.normalize("NFD", "caf\u00e9.jfif")
    Image.fromarray(draw_background(1, 40, 60)).save(folder / name, "JPEG")
    (folder / "._p0.png").write_bytes(b"\x00\x05\x16\x07Mac OS X")
    (folder / ".ipynb_checkpoints").mkdir()
    Image.fromarray(draw_background(1, 40, 60)).save(folder / ".ipynb_checkpoints" / "p0-checkpoint.png")
    result = label_folder(folder, weights=weights, device="cpu")
    assert (result.labelled, result.failed) == (2, ())
    with (tmp_path / "in_depth" / "depth.csv").open(encoding="utf-8") as file:
        assert [row["picture"] for row in csv.DictReader(file)] == [name, "p0.png"]
    assert label_folder(folder, weights=weights, device="cpu").already_there == 2


def test_odd_paths_of_folders_and_pictures(tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch):
    """`.`, characters of globs, formulas and formats, line feeds: labelled, with views, and one row for each."""
    folder = fill(tmp_path / "[a] $x$ %d*", 1)
    names = sorted(["$y$.png", "[0]*.png", "100%s.png", "line\nfeed.png", "東京.png", "p0.png", "q\"uote'.png"])
    for name in names:
        if name != "p0.png":
            Image.fromarray(draw_background(1, 40, 60)).save(folder / name)
    monkeypatch.chdir(folder)
    result = label_folder(Path(), weights=weights, device="cpu", previews=True)
    assert result.out == folder.with_name(folder.name + "_depth")
    assert (result.labelled, result.failed) == (7, ())
    with (result.out / "depth.csv").open(newline="", encoding="utf-8") as file:
        assert sorted(row["picture"] for row in csv.DictReader(file)) == names
    assert label_folder(folder, weights=weights, device="cpu", previews=True).already_there == 7


def test_every_failed_picture_is_printed(tmp_path: Path, weights: Path):
    """A line each, the count, and exit code 1; also in the run after it, which tries just those."""
    folder = fill(tmp_path / "in", 2)
    for name in ("bad.png", "line\nfeed.png"):
        (folder / name).write_bytes(b"no picture")
    for labelled, existed in ((2, 0), (0, 2)):
        result = CliRunner().invoke(app, ["depth", str(folder), "--weights", str(weights), "--device", "cpu"])
        assert result.exit_code == 1
        errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
        assert [r"line\nfeed.png: cannot be decoded" in line for line in errors] == [False, True]
        assert f"{labelled} pictures labelled now" in result.stdout
        assert f"{existed} already existed, 2 failed" in result.stdout


def test_what_is_no_folder_is_named(tmp_path: Path):
    """A picture, and nothing: neither is called a corpus that is not there."""
    folder = fill(tmp_path / "in", 1)
    for path, message in (
        (folder / "p0.png", "a file, expected a corpus or a folder of pictures; pass the folder it is in"),
        (
            tmp_path / "nosuch",
            "no such folder, expected a corpus or a folder of pictures; check the path, or run",
        ),
    ):
        result = CliRunner().invoke(app, ["depth", str(path)])
        assert result.exit_code == 1
        assert f"{path}: {message}" in str(result.exception)


@pytest.mark.slow
@pytest.mark.parametrize("locale", [{"LC_ALL": "C"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}])
def test_the_program_in_any_locale(tmp_path: Path, weights: Path, locale: dict[str, str]):
    """ASCII names are labelled and the second run reads the table; others are labelled too, or named in one line."""
    folder = fill(tmp_path / "in", 1)
    command = [sys.executable, "-m", "dsgen", "depth", str(folder), "--weights", str(weights), "--device", "cpu"]
    for said in ("1 pictures labelled now", "1 already existed"):
        done = subprocess.run(command, env=os.environ | locale, capture_output=True, text=True)
        assert (done.returncode, said in done.stdout) == (0, True), done.stderr
    Image.fromarray(draw_background(1, 40, 60)).save(folder / "caf\u00e9.png")
    done = subprocess.run(command, env=os.environ | locale, capture_output=True, text=True)
    if "PYTHONUTF8" in locale:
        assert done.returncode == 1
        assert "in which this name cannot be used; set PYTHONUTF8=1 in the environment" in done.stderr
        assert len(done.stderr.splitlines()) == 1
    else:
        assert done.returncode == 0, done.stderr
        assert "caf\u00e9.png".encode() in (tmp_path / "in_depth" / "depth.csv").read_bytes()


def read_table(out: Path) -> dict[str, dict[str, str]]:
    """The lines of depth.csv by picture."""
    with (out / "depth.csv").open(encoding="utf-8", newline="") as file:
        return {row["picture"]: row for row in csv.DictReader(file)}


def depth_m(out: Path, name: str) -> float:
    """The depth in metres of a label that is the same everywhere."""
    millimetres = cv2.imread(str(out / name), -1)
    assert millimetres.min() == millimetres.max()
    return millimetres[0, 0] / 1000


def test_each_picture_is_labelled_for_its_own_camera(tmp_path: Path, canonical_weights: Path):
    """The network says 2 m at 80 pixels: metres are those times the focal length as fed; the table says which."""
    folder, out = tmp_path / "in", tmp_path / "in_depth"
    folder.mkdir()
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        exif = lens_exif(6, film_mm=26) if name == "b.jpg" else lens_exif()
        Image.fromarray(draw_background(0, 96, 128)).save(folder / name, exif=exif)
    (tmp_path / "in.csv").write_text("name,fov_deg\na,90\n")
    result = label_folder(folder, weights=canonical_weights, device="cpu")
    assert (result.labelled, result.fov_assumed) == (3, 1)
    table = read_table(out)
    assert [(table[f"{n}.jpg"]["fov_deg"], table[f"{n}.jpg"]["fov_from"]) for n in "abc"] == [
        ("90.0", "csv"),
        ("54.8795", "exif"),
        ("63.0", "assumed"),
    ]
    for name, degrees, height, width, fed in (
        ("a", 90, 96, 128, 128 * 160),  # 64 pixels would be fed at 1.25 times the size
        ("b", 54.8795, 128, 96, 160 * 128),
        ("c", 63, 96, 128, 128 * 160),
    ):
        metres = 2 * focal_px(degrees, width) * np.sqrt(fed / (height * width)) / 80
        assert depth_m(out, f"{name}.png") == pytest.approx(metres, abs=5.1e-4), name
    assert json.loads((out / "depth.json").read_text())["focal_px"] == 80


def test_a_change_of_the_camera_makes_labels_out_of_date(tmp_path: Path, canonical_weights: Path):
    """Another --fov, another line of the CSV file: just those pictures are labelled again; another source is not."""
    folder, out = fill(tmp_path / "in"), tmp_path / "in_depth"

    def label(**options: float) -> int:
        return label_folder(folder, weights=canonical_weights, device="cpu", **options).labelled

    assert [label(), label(), label(fov_deg=63.0), label(fov_deg=70.0)] == [3, 0, 0, 3]
    assert read_table(out)["p0.png"]["fov_from"] == "option"
    (tmp_path / "in.csv").write_text("name,fov_deg\np1,50\np2,70\n")
    assert label(fov_deg=70.0) == 1
    assert [read_table(out)[f"p{n}.png"]["fov_from"] for n in range(3)] == ["option", "csv", "csv"]
    assert label(fov_deg=70.0) == 0
    (out / "depth.csv").unlink()  # nothing says any more what the labels were made with
    assert label(fov_deg=70.0) == 3


def test_labels_of_a_killed_run_keep_their_camera(
    tmp_path: Path, canonical_weights: Path, monkeypatch: pytest.MonkeyPatch
):
    """What it labelled is kept, unless the camera has changed since, even if a second killed run labelled nothing."""
    folder = fill(tmp_path / "in")
    label_pictures, write_table = label_folder_module._label_pictures, label_folder_module._write_table

    def label(fov_deg: float) -> int:
        return label_folder(folder, weights=canonical_weights, device="cpu", fov_deg=fov_deg).already_there

    def kill_after(pictures: int, fov_deg: float) -> None:
        """Stop after so many pictures, without the table that is written at the end."""

        def label_some(paths: list[Path], job: Any) -> Iterator[Any]:
            yield from label_pictures(paths[:pictures], job)
            raise KeyboardInterrupt

        tables = iter([write_table])
        with monkeypatch.context() as patch:
            patch.setattr(label_folder_module, "_label_pictures", label_some)
            patch.setattr(label_folder_module, "_write_table", lambda *a: next(tables, lambda *_: None)(*a))
            with pytest.raises(KeyboardInterrupt):
                label(fov_deg)

    kill_after(2, 60)
    kill_after(0, 60)
    assert label(60) == 2
    kill_after(0, 75)
    assert label(75) == 0
    assert label(75) == 3


def test_networks_without_a_canonical_camera_say_nothing_of_cameras(tmp_path: Path, weights: Path):
    """No columns, no key, and `--fov` is refused."""
    folder = fill(tmp_path / "in")
    (tmp_path / "in.csv").write_text("name,fov_deg\nnone,500\n")
    with pytest.raises(InvalidValueError, match=r"--fov: not used by densedepth-.* \(no canonical camera\); leave"):
        label_folder(folder, weights=weights, device="cpu", fov_deg=60)
    assert label_folder(folder, weights=weights, device="cpu").fov_assumed == 0
    assert not any("fov" in column for column in read_table(tmp_path / "in_depth")["p0.png"])
    assert "focal_px" not in json.loads((tmp_path / "in_depth" / "depth.json").read_text())


def test_the_command_says_how_many_cameras_it_assumed(tmp_path: Path, canonical_weights: Path):
    """In the line of the result; nothing where --fov says it."""
    folder = fill(tmp_path / "in")
    command = ["depth", str(folder), "--weights", str(canonical_weights), "--device", "cpu"]
    assumed = CliRunner().invoke(app, command)
    assert assumed.output.splitlines()[-1].endswith("; field of view of 3 assumed, 63 degrees, see --fov")
    assert "assumed" not in CliRunner().invoke(app, [*command, "--fov", "60"]).output
    refused = CliRunner().invoke(app, [*command, "--fov", "190"])
    assert str(refused.exception) == "--fov: got 190, expected degrees above 0 and below 180"
