"""Export: other libraries read what the store has; any number of workers and any interruption the same bytes."""

import gc
import gzip
import io
import json
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import webdataset
import zarr
from PIL import Image
from typer.testing import CliRunner

from dsgen.cli.app import app
from dsgen.corpus.plan import SPLITS
from dsgen.errors import DsgenError
from dsgen.io import images
from dsgen.io.images import encode_jpeg
from dsgen.io.json_files import read_json
from dsgen.parallel.locks import LOCK
from dsgen.store.export import samples
from dsgen.store.export.cards import are_held_out
from dsgen.store.export.export import export_store
from dsgen.store.packing import pack
from dsgen.store.reader import Store

FORMATS = ("webdataset", "parquet")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, labelled_corpus: Path) -> Path:
    """72 rows in three shards, with depth, of 48 pixels; every third row is unused whatever its pictures."""
    folder = tmp_path_factory.mktemp("stored")
    corpus = Path(shutil.copytree(labelled_corpus, folder / "corpus"))
    doubtful = np.arange(72) % 3 == 1
    group = zarr.open_group(corpus / "depth.zarr", mode="r+")
    group.create_array("flip_error", shape=(72,), dtype="float32")[:] = doubtful.astype(np.float32)
    pack(corpus, folder / "store", shards=3, max_flip_error=0.5, jobs=1)
    return folder / "store"


@pytest.fixture
def collected() -> Iterator[None]:
    """Collect what a test leaves behind before its filters of warnings go."""
    yield
    gc.collect()


def files(folder: Path) -> dict[str, bytes]:
    """Every file below a folder but the lock, by relative name."""
    return {
        p.relative_to(folder).as_posix(): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.name != LOCK
    }


def decode(code: bytes) -> np.ndarray:
    """Decode a picture as it is."""
    return np.asarray(Image.open(io.BytesIO(code)))


def check_columns(columns: dict[str, Any], store: Store) -> None:
    """Compare a sample's columns with the plan."""
    row = store.plan[columns["row"]]
    assert columns["background_number"] == row["background"]
    assert columns["split"] == SPLITS[row["split"]]
    for name in ("foreground", "flip", "position", "top", "left"):
        assert columns[name] == row[name]


def split_rows(store: Store, split: str) -> list[int]:
    """The rows of a split, in order."""
    return np.flatnonzero(store.plan["split"] == SPLITS.index(split)).tolist()


# webdataset leaves its last file open for the garbage collector, which `collected` calls while this holds
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
@pytest.mark.usefixtures("collected")
def test_webdataset_reads_it(tmp_path: Path, store: Path) -> None:
    """Every sample of every split, exactly, by the library itself, at the address that the index names."""
    result = export_store(store, tmp_path / "out", split="all", backgrounds=True, rows_per_file=7, jobs=1)
    opened = Store(store)
    assert (result.rows, result.exported, result.already_there) == (72, 72, 0)
    index = read_json(tmp_path / "out" / "export.json")
    assert index["complete"] is True
    for split, part in index["splits"].items():
        urls = str(tmp_path / "out" / part["files"])
        samples = webdataset.WebDataset(urls, shardshuffle=False).decode(
            webdataset.handle_extension("mask.png", decode), "rgb8"
        )
        seen = []
        for sample in samples:
            columns = sample["json"]
            truth = opened.read(columns["row"], columns["row"] + 1)
            for name in ("image", "mask", "background"):
                np.testing.assert_array_equal(sample[f"{name}.png"], truth[name][0])
            np.testing.assert_array_equal(sample["depth.npy.gz"], truth["depth"][0])
            check_columns(columns, opened)
            assert sample["__key__"] == f"{columns['row']:09d}"
            assert columns["units"]["depth"] == "millimetre"
            seen.append(columns["row"])
        assert seen == split_rows(opened, split)
        assert part["rows"] == opened.splits[split] == len(seen)


