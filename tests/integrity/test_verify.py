"""Verify and repair: every damaged, lost and added file of every part is named, and made again as it was."""

import json
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
from typer.testing import CliRunner

from dsgen.cli.app import app
from dsgen.corpus import layout
from dsgen.corpus.build import composite
from dsgen.corpus.corpus import Corpus
from dsgen.corpus.depth_views import draw_views
from dsgen.errors import DsgenError
from dsgen.integrity import repair as repair_module
from dsgen.integrity.findings import Report
from dsgen.integrity.repair import repair
from dsgen.integrity.verify import verify
from dsgen.io.atomic import write_json
from dsgen.io.filesystem import LocalFiles, hash_tree
from dsgen.parallel.locks import LOCK, exclusive_lock
from dsgen.store import codecs, reader, schema
from dsgen.store.layout import INDEX_JSON, PACKING, SHA256SUMS, shard_name
from dsgen.store.packing import pack
from dsgen.store.records import FileEntry
from dsgen.store.sealing import open_shard, sums_and_index


def linked(source: Path, target: Path) -> Path:
    """Copy a folder as hard links, whose files must not be written to but only be replaced, as `put` does."""
    return Path(shutil.copytree(source, target, copy_function=os.link))


def put(path: Path, content: bytes) -> None:
    """Replace a file, which others may share."""
    path.unlink(missing_ok=True)
    path.write_bytes(content)


def flip(path: Path) -> None:
    """Change one bit in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    put(path, content)


def truncate(path: Path) -> None:
    """Cut off the second half."""
    put(path, path.read_bytes()[: path.stat().st_size // 2])


def delete(path: Path) -> None:
    """Remove a file."""
    path.unlink()


def add(path: Path) -> None:
    """Put another file beside one."""
    path.with_name(path.name + ".copy").write_bytes(b"more")


DAMAGES: list[Callable[[Path], None]] = [flip, truncate, delete, add]
KINDS = {"folder": {}, "zip": {"zipped": True}, "recipe": {"recipe": True}}


@pytest.fixture(scope="module", autouse=True)
def small_blocks() -> Iterator[None]:
    """Make every chunk a block, so that small shards have several; do not wait for the disk after each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(schema, "_BLOCK_SAMPLES", 1)
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory, labelled_corpus: Path) -> Path:
    """A store of every kind, two shards each; not to be written to."""
    folder = tmp_path_factory.mktemp("stores")
    for kind, options in KINDS.items():
        pack(labelled_corpus, folder / kind, shards=2, jobs=1, **options)
    return folder


@pytest.fixture(scope="module")
def viewed(tmp_path_factory: pytest.TempPathFactory, labelled_corpus: Path) -> Path:
    """The labelled corpus with depth views; not to be written to."""
    path = Path(shutil.copytree(labelled_corpus, tmp_path_factory.mktemp("viewed") / "corpus"))
    for background in range(3):
        draw_views(str(path), background)
    return path


def named(report: Report) -> set[str]:
    """The files that are said to be wrong."""
    return {finding.file for finding in report.findings}


def picked(names: list[str]) -> list[str]:
    """One file of every array and part, by the name without its numbers."""
    return list({"/".join(part for part in name.split("/") if not part.isdecimal()): name for name in names}.values())


