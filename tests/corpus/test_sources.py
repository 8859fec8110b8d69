"""Source folders: which pictures are used, refused, or mentioned, and how they are normalised."""

import os
import shutil
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.corpora import SMALL, draw_background, draw_cutout, files
from support.picture_files import write_keyed_png

from dsgen.corpus.build import composite
from dsgen.corpus.corpus import Corpus
from dsgen.corpus.sources import SourceFolder
from dsgen.errors import DsgenError
from dsgen.integrity.repair import repair
from dsgen.integrity.verify import verify
from dsgen.io.people import Person


def test_all_bad_pictures_are_listed_before_anything_is_made(tmp_path: Path, pictures: Path):
    """Opaque, empty, undecodable and zero-size ones, in one error; no corpus comes into being."""
    shutil.copytree(pictures, tmp_path / "p")
    folder = tmp_path / "p" / "foregrounds"
    Image.fromarray(draw_background(0)).save(folder / "opaque.png")
    Image.new("RGBA", (30, 30)).save(folder / "invisible.png")
    Image.new("RGBA", (30, 30), (9, 8, 7, 255)).save(folder / "solid.png")
    Image.new("RGBA", (30, 30), (9, 8, 7, 200)).save(folder / "glassy.png")
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    (tmp_path / "p" / "backgrounds" / "nothing.jpg").write_bytes(b"")
    Image.fromarray(draw_background(9)).save(tmp_path / "p" / "backgrounds" / "room0.jpg")
    with pytest.raises(DsgenError) as error:
        composite(tmp_path / "c", tmp_path / "p" / "backgrounds", folder, SMALL, jobs=1)
    text = str(error.value)
    assert text.startswith("7 problems")
    for part in (
        "same name 'room0'",
        "opaque.png: no alpha",
        "invisible.png: empty alpha",
        "solid.png: alpha is 255 everywhere, so nothing of it is cut out",
        "glassy.png: alpha is 200 everywhere, so nothing of it is cut out",
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


def test_specks_of_background_removers_do_not_change_a_corpus(
    tmp_path: Path, pictures: Path, caplog: pytest.LogCaptureFixture
):
    """Faint alpha far from the person: the same sources to the byte, and the file is named."""
    for name in ("clean", "specks"):
        (tmp_path / name).mkdir()
        rgba = np.pad(draw_cutout(0), ((60, 60), (60, 60), (0, 0)))
        if name == "specks":
            rgba[5::20, 3, 3] = 5
            rgba[3, 5::20, 3] = 9
        Image.fromarray(rgba).save(tmp_path / name / "person.png")
        composite(tmp_path / f"corpus-{name}", pictures / "backgrounds", tmp_path / name, SMALL, pictures=False)
    clean, specks = Corpus(tmp_path / "corpus-clean"), Corpus(tmp_path / "corpus-specks")
    assert (clean.foreground(0) == specks.foreground(0)).all()
    assert (clean.foreground(0, size=96) == specks.foreground(0, size=96)).all()
    assert (clean.plan == specks.plan).all()
    assert "specks: left out specks and haze, which are not the subject: person.png (17 pixels)" in caplog.text
    assert "clean: left out" not in caplog.text


def test_a_colour_key_hides_no_other_findings(tmp_path: Path, pictures: Path):
    """Keyed cut-outs are as wide as what is opaque of them; a bad one beside them is found."""
    (tmp_path / "f").mkdir()
    for bits in (1, 2, 4, 8, 16):
        samples = np.repeat(np.arange(64)[None, :, None] < 32, 64, axis=0) * (2**bits - 1)
        write_keyed_png(tmp_path / "f" / f"grey{bits}.png", samples, bits, (2**bits - 1,))
    made = composite(tmp_path / "c", pictures / "backgrounds", tmp_path / "f", SMALL, pictures=False)
    assert made.foregrounds == 5
    for number in range(5):
        foreground = Corpus(tmp_path / "c").foreground(number)
        assert foreground.shape == (20, 10, 4)
        assert (foreground[..., 3] == 255).all()
    Image.new("RGBA", (30, 30)).save(tmp_path / "f" / "invisible.png")
    (tmp_path / "f" / "short.png").write_bytes((tmp_path / "f" / "grey16.png").read_bytes()[:60])
    with pytest.raises(DsgenError, match="2 problems"):
        composite(tmp_path / "d", pictures / "backgrounds", tmp_path / "f", SMALL, pictures=False)


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


def in_classes(folder: Path, pictures: Path) -> Path:
    """Make a folder of the fixture's foregrounds with the classes person and chair, each with a picture of one name."""
    for n, name in enumerate(("person/ann.png", "chair/ann.png", "chair/stool.png")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(pictures / "foregrounds" / f"person{n}.png", folder / name)
    return folder


def test_the_limit_takes_the_first_in_order_of_name(tmp_path: Path, pictures: Path):
    """Names are those within the folder, so that classes share none."""
    folder = in_classes(tmp_path / "fg", pictures)
    found = SourceFolder.read(folder, "foregrounds", None, 1)
    assert [(file.name, file.file, file.label) for file in found.files] == [
        ("chair/ann", "chair/ann.png", "chair"),
        ("chair/stool", "chair/stool.png", "chair"),
        ("person/ann", "person/ann.png", "person"),
    ]
    assert not found.name_errors()
    first = SourceFolder.read(folder, "foregrounds", 2, 1)
    assert first.files == found.files[:2]
    assert first.others == (folder / "person" / "ann.png",)
    with pytest.raises(DsgenError, match="--max-foregrounds: got 0, expected 1 or more"):
        SourceFolder.read(folder, "foregrounds", 0, 1)


def test_heights_of_pictures_beyond_the_limit_are_no_mistake(tmp_path: Path, pictures: Path):
    """The table describes the whole folder."""
    folder = in_classes(tmp_path / "fg", pictures)
    (tmp_path / "fg.csv").write_text("name,height_m\nchair/ann,0.9\nchair/stool,0.5\nperson/ann,1.8\n")
    people = SourceFolder.read(folder, "foregrounds", 2, 1).with_people().people
    assert people == (Person(0.9, "csv", "chair"), Person(0.5, "csv", "chair"))


def test_classes_are_recorded_and_flat_folders_have_none(tmp_path: Path, pictures: Path, corpus: Path):
    """The corpus of the same pictures in a flat folder has neither classes nor heights; verify finds nothing."""
    folder = in_classes(tmp_path / "fg", pictures)
    (tmp_path / "fg.csv").write_text("name,height_m\nnobody,0\n")  # heights are not asked for
    composite(tmp_path / "c", pictures / "backgrounds", folder, SMALL, jobs=1)
    records = Corpus(tmp_path / "c").manifest["foregrounds"]
    assert [(record["name"], record["class"]) for record in records] == [
        ("chair/ann", "chair"),
        ("chair/stool", "chair"),
        ("person/ann", "person"),
    ]
    assert not any("height_m" in record for record in records)
    flat = Corpus(corpus).manifest["foregrounds"]
    assert all(record.keys() == {"name", "file", "sha256", "split"} for record in flat)
    assert not verify(tmp_path / "c", jobs=1).findings
    with pytest.raises(DsgenError, match=r"foregrounds.*different: chair/ann.png, chair/stool.png, person.*"):
        composite(tmp_path / "c", pictures / "backgrounds", pictures / "foregrounds", SMALL, jobs=1)


def test_sources_in_classes_are_repaired(tmp_path: Path, pictures: Path):
    """From the same folder, found by their names within it."""
    folder = in_classes(tmp_path / "fg", pictures)
    composite(tmp_path / "c", pictures / "backgrounds", folder, SMALL, jobs=1)
    before = files(tmp_path / "c")
    shutil.rmtree(tmp_path / "c" / "sources.zarr" / "foreground_48")
    repair(tmp_path / "c", backgrounds=pictures / "backgrounds", foregrounds=folder, jobs=1)
    assert files(tmp_path / "c") == before


def test_same_names_and_loose_pixels_in_classes_are_told_by_class(
    tmp_path: Path, pictures: Path, caplog: pytest.LogCaptureFixture
):
    """Two files of one name within a class are refused; a warning names the class of what it is about."""
    folder = in_classes(tmp_path / "fg", pictures)
    speckled = draw_cutout(5, height=200, width=200)
    speckled[:3, :3] = 255
    Image.fromarray(speckled).save(folder / "chair" / "speckled.png")
    composite(tmp_path / "c", pictures / "backgrounds", folder, SMALL, pictures=False, jobs=1)
    assert f"{folder}: left out specks and haze, which are not the subject: chair/speckled.png (9" in caplog.text
    shutil.copy(folder / "chair" / "ann.png", folder / "chair" / "ann.webp")
    with pytest.raises(DsgenError, match=r"chair/ann.png and chair/ann.webp have the same name 'chair/ann'"):
        composite(tmp_path / "d", pictures / "backgrounds", folder, SMALL, jobs=1)


@pytest.mark.slow
def test_the_largest_cutouts_fit_into_little_memory(tmp_path: Path, pictures: Path):
    """Two of 8000x8000 in two threads: 8 bytes a pixel each, and no float copy."""
    (tmp_path / "f").mkdir()
    for number in range(2):
        large = Image.new("RGBA", (8000, 8000), (200, 30 + number, 30, 255))
        large.paste((0, 0, 0, 0), (0, 0, 8000, 1))
        large.save(tmp_path / "f" / f"{number}.png", compress_level=1)
    script = (
        "import resource, sys; from pathlib import Path; from dsgen import composite, Parameters;"
        "composite(*map(Path, sys.argv[1:]), Parameters(positions=1), jobs=2, pictures=False);"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    arguments = [str(tmp_path / "c"), str(pictures / "backgrounds"), str(tmp_path / "f")]
    run = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True)
    assert int(run.stdout) < 1_300_000  # KiB


def test_black_backgrounds_are_written(tmp_path: Path, pictures: Path):
    """A chunk of nothing but zeros is a file too: a missing one is damage."""
    (tmp_path / "black").mkdir()
    Image.fromarray(np.zeros((60, 60, 3), np.uint8)).save(tmp_path / "black/one.png")
    Image.fromarray(np.zeros((70, 70, 3), np.uint8)).save(tmp_path / "black/two.png")
    composite(tmp_path / "c", tmp_path / "black", pictures / "foregrounds", SMALL, jobs=1)
    assert not Corpus(tmp_path / "c").background(1).any()
