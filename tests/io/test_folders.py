"""Folders: what is listed, what is passed by and named, whose names match, and where answers may go."""

import errno
import json
import os
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest

from dsgen.errors import DsgenError, printable
from dsgen.io.folders import (
    DEPTH_JSON,
    beside,
    check_answers_folder,
    class_of,
    endings_in_words,
    is_answers,
    list_files,
    list_pictures,
    match_key,
    output_names,
)


def test_pictures_that_share_a_stem_keep_their_ending():
    """a.jpg and a.png do not overwrite each other."""
    names = output_names([Path("a.jpg"), Path("a.png"), Path("b.webp"), Path("s/a.jpg")])
    assert [str(n) for n in names] == ["a.jpg.png", "a.png.png", "b.png", "s/a.png"]


def touch(folder: Path, *names: str) -> Path:
    """Make empty files, and the folders above them."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def listed(folder: Path, **options: object) -> list[str]:
    """List pictures by their path within the folder."""
    return [path.relative_to(folder).as_posix() for path in list_files(folder, **options)]


def test_what_systems_leave_behind_is_passed_by(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """Hidden files, checkpoints of notebooks, resource forks of macOS: not listed, not named."""
    touch(tmp_path, "a.png", "._a.png", ".ipynb_checkpoints/a-checkpoint.png", "__MACOSX/a.png", "Thumbs.db")
    touch(tmp_path, "s/.hidden.jpg", "s/b.jpg", ".s/c.jpg", "@eaDir/a.png/SYNOPHOTO_THUMB_M.jpg")
    assert listed(tmp_path, below=True) == ["a.png", "s/b.jpg"]
    assert listed(tmp_path / "s") == ["b.jpg"]
    assert not caplog.records
    hidden = touch(tmp_path / ".cache", "a.png")  # unless the folder itself is asked for
    assert listed(hidden, below=True) == ["a.png"]


def test_endings_of_the_documented_formats(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """All names of JPEG and TIFF, in any case; other files are named in one warning, each kind with its reason."""
    names = ["a.JPG", "b.jfif", "c.jpe", "d.tif", "e.tiff", "f.webp", "g.bmp", "h.jpeg", "i.png"]
    touch(tmp_path, *names, "j.heic", "notes.txt", "deep/k.gif", "deep/l.png")
    os.symlink("nowhere", tmp_path / "m.png")
    assert listed(tmp_path) == names
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path}: skipped, folders: deep; not picture files: j.heic, notes.txt; broken links: m.png"
    ]
    caplog.clear()
    assert listed(tmp_path, below=True) == sorted([*names, "deep/l.png"])
    assert "not picture files: deep/k.gif, j.heic, notes.txt; broken links: m.png" in caplog.text
    assert set(endings_in_words().split()) >= {path.suffix.lower() for path in map(Path, names)}


def test_many_other_files_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """Five by name."""
    touch(tmp_path, "a.png", *(f"{n}.txt" for n in range(8)))
    listed(tmp_path)
    assert "not picture files: 0.txt, 1.txt, 2.txt, 3.txt, 4.txt and 3 more" in caplog.text


def test_links_to_folders_are_followed_once(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """Folders elsewhere are listed, loops end, and what is listed already is named."""
    touch(tmp_path / "elsewhere", "x.png", "deep/y.png")
    folder = touch(tmp_path / "in", "a.png", "s/b.png")
    os.symlink(tmp_path / "elsewhere", folder / "linked")
    os.symlink(folder, folder / "s" / "loop")
    os.symlink(tmp_path, folder / "above")
    os.symlink(folder / "s", folder / "again")
    os.symlink(folder, tmp_path / "elsewhere" / "back")
    assert listed(folder, below=True) == ["a.png", "linked/deep/y.png", "linked/x.png", "s/b.png"]
    assert "links to folders that are listed already: above, again, linked/back, s/loop" in caplog.text
    os.symlink(folder, tmp_path / "other-name")
    assert listed(tmp_path / "other-name", below=True) == listed(folder, below=True)


def test_answers_of_dsgen_are_no_pictures(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """A folder to skip, by whatever path, and any other that dsgen wrote; a JSON file of that name is not enough."""
    touch(tmp_path, "a.png", "out/a.png", "old/a.png", "old/deep/b.png", "mine/c.png", "old/a.view.jpg")
    (tmp_path / "old" / DEPTH_JSON).write_text(json.dumps({"dsgen": "0.1.0"}))
    (tmp_path / "mine" / DEPTH_JSON).write_text("{}")
    assert listed(tmp_path, below=True, skip=[tmp_path / "mine" / ".." / "out"]) == ["a.png", "mine/c.png"]
    assert "folders that dsgen wrote: old" in caplog.text
    assert is_answers(tmp_path / "old")
    assert not is_answers(tmp_path / "mine")
    caplog.clear()
    assert "old/a.png" in listed(tmp_path, below=True, with_answers=True)
    assert not listed(tmp_path / "old", suffixes={".npy"})  # its own files are not remarked on
    assert "view" not in caplog.text
    assert "json" not in caplog.text


def test_names_that_are_not_utf8_are_refused(tmp_path: Path):
    """All of them in one error, which a terminal can show, whether pictures or not; also the folder's own."""
    for name in (b"caf\xe9.png", b"\xff.txt"):
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).touch()
    touch(tmp_path, "ok.png", "caf\u00e9.png")
    with pytest.raises(DsgenError) as error:
        list_files(tmp_path)
    text = str(error.value)
    text.encode()
    assert f"{tmp_path}/caf\\xe9.png: the name is not UTF-8; rename it" in text
    assert "\\xff.txt" in text
    assert "ok.png" not in text
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xe9"))
    touch(folder, "a.png")
    with pytest.raises(DsgenError, match=r"\\xe9: the name is not UTF-8; rename it$"):
        list_files(folder, below=True)


