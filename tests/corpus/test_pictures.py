"""Picture files: original names, the pixels of the rendered rows, complete or not at all."""

import errno
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.corpora import SMALL, digest, make_corpus

from dsgen.corpus import layout
from dsgen.corpus.build import composite
from dsgen.corpus.corpus import Corpus
from dsgen.corpus.pictures import draw_composites, fill_pictures
from dsgen.errors import DsgenError
from dsgen.io import images


def test_the_files_have_their_original_names(corpus: Path):
    """Six folders, numbered from one, mirror images marked _01, and nothing unfinished."""
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


def test_foregrounds_have_the_requested_height(corpus: Path):
    """`fg_mask` is one channel, fg_height high, and the mask of `fg`."""
    for name in ("001", "002_01"):
        mask = np.asarray(Image.open(corpus / "fg_mask" / f"frg{name}.png"))
        rgba = np.asarray(Image.open(corpus / "fg" / f"fg{name}.png"))
        assert mask.ndim == 2
        assert mask.shape[0] == SMALL.fg_height
        assert ((rgba[..., 3] >= 128) == (mask == 255)).all()


def test_without_pictures_the_corpus_is_the_same_but_for_them(tmp_path: Path, corpus: Path, pictures: Path):
    """Plan, sources and manifest do not depend on the pictures, which can be drawn later."""
    made = make_corpus(tmp_path / "c", pictures, pictures=False)
    assert not (made / "bg_fg").exists()
    composite(made, pictures / "backgrounds", pictures / "foregrounds", SMALL, jobs=2)
    assert digest(made) == digest(corpus)


def test_an_error_leaves_nothing_unfinished(tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch):
    """A full disk half way through a background removes that background's unfinished folders."""
    shutil.copytree(corpus, tmp_path / "c")
    shutil.rmtree(tmp_path / "c" / "bg_fg" / "bg001")
    written = []

    def full(path: str, content: bytes) -> None:
        if len(written) == 5:
            raise OSError(28, "No space left on device")
        written.append(path)

    monkeypatch.setattr("dsgen.corpus.pictures._write", full)
    with pytest.raises(OSError, match="No space"):
        draw_composites(str(tmp_path / "c"), 0)
    assert not list((tmp_path / "c").rglob("*.partial"))
    assert not (tmp_path / "c" / "bg_fg" / "bg001").exists()


def test_a_disk_too_small_is_said_before_work_starts(tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch):
    """The need is estimated from a few rows."""
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("dsgen.corpus.pictures.shutil.disk_usage", lambda _: usage)
    with pytest.raises(DsgenError, match="72 pictures with masks need about"):
        make_corpus(tmp_path / "c", pictures)
    assert not (tmp_path / "c" / "bg_fg").exists()


def test_a_corpus_made_anew_is_told_from_the_one_before(tmp_path: Path, corpus: Path):
    """A process that lives on, such as a worker of a cluster, does not draw from what it remembers."""
    shutil.copytree(corpus, tmp_path / "c")
    shutil.rmtree(tmp_path / "c" / "bg_fg" / "bg001")
    with pytest.raises(DsgenError, match="changed while at work on it"):
        draw_composites(str(tmp_path / "c"), 0, "0" * 64)


def test_a_folder_that_lacks_pictures_is_found_and_completed(tmp_path: Path, corpus: Path, pictures: Path):
    """As kills of earlier versions left them, under their final name; what is there besides stays."""
    shutil.copytree(corpus, tmp_path / "c")
    for folder in ("bg_fg/bg001", "bg_fg_mask/bg002", "fg"):
        files = sorted((tmp_path / "c" / folder).iterdir())
        for path in files[::2]:
            path.unlink()
        (tmp_path / "c" / folder / "notes.txt").write_text("mine")
    result = composite(tmp_path / "c", pictures / "backgrounds", pictures / "foregrounds", SMALL, jobs=1)
    assert (result.drawn, result.already_there) == (48, 24)
    assert [path.read_text() for path in (tmp_path / "c").rglob("notes.txt")] == ["mine"] * 3
    assert {name: value for name, value in digest(tmp_path / "c").items() if "notes" not in name} == digest(corpus)
    again = composite(tmp_path / "c", pictures / "backgrounds", pictures / "foregrounds", SMALL, jobs=1)
    assert (again.drawn, again.already_there) == (0, 72)


def test_a_disk_that_fills_up_is_named_with_the_folder(tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch):
    """A write that stores only a part is continued, which raises the system's error; nothing unfinished is left."""
    written, write = [0], os.write

    def fill(descriptor: int, content: bytes) -> int:
        written[0] += 1
        if written[0] == 60:
            return write(descriptor, content[:10])
        if written[0] > 60:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, content)

    monkeypatch.setattr("dsgen.corpus.pictures.os.write", fill)
    with pytest.raises(OSError, match="No space left on device") as caught:
        composite(tmp_path / "c", pictures / "backgrounds", pictures / "foregrounds", SMALL, jobs=1)
    assert str(caught.value.filename).startswith(str(tmp_path / "c/bg_fg"))
    assert not list(tmp_path.rglob("*.partial"))


def test_a_writer_that_lost_pictures_does_not_finish_its_folder(tmp_path: Path, corpus: Path):
    """The pictures are counted before the folder gets its name."""
    shutil.copytree(corpus, tmp_path / "c")
    shutil.rmtree(tmp_path / "c/bg_fg/bg001")
    opened = Corpus(tmp_path / "c")
    with pytest.raises(DsgenError, match="1 of 24 pictures are there"), fill_pictures(opened, "bg_fg", 0) as folder:
        (folder / "one.jpeg").write_bytes(b"")
    assert not (tmp_path / "c/bg_fg/bg001").exists()
    assert not list((tmp_path / "c").rglob("*.partial"))