def test_people_are_a_column_of_parquet(tmp_path: Path, floor_corpus: Path) -> None:
    """A list for each row, as `datasets` reads it; the card describes it, and says what composed depth is."""
    pack(floor_corpus, tmp_path / "store", shards=1, jobs=1)
    export_store(tmp_path / "store", tmp_path / "out", "parquet", split="all", jobs=1)
    opened = Store(tmp_path / "store")
    loaded = datasets.load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    for sample in (sample for rows in loaded.values() for sample in rows):
        people = opened.plan["people"][sample["row"]]
        placed = np.flatnonzero(people["height"])
        assert [person["instance"] for person in sample["people"]] == (placed + 1).tolist()
        for person, slot in zip(sample["people"], placed.tolist(), strict=True):
            assert (person["foreground"], person["flip"]) == (people["foreground"][slot], people["flip"][slot])
            assert person["box"] == opened.boxes[sample["row"], slot].tolist()
            metres = people["distance"][slot] / 1000
            assert (person["distance_m"] or 0.0) == pytest.approx(metres)
    card = (tmp_path / "out/README.md").read_text()
    assert "| `people` | People | those of the row" in card
    assert "It follows from the composition: that of the background (3 file), and the distance of people." in card
    assert "estimated" not in card


def as_uint8(picture: Any, channels_first: bool) -> np.ndarray:
    """Whatever a decoder made of a picture as (h,w) or (h,w,c) u1."""
    array = np.asarray(picture)
    if array.ndim == 3 and channels_first:
        array = np.moveaxis(array, 0, 2)
    return array if array.dtype == np.uint8 else np.rint(array * 255).astype(np.uint8)


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
@pytest.mark.usefixtures("collected")
def test_every_decoder_of_webdataset_reads_it(tmp_path: Path, store: Path) -> None:
    """Image and mask are right and depth is exact, whichever of the library's decoders is asked for, or none."""
    result = export_store(store, tmp_path / "out", split="validation", rows_per_file=100, jobs=1)
    opened = Store(store)
    urls = str(tmp_path / "out" / "validation-00000-of-00001.tar")
    specs = sorted(webdataset.autodecode.imagespecs)
    assert {"pil", "rgb8", "l8", "torchrgb"} <= set(specs)
    for spec in [None, *specs]:
        seen = 0
        for sample in webdataset.WebDataset(urls, shardshuffle=False).decode(*([spec] if spec else [])):
            row = sample["json"]["row"]
            truth = {name: values[0] for name, values in opened.read(row, row + 1).items()}
            assert sample["depth.npy.gz"].dtype == np.uint16
            np.testing.assert_array_equal(sample["depth.npy.gz"], truth["depth"], err_msg=str(spec))
            seen += 1
            if spec is None:
                np.testing.assert_array_equal(decode(sample["image.png"]), truth["image"])
                continue
            image, mask = (as_uint8(sample[f"{name}.png"], "torch" in spec) for name in ("image", "mask"))
            if "rgb" in spec or spec in ("pil", "torch"):
                np.testing.assert_array_equal(image[..., :3], truth["image"], err_msg=spec)
                mask = mask[..., 0]
            np.testing.assert_array_equal(mask, truth["mask"], err_msg=spec)
        assert seen == result.rows


