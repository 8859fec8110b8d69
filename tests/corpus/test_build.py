"""Stage one: folders of pictures to a corpus."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.corpora import SMALL, digest, draw_background, draw_cutout, make_corpus

from dsgen.corpus import layout
from dsgen.corpus.build import Parameters, composite
from dsgen.corpus.build import draw_background as draw_folder
from dsgen.corpus.corpus import Corpus
from dsgen.errors import DsgenError
from dsgen.io import images
from dsgen.parallel.locks import exclusive_lock
from dsgen.parallel.parts import Part


def test_the_parts_have_their_original_names(corpus: Path):
    """Six parts, numbered from one, mirror images marked _01, and nothing unfinished."""
    names = set(digest(corpus))
    for name in (
        "corpus.json",
        "plan.npy",
        "bg/bg003.jpeg",
        "fg/fg001.png",
        "fg/fg003_01.png",
        "fg_mask/frg001.png",
        "fg_mask/frg003_01.png",
        "bg_fg/bg001/bg001_fg001_001.jpeg",
        "bg_fg/bg003/bg003_fg003_01_004.jpeg",
        "bg_fg_mask/bg002/bg002_fg001_01_001_mask.png",
    ):
        assert name in names
    assert sum(name.startswith("bg_fg/") for name in names) == 3 * 3 * 2 * 4
    assert sum(name.startswith("bg_fg_mask/") for name in names) == 3 * 3 * 2 * 4
    assert not [name for name in names if "partial" in name]


def test_every_picture_file_is_its_rendered_row(corpus: Path):
    """Masks are equal to the pixel; composites are the JPEG of the rendered picture, to the byte."""
    opened = Corpus(corpus)
    image, mask = opened.render(opened.plan)
    for i, (background, foreground, flip, position, *_) in enumerate(opened.plan.tolist()):
        name = layout.composite_name(background, foreground, flip, position)
        folder = layout.background_name(background)
        code = (corpus / "bg_fg" / folder / f"{name}.jpeg").read_bytes()
        assert code == images.encode_jpeg(image[i], 95, restart=1)
        file = Image.open(corpus / "bg_fg_mask" / folder / f"{name}_mask.png")
        assert file.mode == "L"
        assert (np.asarray(file) == mask[i]).all()
        assert set(np.unique(mask[i])) == {0, 255}


def test_sources_agree_at_both_sizes(corpus: Path):
    """The label size shows the same picture, twice as large: foregrounds at exactly twice the place and shape."""
    opened = Corpus(corpus)
    _, small = opened.render(opened.plan)
    image, large = opened.render(opened.plan, opened.label_size)
    assert image.shape == (len(opened), 96, 96, 3)
    shrunk = large.reshape(-1, 48, 2, 48, 2).mean(axis=(2, 4))
    assert (np.abs(shrunk - small) > 128).mean() < 0.005


def test_foreground_parts_have_the_height_asked_for(corpus: Path):
    """`fg_mask` is one channel, fg_height high, and the mask of `fg`."""
    for name in ("001", "002_01"):
        mask = np.asarray(Image.open(corpus / "fg_mask" / f"frg{name}.png"))
        rgba = np.asarray(Image.open(corpus / "fg" / f"fg{name}.png"))
        assert mask.ndim == 2
        assert mask.shape[0] == SMALL.fg_height
        assert ((rgba[..., 3] >= 128) == (mask == 255)).all()


def test_the_manifest_tells_it_all(corpus: Path):
    """Parameters, counts and, for every picture, file, hash and side."""
    manifest = json.loads((corpus / "corpus.json").read_text())
    assert manifest["rows"] == 72
    assert sum(manifest["splits"].values()) == 72
    assert manifest["parameters"]["seed"] == 0
    assert len(manifest["backgrounds"][0]["sha256"]) == 64
    assert {entry["split"] for entry in manifest["backgrounds"]} == {"train", "validation"}


def test_any_number_of_workers_makes_the_same_bytes(tmp_path: Path, pictures: Path, corpus: Path):
    """Three processes equal one."""
    composite(tmp_path / "c", pictures / "backgrounds", pictures / "foregrounds", SMALL, jobs=3)
    assert digest(tmp_path / "c") == digest(corpus)


def test_running_again_does_nothing_and_what_is_lost_is_drawn_again(tmp_path: Path, corpus: Path, pictures: Path):
    """A lost folder comes back; finished ones are not touched."""
    shutil.copytree(corpus, tmp_path / "c")
    folders = pictures / "backgrounds", pictures / "foregrounds"
    assert composite(tmp_path / "c", *folders, SMALL, jobs=1)["drawn"] == 0
    shutil.rmtree(tmp_path / "c" / "bg_fg_mask" / "bg002")
    before = (tmp_path / "c" / "bg_fg" / "bg001").stat().st_mtime_ns
    assert composite(tmp_path / "c", *folders, SMALL, jobs=1)["drawn"] == 24
    assert (tmp_path / "c" / "bg_fg" / "bg001").stat().st_mtime_ns == before
    assert digest(tmp_path / "c") == digest(corpus)


def test_without_pictures_the_corpus_is_the_same_but_for_them(tmp_path: Path, corpus: Path, pictures: Path):
    """Plan, sources and manifest do not depend on the pictures, which can be drawn later."""
    made = make_corpus(tmp_path / "c", pictures, pictures=False)
    assert not (made / "bg_fg").exists()
    composite(made, pictures / "backgrounds", pictures / "foregrounds", SMALL, jobs=2)
    assert digest(made) == digest(corpus)


def test_killed_at_any_moment_and_run_again_ends_with_the_same_bytes(tmp_path: Path, corpus: Path, pictures: Path):
    """kill -9 at six moments spread over a run."""
    code = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[1]); from support.corpora import SMALL;"
        "from dsgen.corpus import build as c; write = c._write;"
        "c._write = lambda *a: (__import__('time').sleep(0.003), write(*a));"
        "print('ready', flush=True);"
        "folders = [Path(sys.argv[3]) / kind for kind in ('backgrounds', 'foregrounds')];"
        "c.composite(Path(sys.argv[2]), *folders, SMALL, jobs=1)"
    )
    for moment in (0.0, 0.03, 0.1, 0.2, 0.3, 0.4):
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(Path(__file__).parent.parent), str(tmp_path / "c"), str(pictures)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(moment)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    composite(tmp_path / "c", pictures / "backgrounds", pictures / "foregrounds", SMALL, jobs=2)
    made = {name: value for name, value in digest(tmp_path / "c").items() if ".partial" not in name}
    assert made == digest(corpus)
    assert set(digest(tmp_path / "c")) == set(made)


def test_what_a_kill_can_leave_is_no_stranger(tmp_path: Path, corpus: Path, pictures: Path):
    """Every unfinished file or folder dsgen writes is taken for its own and done again."""
    (tmp_path / "c" / "sources.zarr.partial").mkdir(parents=True)
    for name in ("corpus.json.partial", "plan.npy.partial", "plan.npy"):
        (tmp_path / "c" / name).write_bytes(b"half")
    composite(tmp_path / "c", pictures / "backgrounds", pictures / "foregrounds", SMALL, jobs=1)
    assert digest(tmp_path / "c") == digest(corpus)


def test_an_error_leaves_nothing_unfinished(tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch):
    """A full disk half way through a background removes that background's begun folders."""
    shutil.copytree(corpus, tmp_path / "c")
    shutil.rmtree(tmp_path / "c" / "bg_fg" / "bg001")
    written = []

    def full(path: str, content: bytes) -> None:
        if len(written) == 5:
            raise OSError(28, "No space left on device")
        written.append(path)

    monkeypatch.setattr("dsgen.corpus.build._write", full)
    with pytest.raises(OSError, match="No space"):
        draw_folder(str(tmp_path / "c"), 0)
    assert not list((tmp_path / "c").rglob("*.partial"))
    assert not (tmp_path / "c" / "bg_fg" / "bg001").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"positions": 5}, "--positions 5 .the corpus has 4."),
        ({"seed": 7}, "--seed 7 .the corpus has 0."),
        ({"flip": False}, "--flip False .the corpus has True."),
    ],
)
def test_other_parameters_are_refused(corpus: Path, pictures: Path, change: dict, message: str):
    """The error names the parameter and both values."""
    with pytest.raises(DsgenError, match=message):
        composite(corpus, pictures / "backgrounds", pictures / "foregrounds", replace(SMALL, **change), jobs=1)


