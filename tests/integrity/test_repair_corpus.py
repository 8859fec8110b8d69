"""Repair a corpus: sources, plan, labels and pictures get their bytes back, and nothing else is written."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import zarr
from support.corpora import SMALL, earlier_manifest, files
from support.damage import DAMAGES, add, delete, flip, linked, named, put, truncate

from dsgen.corpus import layout
from dsgen.corpus.build import composite
from dsgen.errors import DsgenError
from dsgen.integrity.findings import VerifyReport
from dsgen.integrity.repair import repair
from dsgen.integrity.verify import verify


def one_file_of_each(path: Path) -> list[str]:
    """One file of the plan, of the sources, and of every folder of pictures."""
    return [
        "plan.npy",
        "sources.zarr/zarr.json",
        "sources.zarr/background_48/c/0/0/0/0",
        "sources.zarr/foreground_shape/c/0/0",
        *(sorted(p.relative_to(path).as_posix() for p in (path / part).rglob("*.*"))[-1] for part in layout.FOLDERS),
    ]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_of_a_corpus_is_named_and_recreated(
    tmp_path: Path, viewed: Path, pictures: Path, damage: Callable[[Path], None]
) -> None:
    """Plan, sources and every kind of picture, one at a time; then all at once, and no other file is written."""
    path = linked(viewed, tmp_path / "c")
    for entry in path.rglob("*"):
        os.utime(entry, (1, 1))
    whole = files(path)
    names = one_file_of_each(path)
    for name in names:
        damage(path / name)
        wrong = f"{name}.copy" if damage is add else name
        assert named(verify(path, jobs=1)) == {wrong}, name
        (path / wrong).unlink(missing_ok=True)
        put(path / name, whole[name])
        os.utime(path / name, (1, 1))
    for name in names:
        damage(path / name)
    done = repair(path, backgrounds=pictures / "backgrounds", foregrounds=pictures / "foregrounds", jobs=1)
    left = {f"{name}.copy": b"more" for name in names} if damage is add else {}  # they may be anybody's
    assert files(path) == whole | left
    assert named(done.after or VerifyReport("", "")) == left.keys()
    written = {name for name in whole if (path / name).stat().st_mtime != 1}
    assert written == (set() if damage is add else set(names))


@pytest.mark.parametrize("part", layout.FOLDERS)
def test_whole_folders_of_pictures_are_drawn_again(tmp_path: Path, viewed: Path, part: str) -> None:
    """A missing folder, of all backgrounds or of one."""
    path = linked(viewed, tmp_path / "c")
    whole = files(path)
    gone = part if part in ("bg", "fg", "fg_mask") else f"{part}/bg002"
    shutil.rmtree(path / gone)
    assert named(verify(path, fast=True, jobs=1)) == {gone}
    assert repair(path, jobs=1).remaining == ()
    assert files(path) == whole


def test_files_where_folders_should_be(tmp_path: Path, viewed: Path) -> None:
    """They are replaced by the folders, and a folder by its file; foreign files are left."""
    path = linked(viewed, tmp_path / "c")
    whole = files(path)
    mask = sorted((path / "bg_fg_mask/bg003").iterdir())[0]
    for folder in (path / "bg", path / "bg_fg/bg002"):
        shutil.rmtree(folder)
        folder.write_bytes(b"more")
    delete(mask)
    mask.mkdir()
    (path / "film.partial").write_bytes(b"more")
    (path / "plan.npy.partial").write_bytes(b"more")
    assert named(verify(path, jobs=1)) == {
        "bg",
        "bg_fg/bg002",
        mask.relative_to(path).as_posix(),
        "film.partial",
        "plan.npy.partial",
    }
    assert named(repair(path, jobs=1).after or VerifyReport("", "")) == {"film.partial"}
    assert files(path) == whole | {"film.partial": b"more"}


def test_pictures_are_not_drawn_again_where_all_differ(tmp_path: Path, corpus: Path) -> None:
    """Then the quality in the manifest has changed, and repair would spoil all pictures."""
    path = linked(corpus, tmp_path / "c")
    put(path / "corpus.json", earlier_manifest(path).replace(b'"quality": 95', b'"quality": 91'))
    before = files(path)
    report = verify(path, jobs=1)
    assert len(report.findings) == 75
    assert any("every composite differs from what the plan draws" in note for note in report.notes)
    with pytest.raises(
        DsgenError, match=r"every composite differs from .*; no picture was changed; restore corpus\.json"
    ):
        repair(path, jobs=1)
    assert files(path) == before


def test_sources_need_the_pictures_they_were_made_from(tmp_path: Path, corpus: Path, pictures: Path) -> None:
    """Other pictures are refused and nothing is changed; without recorded hashes the sources are decoded."""
    path = linked(corpus, tmp_path / "c")
    truncate(path / "sources.zarr/background_96/c/0/0/0/0")
    before = files(path)
    with pytest.raises(
        DsgenError, match=r"3 of the 3 backgrounds .* are not in .*; pass the folder they are in with --backgrounds"
    ):
        repair(path, jobs=1)
    assert files(path) == before
    put(path / "corpus.json", earlier_manifest(path, sha256=None))
    report = verify(path, jobs=1)
    assert named(report) == {"sources.zarr/background_96"}
    assert any("no hash recorded" in note for note in report.notes)
    repair(path, backgrounds=pictures / "backgrounds", foregrounds=pictures / "foregrounds", jobs=1)
    assert verify(path, jobs=1).findings == ()
    assert (path / "sources.zarr/background_96/c/0/0/0/0").read_bytes() == (
        corpus / "sources.zarr/background_96/c/0/0/0/0"
    ).read_bytes()


@pytest.mark.slow
def test_labels_are_recreated(tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the bundled network get all their bytes back, with flip errors and views; extra files are removed."""
    from dsgen.corpus import labels
    from dsgen.depth.label_corpus import label_corpus

    monkeypatch.setattr(labels, "BLOCK_ROWS", 20)
    composite(tmp_path / "c", pictures / "backgrounds", pictures / "foregrounds", SMALL, max_backgrounds=1, jobs=1)
    path = tmp_path / "c"
    label_corpus(path, check_flip=True, pictures=True, device="cpu", jobs=1)
    whole = files(path)
    metadata = ["depth.zarr/depth/zarr.json", "depth.zarr/flip_error/zarr.json"]
    delete(path / metadata[0])
    flip(path / metadata[1])
    assert named(verify(path, jobs=1)) == set(metadata)
    assert set(repair(path, jobs=1).replaced) == set(metadata)
    assert files(path) == whole
    blocks = [f"depth.zarr/depth/c/{number}/0/0" for number in (0, 1)]
    view = sorted((path / "bg_fg_depth/bg001").iterdir())[0]
    for damages in (
        {truncate: blocks[0], flip: "depth.zarr/flip_error/c/1", add: blocks[1]},
        {delete: blocks[1], flip: blocks[0]},
    ):
        for damage, name in damages.items():
            damage(path / name)
        assert named(verify(path, jobs=1)) == {f"{n}.copy" if d is add else n for d, n in damages.items()}
        flip(view)
        done = repair(path, jobs=1)
        theirs = {f"{name}.copy": b"more" for damage, name in damages.items() if damage is add}
        assert {finding.file for finding in done.remaining} == theirs.keys()
        assert any("labels were recreated" in note for note in done.notes)
        assert files(path) == whole | theirs
        for name in theirs:
            delete(path / name)