def test_datasets_reads_the_tar_files(tmp_path: Path, store: Path) -> None:
    """Hugging Face `datasets` decodes their depth too; the README beside them is no sample."""
    export_store(store, tmp_path / "out", split="validation", jobs=1)
    opened = Store(store)
    pattern = str(tmp_path / "out" / "*.tar")
    loaded = datasets.load_dataset("webdataset", data_files=pattern, split="train", cache_dir=str(tmp_path / "cache"))
    assert len(loaded) == opened.splits["validation"]
    for sample in loaded:
        truth = opened.read(sample["json"]["row"], sample["json"]["row"] + 1)
        np.testing.assert_array_equal(np.asarray(sample["depth.npy.gz"]), truth["depth"][0])
        np.testing.assert_array_equal(np.asarray(sample["image.png"]), truth["image"][0])


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
@pytest.mark.usefixtures("collected")
def test_the_readme_beside_tar_files_runs(tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its snippet decodes image, mask and depth of the files beside it."""
    export_store(store, tmp_path / "out", jobs=1)
    monkeypatch.chdir(tmp_path / "out")
    text = Path("README.md").read_text()
    snippet = "\n".join(line[4:] for line in text.splitlines() if line.startswith("    "))
    names: dict[str, Any] = {}
    exec(snippet, names)
    truth = Store(store).read(names["sample"]["json"]["row"], names["sample"]["json"]["row"] + 1)
    np.testing.assert_array_equal(names["image"], truth["image"][0])
    np.testing.assert_array_equal(names["mask"][..., 0], truth["mask"][0])
    np.testing.assert_array_equal(names["depth"], truth["depth"][0])


def test_an_export_of_an_earlier_version_is_not_mixed(tmp_path: Path, store: Path, corpus: Path) -> None:
    """Tar files with .depth.png are refused with the remedy, finished or not; without depth nothing differs."""
    pack(corpus, tmp_path / "flat", shards=1, jobs=1)
    for source, name in ((store, "deep"), (tmp_path / "flat", "flat")):
        out = tmp_path / name / "out"
        out.parent.mkdir(exist_ok=True)
        export_store(source, out, jobs=1)
        index = read_json(out / "export.json")
        assert index["made_from"].pop("depth", None) == ("npy.gz" if name == "deep" else None)
        for complete in (True, False):
            (out / "export.json").write_text(json.dumps(index | {"complete": complete}))
            before = files(out)
            if name == "flat":
                assert export_store(source, out, jobs=1).exported == 0
                continue
            with pytest.raises(DsgenError, match=r"whose depth is \.depth\.png; remove this folder and export again"):
                export_store(source, out, jobs=1)
            assert files(out) == before


@pytest.mark.parametrize("by_card", [True, False])
def test_hugging_face_datasets_reads_it(tmp_path: Path, store: Path, by_card: bool) -> None:
    """Every sample of every split, exactly, from the folder with its card and by the parquet loader."""
    export_store(store, tmp_path / "out", "parquet", split="all", backgrounds=True, rows_per_file=7, jobs=1)
    opened = Store(store)
    where = (str(tmp_path / "out"),) if by_card else ("parquet",)
    options = {} if by_card else {"data_dir": str(tmp_path / "out")}
    loaded = datasets.load_dataset(*where, **options, cache_dir=str(tmp_path / "cache"))
    assert {name: len(part) for name, part in loaded.items()} == {n: c for n, c in opened.splits.items() if c}
    for split, part in loaded.items():
        assert part.features["depth"] == datasets.Image()
        assert part["row"][:] == split_rows(opened, split)
        for sample in part:
            truth = opened.read(sample["row"], sample["row"] + 1)
            for name in ("image", "mask", "depth", "background"):
                picture = np.asarray(sample[name])
                np.testing.assert_array_equal(picture, truth[name][0])
                assert picture.dtype == truth[name].dtype
            check_columns(sample, opened)
    for kind in ("numpy", "torch"):
        rows = loaded["train"].with_format(kind)[:3]
        truth = opened.read(int(rows["row"][0]), int(rows["row"][0]) + 1)
        np.testing.assert_array_equal(np.asarray(rows["depth"][0]).reshape(48, 48), truth["depth"][0])


def test_parquet_keeps_a_background_once(tmp_path: Path, store: Path) -> None:
    """Backgrounds add one picture each a row group, not one a row."""
    plain, full = (
        export_store(store, tmp_path / name, "parquet", split="all", backgrounds=wanted, jobs=1).bytes
        for name, wanted in (("plain", False), ("full", True))
    )
    rows = Store(store).read(0, 1)
    one = len(images.encode_png(rows["background"][0]))
    parts = len([count for count in Store(store).splits.values() if count])
    assert 0 < full - plain < (3 * parts + 1) * one < 72 * one / 4


@pytest.mark.parametrize("file_format", FORMATS)
def test_workers_do_not_show(tmp_path: Path, store: Path, file_format: str) -> None:
    """One worker and three write the same bytes, card and index included."""
    for name, jobs in (("one", 1), ("three", 3)):
        export_store(store, tmp_path / name, file_format, rows_per_file=5, jobs=jobs)
    one = files(tmp_path / "one")
    assert one == files(tmp_path / "three")
    assert sum("train-" in name for name in one) > 2
    assert not [name for name in one if "unused" in name or name.endswith(".partial")]


KILLED = """
import os, signal, sys
from pathlib import Path
from dsgen.store.export import export

def samples_then_kill(*arguments):
    for sample in samples(*arguments):
        global left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        yield sample

samples, left = export.encode_samples, int(sys.argv[4])
export.encode_samples = samples_then_kill
export.export_store(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], split="all", rows_per_file=5, jobs=1)
"""


@pytest.mark.parametrize(("file_format", "after"), [("webdataset", 0), ("webdataset", 33), ("parquet", 33)])
def test_killed_process_continues(tmp_path: Path, store: Path, file_format: str, after: int) -> None:
    """After kill -9 in the middle of a file the next run makes what is missing, and the bytes are the same."""
    export_store(store, tmp_path / "whole", file_format, split="all", rows_per_file=5, jobs=1)
    arguments = [str(store), str(tmp_path / "out"), file_format, str(after)]
    process = subprocess.run([sys.executable, "-c", KILLED, *arguments], capture_output=True, timeout=100)
    assert process.returncode == -signal.SIGKILL, process.stderr
    left = files(tmp_path / "out")
    assert json.loads(left["export.json"])["complete"] is False
    assert "README.md" not in left
    assert sum(name.endswith(".partial") for name in left) == 1
    result = export_store(store, tmp_path / "out", file_format, split="all", rows_per_file=5, jobs=1)
    assert result.already_there == pytest.approx(after, abs=8)
    assert result.already_there + result.exported == 72
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_only_damaged_and_lost_files_are_made_again(tmp_path: Path, store: Path) -> None:
    """A second run does nothing; one after losing a file and the end of another makes those two."""
    out = tmp_path / "out"
    export_store(store, out, rows_per_file=5, jobs=1)
    before = files(out)
    assert export_store(store, out, rows_per_file=5, jobs=1).exported == 0
    first, second, *others = sorted(out.glob("train-*.tar"))
    first.unlink()
    second.write_bytes(second.read_bytes()[:-1])
    stamps = [path.stat().st_mtime_ns for path in others]
    assert export_store(store, out, rows_per_file=5, jobs=1).exported == 10
    assert files(out) == before
    assert [path.stat().st_mtime_ns for path in others] == stamps


def test_an_error_leaves_no_partial_file(tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor a file under its final name."""

    def fail(*_: object, **__: object) -> bytes:
        raise OSError(28, "no space left")

    monkeypatch.setattr(samples, "encode_png", fail)
    with pytest.raises(OSError, match="no space left"):
        export_store(store, tmp_path / "out", jobs=1)
    assert set(files(tmp_path / "out")) == {"export.json"}


