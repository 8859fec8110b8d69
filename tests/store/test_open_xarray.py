"""A store as an xarray dataset: exact, lazy, depth in metres as float32."""

import pickle
import shutil
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import dask
import numpy as np
import pytest
from PIL import Image
from support.corpora import draw_background
from support.damage import KINDS

from dsgen.corpus.composed import label_composed
from dsgen.errors import InvalidValueError, NotFoundError
from dsgen.store.open_xarray import open_xarray
from dsgen.store.packing import pack, pack_source
from dsgen.store.picture_source import Pictures
from dsgen.store.reader import Shard, Store


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory, floor_corpus: Path) -> Path:
    """Stores of every kind, of people in rooms, two shards each."""
    folder = tmp_path_factory.mktemp("stores")
    corpus = Path(shutil.copytree(floor_corpus, folder / "corpus"))
    label_composed(corpus, jobs=1)
    for kind, options in KINDS.items():
        pack(corpus, folder / kind, shards=2, jobs=1, **options)
    return folder


def metres(millimetres: np.ndarray) -> np.ndarray:
    """As the dataset has them."""
    return np.where(millimetres == 0, np.float32(np.nan), millimetres / np.float32(1000))


@pytest.mark.parametrize("kind", KINDS)
def test_every_row_is_the_stores(stores: Path, kind: str) -> None:
    """Pixels, drawn ones too, backgrounds, columns and names."""
    store, data = Store(stores / kind), open_xarray(stores / kind)
    truth = store.read(0, store.rows)
    for name in ("image", "mask", "instance"):
        np.testing.assert_array_equal(data[name], truth[name])
        assert data[name].dtype == np.uint8
    assert data.depth.dtype == np.float32
    assert data.depth.attrs == {"long_name": "planar depth", "units": "m"}
    np.testing.assert_array_equal(data.depth, metres(truth["depth"]))
    np.testing.assert_array_equal(data.background.sel(picture=data.background_number), truth["background"])
    np.testing.assert_array_equal(data.sample, np.arange(store.rows))
    people = store.plan["people"]
    np.testing.assert_array_equal(data.person_distance, people["distance"])
    np.testing.assert_array_equal(data.person_box, store.boxes)
    assert data.background_name.values.tolist() == [f"room{n}" for n in store.plan["background"]]
    expected = np.where(people["height"] > 0, np.char.add("person", people["foreground"].astype(str)), "")
    np.testing.assert_array_equal(data.foreground_name, expected)


def test_it_is_what_xarray_alone_reads(stores: Path, labelled_corpus: Path) -> None:
    """But for the precision of depth, and the split by name."""
    import xarray

    path = sorted((stores / "folder").glob("*.zarr"))[1]
    alone, data = xarray.open_zarr(path), open_xarray(stores / "folder")
    part = data.sel(sample=alone.sample)
    for name in set(data.data_vars) & set(alone.data_vars) - {"depth", "background"}:
        np.testing.assert_array_equal(part[name], alone[name])
        assert (part[name].dims, part[name].attrs) == (alone[name].dims, alone[name].attrs)
    one_person = {"foreground", "flip", "position", "top", "left"}
    assert set(alone.data_vars) - set(data.data_vars) == one_person | {"background_index", "row", "split"}
    np.testing.assert_array_equal(part.depth, alone.depth.astype(np.float32))


def test_a_split(stores: Path) -> None:
    """Its rows alone, and their backgrounds."""
    store, data = Store(stores / "folder"), open_xarray(stores / "folder", "validation")
    rows = store.rows_of("validation")
    np.testing.assert_array_equal(data.sample, rows)
    assert set(data.split.values.tolist()) == {"validation"}
    np.testing.assert_array_equal(data.mask, store.read(0, store.rows)["mask"][rows])
    assert data.picture.values.tolist() == sorted(set(store.plan["background"][rows].tolist()))


@pytest.mark.parametrize(
    "key",
    [
        (3,),
        (-1, slice(None, None, -2), 4),
        (slice(20, 2, -3), slice(5, 9)),
        ([7, 7, 0, 29], 3, [1, 0], 2),
        (slice(0, 0),),
        ([], slice(3)),
        (np.arange(30) % 2 == 0, 3, 3),
    ],
)
def test_indexing_is_numpys(stores: Path, key: tuple) -> None:
    """By numbers, slices, arrays, in any order, repeated or empty, dimension by dimension."""
    data, whole = open_xarray(stores / "folder").image, Store(stores / "folder").read(0, 30)["image"]
    expected = whole
    for axis in reversed(range(len(key))):
        expected = expected[(slice(None),) * axis + (key[axis],)]
    np.testing.assert_array_equal(data[key], expected)