def test_a_locale_without_utf8_is_named(tmp_path: Path):
    """ASCII names work in it; others are refused with what helps, rather than mistaken."""
    code = "from pathlib import Path; from dsgen.io.folders import *\n"
    code += "print(len(list_files(Path('plain'))))\ntry: list_files(Path('in'))\nexcept Exception as e: print(e)"
    touch(tmp_path, "plain/a.png", "in/caf\u00e9.png")
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONPATH": os.getcwd()}
    said = subprocess.check_output([sys.executable, "-c", code], cwd=tmp_path, env=os.environ | plain, text=True)
    assert said.splitlines()[0] == "1"
    assert "locale's encoding is" in said
    assert "set PYTHONUTF8=1 in the environment" in said


def test_names_that_differ_by_normalisation_or_case_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """They are listed, and the warning shows how they differ."""
    touch(tmp_path, "caf\u00e9.png", "cafe\u0301.png", "A.png", "a.png", "b.png")
    assert len(listed(tmp_path)) == 5
    assert "names that differ only in case or Unicode normalisation" in caplog.text
    assert r"'cafe\u0301.png' and 'caf\xe9.png'" in caplog.text
    assert "'A.png' and 'a.png'" in caplog.text
    assert "b.png" not in caplog.text


def test_names_match_by_their_composed_form():
    """As macOS takes them apart."""
    assert match_key(unicodedata.normalize("NFD", "Zoë")) == match_key("Zoë")


def test_odd_names_are_listed(tmp_path: Path):
    """Those that globs, formats, shells and formulas would take for something else."""
    names = ["[a].png", "*.png", "100%s.png", "$x$.png", "a b.png", 'it\'s "b".png', "line\nfeed.png", "東京.png"]
    folder = touch(tmp_path / "[x]*$y$ %d", *names)
    assert listed(folder) == sorted(names)
    assert listed(folder, below=True) == sorted(names)
    assert printable("line\nfeed\x1b[31m.png") == r"line\nfeed\x1b[31m.png"


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """It is no empty folder."""
    touch(tmp_path, "a.png", "s/b.png")
    really = os.listdir

    def refuse(path: Path) -> list[str]:
        if path.name == "s":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return really(path)

    monkeypatch.setattr(os, "listdir", refuse)
    with pytest.raises(DsgenError, match=r"s: cannot be listed \(Permission denied\); allow it to be read"):
        list_files(tmp_path, below=True)


def test_a_folder_without_pictures_says_which_are(tmp_path: Path):
    """As does one that does not exist; both have a remedy."""
    with pytest.raises(DsgenError, match=r"--backgrounds: .* is no folder, expected one with pictures; check the path"):
        list_pictures(tmp_path / "nowhere", "backgrounds")
    with pytest.raises(DsgenError, match=r"--masks: .* has no pictures, expected files ending in .bmp .jfif .*; check"):
        list_pictures(tmp_path, "masks")