def test_jpeg_is_for_colour_pictures_only(tmp_path: Path, store: Path) -> None:
    """Images are the JPEG of quality 95; masks and depth stay exact."""
    export_store(store, tmp_path / "out", split="validation", image_format="jpeg", jobs=1)
    opened = Store(store)
    with tarfile.open(tmp_path / "out" / "validation-00000-of-00001.tar") as archive:
        names = archive.getnames()
        assert len(names) == 4 * opened.splits["validation"]
        for row in split_rows(opened, "validation"):
            truth = opened.read(row, row + 1)
            member = {name.split(".", 1)[1]: archive.extractfile(name).read() for name in names if f"{row:09d}" in name}
            assert member["image.jpg"] == encode_jpeg(truth["image"][0], 95)
            np.testing.assert_array_equal(decode(member["mask.png"]), truth["mask"][0])
            depth = np.load(io.BytesIO(gzip.decompress(member["depth.npy.gz"])))
            np.testing.assert_array_equal(depth, truth["depth"][0])
            assert depth.dtype == np.uint16


@pytest.mark.parametrize("file_format", FORMATS)
def test_a_store_without_depth(tmp_path: Path, corpus: Path, file_format: str) -> None:
    """Has no depth to export, and says nothing of it."""
    pack(corpus, tmp_path / "store", shards=1, jobs=1)
    export_store(tmp_path / "store", tmp_path / "out", file_format, split="validation", jobs=1)
    index = read_json(tmp_path / "out" / "export.json")
    assert set(index["pictures"]) == {"image.png", "mask.png"}
    assert set(index["units"]) == {"top", "left"}
    if file_format == "parquet":
        card = (tmp_path / "out" / "README.md").read_text()
        assert "depth" not in card
        assert "share neither backgrounds nor foregrounds" in card
        loaded = datasets.load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
        assert list(loaded["validation"].features)[:3] == ["image", "mask", "row"]


def test_card_claims_held_out_pictures_only_where_they_are(store: Path) -> None:
    """A background in two splits is noticed."""
    plan = Store(store).plan.copy()
    assert are_held_out(plan)
    train = split_rows(Store(store), "train")
    plan["split"][train[0]] = SPLITS.index("validation")
    assert not are_held_out(plan)


