"""Pack: every row exact, any number of workers and any interruption the same bytes."""

import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import zarr
from PIL import Image
from support.corpora import files

from dsgen.corpus.build import Parameters, composite
from dsgen.corpus.corpus import Corpus
from dsgen.errors import DsgenError
from dsgen.io.filesystem import LocalFiles
from dsgen.parallel.locks import LOCK
from dsgen.parallel.parts import Part
from dsgen.store import codecs, schema
from dsgen.store.layout import PACKING, shard_name
from dsgen.store.packing import PackResult, pack, shard_bounds
from dsgen.store.reader import Store


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every chunk a block, so that small shards have several."""
    monkeypatch.setattr(schema, "_BLOCK_SAMPLES", 1)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, labelled_corpus: Path) -> dict[str, bytes]:
    """The files of an undisturbed run: two shards, every chunk a block."""
    out = tmp_path_factory.mktemp("whole") / "s"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(schema, "_BLOCK_SAMPLES", 1)
        pack(labelled_corpus, out, shards=2, jobs=1)
    return files(out)


def check_rows(out: Path, corpus: Corpus) -> None:
    """Compare every packed row with what the corpus draws, by plain zarr."""
    first = 0
    for path in sorted(out.glob("*.zarr")):
        group = zarr.open_group(path, mode="r")
        rows = group["row"][:]
        np.testing.assert_array_equal(rows, np.arange(first, first + len(rows)))
        first += len(rows)
        plan = corpus.plan[rows]
        image, mask = corpus.render(plan)
        np.testing.assert_array_equal(group["image"][:], image)
        np.testing.assert_array_equal(group["mask"][:], mask)
        pictures = group["background"][:]
        assert len(pictures) == len(np.unique(plan["background"]))
        index = group["background_index"][:]
        for i, number in enumerate(plan["background"].tolist()):
            np.testing.assert_array_equal(pictures[index[i]], corpus.background(number))
        np.testing.assert_array_equal(group["background_number"][:], plan["background"])
        for name in ("foreground", "flip", "position", "top", "left", "split"):
            np.testing.assert_array_equal(group[name][:], plan[name])
        if corpus.depth is not None:
            np.testing.assert_array_equal(group["depth"][:], corpus.depth[:][rows])
    assert first == len(corpus)


@pytest.mark.parametrize("shards", [1, 3, 4])
def test_every_row_is_exact(tmp_path: Path, labelled_corpus: Path, shards: int) -> None:
    """Pictures, labels, backgrounds and columns of every row, at any number of shards."""
    result = pack(labelled_corpus, tmp_path / "s", shards=shards, jobs=1)
    check_rows(tmp_path / "s", Corpus(labelled_corpus))
    assert result.rows == result.packed == 72
    assert result.shards == shards
    assert result.depth is True
    assert not [name for name in files(tmp_path / "s") if "partial" in name or PACKING in name]


def test_workers_do_not_show(tmp_path: Path, labelled_corpus: Path, small_blocks: None) -> None:
    """One worker and three write the same bytes, index included."""
    pack(labelled_corpus, tmp_path / "one", shards=3, jobs=1)
    pack(labelled_corpus, tmp_path / "three", shards=3, jobs=3)
    one = files(tmp_path / "one")
    assert one == files(tmp_path / "three")
    assert sum("/image/c/" in name for name in one) == 4


def test_statistics_are_those_of_the_pixels(tmp_path: Path, labelled_corpus: Path, small_blocks: None) -> None:
    """Mean and standard deviation equal numpy's over everything at once; invalid depth does not count."""
    path = Path(shutil.copytree(labelled_corpus, tmp_path / "corpus"))
    zarr.open_group(path / "depth.zarr", mode="r+")["depth"][5, :20] = 0
    pack(path, tmp_path / "s", shards=3, jobs=1)
    corpus = Corpus(path)
    image, mask = corpus.render(corpus.plan)
    assert corpus.depth is not None
    depth = corpus.depth[:] / 1000
    background = np.stack([corpus.background(b) for b in corpus.plan["background"].tolist()])
    parts: dict[str, Any] = {
        "image": (image / 255).reshape(-1, 3),
        "background": (background / 255).reshape(-1, 3),
        "mask": (mask / 255).reshape(-1, 1),
        "depth": depth[depth > 0].reshape(-1, 1),
    }
    statistics = Store(tmp_path / "s").index["statistics"]
    assert list(statistics) == list(parts)
    for name, values in parts.items():
        np.testing.assert_allclose(statistics[name]["mean"], values.mean(axis=0), rtol=1e-9)
        np.testing.assert_allclose(statistics[name]["std"], values.std(axis=0), rtol=1e-9)