def test_classes_are_sub_folders(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """However deep the pictures in them lie; what is no picture is said as everywhere."""
    names = ["person/b.png", "person/old/a.png", "chair/a.jpg", "chair/notes.txt", ".cache/x.png", "empty/notes.txt"]
    folder = touch(tmp_path / "in", *names)
    found = list_pictures(folder, "foregrounds", in_classes=True)
    assert [path.relative_to(folder).as_posix() for path in found] == [
        "chair/a.jpg",
        "person/b.png",
        "person/old/a.png",
    ]
    assert [class_of(folder, path) for path in found] == ["chair", "person", "person"]
    assert "skipped, not picture files: chair/notes.txt, empty/notes.txt" in caplog.text
    with pytest.raises(DsgenError, match="has no pictures"):
        list_pictures(folder, "backgrounds")


def test_links_to_folders_are_classes(tmp_path: Path):
    """With the link's name, composed."""
    folder = touch(tmp_path / "in", "chair/a.png")
    (folder / "cafe\u0301").symlink_to(touch(tmp_path / "elsewhere", "b.png"))
    found = list_pictures(folder, "foregrounds", in_classes=True)
    assert [class_of(folder, path) for path in found] == ["caf\u00e9", "chair"]


def test_pictures_beside_classes_are_refused(tmp_path: Path):
    """In one error that names some of both and what to do, which then works."""
    folder = touch(tmp_path / "in", "a.png", "z.png", "chair/b.png", "person/c.png")
    message = (
        r"--foregrounds: .*in has pictures \(a.png, z.png\) and sub-folders with pictures \(chair, person\), expected "
        r"one or the other; move the pictures into a sub-folder that is named like their class, such as .*in/person, "
    )
    with pytest.raises(DsgenError, match=message):
        list_pictures(folder, "foregrounds", in_classes=True)
    for name in ("a.png", "z.png"):
        (folder / name).rename(folder / "person" / name)
    assert len(list_pictures(folder, "foregrounds", in_classes=True)) == 4


def test_a_folder_without_classes_is_listed_as_ever(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    """Beside folders without pictures, hidden ones, answers, corpora, and folders that cannot be read."""
    folder = touch(tmp_path / "in", "a.png", "notes/readme.txt", ".hidden/b.png", "corpus/c.png", "answers/d.png")
    (folder / "corpus" / "corpus.json").write_text('{"dsgen": "0.1"}')
    (folder / "answers" / "predictions.json").write_text('{"dsgen": "0.1"}')
    plain = list_pictures(folder, "foregrounds"), caplog.messages
    caplog.clear()
    assert (list_pictures(folder, "foregrounds", in_classes=True), caplog.messages) == plain
    assert [path.name for path in plain[0]] == ["a.png"]
    really = os.listdir

    def refuse(path: Path) -> list[str]:
        if path.name == "notes":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return really(path)

    monkeypatch.setattr(os, "listdir", refuse)
    assert list_pictures(folder, "foregrounds", in_classes=True) == plain[0]
    (folder / "a.png").rename(tmp_path / "a.png")
    with pytest.raises(DsgenError, match="notes: cannot be listed"):
        list_pictures(folder, "foregrounds", in_classes=True)


def test_answers_go_beside_the_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Also for paths that end in no name."""
    folder = touch(tmp_path / "pics.v2", "a.b.png", "s/c.png")
    assert beside(folder, "_depth") == tmp_path / "pics.v2_depth"
    assert beside(folder / "a.b.png", "_predictions") == folder / "a.b_predictions"
    monkeypatch.chdir(folder / "s")
    assert beside(Path(), "_depth") == folder / "s_depth"
    assert beside(Path(".."), "_depth") == tmp_path / "pics.v2_depth"
    assert beside(Path("../s/"), "_depth") == Path("../s_depth")
    with pytest.raises(DsgenError, match="--out: there is no place beside /; name a folder with --out"):
        beside(Path("/"), "_depth")


def test_folders_of_others_are_not_written_to(tmp_path: Path):
    """New, empty, hidden files only, one of ours: yes. A file, foreign files: no."""
    check_answers_folder(tmp_path / "new", DEPTH_JSON)
    touch(tmp_path / "started", ".dsgen.lock", ".DS_Store", "depth.json.partial")
    check_answers_folder(tmp_path / "started", DEPTH_JSON)
    foreign = touch(tmp_path / "foreign", "a.png")
    for content in (None, "{}", "[" * 100_000, "no JSON"):
        if content:
            (foreign / DEPTH_JSON).write_text(content)
        with pytest.raises(
            DsgenError, match=r"--out: .*foreign is not empty \(a.png.*\) and has no depth.json of dsgen; "
        ):
            check_answers_folder(foreign, DEPTH_JSON)
    (foreign / DEPTH_JSON).write_text('{"dsgen": "0.1.0"}')
    check_answers_folder(foreign, DEPTH_JSON)
    with pytest.raises(DsgenError, match=r"a.png is a file, expected a folder; choose another"):
        check_answers_folder(foreign / "a.png", DEPTH_JSON)
