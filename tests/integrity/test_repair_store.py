"""Repair a store: bad shards get their bytes back, other files are left alone, and being killed does no harm."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import zarr
from PIL import Image
from support.corpora import SMALL, files
from support.damage import DAMAGES, KINDS, add, delete, flip, linked, named, picked, put, truncate

from dsgen.corpus.build import composite
from dsgen.errors import DsgenError
from dsgen.integrity import repair_store
from dsgen.integrity.repair import repair
from dsgen.integrity.verify import verify
from dsgen.io.filesystem import LocalFiles
from dsgen.store.layout import INDEX_JSON, PACKING, SHA256SUMS, shard_name
from dsgen.store.packing import pack


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("damage", DAMAGES)
def test_only_the_damaged_shard_is_rebuilt(
    tmp_path: Path, stores: Path, labelled_corpus: Path, kind: str, damage: Callable[[Path], None]
) -> None:
    """One file of every array of a shard at once: all get back their bytes, and no good file is written."""
    path = linked(stores / kind, tmp_path / "s")
    for entry in path.rglob("*"):
        os.utime(entry, (1, 1))
    whole = files(path)
    touched = [name for name in picked(list(whole)) if "shard-00001" in name]
    for name in touched:
        damage(path / name)
    damaged = [f"{name}.copy" for name in touched] if damage is add and kind == "zip" else []
    done = repair(path, labelled_corpus, jobs=1)
    assert done.found == len(touched)
    assert files(path) == whole | dict.fromkeys(damaged, b"more")
    written = {name for name in whole if (path / name).stat().st_mtime != 1}
    assert written == (set() if damage is add else set(touched))
    assert [finding.what for finding in done.remaining] == ["not written by dsgen"] * len(damaged)


@pytest.mark.parametrize("damage", DAMAGES[:3])
@pytest.mark.parametrize("names", [("index.json",), ("SHA256SUMS",), ("index.json", "SHA256SUMS")])
def test_hashes_and_index_are_rebuilt(
    tmp_path: Path, stores: Path, labelled_corpus: Path, damage: Callable[[Path], None], names: tuple[str, ...]
) -> None:
    """Either or both, beside a damaged block; a store without either is an unfinished one."""
    path = linked(stores / "folder", tmp_path / "s")
    whole = files(path)
    for name in (*names, f"{shard_name(0, 2)}/image/c/1/0/0/0"):
        damage(path / name)
    if damage is delete and len(names) == 2:
        with pytest.raises(DsgenError, match=r"an unfinished store \(no index.json\); run dsgen pack"):
            repair(path, labelled_corpus, jobs=1)
        return
    done = repair(path, labelled_corpus, jobs=1)
    assert files(path) == whole
    assert done.remaining == ()


def test_lines_lost_from_the_hashes_lose_no_file(tmp_path: Path, stores: Path, labelled_corpus: Path) -> None:
    """A good file that `SHA256SUMS` no longer lists, where no index vouches for it, is not removed."""
    path = linked(stores / "folder", tmp_path / "s")
    whole = files(path)
    delete(path / INDEX_JSON)
    put(path / SHA256SUMS, b"".join(whole[SHA256SUMS].splitlines(keepends=True)[:9]))
    with pytest.raises(
        DsgenError, match=r"no corpus, expected the one that .* was packed from, to rebuild 2 bad shards"
    ):
        repair(path, tmp_path / "none", jobs=1)
    assert {name: content for name, content in whole.items() if name.startswith("shard-")}.items() <= files(
        path
    ).items()
    done = repair(path, labelled_corpus, jobs=1)
    assert (sorted(done.replaced), done.removed) == ([SHA256SUMS, INDEX_JSON], ())
    assert files(path) == whole


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_a_killed_repair_can_be_repeated(
    tmp_path: Path, stores: Path, labelled_corpus: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever it is killed, no file is worse than before, and the next repair completes the store."""
    path = linked(stores / kind, tmp_path / "s")
    whole = files(path)
    names = [name for name in picked(list(whole)) if name.startswith("shard-00001")]
    move, make_scratch = repair_store.move_file, repair_store.make_scratch
    for moves in sorted({0, len(names) // 2, len(names) - 1}):
        for name in names:
            truncate(path / name)
        left = moves

        def killed(*arguments: Any) -> None:
            nonlocal left
            if left == 0:
                raise KeyboardInterrupt
            left -= 1
            move(*arguments)

        monkeypatch.setattr(repair_store, "move_file", killed)
        monkeypatch.setattr(repair_store, "make_scratch", never_cleared)
        with pytest.raises(KeyboardInterrupt):
            repair(path, labelled_corpus, jobs=1)
        monkeypatch.setattr(repair_store, "move_file", move)
        monkeypatch.setattr(repair_store, "make_scratch", make_scratch)
        report = verify(path, fast=True, jobs=1)
        assert len(named(report)) == len(names) - moves + 1
        assert "packing" in named(report)
        assert repair(path, labelled_corpus, jobs=1).remaining == ()
        assert files(path) == whole


@contextmanager
def never_cleared(files: LocalFiles) -> Iterator[Path]:
    """Make the scratch folder, and leave it where it is, as a killed process does."""
    scratch = files.path / PACKING / "repair"
    scratch.mkdir(parents=True)
    yield scratch


def test_foreign_files_are_left(tmp_path: Path, stores: Path, labelled_corpus: Path) -> None:
    """Other files, a shard of another store, empty folders; the leftovers of a killed run are removed."""
    path = linked(stores / "folder", tmp_path / "s")
    whole = files(path)
    shutil.copytree(path / shard_name(0, 2), path / shard_name(3, 9), copy_function=os.link)
    for folder in ("packing", shard_name(4, 9), "notes/empty"):
        (path / folder).mkdir(parents=True)
    for name in ("film.partial", "notes/a", "notes/b"):
        (path / name).write_bytes(b"more")
    theirs = files(path)
    for name in ("packing/made_from.json", f"{shard_name(4, 9)}/a", "index.json.0123456789ab.partial"):
        (path / name).write_bytes(b"more")
    wrong = {finding.file: finding.what for finding in verify(path, fast=True, jobs=1).findings}
    assert {name: what for name, what in wrong.items() if not what.startswith("extra")} == {
        "film.partial": "not written by dsgen",
        "notes": "not written by dsgen, files in it: 2",
        shard_name(3, 9): f"a shard of another store, files in it: {sum('00000' in n for n in whole)}",
    }
    done = repair(path, labelled_corpus, jobs=1)
    assert sorted(done.removed) == ["index.json.0123456789ab.partial", "packing", shard_name(4, 9)]
    assert files(path) == theirs
    assert (path / "notes/empty").is_dir()


def test_a_store_of_pictures_is_not_repaired(tmp_path: Path, pictures: Path) -> None:
    """It is verified like any other, but repair cannot rebuild it, and says so."""
    from dsgen.store.packing import pack_source
    from dsgen.store.picture_source import Pictures

    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(3):
        Image.open(pictures / "backgrounds" / f"room{number}.png").resize((48, 48)).save(folder / f"{number}.png")
    pack_source(Pictures(folder, size=48), tmp_path / "s", shards=1, jobs=1)
    assert verify(tmp_path / "s", jobs=1).findings == ()
    add(tmp_path / "s" / shard_name(0, 1) / "row/c/0")
    assert repair(tmp_path / "s", jobs=1).remaining == ()
    flip(tmp_path / "s" / shard_name(0, 1) / "image/c/0/0/0/0")
    with pytest.raises(
        DsgenError, match=r"1 bad shard, but packed from pictures \(--images\).*run the same dsgen pack"
    ):
        repair(tmp_path / "s", jobs=1)


def test_rows_left_out_for_doubtful_depth(tmp_path: Path, labelled_corpus: Path) -> None:
    """A store packed with --max-flip-error has other splits than its corpus, and has no findings."""
    path = Path(shutil.copytree(labelled_corpus, tmp_path / "c"))
    errors = np.where(np.arange(72) % 7 == 0, 0.5, 0.1).astype(np.float32)
    zarr.open_group(path / "depth.zarr").create_array("flip_error", data=errors, chunks=(24,))
    pack(path, tmp_path / "s", shards=2, jobs=1, max_flip_error=0.2)
    whole = files(tmp_path / "s")
    assert verify(tmp_path / "s", path, jobs=1).findings == ()
    flip(tmp_path / "s" / shard_name(1, 2) / "split/c/0")
    assert repair(tmp_path / "s", path, jobs=1).remaining == ()
    assert files(tmp_path / "s") == whole


def test_another_corpus_repairs_nothing(tmp_path: Path, stores: Path, pictures: Path, labelled_corpus: Path) -> None:
    """Another corpus, and one whose labels have changed, are refused; the store stays as it is."""
    path = linked(stores / "folder", tmp_path / "s")
    flip(path / shard_name(0, 2) / "depth/c/0/0/0")
    before = files(path)
    composite(tmp_path / "other", pictures / "backgrounds", pictures / "foregrounds", SMALL, max_backgrounds=2, jobs=1)
    with pytest.raises(DsgenError, match=r"--corpus: .*other is not the corpus the store was packed from"):
        repair(path, tmp_path / "other", jobs=1)
    with pytest.raises(DsgenError, match=r"--corpus: .*other is not the corpus the store was packed from"):
        verify(path, tmp_path / "other", jobs=1)
    changed = Path(shutil.copytree(labelled_corpus, tmp_path / "changed"))
    zarr.open_group(changed / "depth.zarr", mode="r+")["depth"][3, 5] = 77
    with pytest.raises(DsgenError, match=r"rebuilt with other hashes than it had; nothing was changed"):
        repair(path, changed, jobs=1)
    zarr.open_group(changed / "depth.zarr", mode="r+").attrs["model"] = "another"
    with pytest.raises(DsgenError, match=r"(?s)has changed since the store was packed; restore it\n  depth .*another"):
        repair(path, changed, jobs=1)
    assert files(path) == before


def test_a_store_packed_before_its_corpus_was_labelled(tmp_path: Path, corpus: Path, labelled_corpus: Path) -> None:
    """Labels made later are neither compared nor used for the repair."""
    pack(corpus, tmp_path / "s", shards=2, jobs=1)
    whole = files(tmp_path / "s")
    assert verify(tmp_path / "s", labelled_corpus, jobs=1).findings == ()
    delete(tmp_path / "s" / shard_name(1, 2) / "mask/c/1/0/0")
    repair(tmp_path / "s", labelled_corpus, jobs=1)
    assert files(tmp_path / "s") == whole


def test_a_store_at_a_url(labelled_corpus: Path) -> None:
    """In an object store the same is found and the same recreated."""
    url = "memory://verify/s"
    pack(labelled_corpus, url, shards=2, jobs=1)
    fs = fsspec.filesystem("memory")
    whole = {name: fs.cat_file(name) for name in fs.find("/verify/s")}
    assert verify(url, labelled_corpus, jobs=1).findings == ()
    image, root = (f"shard-00001-of-00002.zarr/{name}" for name in ("image/c/0/0/0/0", "zarr.json"))
    fs.pipe_file(f"/verify/s/{image}", whole[f"/verify/s/{image}"][:100])
    fs.rm(f"/verify/s/{root}")
    fs.pipe_file("/verify/s/shard-00000-of-00002.zarr/more", b"more")
    assert named(verify(url, fast=True, jobs=1)) == {image, root, "shard-00000-of-00002.zarr/more"}
    done = repair(url, labelled_corpus, jobs=1)
    assert (sorted(done.replaced), done.removed) == ([image, root], ("shard-00000-of-00002.zarr/more",))
    assert {name: fs.cat_file(name) for name in fs.find("/verify/s")} == whole