def test_index_counts(tmp_path: Path, corpus: Path) -> None:
    """The index tells rows, splits and hashes, in total and a shard."""
    pack(corpus, tmp_path / "s", shards=3, jobs=1)
    opened, index = Corpus(corpus), Store(tmp_path / "s").index
    assert index["splits"] == opened.manifest["splits"]
    assert [shard["name"] for shard in index["shards"]] == [shard_name(k, 3) for k in range(3)]
    assert [shard["first_row"] for shard in index["shards"]] == [0, 20, 40]
    assert sum(shard["rows"] for shard in index["shards"]) == 72
    for name, count in index["splits"].items():
        assert sum(shard["splits"][name] for shard in index["shards"]) == count


@pytest.mark.parametrize(("rows", "chunk", "shards"), [(72, 20, 4), (1000, 20, 7), (400_000, 20, 6), (5, 20, 1)])
def test_shards_are_whole_chunks(rows: int, chunk: int, shards: int) -> None:
    """Shards follow each other without gap, begin at chunks, and differ by a chunk at most."""
    bounds = shard_bounds(rows, chunk, shards)
    assert bounds[0][0] == 0
    assert bounds[-1][1] == rows
    assert all(a[1] == b[0] for a, b in pairwise(bounds))
    assert all(first % chunk == 0 for first, _ in bounds)
    counts = [-(-(last - first) // chunk) for first, last in bounds]
    assert min(counts) >= 1
    assert max(counts) - min(counts) <= 1


@pytest.mark.parametrize("shards", [0, -1, 5])
def test_impossible_number_of_shards(tmp_path: Path, corpus: Path, shards: int) -> None:
    """More shards than chunks, or none, are refused before anything is made."""
    with pytest.raises(DsgenError, match=f"--shards: got {shards}, expected 1 to 4, since 72 rows make 4 chunks"):
        pack(corpus, tmp_path / "s", shards=shards, jobs=1)
    assert not (tmp_path / "s").exists()


def test_unlabelled_is_packed_with_a_notice(tmp_path: Path, corpus: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Without labels there is a store without depth, and a warning."""
    with caplog.at_level(logging.WARNING, "dsgen"):
        assert pack(corpus, tmp_path / "s", shards=2, jobs=1).depth is False
    assert "no depth labels" in caplog.text
    assert Store(tmp_path / "s").has_depth is False
    assert not list((tmp_path / "s").glob("*/depth"))


def test_half_labelled_is_refused(tmp_path: Path, labelled_corpus: Path) -> None:
    """Labels that are not complete are an error that counts the rows without."""
    path = Path(shutil.copytree(labelled_corpus, tmp_path / "corpus"))
    (path / "depth.zarr/depth/c/1/0/0").unlink()
    with pytest.raises(DsgenError, match="24 of 72 rows lack depth"):
        pack(path, tmp_path / "s", shards=2, jobs=1)


class Stop(BaseException):
    """Stands for a kill."""


def interrupt(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, after: int) -> None:
    """Make the call number `after` of a function stop the run before it does anything."""
    original: Callable[..., Any] = getattr(owner, name)
    calls = 0

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > after:
            raise Stop
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, counted)


@pytest.mark.parametrize("what", ["write", "remove"])
def test_stopped_anywhere_it_continues(
    tmp_path: Path,
    labelled_corpus: Path,
    whole: dict[str, bytes],
    small_blocks: None,
    monkeypatch: pytest.MonkeyPatch,
    what: str,
) -> None:
    """Stopped before any of its writes and removals and run again, the bytes are those of an undisturbed run."""
    after, finished = 0, False
    while not finished:
        out = tmp_path / f"{what}{after}"
        with monkeypatch.context() as patch:
            interrupt(patch, LocalFiles, what, after)
            try:
                pack(labelled_corpus, out, shards=2, jobs=1)
                finished = True
            except Stop:
                if what == "write":
                    with pytest.raises(DsgenError, match=r"no index\.json|an empty folder, expected a store"):
                        Store(out)
        pack(labelled_corpus, out, shards=2, jobs=1)
        assert files(out) == whole
        shutil.rmtree(out)
        after += 1 if what == "remove" or after < 4 else 9
    assert after > (0 if what == "remove" else 30)


def test_finished_blocks_are_not_redone(
    tmp_path: Path, corpus: Path, small_blocks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After three of four blocks, one is left to do."""
    with monkeypatch.context() as patch:
        interrupt(patch, codecs, "encode_block", 8 + 6)  # the first eight measure how much room is needed
        with pytest.raises(Stop):
            pack(corpus, tmp_path / "s", shards=2, jobs=1)
    result = pack(corpus, tmp_path / "s", shards=2, jobs=1)
    assert (result.packed, result.already_there) == (12, 60)
    again = pack(corpus, tmp_path / "s", shards=2, jobs=1)
    assert (again.packed, again.already_there) == (0, 72)


def test_half_written_block_is_redone(
    tmp_path: Path, corpus: Path, small_blocks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a kill leaves of a write does not show in the end; a block whose file is gone is packed again."""
    pack(corpus, tmp_path / "whole", shards=2, jobs=1)
    with monkeypatch.context() as patch:
        interrupt(patch, schema, "metadata_files", 0)
        with pytest.raises(Stop):
            pack(corpus, tmp_path / "s", shards=2, jobs=1)
    unfinished = tmp_path / "s/shard-00001-of-00002.zarr"
    (unfinished / "mask/c/0/0/0").unlink()
    (unfinished / "image/c/1/0/0/0.partial").write_bytes(b"half")
    assert pack(corpus, tmp_path / "s", shards=2, jobs=1).packed == 20
    assert files(tmp_path / "s") == files(tmp_path / "whole")


def test_lost_shard_is_packed_again(tmp_path: Path, corpus: Path) -> None:
    """A shard removed from a finished store comes back as it was."""
    pack(corpus, tmp_path / "s", shards=3, jobs=1)
    was = files(tmp_path / "s")
    shutil.rmtree(tmp_path / "s/shard-00001-of-00003.zarr")
    assert pack(corpus, tmp_path / "s", shards=3, jobs=1).packed == 20
    assert files(tmp_path / "s") == was


def test_killed_process_continues(tmp_path: Path, labelled_corpus: Path, whole: dict[str, bytes]) -> None:
    """A real SIGKILL half way, then a run to the end: the bytes of an undisturbed run."""
    program = (
        "import sys; from pathlib import Path; from dsgen.store import packing, schema\n"
        "schema._BLOCK_SAMPLES = 1\n"
        "packing.pack(Path(sys.argv[1]), Path(sys.argv[2]), shards=2, jobs=1)\n"
    )
    slow = (
        "import dsgen.store.codecs as s, time; e = s.encode_block\n"
        "s.encode_block = lambda *a: (time.sleep(0.1), e(*a))[1]\n"
    )

    arguments = [str(labelled_corpus), str(tmp_path / "s")]

    process = subprocess.Popen([sys.executable, "-c", slow + program, *arguments], stderr=subprocess.DEVNULL)
    until = time.monotonic() + 60
    while len(list((tmp_path / "s").glob("packing/block-*.json"))) < 2 and time.monotonic() < until:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "s/index.json").exists()
    subprocess.run([sys.executable, "-c", program, *arguments], check=True, stderr=subprocess.DEVNULL)
    assert files(tmp_path / "s") == whole


def test_other_inputs_are_refused(tmp_path: Path, corpus: Path, labelled_corpus: Path, pictures: Path) -> None:
    """Another number of shards, another corpus, other labels: both values are named, nothing changes."""
    out = tmp_path / "s"
    pack(corpus, out, shards=3, jobs=1)
    was = files(out)
    with pytest.raises(DsgenError, match=r"shards 2 \(the store has 3\)"):
        pack(corpus, out, shards=2, jobs=1)
    with pytest.raises(DsgenError, match=r"depth model drawn \(the store has none\)"):
        pack(labelled_corpus, out, shards=3, jobs=1)
    other = tmp_path / "other"
    parameters = Parameters(positions=4, size=48, label_size=96, fg_height=20, seed=7)
    composite(other, pictures / "backgrounds", pictures / "foregrounds", parameters, jobs=1, pictures=False)
    with pytest.raises(DsgenError, match=r"parameters seed 7 \(the store has 0\)"):
        pack(other, out, shards=3, jobs=1)
    assert files(out) == was


def test_foreign_folder_is_refused(tmp_path: Path, corpus: Path) -> None:
    """A folder with other files, and a file, are left alone."""
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(DsgenError, match=r"holds other files \(notes.txt\)"):
        pack(corpus, tmp_path, shards=1, jobs=1)
    with pytest.raises(DsgenError, match="is a file"):
        pack(corpus, tmp_path / "notes.txt", shards=1, jobs=1)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    ("positions", "size", "flip", "backgrounds"), [(1, 64, False, 1), (3, 33, True, 2), (47, 32, True, 1)]
)
def test_odd_corpora(tmp_path: Path, pictures: Path, positions: int, size: int, flip: bool, backgrounds: int) -> None:
    """One position, one background, odd sizes, chunks that do not come out even."""
    parameters = Parameters(positions=positions, size=size, label_size=size, fg_height=20, flip=flip)
    folders = (pictures / "backgrounds", pictures / "foregrounds")
    composite(tmp_path / "c", *folders, parameters, max_backgrounds=backgrounds, jobs=1, pictures=False)
    pack(tmp_path / "c", tmp_path / "s", shards=1, jobs=1)
    check_rows(tmp_path / "s", Corpus(tmp_path / "c"))


def test_smaller_than_jpeg(tmp_path: Path) -> None:
    """At 20 positions and 224 pixels a lossless row takes at most 0.8 of a quality-95 JPEG, also of noisy pictures."""
    from support.corpora import draw_background, draw_cutout

    for kind in ("b", "f"):
        (tmp_path / kind).mkdir()
    Image.fromarray(draw_background(0, 224, 224)).save(tmp_path / "b/room.png")
    for n in range(2):
        Image.fromarray(draw_cutout(n, 110, 60)).save(tmp_path / f"f/person{n}.png")
    composite(tmp_path / "c", tmp_path / "b", tmp_path / "f", jobs=1, pictures=False)
    result = pack(tmp_path / "c", tmp_path / "s", shards=1, jobs=1)
    corpus = Corpus(tmp_path / "c")
    image, _ = corpus.render(corpus.plan[:10])
    jpegs = [cv2.imencode(".jpg", one, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].size for one in image]
    assert result.image_bytes_per_row < 0.8 * np.mean(jpegs)


def test_corpus_made_anew_is_opened_anew(tmp_path: Path, corpus: Path) -> None:
    """A corpus at the path of an earlier one is not mistaken for it."""
    path = Path(shutil.copytree(corpus, tmp_path / "c"))
    pack(path, tmp_path / "s", shards=1, jobs=1)
    shutil.rmtree(path)
    parameters = Parameters(positions=2, size=32, label_size=32, fg_height=20)
    (tmp_path / "b").mkdir()
    (tmp_path / "f").mkdir()
    Image.fromarray(np.full((40, 40, 3), 90, np.uint8)).save(tmp_path / "b/a.png")
    rectangle = np.pad(np.full((40, 20, 4), 255, np.uint8), ((1, 1), (1, 1), (0, 0)))
    Image.fromarray(rectangle).save(tmp_path / "f/a.png")
    composite(path, tmp_path / "b", tmp_path / "f", parameters, jobs=1, pictures=False)
    pack(path, tmp_path / "t", shards=1, jobs=1)
    check_rows(tmp_path / "t", Corpus(path))


def test_zip_and_recipe_hold_the_same_samples(tmp_path: Path, labelled_corpus: Path) -> None:
    """Folder, zip, recipe and zipped recipe read alike, to the bit; the recipe is smaller."""
    options = [{}, {"zipped": True}, {"recipe": True}, {"recipe": True, "zipped": True}]
    results = [pack(labelled_corpus, tmp_path / str(k), shards=2, jobs=1, **o) for k, o in enumerate(options)]  # type: ignore[arg-type]
    stores = [Store(tmp_path / str(k)) for k in range(4)]
    expected = stores[0].read(0, 72)
    for other in stores[1:]:
        assert other.fields == stores[0].fields
        assert other.index["statistics"] == stores[0].index["statistics"]
        np.testing.assert_array_equal(other.plan, stores[0].plan)
        for first, last in ((0, 72), (17, 43), (71, 72)):
            for name, values in other.read(first, last).items():
                np.testing.assert_array_equal(values, expected[name][first:last])
    assert results[2].bytes < results[0].bytes
    assert [p.name for p in sorted((tmp_path / "1").glob("shard-*"))] == [
        f"shard-0000{k}-of-00002.zarr.zip" for k in range(2)
    ]
    assert not (tmp_path / "1/packing").exists()


def test_zip_opens_with_plain_zarr(tmp_path: Path, labelled_corpus: Path) -> None:
    """A zipped shard is a Zarr group that zarr reads in place."""
    pack(labelled_corpus, tmp_path / "s", shards=2, zipped=True, jobs=1)
    expected = Store(tmp_path / "s").read(0, 40)
    path = tmp_path / "s/shard-00000-of-00002.zarr.zip"
    with zarr.storage.ZipStore(path, mode="r") as opened:
        group = zarr.open_group(opened, mode="r")
        rows = group["row"].shape[0]
        for name in ("image", "mask", "depth"):
            np.testing.assert_array_equal(group[name][:], expected[name][:rows])


def test_stopped_zip_continues(tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped while a zip is put together, the next run ends with the bytes of an undisturbed one."""
    pack(corpus, tmp_path / "whole", shards=2, zipped=True, jobs=1)
    for after in range(2):
        out = tmp_path / f"s{after}"
        with monkeypatch.context() as patch:
            interrupt(patch, schema, "column_files", after)
            with pytest.raises(Stop):
                pack(corpus, out, shards=2, zipped=True, jobs=1)
        assert len(list(out.glob("shard-*"))) == after
        pack(corpus, out, shards=2, zipped=True, jobs=1)
        assert files(out) == files(tmp_path / "whole")


def test_parts_make_the_whole(
    tmp_path: Path, labelled_corpus: Path, whole: dict[str, bytes], small_blocks: None
) -> None:
    """Three parts in any order, one of them twice, end with the bytes of one run; only the last finishes it."""
    out = tmp_path / "s"
    for number in (3, 1, 1):
        result = pack(labelled_corpus, out, shards=2, part=Part(number, 3), jobs=1)
        assert result == PackResult(str(out), 72, result.packed, finished=False)
        with pytest.raises(DsgenError, match="an unfinished store"):
            Store(out)
    assert pack(labelled_corpus, out, shards=2, part=Part(2, 3), jobs=1).finished
    assert {name: content for name, content in files(out).items() if LOCK not in name} == whole


def test_full_disk_is_refused_before_work(tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that the disk cannot hold is not started."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 1000))  # type: ignore[attr-defined]
    with pytest.raises(DsgenError, match=r"72 rows need about .* GB are free"):
        pack(corpus, tmp_path / "s", shards=2, jobs=1)
    assert not (tmp_path / "s").exists()


def test_other_kind_of_store_is_refused(tmp_path: Path, corpus: Path) -> None:
    """A recipe is not resumed as pixels, nor a zip file as a folder."""
    pack(corpus, tmp_path / "s", shards=2, recipe=True, jobs=1)
    with pytest.raises(DsgenError, match=r"recipe False \(the store has True\)"):
        pack(corpus, tmp_path / "s", shards=2, jobs=1)
    with pytest.raises(DsgenError, match=r"zip True \(the store has False\)"):
        pack(corpus, tmp_path / "s", shards=2, recipe=True, zipped=True, jobs=1)
    with pytest.raises(DsgenError, match="--zip: memory://x is a URL"):
        pack(corpus, "memory://x", shards=2, zipped=True, jobs=1)


@pytest.mark.parametrize("positions", [3, 20, 30])
def test_labels_are_taken_over(tmp_path: Path, pictures: Path, positions: int) -> None:
    """Depth that dsgen labelled, in chunks that fit the store's and in others, is that of the labels, for zarr too."""
    from dsgen.depth.label_corpus import label_corpus

    parameters = Parameters(positions=positions, size=32, label_size=32, fg_height=20)
    folders = (pictures / "backgrounds", pictures / "foregrounds")
    composite(tmp_path / "c", *folders, parameters, jobs=1, pictures=False)

    def slope(batch: np.ndarray) -> np.ndarray:
        """Depth from brightness."""
        return 1 + batch.mean(axis=3) / 100

    label_corpus(tmp_path / "c", model=slope)
    pack(tmp_path / "c", tmp_path / "s", shards=2, jobs=1)
    corpus = Corpus(tmp_path / "c")
    check_rows(tmp_path / "s", corpus)
    assert corpus.depth is not None
    np.testing.assert_array_equal(Store(tmp_path / "s").read(0, len(corpus))["depth"], corpus.depth[:])
    statistics = Store(tmp_path / "s").index["statistics"]["depth"]
    np.testing.assert_allclose(statistics["mean"], corpus.depth[:].mean() / 1000, rtol=1e-6)
