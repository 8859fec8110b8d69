"""Stores of corpora whose people have places of their own: every row as the corpus draws it, in every kind of store."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from support.corpora import digest, files
from support.damage import flip, linked, named, put
from support.rooms import STANDING, make_room_corpus

from dsgen.corpus.composed import composed_depth, find_boxes
from dsgen.corpus.corpus import Corpus
from dsgen.corpus.plan import PERSON
from dsgen.errors import DsgenError
from dsgen.integrity.repair import repair
from dsgen.integrity.verify import verify
from dsgen.parallel.parts import Part
from dsgen.store import schema
from dsgen.store.dataset import StoreDataset
from dsgen.store.loader import Loader
from dsgen.store.packing import pack
from dsgen.store.reader import Store

KINDS: dict[str, dict[str, Any]] = {
    "normal": {},
    "recipe": {"recipe": True},
    "zip": {"zipped": True},
    "zipped recipe": {"recipe": True, "zipped": True},
}
FIELDS = ("image", "mask", "depth", "instance", "background")


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every chunk a block, so that small shards have several."""
    monkeypatch.setattr(schema, "_BLOCK_SAMPLES", 1)


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory, floor_corpus: Path) -> Path:
    """A store of every kind, of two shards each; none may be written to."""
    folder = tmp_path_factory.mktemp("stores")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(schema, "_BLOCK_SAMPLES", 1)
        for kind, options in KINDS.items():
            pack(floor_corpus, folder / kind, shards=2, jobs=1, **options)
    return folder


@pytest.fixture(scope="module")
def expected(floor_corpus: Path) -> dict[str, np.ndarray]:
    """All rows as the corpus draws them."""
    corpus = Corpus(floor_corpus)
    drawn = corpus.draw(corpus.plan, ("image", "mask", "instance"))
    drawn["depth"] = composed_depth(corpus, corpus.plan)
    drawn["background"] = np.stack([corpus.background(b) for b in corpus.plan["background"].tolist()])
    return drawn


@pytest.mark.parametrize("kind", KINDS)
def test_every_row_is_the_corpus_s(stores: Path, floor_corpus: Path, expected: dict[str, np.ndarray], kind: str):
    """All fields and columns; any range of rows gives the same; nothing is found wrong."""
    store, corpus = Store(stores / kind), Corpus(floor_corpus)
    assert store.fields == FIELDS
    rows = store.read(0, 30)
    for name, values in expected.items():
        np.testing.assert_array_equal(rows[name], values, err_msg=name)
        assert rows[name].dtype == values.dtype
        np.testing.assert_array_equal(store.read(17, 26)[name], values[17:26], err_msg=name)
    assert store.plan.dtype == corpus.plan.dtype
    assert (store.plan == corpus.plan).all()
    boxes = np.concatenate([shard.read("person_box", 0, shard.rows) for shard in store.shards])
    assert (boxes == find_boxes(expected["instance"], 3)).all()
    assert not verify(stores / kind, corpus=floor_corpus, jobs=1).findings
    assert not verify(stores / kind, jobs=1).findings


def test_a_recipe_stores_no_pictures_of_rows(stores: Path):
    """Its shards have no image, mask, instance or depth, and say that readers need to know the second format."""
    for shard in (stores / "recipe").glob("shard-*"):
        assert not {entry.name for entry in shard.iterdir()} & {"image", "mask", "instance", "depth"}
    assert Store(stores / "recipe").index["format"] == 2
    assert Store(stores / "normal").index["format"] == 1


@pytest.mark.parametrize("kind", ["normal", "recipe"])
def test_parts_and_workers_write_the_same_bytes(tmp_path: Path, stores: Path, floor_corpus: Path, kind: str):
    """Two parts, one with two processes; a run after the end changes nothing."""
    out = tmp_path / "s"
    assert not pack(floor_corpus, out, shards=2, jobs=1, part=Part(2, 2), **KINDS[kind]).finished
    assert pack(floor_corpus, out, shards=2, jobs=2, part=Part(1, 2), **KINDS[kind]).finished
    assert digest(out) == digest(stores / kind)
    assert pack(floor_corpus, out, shards=2, jobs=1, **KINDS[kind]).packed == 0
    assert digest(out) == digest(stores / kind)