def test_unfinished_labels_are_not_finished(tmp_path: Path, viewed: Path) -> None:
    """A damaged block is removed, for the next dsgen depth to label; no block is labelled or reported as replaced."""
    path = Path(shutil.copytree(viewed, tmp_path / "c"))
    zarr.open_group(path / "depth.zarr", mode="r+").attrs["complete"] = False
    delete(path / "depth.zarr/depth/c/0/0/0")
    assert verify(path, jobs=1).findings == ()
    truncate(path / "depth.zarr/depth/c/1/0/0")
    done = repair(path, jobs=1)
    assert (done.replaced, done.removed, done.remaining) == ((), ("depth.zarr/depth/c/1/0/0",), ())
    assert any("labels unfinished, 48 rows to go; run dsgen depth" in note for note in done.notes)


@pytest.mark.parametrize("name", ["depth.zarr/zarr.json", "depth.zarr/depth/zarr.json"])
@pytest.mark.parametrize("damage", [truncate, delete])
def test_labels_that_cannot_be_opened(tmp_path: Path, viewed: Path, name: str, damage: Callable[[Path], None]) -> None:
    """The file is named; pictures are still checked and, except views, drawn again."""
    path = linked(viewed, tmp_path / "c")
    damage(path / name)
    flip(path / "bg/bg002.jpeg")
    view = sorted((path / "bg_fg_depth/bg001").iterdir())[0]
    delete(view)
    lost = view.relative_to(path).as_posix()
    assert named(verify(path, jobs=1)) == {name, "bg/bg002.jpeg", lost}
    done = repair(path, jobs=1)
    assert (named(done.after or VerifyReport("", "")), done.replaced) == ({name, lost}, ("bg/bg002.jpeg",))


def test_labels_of_another_network_are_left_to_its_owner(tmp_path: Path, viewed: Path) -> None:
    """The damaged block is removed, a note names the network, and views of missing labels are not drawn black."""
    path = linked(viewed, tmp_path / "c")
    truncate(path / "depth.zarr/depth/c/1/0/0")
    views = files(path / "bg_fg_depth")
    done = repair(path, jobs=1)
    assert any("run dsgen depth as before, with drawn" in note for note in done.notes)
    assert [(f.file, f.what) for f in done.remaining] == [("depth.zarr/depth/c/1/0/0", "missing")]
    assert files(path / "bg_fg_depth") == views