def test_other_pictures_are_refused(corpus: Path, pictures: Path):
    """Fewer foregrounds than the corpus was made from."""
    with pytest.raises(DsgenError, match=r"2 foregrounds \(the corpus has 3; different: person2.png\)"):
        composite(corpus, pictures / "backgrounds", pictures / "foregrounds", SMALL, max_foregrounds=2, jobs=1)


def test_all_bad_pictures_are_listed_before_anything_is_made(tmp_path: Path, pictures: Path):
    """Opaque, empty, undecodable and zero-size ones, in one error; no corpus comes into being."""
    shutil.copytree(pictures, tmp_path / "p")
    folder = tmp_path / "p" / "foregrounds"
    Image.fromarray(draw_background(0)).save(folder / "opaque.png")
    Image.new("RGBA", (30, 30)).save(folder / "invisible.png")
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    (tmp_path / "p" / "backgrounds" / "nothing.jpg").write_bytes(b"")
    Image.fromarray(draw_background(9)).save(tmp_path / "p" / "backgrounds" / "room0.jpg")
    with pytest.raises(DsgenError) as error:
        composite(tmp_path / "c", tmp_path / "p" / "backgrounds", folder, SMALL, jobs=1)
    text = str(error.value)
    assert text.startswith("5 problems")
    for part in (
        "same name 'room0'",
        "opaque.png: no alpha",
        "invisible.png: empty alpha",
        "broken.png: cannot",
        "nothing.jpg: empty file",
    ):
        assert part in text
    assert not (tmp_path / "c").exists()