@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_store_is_found_whole(stores: Path, labelled_corpus: Path, kind: str) -> None:
    """Every file is hashed, every row compared, nothing is wrong, nothing is changed."""
    before = files(stores / kind)
    report = verify(stores / kind, labelled_corpus, jobs=1)
    assert report.findings == []
    assert report.notes == []
    assert (report.rows, report.files) == (72, len(before))
    assert report.bytes == sum(map(len, before.values()))
    assert "nothing wrong" in report.summary()
    assert files(stores / kind) == before


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_of_a_store_is_named(
    tmp_path: Path, stores: Path, kind: str, damage: Callable[[Path], None]
) -> None:
    """One file of every array at a time, the hashes and the index too, and it alone."""
    path = linked(stores / kind, tmp_path / "s")
    whole = files(path)
    for name, content in {name: whole[name] for name in picked(list(whole))}.items():
        damage(path / name)
        wrong = f"{name}.copy" if damage is add else name
        assert named(verify(path, fast=True, jobs=1)) == {wrong}, name
        (path / wrong).unlink(missing_ok=True)
        put(path / name, content)
    assert verify(path, fast=True, jobs=1).findings == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_shard_is_made_again_and_no_other(
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
    assert done.wrong == len(touched)
    assert files(path) == whole | dict.fromkeys(damaged, b"more")
    written = {name for name in whole if (path / name).stat().st_mtime != 1}
    assert written == (set() if damage is add else set(touched))
    assert [finding.what for finding in done.left] == ["not dsgen's"] * len(damaged)


@pytest.mark.parametrize("damage", DAMAGES[:3])
@pytest.mark.parametrize("names", [("index.json",), ("SHA256SUMS",), ("index.json", "SHA256SUMS")])
def test_hashes_and_index_are_made_again(
    tmp_path: Path, stores: Path, labelled_corpus: Path, damage: Callable[[Path], None], names: tuple[str, ...]
) -> None:
    """Either or both, with a damaged block beside them; without either the store is an unfinished one."""
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
    assert done.left == []


def test_lines_lost_from_the_hashes_lose_no_file(tmp_path: Path, stores: Path, labelled_corpus: Path) -> None:
    """A good file that `SHA256SUMS` no longer lists, where no index vouches for it, is no file too many."""
    path = linked(stores / "folder", tmp_path / "s")
    whole = files(path)
    delete(path / INDEX_JSON)
    put(path / SHA256SUMS, b"".join(whole[SHA256SUMS].splitlines(keepends=True)[:9]))
    with pytest.raises(DsgenError, match=r"no corpus, expected the one that .* was packed from, to make 2 bad shards"):
        repair(path, tmp_path / "none", jobs=1)
    assert {name: content for name, content in whole.items() if name.startswith("shard-")}.items() <= files(
        path
    ).items()
    done = repair(path, labelled_corpus, jobs=1)
    assert (sorted(done.replaced), done.removed) == ([SHA256SUMS, INDEX_JSON], [])
    assert files(path) == whole


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_a_killed_repair_is_gone_on_with(
    tmp_path: Path, stores: Path, labelled_corpus: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever it is killed, no file is worse than before, and the next one ends with the same store."""
    path = linked(stores / kind, tmp_path / "s")
    whole = files(path)
    names = [name for name in picked(list(whole)) if name.startswith("shard-00001")]
    move, room = repair_module._move, repair_module._room
    for moves in sorted({0, len(names) // 2, len(names) - 1}):
        for name in names:
            truncate(path / name)
        left = moves

        def killed(*about: Any) -> None:
            nonlocal left
            if left == 0:
                raise KeyboardInterrupt
            left -= 1
            move(*about)

        monkeypatch.setattr(repair_module, "_move", killed)
        monkeypatch.setattr(repair_module, "_room", _never_cleared)
        with pytest.raises(KeyboardInterrupt):
            repair(path, labelled_corpus, jobs=1)
        monkeypatch.setattr(repair_module, "_move", move)
        monkeypatch.setattr(repair_module, "_room", room)
        report = verify(path, fast=True, jobs=1)
        assert len(named(report)) == len(names) - moves + 1
        assert "packing" in named(report)
        assert repair(path, labelled_corpus, jobs=1).left == []
        assert files(path) == whole


@contextmanager
def _never_cleared(place: LocalFiles) -> Iterator[Path]:
    room = place.path / PACKING / "repair"
    room.mkdir(parents=True)
    yield room


def test_a_shard_that_cannot_be_opened_blames_no_other(tmp_path: Path, stores: Path, labelled_corpus: Path) -> None:
    """Its rows are passed over, with a note; one damaged or lost file of a shard is not many findings."""
    path = linked(stores / "folder", tmp_path / "s")
    root = f"{shard_name(0, 2)}/zarr.json"
    for old, new in (("block_rows", "block_rose"), ('"first_row": 0', '"first_row": "x"'), ("{", "[")):
        put(path / root, (stores / "folder" / root).read_bytes().replace(old.encode(), new.encode()))
        report = verify(path, labelled_corpus, jobs=1)
        assert named(report) == {root}
        assert report.rows == 32
        assert f"{shard_name(0, 2)}: no pixels checked (its zarr.json is missing or damaged)" in report.notes


def test_a_lost_file_is_told_with_its_rows(tmp_path: Path, labelled_corpus: Path, monkeypatch: Any) -> None:
    """All of them in one finding, though they are several chunks."""
    monkeypatch.setattr(schema, "_BLOCK_SAMPLES", 40)
    pack(labelled_corpus, tmp_path / "s", shards=1, jobs=1)
    image = f"{shard_name(0, 1)}/image/c/0/0/0/0"
    delete(tmp_path / "s" / image)
    found = {(finding.file, finding.what) for finding in verify(tmp_path / "s", labelled_corpus, jobs=1).findings}
    assert found == {(image, "missing"), (image, "rows 0 to 39: image cannot be read (its file is missing)")}


def test_what_is_not_the_stores_is_left(tmp_path: Path, stores: Path, labelled_corpus: Path) -> None:
    """Other files, a shard of another store, folders without files; what a killed run left goes."""
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
        "film.partial": "not dsgen's",
        "notes": "not dsgen's, files in it: 2",
        shard_name(3, 9): f"a shard of another store, files in it: {sum('00000' in n for n in whole)}",
    }
    done = repair(path, labelled_corpus, jobs=1)
    assert sorted(done.removed) == ["index.json.0123456789ab.partial", "packing", shard_name(4, 9)]
    assert files(path) == theirs
    assert (path / "notes/empty").is_dir()


def test_a_store_of_pictures_is_not_repaired(tmp_path: Path, pictures: Path) -> None:
    """It is checked like any other; what it was packed from repair does not know, and says so."""
    from dsgen.store.packing import pack_source
    from dsgen.store.picture_source import Pictures

    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(3):
        Image.open(pictures / "backgrounds" / f"room{number}.png").resize((48, 48)).save(folder / f"{number}.png")
    pack_source(Pictures(folder, size=48), tmp_path / "s", shards=1, jobs=1)
    assert verify(tmp_path / "s", jobs=1).findings == []
    add(tmp_path / "s" / shard_name(0, 1) / "row/c/0")
    assert repair(tmp_path / "s", jobs=1).left == []
    flip(tmp_path / "s" / shard_name(0, 1) / "image/c/0/0/0/0")
    with pytest.raises(
        DsgenError, match=r"1 bad shards, and packed from pictures \(--images\).*run the same dsgen pack"
    ):
        repair(tmp_path / "s", jobs=1)


def test_rows_left_out_for_doubtful_depth(tmp_path: Path, labelled_corpus: Path) -> None:
    """A store packed with --max-flip-error has other splits than its corpus, and is as it should be."""
    path = Path(shutil.copytree(labelled_corpus, tmp_path / "c"))
    errors = np.where(np.arange(72) % 7 == 0, 0.5, 0.1).astype(np.float32)
    zarr.open_group(path / "depth.zarr").create_array("flip_error", data=errors, chunks=(24,))
    pack(path, tmp_path / "s", shards=2, jobs=1, max_flip_error=0.2)
    whole = files(tmp_path / "s")
    assert verify(tmp_path / "s", path, jobs=1).findings == []
    flip(tmp_path / "s" / shard_name(1, 2) / "split/c/0")
    assert repair(tmp_path / "s", path, jobs=1).left == []
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
    with pytest.raises(DsgenError, match=r"made again it has other hashes than it had; nothing was changed"):
        repair(path, changed, jobs=1)
    zarr.open_group(changed / "depth.zarr", mode="r+").attrs["model"] = "another"
    with pytest.raises(DsgenError, match=r"not as the store was packed from it: depth .*another.*; give that corpus"):
        repair(path, changed, jobs=1)
    assert files(path) == before


def test_a_store_packed_before_its_corpus_was_labelled(tmp_path: Path, corpus: Path, labelled_corpus: Path) -> None:
    """Labels made later take part in neither comparison nor repair."""
    pack(corpus, tmp_path / "s", shards=2, jobs=1)
    whole = files(tmp_path / "s")
    assert verify(tmp_path / "s", labelled_corpus, jobs=1).findings == []
    delete(tmp_path / "s" / shard_name(1, 2) / "mask/c/1/0/0")
    repair(tmp_path / "s", labelled_corpus, jobs=1)
    assert files(tmp_path / "s") == whole


def rewrite(path: Path, name: str, content: bytes) -> None:
    """Put another content into a store, and hashes that fit it."""
    put(path / name, content)
    sizes = {file: size for file, size in LocalFiles(path).sizes().items() if file.startswith("shard-")}
    digests = dict(hash_tree(LocalFiles(path), sizes, 1))
    names = sorted({file.partition("/")[0] for file in sizes})
    shards = {shard: open_shard(LocalFiles(path), shard) for shard in names}
    tables = {
        shard: {file: FileEntry(sizes[file], str(digests[file])) for file in sizes if file.startswith(shard)}
        for shard in names
    }
    plan = reader.Store(path).plan
    sums, index = sums_and_index(plan, shards, tables)
    put(path / SHA256SUMS, sums)
    put(path / INDEX_JSON, index)


@pytest.mark.parametrize(
    ("part", "what"),
    [
        ("image", "row 40: image is not that of the corpus"),
        ("mask", "row 40: mask is not that of the corpus"),
        ("depth", "row 40: depth is not that of the corpus"),
        ("background", "not background 1 of the corpus"),
        ("top", "not that of the corpus' plan"),
    ],
)
def test_pixels_are_compared_with_the_corpus(
    tmp_path: Path, stores: Path, labelled_corpus: Path, part: str, what: str
) -> None:
    """A store whose hashes are right and one row of which is another one."""
    path = linked(stores / "folder", tmp_path / "s")
    shard = open_shard(LocalFiles(path), shard_name(1, 2))
    if part == "background":
        picture = shard.background(0).copy()
        picture[3, 4, 1] ^= 1
        name = f"{shard_name(1, 2)}/background/c/0/0/0/0"
        content = dict(schema.background_files(np.array([0]), lambda _: picture))["background/c/0/0/0/0"]
    elif part == "top":
        plan = Corpus(labelled_corpus).plan[40:].copy()
        plan["top"][7] ^= 1
        name = f"{shard_name(1, 2)}/top/c/0"
        content = dict(schema.column_files(plan, 40))["top/c/0"]
    else:
        values = shard.read(part, 0, 20).copy()
        values[0, 20, 20] ^= 255
        name = f"{shard_name(1, 2)}/{schema.block_name(part, 0)}"
        content = codecs.encode_block(part, values, 20, 20)
    assert shard.attributes["first_row"] == 40
    rewrite(path, name, content)
    assert verify(path, jobs=1).findings == []
    found = verify(path, labelled_corpus, jobs=1).findings
    assert [(f.file.partition("/c/")[0], f.what) for f in found] == [(name.partition("/c/")[0], what)]


def test_a_column_that_cannot_be_read_is_named(tmp_path: Path, stores: Path) -> None:
    """Beside its file, whose hash is another; the rows themselves are checked."""
    path = linked(stores / "folder", tmp_path / "s")
    column = f"{shard_name(1, 2)}/row"
    truncate(path / column / "c/0")
    report = verify(path, jobs=1)
    assert named(report) == {column, f"{column}/c/0"}
    assert report.rows == 72


@pytest.mark.parametrize("part", ["image", "mask", "depth", "background"])
def test_every_chunk_is_decoded(tmp_path: Path, stores: Path, part: str) -> None:
    """What cannot be decoded is named with its rows, though its hash is right."""
    path = linked(stores / "folder", tmp_path / "s")
    name = f"{shard_name(1, 2)}/{'background/c/1/0/0/0' if part == 'background' else schema.block_name(part, 1)}"
    content = bytearray((path / name).read_bytes())
    content[len(content) // 3] ^= 4
    rewrite(path, name, bytes(content))
    assert verify(path, fast=True, jobs=1).findings == []
    (found,) = verify(path, jobs=1).findings
    assert found.file == name
    assert found.what.startswith("" if part == "background" else f"rows 60 to 71: {part} cannot be read (")
    assert "cannot be read" in found.what


def test_threads_do_not_show(tmp_path: Path, stores: Path, labelled_corpus: Path) -> None:
    """Three threads find what one does."""
    path = linked(stores / "recipe", tmp_path / "s")
    flip(path / shard_name(1, 2) / "depth/c/0/0/0")
    one, three = (verify(path, labelled_corpus, jobs=jobs) for jobs in (1, 3))
    assert sorted(one.findings) == sorted(three.findings)
    assert one.rows == three.rows == 72
    assert len(one.findings) == 2  # the hash, and the rows it is about


def test_a_store_at_a_url(labelled_corpus: Path) -> None:
    """In an object store the same is found, and the same made again."""
    url = "memory://verify/s"
    pack(labelled_corpus, url, shards=2, jobs=1)
    fs = fsspec.filesystem("memory")
    whole = {name: fs.cat_file(name) for name in fs.find("/verify/s")}
    assert verify(url, labelled_corpus, jobs=1).findings == []
    image, root = (f"shard-00001-of-00002.zarr/{name}" for name in ("image/c/0/0/0/0", "zarr.json"))
    fs.pipe_file(f"/verify/s/{image}", whole[f"/verify/s/{image}"][:100])
    fs.rm(f"/verify/s/{root}")
    fs.pipe_file("/verify/s/shard-00000-of-00002.zarr/more", b"more")
    assert named(verify(url, fast=True, jobs=1)) == {image, root, "shard-00000-of-00002.zarr/more"}
    done = repair(url, labelled_corpus, jobs=1)
    assert (sorted(done.replaced), done.removed) == ([image, root], ["shard-00000-of-00002.zarr/more"])
    assert {name: fs.cat_file(name) for name in fs.find("/verify/s")} == whole


def test_a_whole_corpus_is_found_whole(viewed: Path, corpus: Path) -> None:
    """Every file is read and every picture drawn again; nothing is wrong."""
    report = verify(viewed, jobs=1)
    assert report.findings == []
    assert report.notes == ["labels of an earlier dsgen have no checksums: a changed byte may go unseen"]
    assert report.files == len(files(viewed))
    assert verify(corpus, fast=True, jobs=1).findings == []
    assert verify(corpus, jobs=2).findings == []


def corpus_parts(path: Path) -> list[str]:
    """One file of every part of a corpus but the manifest."""
    return [
        "plan.npy",
        "sources.zarr/zarr.json",
        "sources.zarr/background_48/c/0/0/0/0",
        "sources.zarr/foreground_shape/c/0/0",
        *(sorted(p.relative_to(path).as_posix() for p in (path / part).rglob("*.*"))[-1] for part in layout.PARTS),
    ]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_of_a_corpus_is_named_and_made_again(
    tmp_path: Path, viewed: Path, pictures: Path, damage: Callable[[Path], None]
) -> None:
    """Plan, sources, and every kind of picture; then all are damaged at once, and repaired without writing another."""
    path = linked(viewed, tmp_path / "c")
    for entry in path.rglob("*"):
        os.utime(entry, (1, 1))
    whole = files(path)
    parts = corpus_parts(path)
    for name in parts:
        damage(path / name)
        wrong = f"{name}.copy" if damage is add else name
        assert named(verify(path, jobs=1)) == {wrong}, name
        (path / wrong).unlink(missing_ok=True)
        put(path / name, whole[name])
        os.utime(path / name, (1, 1))
    for name in parts:
        damage(path / name)
    done = repair(path, backgrounds=pictures / "backgrounds", foregrounds=pictures / "foregrounds", jobs=1)
    left = {"plan.npy.copy": b"more"} if damage is add else {}  # beside the corpus' own it may be anybody's
    assert files(path) == whole | left
    assert named(done.after or Report("", "")) == left.keys()
    written = {name for name in whole if (path / name).stat().st_mtime != 1}
    assert written == (set() if damage is add else set(parts))


@pytest.mark.parametrize("part", layout.PARTS)
def test_whole_folders_of_pictures_are_drawn_again(tmp_path: Path, viewed: Path, part: str) -> None:
    """A folder that is gone, of all or of one background."""
    path = linked(viewed, tmp_path / "c")
    whole = files(path)
    gone = part if part in ("bg", "fg", "fg_mask") else f"{part}/bg002"
    shutil.rmtree(path / gone)
    assert named(verify(path, fast=True, jobs=1)) == {gone}
    assert repair(path, jobs=1).left == []
    assert files(path) == whole


def test_damaged_sources_hide_nothing_else(tmp_path: Path, viewed: Path) -> None:
    """Names of pictures, and labels, are checked beside damaged sources, and all beside a file too many."""
    path = linked(viewed, tmp_path / "c")
    add(path / "sources.zarr/zarr.json")
    flip(path / "bg/bg001.jpeg")
    wrong = {"sources.zarr/zarr.json.copy", "bg/bg001.jpeg"}
    assert named(verify(path, jobs=1)) == wrong
    flip(path / "sources.zarr/background_48/c/0/0/0/0")
    truncate(path / "depth.zarr/depth/c/1/0/0")
    shutil.rmtree(path / "bg_fg/bg002")
    report = verify(path, jobs=1)
    assert named(report) == wrong - {"bg/bg001.jpeg"} | {
        "sources.zarr/background_48/c/0/0/0/0",
        "depth.zarr/depth/c/1/0/0",
        "bg_fg/bg002",
    }
    assert "pictures were not compared with the plan, since the sources are damaged" in report.notes


def test_files_where_folders_should_be(tmp_path: Path, viewed: Path) -> None:
    """They give way to the folders, and a folder gives way to its file; what others put there is left."""
    path = linked(viewed, tmp_path / "c")
    whole = files(path)
    mask = sorted((path / "bg_fg_mask/bg003").iterdir())[0]
    for place in (path / "bg", path / "bg_fg/bg002"):
        shutil.rmtree(place)
        place.write_bytes(b"more")
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
    assert named(repair(path, jobs=1).after or Report("", "")) == {"film.partial"}
    assert files(path) == whole | {"film.partial": b"more"}


def test_a_picture_that_cannot_be_read_is_named(tmp_path: Path, viewed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As by a disk that fails; the others are checked."""
    read_bytes = Path.read_bytes

    def fail(path: Path) -> bytes:
        if path.name == "bg002.jpeg":
            raise OSError(5, "Input/output error")
        return read_bytes(path)

    path = linked(viewed, tmp_path / "c")
    flip(path / "bg/bg003.jpeg")
    monkeypatch.setattr(Path, "read_bytes", fail)
    found = {finding.file: finding.what for finding in verify(path, jobs=1).findings}
    assert found.keys() == {"bg/bg002.jpeg", "bg/bg003.jpeg"}
    assert found["bg/bg002.jpeg"] == "cannot be read ([Errno 5] Input/output error)"


def test_all_pictures_unlike_are_not_drawn_again(tmp_path: Path, corpus: Path) -> None:
    """Then it is the quality in the manifest that has changed; repair would spoil them all."""
    path = linked(corpus, tmp_path / "c")
    put(path / "corpus.json", (path / "corpus.json").read_bytes().replace(b'"quality": 95', b'"quality": 91'))
    before = files(path)
    report = verify(path, jobs=1)
    assert len(report.findings) == 75
    assert any("every composite is unlike what is drawn" in note for note in report.notes)
    with pytest.raises(DsgenError, match=r"every composite is unlike .*; no picture was changed: restore it"):
        repair(path, jobs=1)
    assert files(path) == before


def test_nobody_else_may_be_at_work(tmp_path: Path, viewed: Path, stores: Path, labelled_corpus: Path) -> None:
    """Neither another dsgen nor one of its parts."""
    path, shards = linked(viewed, tmp_path / "c"), linked(stores / "folder", tmp_path / "s")
    flip(path / "bg/bg001.jpeg")
    flip(shards / shard_name(0, 2) / "row/c/0")
    for place, stages in ((path, ("composite", "depth")), (shards, ("pack",))):
        for stage in stages:
            with (
                exclusive_lock(place, f"{LOCK}-{stage}-1-of-2"),
                pytest.raises(DsgenError, match=rf"{stage} --part.* at work here"),
            ):
                repair(place, labelled_corpus, jobs=1)


def test_a_damaged_manifest_is_found(tmp_path: Path, corpus: Path) -> None:
    """No JSON, another seed, another count; what cannot be trusted is not repaired from."""
    path = linked(corpus, tmp_path / "c")
    manifest = json.loads((path / "corpus.json").read_text())
    parameters = manifest["parameters"]
    for change in (
        {"rows": 73},
        {"splits": {}},
        {"format": 9},
        *({"parameters": parameters | other} for other in ({"seed": 1}, {"label_size": 48}, {"quality": 0}, {"a": 1})),
    ):
        write_json(path / "corpus.json", manifest | change)
        assert named(verify(path, jobs=1)) == {"corpus.json"}, change
        with pytest.raises(DsgenError, match=r"corpus\.json: .*; remove it and run dsgen composite"):
            repair(path, jobs=1)
    for content in ((json.dumps(manifest)).encode(), b"{"):
        put(path / "corpus.json", content)
        assert named(verify(path, jobs=1)) == {"corpus.json"}
    delete(path / "corpus.json")
    report = verify(path, jobs=1)
    assert [finding.what for finding in report.findings] == ["missing"]
    assert "it is lost, or the corpus unfinished; the same dsgen composite makes it" in report.notes[0]


def test_sources_need_the_pictures_they_were_made_from(tmp_path: Path, corpus: Path, pictures: Path) -> None:
    """Other pictures are refused and nothing is changed; without recorded hashes the sources are decoded."""
    path = linked(corpus, tmp_path / "c")
    truncate(path / "sources.zarr/background_96/c/0/0/0/0")
    before = files(path)
    with pytest.raises(
        DsgenError, match=r"3 of the 3 backgrounds .* are not in .*; give the folder with --backgrounds"
    ):
        repair(path, jobs=1)
    assert files(path) == before
    manifest = json.loads((path / "corpus.json").read_text())
    del manifest["sha256"]
    write_json(path / "corpus.json", manifest)
    report = verify(path, jobs=1)
    assert named(report) == {"sources.zarr/background_96"}
    assert "no hash recorded" in report.notes[0]
    repair(path, backgrounds=pictures / "backgrounds", foregrounds=pictures / "foregrounds", jobs=1)
    assert verify(path, jobs=1).findings == []
    assert (path / "sources.zarr/background_96/c/0/0/0/0").read_bytes() == (
        corpus / "sources.zarr/background_96/c/0/0/0/0"
    ).read_bytes()


def test_labels_are_made_again(tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the bundled network get their bytes back, with their flip errors and views; extra files go."""
    from dsgen.depth import label_corpus as label_corpus_module
    from dsgen.depth.label_corpus import label_corpus

    monkeypatch.setattr(label_corpus_module, "_BLOCK_ROWS", 20)
    composite(tmp_path / "c", pictures / "backgrounds", pictures / "foregrounds", SMALL, max_backgrounds=1, jobs=1)
    path = tmp_path / "c"
    label_corpus(path, check_flip=True, pictures=True, device="cpu", jobs=1)
    whole = files(path)
    blocks = [f"depth.zarr/depth/c/{number}/0/0" for number in (0, 1)]
    view = sorted((path / "bg_fg_depth/bg001").iterdir())[0]
    for damages in (
        {flip: blocks[0], truncate: "depth.zarr/flip_error/c/1", add: blocks[1]},
        {delete: blocks[1], truncate: blocks[0]},
    ):
        for damage, name in damages.items():
            damage(path / name)
        assert named(verify(path, jobs=1)) == {f"{n}.copy" if d is add else n for d, n in damages.items()}
        flip(view)
        done = repair(path, jobs=1)
        assert done.left == []
        assert any("labels were made again" in note for note in done.notes)
        assert files(path) == whole


def test_unfinished_labels_are_not_finished(tmp_path: Path, viewed: Path) -> None:
    """A damaged block is removed, and labelling goes on with it; no other is labelled, and none called made again."""
    path = Path(shutil.copytree(viewed, tmp_path / "c"))
    zarr.open_group(path / "depth.zarr", mode="r+").attrs["complete"] = False
    delete(path / "depth.zarr/depth/c/0/0/0")
    assert verify(path, jobs=1).findings == []
    truncate(path / "depth.zarr/depth/c/1/0/0")
    done = repair(path, jobs=1)
    assert (done.replaced, done.removed, done.left) == ([], ["depth.zarr/depth/c/1/0/0"], [])
    assert any("labels unfinished, 48 rows to go; run dsgen depth" in note for note in done.notes)


@pytest.mark.parametrize("name", ["depth.zarr/zarr.json", "depth.zarr/depth/zarr.json"])
@pytest.mark.parametrize("damage", [truncate, delete])
def test_labels_that_cannot_be_opened(tmp_path: Path, viewed: Path, name: str, damage: Callable[[Path], None]) -> None:
    """The file is named; pictures are checked all the same, and drawn again, but for the views."""
    path = linked(viewed, tmp_path / "c")
    damage(path / name)
    flip(path / "bg/bg002.jpeg")
    view = sorted((path / "bg_fg_depth/bg001").iterdir())[0]
    delete(view)
    lost = view.relative_to(path).as_posix()
    assert named(verify(path, jobs=1)) == {name, "bg/bg002.jpeg", lost}
    done = repair(path, jobs=1)
    assert (named(done.after or Report("", "")), done.replaced) == ({name, lost}, ["bg/bg002.jpeg"])


def test_labels_of_another_network_are_left_to_its_owner(tmp_path: Path, viewed: Path) -> None:
    """The damaged block is removed, the note names the network, and views of what is not there are not drawn black."""
    path = linked(viewed, tmp_path / "c")
    truncate(path / "depth.zarr/depth/c/1/0/0")
    views = files(path / "bg_fg_depth")
    done = repair(path, jobs=1)
    assert any("run dsgen depth as before, with drawn" in note for note in done.notes)
    assert [(f.file, f.what) for f in done.left] == [("depth.zarr/depth/c/1/0/0", "missing")]
    assert files(path / "bg_fg_depth") == views


def test_the_commands(tmp_path: Path, stores: Path, labelled_corpus: Path) -> None:
    """One table, one line of result; exit code 1 where anything is wrong, and 0 once it is repaired."""
    path = linked(stores / "folder", tmp_path / "s")
    runner = CliRunner()
    good = runner.invoke(app, ["verify", str(path), "--fast", "--jobs", "1"])
    assert (good.exit_code, good.stdout.count("\n")) == (0, 1)
    assert "nothing wrong" in good.stdout
    flip(path / shard_name(0, 2) / "mask/c/0/0/0")
    bad = runner.invoke(app, ["verify", str(path), "--fast", "--jobs", "1"])
    assert bad.exit_code == 1
    assert "another hash" in bad.stdout
    assert "1 wrong" in bad.stdout.splitlines()[-1]
    done = runner.invoke(app, ["repair", str(path), "--corpus", str(labelled_corpus), "--jobs", "1"])
    assert (done.exit_code, done.stdout) == (
        0,
        f"{path}: 1 wrong; 1 made again, 0 removed; nothing wrong is left\n",
    )
    assert "nothing done" in runner.invoke(app, ["repair", str(path)]).stdout


def test_long_tables_are_cut() -> None:
    """Two hundred lines at most, in order, then how many more there are."""
    report = Report("s", "store")
    for number in reversed(range(300)):
        report.find(f"part/{number:03d}", "missing")
    lines = report.table().splitlines()
    assert len(lines) == 202
    assert lines[1].split() == ["part", "part/000", "missing"]
    assert lines[-1] == "... and 100 more"


def test_what_is_neither_is_refused(tmp_path: Path, corpus: Path, stores: Path) -> None:
    """Nothing there, a file, an empty folder, a shard, an unfinished store, a corpus compared with a corpus."""
    for place, what in (
        (tmp_path / "none", "no such folder, expected a corpus or a store"),
        (corpus / "plan.npy", "a file, expected a corpus or a store"),
        (stores / "folder" / shard_name(0, 2), "a shard, expected a store; give the folder that it is in"),
        (tmp_path, "neither a corpus nor a store"),
    ):
        with pytest.raises(DsgenError, match=what):
            verify(place)
    (tmp_path / "packing").mkdir()
    with pytest.raises(DsgenError, match=r"no store \(no index.json\); run dsgen pack"):
        verify(tmp_path)
    with pytest.raises(DsgenError, match="is a corpus itself"):
        verify(corpus, corpus)
    (tmp_path / "packing").rmdir()
    (tmp_path / "sources.zarr.partial").mkdir()
    assert "the corpus unfinished" in verify(tmp_path).notes[0]