@pytest.mark.parametrize("kind", KINDS)
def test_the_loader_hands_out_every_row(stores: Path, expected: dict[str, np.ndarray], kind: str):
    """With `instance`; as floats it stays what it is."""
    loader = Loader(stores / kind, None, batch_size=7, workers=1)
    seen = []
    for batch in loader:
        rows = batch["row"].numpy()
        seen += rows.tolist()
        for name in FIELDS:
            np.testing.assert_array_equal(batch[name].numpy(), expected[name][rows], err_msg=name)
    assert sorted(seen) == list(range(30))
    batch = next(iter(Loader(stores / kind, None, batch_size=7, workers=0, floats=True)))
    rows = batch["row"].numpy()
    assert batch["mask"].shape == (7, 1, 48, 48)
    np.testing.assert_array_equal(batch["instance"].numpy().reshape(7, 48, 48), expected["instance"][rows])
    np.testing.assert_allclose(batch["depth"].numpy()[:, 0], expected["depth"][rows] / 1000, rtol=1e-6)


@pytest.mark.parametrize("kind", ["normal", "zipped recipe"])
def test_the_dataset_returns_every_row(stores: Path, expected: dict[str, np.ndarray], kind: str):
    """One sample at a time, with its instances."""
    dataset = StoreDataset(stores / kind, None)
    for index in (0, 1, 17, 29, 3):
        sample = dataset[index]
        assert sample["row"] == index
        np.testing.assert_array_equal(sample["image"].numpy(), expected["image"][index].transpose(2, 0, 1))
        np.testing.assert_array_equal(sample["mask"].numpy()[0], expected["mask"][index] > 0)
        np.testing.assert_array_equal(sample["instance"].numpy()[0], expected["instance"][index])


def test_other_programs_read_it(stores: Path, expected: dict[str, np.ndarray], floor_corpus: Path):
    """Plain zarr and xarray, with names of dimensions, columns of people and metres."""
    xarray = pytest.importorskip("xarray")
    plan = Corpus(floor_corpus).plan
    for path in sorted((stores / "normal").glob("shard-*")):
        group = zarr.open_group(path, mode="r")
        rows = group["row"][:]
        for name in ("image", "mask", "depth", "instance"):
            np.testing.assert_array_equal(group[name][:], expected[name][rows])
        for name in PERSON.names:
            np.testing.assert_array_equal(group[f"person_{name}"][:], plan["people"][name][rows])
        np.testing.assert_array_equal(group["person_box"][:], find_boxes(expected["instance"], 3)[rows])
        opened = xarray.open_zarr(path, consolidated=True)
        assert opened["instance"].dims == ("sample", "y", "x")
        assert opened["person_box"].dims == ("sample", "person", "box")
        assert opened["person_distance"].dims == ("sample", "person")
        known = expected["depth"][rows] > 0
        np.testing.assert_allclose(opened["depth"].values[known], expected["depth"][rows][known] / 1000, rtol=1e-6)
    for path in (stores / "recipe").glob("shard-*"):
        opened = xarray.open_zarr(path, consolidated=True)
        assert opened["room_depth"].dims == ("picture", "y", "x")
        assert opened["person_depth"].dims == ("sample", "person")


def one_file(store: Path, array: str) -> Path:
    """A file with data of an array of the first shard that has any."""
    return min(path for path in store.glob(f"shard-*/{array}/c/**/*") if path.is_file())


ARRAYS = [
    *(("recipe", f"person_{name}") for name in (*(PERSON.names or ()), "box", "depth")),
    *(("recipe", f"room_{name}") for name in ("depth", "floor", "margin", "camera")),
    ("recipe", "foreground_cutout"),
    ("normal", "instance"),
    ("normal", "person_box"),
    ("normal", "person_top"),
]


@pytest.mark.parametrize("kind", ["recipe", "normal"])
def test_flipped_bits_are_found_and_repaired(tmp_path: Path, stores: Path, floor_corpus: Path, kind: str):
    """In every array of people and rooms, each alone by its hash; then all are repaired to the bytes they had."""
    path = linked(stores / kind, tmp_path / "s")
    before = files(path)
    damaged = [one_file(path, array) for of, array in ARRAYS if of == kind]
    for file in damaged:
        content = file.read_bytes()
        flip(file)
        assert file.relative_to(path).as_posix() in named(verify(path, fast=True, jobs=1))
        put(file, content)
    for file in damaged:
        flip(file)
    repair(path, corpus=floor_corpus, jobs=1)
    assert files(path) == before