def test_two_files_of_one_name_are_refused(tmp_path: Path, pictures: Path):
    """room0.png beside room0.jpg would be the same row of the plan."""
    shutil.copytree(pictures, tmp_path / "p")
    Image.fromarray(draw_background(9)).save(tmp_path / "p" / "backgrounds" / "room0.jpg")
    with pytest.raises(DsgenError, match=r"room0.jpg and room0.png have the same name 'room0'"):
        composite(tmp_path / "c", tmp_path / "p" / "backgrounds", tmp_path / "p" / "foregrounds", SMALL)
    assert not (tmp_path / "c").exists()


def test_identical_pictures_are_reported(tmp_path: Path, pictures: Path, caplog: pytest.LogCaptureFixture):
    """The same pixels under two names are used and said."""
    shutil.copytree(pictures, tmp_path / "p")
    shutil.copy(tmp_path / "p" / "foregrounds" / "person0.png", tmp_path / "p" / "foregrounds" / "twin.png")
    composite(tmp_path / "c", tmp_path / "p" / "backgrounds", tmp_path / "p" / "foregrounds", SMALL, pictures=False)
    assert "person0.png and" in caplog.text
    assert "twin.png show the same picture" in caplog.text


def test_files_that_are_no_pictures_are_reported(tmp_path: Path, pictures: Path, caplog: pytest.LogCaptureFixture):
    """Notes lying about are named, not skipped in silence."""
    shutil.copytree(pictures, tmp_path / "p")
    (tmp_path / "p" / "backgrounds" / "notes.txt").write_text("hello")
    composite(tmp_path / "c", tmp_path / "p" / "backgrounds", tmp_path / "p" / "foregrounds", SMALL, pictures=False)
    assert "notes.txt" in caplog.text


