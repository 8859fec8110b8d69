"""Source folders: which pictures are used, refused, or mentioned, and how they are normalised."""

import os
import shutil
import unicodedata
from pathlib import Path

import pytest
from PIL import Image
from support.corpora import SMALL, draw_background, draw_cutout

from dsgen.corpus.build import composite
from dsgen.corpus.corpus import Corpus
from dsgen.errors import DsgenError


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
    assert made.foregrounds == 1
    height, width = opened.foreground(0).shape[:2]
    assert width == 48
    assert height < SMALL.fg_height
    assert opened.foreground(0, size=96).shape[:2] == (2 * height, 2 * width)
    assert (opened.plan["left"] == 0).all()


def test_names_of_one_spelling_are_refused(tmp_path: Path, pictures: Path):
    """Composed and decomposed accents are one name; a name that is not UTF-8 is refused too, before any work."""
    shutil.copytree(pictures, tmp_path / "p")
    folder = tmp_path / "p" / "backgrounds"
    for name in (unicodedata.normalize(form, "caf\u00e9") for form in ("NFC", "NFD")):
        Image.fromarray(draw_background(7)).save(folder / f"{name}.png")
    with pytest.raises(DsgenError, match="except for the ending or the Unicode normalisation; rename or remove one"):
        composite(tmp_path / "c", folder, tmp_path / "p" / "foregrounds", SMALL)
    os.rename(folder / "room0.png", os.fsencode(folder) + b"/caf\xe9.png")
    with pytest.raises(DsgenError, match=r"backgrounds/caf\\xe9.png: the name is not UTF-8; rename it$"):
        composite(tmp_path / "c", folder, tmp_path / "p" / "foregrounds", SMALL)
    assert not (tmp_path / "c").exists()
    with pytest.raises(DsgenError, match=r"--backgrounds: .*nosuch is no folder, expected .*; check the path"):
        composite(tmp_path / "c", tmp_path / "nosuch", tmp_path / "p" / "foregrounds", SMALL)