@pytest.mark.parametrize(
    ("kind", "array"),
    [
        ("recipe", "person_depth"),
        ("recipe", "person_top"),
        ("recipe", "person_box"),
        ("recipe", "room_floor"),
        ("recipe", "room_depth"),
        ("recipe", "room_camera"),
        ("recipe", "room_margin"),
        ("normal", "instance"),
        ("normal", "person_box"),
        ("normal", "person_distance"),
    ],
)
def test_values_that_differ_from_the_corpus_are_found(
    tmp_path: Path, stores: Path, floor_corpus: Path, kind: str, array: str
):
    """A value that decodes well is compared, besides the hash of its file."""
    path = Path(shutil.copytree(stores / kind, tmp_path / "s"))
    shard = min(path.glob("shard-*"))
    array_in_file = zarr.open_array(shard / array, mode="r+")
    values = array_in_file[:]
    first = np.unravel_index(np.argmax(values > 0), values.shape)
    values[first] ^= 1
    array_in_file[:] = values
    found = [
        finding for finding in verify(path, corpus=floor_corpus, jobs=1).findings if "differs from" in finding.what
    ]
    assert any(array in f"{finding.file} {finding.what}" and "corpus" in finding.what for finding in found), found


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"place": "random", "people": 2}, marks=pytest.mark.slow),
        pytest.param({"people": 1}, marks=pytest.mark.slow),
        {"people": 1, "place": "random", "fg_height": "10-30"},
        pytest.param(
            {"people": 2, "tilt": 20.0, "truncate": True, "height_jitter": 0.2, "spread": "pixels"},
            marks=pytest.mark.slow,
        ),
        {"without_floor": "leave-out", "skip_unused": True},
    ],
    ids=str,
)
def test_stores_of_other_corpora(tmp_path: Path, room_pictures: Path, changes: dict[str, Any]):
    """Normal and recipe agree with the corpus; one class and one person need no instances; verified and exact."""
    path = make_room_corpus(tmp_path / "c", room_pictures, replace(STANDING, **changes))
    corpus = Corpus(path)
    assert not verify(path, jobs=1).findings
    drawn = corpus.draw(corpus.plan, ("image", "mask", "instance"))
    for recipe in (False, True):
        out = tmp_path / f"s{recipe}"
        pack(path, out, jobs=1, recipe=recipe)
        store = Store(out)
        rows = store.read(0, len(corpus))
        assert ("instance" in store.fields) == (corpus.people > 1)
        assert store.has_depth == (corpus.rooms is not None)
        for name in set(rows) & {"image", "mask", "instance"}:
            np.testing.assert_array_equal(rows[name], drawn[name], err_msg=name)
        if store.has_depth:
            np.testing.assert_array_equal(rows["depth"], composed_depth(corpus, corpus.plan))
    assert not verify(out, corpus=path, jobs=1).findings


def test_several_classes_have_instances(tmp_path: Path, room_pictures: Path):
    """With one person a picture too; the attributes of shards say which foreground is of which class."""
    folder = tmp_path / "pictures"
    shutil.copytree(room_pictures, folder)
    for n in range(5):
        target = folder / "foregrounds" / ("chair" if n % 2 else "person")
        target.mkdir(exist_ok=True)
        (folder / "foregrounds" / f"person{n}.png").rename(target / f"person{n}.png")
    path = make_room_corpus(tmp_path / "c", folder, replace(STANDING, people=1))
    pack(path, tmp_path / "s", shards=1, jobs=1)
    store = Store(tmp_path / "s")
    assert "instance" in store.fields
    classes = [record.get("class") for record in store.shards[0].attributes["foregrounds"]]
    assert sorted(classes) == ["chair", "chair", "person", "person", "person"]


def test_a_store_of_another_corpus_goes_not_on(tmp_path: Path, room_pictures: Path, stores: Path):
    """Other people, the same pictures."""
    path = make_room_corpus(tmp_path / "c", room_pictures, replace(STANDING, people="1-2"))
    before = digest(stores / "recipe")
    with pytest.raises(DsgenError, match="packed from other inputs"):
        pack(path, stores / "recipe", shards=2, jobs=1, recipe=True)
    assert digest(stores / "recipe") == before


@pytest.mark.slow
def test_a_network_trains_from_a_recipe(tmp_path: Path, floor_corpus: Path, stores: Path):
    """One epoch of a tiny U-Net on masks and depth, neither of which is stored."""
    from dsgen.training.fit import train
    from dsgen.training.settings import Settings

    settings = Settings(batch_size=(4,), sizes=(32,), width=4, validation_samples=None)
    done = train(stores / "recipe", tmp_path / "run", settings, epochs=1, device="cpu")
    assert done.best is not None