def test_a_wide_foreground_is_made_smaller_until_it_fits(tmp_path: Path, pictures: Path):
    """Proportions are kept, at both sizes."""
    (tmp_path / "wide").mkdir()
    Image.fromarray(draw_cutout(0, 20, 300)).save(tmp_path / "wide" / "w.png")
    made = composite(tmp_path / "c", pictures / "backgrounds", tmp_path / "wide", SMALL, pictures=False)
    opened = Corpus(tmp_path / "c")
    assert made["foregrounds"] == 1
    height, width = opened.foreground(0).shape[:2]
    assert width == 48
    assert height < SMALL.fg_height
    assert opened.foreground(0, size=96).shape[:2] == (2 * height, 2 * width)
    assert (opened.plan["left"] == 0).all()


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (Parameters(positions=0), "--positions: got 0, expected 1 to 65535"),
        (Parameters(label_size=300), "--label-size: got 300, expected a multiple of --size 224"),
        (Parameters(fg_height=225), "--fg-height: got 225, expected 1 to --size 224"),
        (Parameters(quality=0), "--quality: got 0"),
        (Parameters(validation_share=0.6, test_share=0.5), "--test-share: got 0.5"),
    ],
)
def test_impossible_parameters_are_refused(tmp_path: Path, parameters: Parameters, message: str):
    """Name, value and rule."""
    with pytest.raises(DsgenError, match=message):
        composite(tmp_path / "c", parameters=parameters)


def test_folders_that_will_not_do_are_refused(tmp_path: Path, pictures: Path):
    """Missing, empty, or a corpus folder with other things in it."""
    with pytest.raises(DsgenError, match="is no folder"):
        composite(tmp_path / "c", tmp_path / "nowhere", pictures / "foregrounds", SMALL)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DsgenError, match="holds no pictures"):
        composite(tmp_path / "c", pictures / "backgrounds", tmp_path / "empty", SMALL)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("")
    with pytest.raises(DsgenError, match=r"holds other files \(thesis.tex\)"):
        composite(tmp_path / "mine", pictures / "backgrounds", pictures / "foregrounds", SMALL)
    with pytest.raises(DsgenError, match="--jobs: got 0"):
        composite(tmp_path / "c", pictures / "backgrounds", pictures / "foregrounds", SMALL, jobs=0)


def test_a_second_run_in_the_same_folder_is_refused(tmp_path: Path, pictures: Path):
    """While one dsgen writes, another says so and leaves."""
    with exclusive_lock(tmp_path / "c"), pytest.raises(DsgenError, match="another dsgen is writing here"):
        composite(tmp_path / "c", pictures / "backgrounds", pictures / "foregrounds", SMALL)


def test_a_disk_too_small_is_said_before_work_starts(tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch):
    """The need is estimated from a few rows."""
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("dsgen.corpus.build.shutil.disk_usage", lambda _: usage)
    with pytest.raises(DsgenError, match="72 pictures with masks need about"):
        make_corpus(tmp_path / "c", pictures)
    assert not (tmp_path / "c" / "bg_fg").exists()


def test_an_unfinished_corpus_is_refused_by_what_comes_after(tmp_path: Path):
    """Opening names the missing manifest and the command."""
    with pytest.raises(DsgenError, match="no corpus; run dsgen composite"):
        Corpus(tmp_path)
    os.makedirs(tmp_path / "sources.zarr")
    with pytest.raises(DsgenError, match="an unfinished corpus"):
        Corpus(tmp_path)


def draw_part(corpus: Path, pictures: Path, number: int, count: int = 3) -> dict:
    """Do one part of the small corpus."""
    return composite(
        corpus, pictures / "backgrounds", pictures / "foregrounds", SMALL, jobs=1, part=Part(number, count)
    )


@pytest.mark.parametrize("order", [(1, 2, 3), (3, 1, 2)])
def test_parts_make_the_same_corpus_in_any_order(tmp_path: Path, corpus: Path, pictures: Path, order: tuple[int, ...]):
    """Every part draws its own backgrounds and says what is left; all files are those of one run."""
    results = [draw_part(tmp_path / "c", pictures, number) for number in order]
    assert [result["drawn"] for result in results] == [24, 24, 24]
    assert [result["left"] for result in results] == [48, 24, 0]
    assert digest(tmp_path / "c") == digest(corpus)
    again = draw_part(tmp_path / "c", pictures, 2)
    assert (again["drawn"], again["already_there"]) == (0, 24)