def test_only_the_chunks_of_the_rows_are_read(stores: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening reads no pixels; a row, only its chunk; many rows, each chunk once."""
    read: list[tuple[int, int, int]] = []
    samples = Shard.samples

    def watched(self, first: int, last: int, *more, **options):
        read.append((self.attributes["first_row"], first, last))
        return samples(self, first, last, *more, **options)

    monkeypatch.setattr(Shard, "samples", watched)
    data = open_xarray(stores / "folder")
    assert read == []
    data.mask[11].load()
    assert read == [(0, 11, 12)]
    data.depth[[3, 2, 21, 2, 1]].load()
    assert read[1:] == [(0, 1, 4), (20, 1, 2)]


def test_dask_and_pickle(stores: Path) -> None:
    """In chunks that other processes may compute."""
    data = open_xarray(stores / "recipe")
    again = pickle.loads(pickle.dumps(data)).chunk(sample=7)
    assert again.image.chunks[0] == (7, 7, 7, 7, 2)
    np.testing.assert_array_equal(again.depth.mean(("y", "x")), data.depth.mean(("y", "x")))
    np.testing.assert_array_equal(again.image.compute(scheduler="threads"), data.image)


def test_dask_computes_in_the_calling_thread() -> None:
    """Unless a test asks for threads: tests/conftest.py has set its scheduler before anything imported it."""
    asked = [dask.delayed(threading.get_ident)() for _ in range(3)]
    assert set(dask.compute(*asked)) == {threading.get_ident()}


def test_a_store_at_a_url(labelled_corpus: Path) -> None:
    """As a folder."""
    pack(labelled_corpus, "memory://xarray/s", shards=2, jobs=1)
    store, data = Store("memory://xarray/s"), open_xarray("memory://xarray/s")
    np.testing.assert_array_equal(data.depth[30:50], metres(store.read(30, 50)["depth"]))
    assert data.foreground_name.dims == ("sample",)
    assert data.foreground_name.values.tolist() == [f"person{n}" for n in store.plan["foreground"]]


def test_pictures_of_ones_own(tmp_path: Path) -> None:
    """Without masks and backgrounds, with names."""
    (tmp_path / "rgb").mkdir()
    for n, name in enumerate(("a", "ö", "z")):
        Image.fromarray(draw_background(n)).save(tmp_path / "rgb" / f"{name}.png")
    pack_source(Pictures(tmp_path / "rgb", size=32, validation_share=0, test_share=0), tmp_path / "s", jobs=1)
    data = open_xarray(tmp_path / "s")
    assert data.picture_name.values.tolist() == ["a.png", "z.png", "ö.png"]
    np.testing.assert_array_equal(data.image, Store(tmp_path / "s").read(0, 3)["image"])
    assert not {"mask", "depth", "background", "background_name"} & set(data.variables)


@pytest.mark.parametrize("kind", ["store", "recipe"])
def test_stores_of_earlier_versions(tmp_path: Path, kind: str) -> None:
    """Without a group, coordinates or arrays of names, all the same."""
    with zipfile.ZipFile(Path(__file__).parents[1] / "data/earlier/made.zip") as made:
        made.extractall(tmp_path)
    path = next(tmp_path.rglob(f"{kind}/index.json")).parent
    store, data = Store(path), open_xarray(path)
    truth = store.read(0, store.rows)
    np.testing.assert_array_equal(data.image, truth["image"])
    np.testing.assert_array_equal(data.background.sel(picture=data.background_number), truth["background"])
    assert len(set(data.background_name.values.tolist())) == len(data.picture)


def test_what_cannot_be_opened(stores: Path, tmp_path: Path) -> None:
    """The errors are those of `Store`."""
    with pytest.raises(InvalidValueError, match="got testing, expected one of train"):
        open_xarray(stores / "folder", "testing")
    with pytest.raises(NotFoundError, match="expected a store"):
        open_xarray(tmp_path)


def test_without_xarray() -> None:
    """It says what to install."""
    program = "import sys; sys.modules['xarray'] = None; import dsgen; dsgen.open_xarray"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert "MissingPackageError: xarray: not installed; pip install 'dsgen[xarray]'" in done.stderr