@pytest.mark.parametrize("runs", [True, False])
@pytest.mark.parametrize("shape", [(5, 7, 3), (6, 4), (1, 1, 3), (1, 9)])
def test_png_is_exact(shape: tuple[int, ...], runs: bool) -> None:
    """Noise and runs of 8 and 16 bits come back from Pillow, which has no colour pictures of 16 bits."""
    rng = np.random.default_rng(0)
    for dtype in (np.uint8,) if len(shape) == 3 else (np.uint8, np.uint16):
        for picture in (np.full(shape, 200, dtype), rng.integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)):
            back = decode(images.encode_png(picture, runs=runs))
            assert back.dtype == dtype
            np.testing.assert_array_equal(back, picture)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"file_format": "tfrecord"}, "--format: got tfrecord, expected webdataset or parquet"),
    ({"image_format": "webp"}, "--image-format: got webp, expected png or jpeg"),
    ({"split": "test"}, "--split: got test, expected one that has rows: train, validation, unused"),
    ({"rows_per_file": 0}, "--rows-per-file: got 0, expected 1 or more"),
    ({"jobs": 0}, "--jobs: got 0"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED)
def test_bad_options_write_nothing(tmp_path: Path, store: Path, options: dict[str, Any], message: str) -> None:
    """One line, and no folder."""
    with pytest.raises(DsgenError, match=message):
        export_store(store, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def add_file(out: Path) -> None:
    """Put something of the user's into the folder."""
    (out / "holiday.jpeg").write_bytes(b"mine")


def forget(out: Path) -> None:
    """Take away what says that the folder is an export."""
    (out / "export.json").unlink()


OTHERS: list[tuple[Callable[[Path], None] | None, dict[str, Any], str]] = [
    (add_file, {}, r"holds other files \(holiday.jpeg\)"),
    (forget, {}, r"holds other files \(README.md, train-00000-of-00001.tar"),
    (None, {"image_format": "jpeg"}, r"\n  image_format jpeg \(the export has png\)"),
    (None, {"backgrounds": True}, r"\n  backgrounds True \(the export has False\)"),
    (None, {"rows_per_file": 9}, r"\n  rows_per_file 9 \(the export has 1000\)"),
    (None, {"split": "train"}, r"\n  splits train \(the export has train,validation\)$"),
    (None, {"file_format": "parquet"}, r"\n  format parquet \(the export has webdataset\)"),
]


@pytest.mark.parametrize(("change", "options", "message"), OTHERS)
def test_other_folders_are_refused(
    tmp_path: Path, store: Path, change: Callable[[Path], None] | None, options: dict[str, Any], message: str
) -> None:
    """What differs is named, and nothing is touched."""
    out = tmp_path / "out"
    export_store(store, out, jobs=1)
    if change:
        change(out)
    before = files(out)
    with pytest.raises(DsgenError, match=message):
        export_store(store, out, **({"jobs": 1} | options))
    assert files(out) == before


def test_other_stores_are_refused(tmp_path: Path, store: Path, corpus: Path) -> None:
    """An unfinished export is not resumed with another store; a file is no folder."""
    export_store(store, tmp_path / "out", jobs=1)
    pack(corpus, tmp_path / "other", shards=1, jobs=1)
    with pytest.raises(
        DsgenError,
        match=r"exported from another store or with other settings; .*\n  store_sha256 [0-9a-f]{64} \(the export has",
    ):
        export_store(tmp_path / "other", tmp_path / "out", jobs=1)
    (tmp_path / "file").touch()
    with pytest.raises(DsgenError, match="a file, expected a folder"):
        export_store(store, tmp_path / "file", jobs=1)
    with pytest.raises(DsgenError, match="no such folder, expected a store"):
        export_store(tmp_path / "nowhere", tmp_path / "new", jobs=1)


def test_without_pyarrow(tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tar files need nothing; parquet names the extra."""
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    export_store(store, tmp_path / "tar", jobs=1)
    with pytest.raises(DsgenError, match=r"pyarrow: not installed; pip install 'dsgen\[parquet\]'"):
        export_store(store, tmp_path / "out", "parquet", jobs=1)


def test_command(tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line on stdout, and counts of what was there."""
    monkeypatch.chdir(tmp_path)
    command = ["export", str(store), "out", "--format", "parquet", "--split", "validation", "--jobs", "1"]
    made, again = (CliRunner().invoke(app, command).stdout for _ in range(2))
    rows = Store(store).splits["validation"]
    assert made.startswith(f"out: {rows} rows ({rows} validation) in 1 parquet file, ")
    assert made.endswith(f"{rows} exported now, 0 already existed\n")
    assert again.endswith(f"0 exported now, {rows} already existed\n")