_DRAW_PART = (
    "import sys, time; from pathlib import Path; sys.path.insert(0, sys.argv[1]); from support.corpora import SMALL;"
    "from dsgen.corpus import build as c; from dsgen.parallel.parts import parse_part; write = c._write;"
    "c._write = lambda *a: (time.sleep(0.005), write(*a));"
    "print('ready', flush=True);"
    "folders = [Path(sys.argv[3]) / kind for kind in ('backgrounds', 'foregrounds')];"
    "sys.stdin.readline();"
    "c.composite(Path(sys.argv[2]), *folders, SMALL, jobs=1, part=parse_part(sys.argv[4]))"
)


def start_part(corpus: Path, pictures: Path, part: str) -> subprocess.Popen:
    """Start a part in a process of its own, ready to go on at a line of input; it writes slowly."""
    return subprocess.Popen(
        [sys.executable, "-c", _DRAW_PART, str(Path(__file__).parent.parent), str(corpus), str(pictures), part],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_parts_may_start_at_the_same_moment_and_be_killed(tmp_path: Path, corpus: Path, pictures: Path):
    """Three processes and a fourth that does what one of them does; the one killed goes on when run again."""
    made = tmp_path / "c"
    running = {part: start_part(made, pictures, part) for part in ("1/3", "2/3", "3/3")}
    for process in running.values():
        assert process.stdout.readline() == "ready\n"
    for process in running.values():
        process.stdin.write("\n")
        process.stdin.flush()
    until = time.monotonic() + 30
    while not list(made.glob("bg_fg/bg003.*.partial")) and time.monotonic() < until:
        time.sleep(0.005)
    running["3/3"].send_signal(signal.SIGSTOP)
    with pytest.raises(DsgenError, match="another dsgen is running composite --part 3/3"):
        draw_part(made, pictures, 3)
    with pytest.raises(DsgenError, match=r"(composite --part ./3 is at work|another dsgen is writing) here"):
        make_corpus(made, pictures)
    with pytest.raises(DsgenError, match="divides the work differently from --part 1/2"):
        draw_part(made, pictures, 1, 2)
    running["3/3"].kill()
    said = {part: process.communicate()[1] for part, process in running.items()}
    assert [process.returncode for process in running.values()] == [0, 0, -signal.SIGKILL], said
    assert list(made.glob("bg_fg/bg003.*.partial"))
    assert draw_part(made, pictures, 3)["left"] == 0
    assert digest(made) == digest(corpus)
    assert not list(made.rglob("*.partial"))


def test_a_part_waits_for_the_one_that_makes_the_corpus(
    tmp_path: Path, pictures: Path, caplog: pytest.LogCaptureFixture
):
    """It says so, and goes on as soon as the folder's lock is free."""
    held, enough = threading.Event(), threading.Event()

    def hold() -> None:
        with exclusive_lock(tmp_path / "c"):
            held.set()
            enough.wait(20)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait(20)
    threading.Timer(1.3, enough.set).start()
    assert draw_part(tmp_path / "c", pictures, 1, 1)["left"] == 0
    assert enough.is_set()
    assert "another dsgen is writing here, waiting for it" in caplog.text
    holder.join()


def test_a_corpus_made_anew_is_told_from_the_one_before(tmp_path: Path, corpus: Path):
    """A process that lives on, such as a worker of a cluster, does not draw from what it remembers."""
    shutil.copytree(corpus, tmp_path / "c")
    shutil.rmtree(tmp_path / "c" / "bg_fg" / "bg001")
    with pytest.raises(DsgenError, match="changed while at work on it"):
        draw_folder(str(tmp_path / "c"), 0, "0" * 64)
