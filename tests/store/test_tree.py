"""A store as a Zarr group: zarr and xarray open it as a tree, whose shards join without a wrong value."""

import json
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray
import zarr
from PIL import Image
from support.corpora import draw_background, files
from support.damage import KINDS, delete, flip, truncate

from dsgen.corpus.corpus import Corpus
from dsgen.corpus.manifest import picture_records
from dsgen.errors import ConflictError, DsgenError
from dsgen.integrity.repair import repair
from dsgen.integrity.verify import verify
from dsgen.parallel.parts import Part
from dsgen.store import packing, schema
from dsgen.store.corpus_source import CorpusSource
from dsgen.store.kind import is_store
from dsgen.store.packing import pack, pack_shards, pack_source
from dsgen.store.picture_source import Pictures
from dsgen.store.reader import Store
from dsgen.store.sealing import open_shard, store_files

MODES = (False, True)  # xarray's defaults for joining: those of before, and those to come


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory, labelled_corpus: Path) -> Path:
    """A store of every kind, three shards each, which share some backgrounds and not others."""
    folder = tmp_path_factory.mktemp("trees")
    for kind, options in KINDS.items():
        pack(labelled_corpus, folder / kind, shards=3, jobs=1, **options)
    return folder


@pytest.fixture(params=MODES, ids=["old defaults", "new defaults"])
def mode(request: pytest.FixtureRequest) -> Iterator[bool]:
    """Join with one set of xarray's defaults, then the other."""
    with xarray.set_options(use_new_combine_kwarg_defaults=request.param):
        yield request.param


def open_tree(path: Path | str) -> xarray.DataTree:
    """Open a store, loading nothing."""
    return xarray.open_datatree(path, engine="zarr", chunks={})


@pytest.mark.parametrize("kind", KINDS)
def test_a_store_opens_as_a_tree(stores: Path, labelled_corpus: Path, kind: str) -> None:
    """Zarr and xarray find every shard that is a folder, and the names, without a warning."""
    corpus = Corpus(labelled_corpus)
    group, tree = zarr.open_group(stores / kind, mode="r"), open_tree(stores / kind)
    shards = sorted(path.name for path in (stores / kind).glob("*.zarr"))
    assert sorted(group.group_keys()) == list(tree.children) == shards
    assert bool(shards) == (kind != "zip")
    for name, part in (("background_name", "backgrounds"), ("foreground_name", "foregrounds")):
        expected = [entry["name"] for entry in picture_records(corpus.manifest, part)]
        assert group[name][:].tolist() == tree[name].values.tolist() == expected
    assert tree.attrs["Conventions"].startswith("CF-1.")
    for shard in shards:
        alone = xarray.open_zarr(stores / kind / shard)
        xarray.testing.assert_identical(tree.children[shard].to_dataset(inherit=False), alone)
        assert alone.attrs["Conventions"] == tree.attrs["Conventions"]
        np.testing.assert_array_equal(alone.sample, alone.row)
        np.testing.assert_array_equal(alone.picture, np.unique(alone.background_number))
        np.testing.assert_array_equal(group[f"{shard}/row"][:], alone.row)


@pytest.mark.parametrize("kind", ["folder", "recipe"])
def test_joined_shards_are_the_store(stores: Path, kind: str, mode: bool) -> None:
    """The recipe of the README gives every row, its background and its names, whatever xarray's defaults."""
    tree, truth = open_tree(stores / kind), Store(stores / kind).read(0, 72)
    shards = [node.to_dataset() for node in tree.children.values()]
    samples = xarray.concat([shard.drop_dims(["picture", "cutout"], errors="ignore") for shard in shards], "sample")
    backgrounds = xarray.concat([shard.background for shard in shards], "picture").drop_duplicates("picture")
    samples = samples.assign_coords(background_name=tree.background_name[samples.background_number])
    plan = Store(stores / kind).plan
    np.testing.assert_array_equal(samples.row, np.arange(72))
    np.testing.assert_array_equal(backgrounds.sel(picture=samples.background_number), truth["background"])
    assert samples.background_name.values.tolist() == [f"room{n}" for n in plan["background"]], mode
    if kind == "folder":
        np.testing.assert_array_equal(samples.image, truth["image"])
        np.testing.assert_array_equal(samples.mask, truth["mask"])
        assert samples.image.dtype == np.uint8


@pytest.mark.parametrize("how", [{"combine": "by_coords"}, {"combine": "nested", "concat_dim": "sample"}])
def test_shards_joined_as_they_are_give_no_wrong_background(stores: Path, how: dict[str, Any], mode: bool) -> None:
    """Without the recipe xarray refuses, or finds every row's background by its number."""
    truth = Store(stores / "folder").read(0, 72)
    paths = sorted((stores / "folder").glob("*.zarr"))

    def join() -> xarray.Dataset:
        return xarray.open_mfdataset(paths, engine="zarr", **how)

    if mode:
        with pytest.raises(xarray.AlignmentError, match="picture"):
            join()
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        joined = join()
    if how["combine"] == "by_coords":  # a grid of rows and backgrounds, NaN where a row has another background
        assert joined.image.dims[0] == "picture"
        joined = joined.assign({name: joined[name].max("picture") for name in ("image", "background_number")})
    np.testing.assert_array_equal(joined.image, truth["image"])
    for row in range(0, 72, 7):
        background = joined.background.isel(sample=row).sel(picture=joined.background_number[row])
        np.testing.assert_array_equal(background, truth["background"][row])


def units(value: Any) -> set[str]:
    """Every `units` in a tree of JSON."""
    if isinstance(value, list):
        return set().union(*map(units, value))
    if not isinstance(value, dict):
        return set()
    own = {value["units"]} if isinstance(value.get("units"), str) else set()
    return own.union(*map(units, value.values()))


def test_one_unit_for_depth(tmp_path: Path, labelled_corpus: Path) -> None:
    """Labels in millimetres are metres to whoever reads the attributes of a store, from a corpus or from pictures."""
    corpus = Path(shutil.copytree(labelled_corpus, tmp_path / "corpus"))
    zarr.open_group(corpus / "depth.zarr", mode="r+").attrs["units"] = "mm"
    pack(corpus, tmp_path / "s", shards=2, jobs=1)
    pack_source(picture_source(tmp_path), tmp_path / "p", shards=1, jobs=1)
    for path in (tmp_path / "s", tmp_path / "p"):
        found = [json.loads(file.read_text()) for file in path.rglob("*.json")]
        assert units(found) == {"m", "pixel"}
        depth = xarray.open_zarr(next(path.glob("*.zarr"))).depth
        assert depth.attrs["units"] == "m"
        assert 0 < float(depth.max()) < 10
    assert verify(tmp_path / "s", corpus, jobs=1).findings == ()


def picture_source(folder: Path) -> Pictures:
    """Three pictures with depth, one with a name beyond ASCII."""
    for name in ("rgb", "depth"):
        (folder / name).mkdir()
    for n, name in enumerate(("a", "ö", "z")):
        Image.fromarray(draw_background(n)).save(folder / "rgb" / f"{name}.png")
        Image.fromarray(np.full((110, 130), 2000 + n, np.uint16)).save(folder / "depth" / f"{name}.png")
    return Pictures(folder / "rgb", depth_folder=folder / "depth", size=32, validation_share=0, test_share=0)


def test_pictures_that_are_no_corpus_have_names(tmp_path: Path) -> None:
    """By row, in any script; there are no backgrounds or foregrounds to name."""
    pack_source(picture_source(tmp_path), tmp_path / "s", shards=1, jobs=1)
    tree = open_tree(tmp_path / "s")
    assert list(tree.data_vars) == ["picture_name"]
    assert tree.picture_name.values.tolist() == ["a.png", "z.png", "ö.png"]
    assert "picture" not in next(iter(tree.children.values()))
    assert verify(tmp_path / "s", jobs=1).findings == ()


def earlier_store(corpus: Path, path: Path, recipe: bool = False, zipped: bool = False) -> Path:
    """A store as versions without a layout made it: no group, no coordinates, the unit of the labels noted."""
    source = CorpusSource(corpus)
    made_from: dict[str, Any] = source.made_from | {"shards": 3, "recipe": recipe, "zip": zipped}
    made_from["depth"] = {**made_from["depth"], "units": "mm"}
    tables = pack_shards(source, path, range(3), made_from, 1)
    store = packing.open_files(path)
    shards = {name: open_shard(store, name) for name in tables}
    for name, content in store_files(source.plan, shards, tables).items():
        store.write(name, content)
    shutil.rmtree(path / "packing")
    return path


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "compact"])
def test_a_store_of_an_earlier_version_stays_one(
    tmp_path: Path, labelled_corpus: Path, stores: Path, kind: str
) -> None:
    """It opens, verifies, and is completed and repaired to the bytes it had."""
    path = earlier_store(labelled_corpus, tmp_path / "s", **KINDS[kind])
    was = files(path)
    assert not any(part in name for name in was for part in ("/sample/", "/picture/", "background_name"))
    assert "zarr.json" not in was
    for name, values in Store(stores / kind).read(0, 72).items():
        np.testing.assert_array_equal(Store(path).read(0, 72)[name], values)
    report = verify(path, labelled_corpus, jobs=1)
    assert (report.findings, report.notes) == ((), ())
    assert pack(labelled_corpus, path, shards=3, jobs=1, **KINDS[kind]).packed == 0
    lost = sorted(path.glob("shard-*"))[1]
    shutil.rmtree(lost) if lost.is_dir() else lost.unlink()
    assert pack(labelled_corpus, path, shards=3, jobs=1, **KINDS[kind]).packed == 20
    assert files(path) == was
    flip(next(file for file in sorted(path.rglob("*")) if file.is_file() and file.name in ("0", lost.name)))
    assert repair(path, labelled_corpus, jobs=1).replaced
    assert files(path) == was
    (path / "zarr.json").write_text("{}")  # not of this store
    assert [finding.file for finding in verify(path, fast=True, jobs=1).findings] == ["zarr.json"]


def test_a_conflict_is_still_one(tmp_path: Path, labelled_corpus: Path) -> None:
    """The layout hides no other difference."""
    path = earlier_store(labelled_corpus, tmp_path / "s")
    with pytest.raises(ConflictError, match="shards 2"):
        pack(labelled_corpus, path, shards=2, jobs=1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("damage", [flip, truncate, delete])
def test_the_group_is_repaired(
    tmp_path: Path, stores: Path, labelled_corpus: Path, kind: str, damage: Callable[[Path], None]
) -> None:
    """Each of its files, alone and beside a bad shard, to the bytes it had; what was added is removed."""
    path = Path(shutil.copytree(stores / kind, tmp_path / "s"))
    was = files(path)
    tree = [name for name in schema.TREE_FILES if name in was]
    assert len(tree) == 5
    for name in tree:
        damage(path / name)
    (path / "background_name" / "c" / "more").write_text("x")
    found = {finding.file for finding in verify(path, fast=True, jobs=1).findings}
    assert found == {*tree, "background_name/c/more"}
    bad = sorted(path.glob("shard-*"))[0]
    flip(bad if bad.is_file() else bad / "zarr.json")
    found = {finding.file for finding in verify(path, fast=True, jobs=1).findings}
    assert found == {*tree, "background_name/c/more", bad.name if bad.is_file() else f"{bad.name}/zarr.json"}
    repair(path, labelled_corpus, jobs=1)
    assert files(path) == was


def test_a_file_in_place_of_a_folder_and_the_reverse(tmp_path: Path, stores: Path, labelled_corpus: Path) -> None:
    """Both are found and repaired."""
    path = Path(shutil.copytree(stores / "folder", tmp_path / "s"))
    was = files(path)
    shutil.rmtree(path / "background_name")
    (path / "background_name").write_text("x")
    (path / "zarr.json").unlink()
    (path / "zarr.json").mkdir()
    (path / "zarr.json" / "a").write_text("x")
    found = {finding.file for finding in verify(path, fast=True, jobs=1).findings}
    assert {"background_name", "zarr.json", "zarr.json/a"} <= found
    repair(path, labelled_corpus, jobs=1)
    assert files(path) == was


def test_a_lost_group_comes_back(tmp_path: Path, stores: Path, labelled_corpus: Path) -> None:
    """Packing again writes it as it was; while a shard is missing there is none."""
    path = Path(shutil.copytree(stores / "folder", tmp_path / "s"))
    was = files(path)
    (path / "zarr.json").unlink()
    assert pack(labelled_corpus, path, shards=3, jobs=1).packed == 0
    assert files(path) == was
    shutil.rmtree(sorted(path.glob("*.zarr"))[1])

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "seal_shard", stop)
        with pytest.raises(KeyboardInterrupt):
            pack(labelled_corpus, path, shards=3, jobs=1)
    assert not (path / "zarr.json").exists()
    with pytest.raises(DsgenError, match="an unfinished store"):
        Store(path)
    pack(labelled_corpus, path, shards=3, jobs=1)
    assert files(path) == was


def test_a_store_whose_name_is_that_of_a_shard(tmp_path: Path, stores: Path) -> None:
    """Is a store all the same."""
    path = Path(shutil.copytree(stores / "folder", tmp_path / "shard-all"))
    assert is_store(path)
    with pytest.raises(DsgenError, match="one shard of a store, expected"):
        is_store(sorted(path.glob("*.zarr"))[0])


@pytest.mark.parametrize("where", ["memory://late/s", "local"])
def test_a_part_that_arrives_last_hashes_nothing(
    tmp_path: Path, labelled_corpus: Path, stores: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """Another part finishes the store between this one's blocks and its sealing: nothing is read again."""
    out = str(tmp_path / "s") if where == "local" else where
    pack_blocks = packing._Packing.pack_blocks
    hashed: list[str] = []
    monkeypatch.setattr(packing, "hash_shard", lambda _files, name, _sizes: hashed.append(name))

    def pack_then_wait(self: Any, workers: int, part: Part | None, cluster: str | None) -> int:
        packed = pack_blocks(self, workers, part, cluster)
        if part == Part(2, 2):
            assert pack(labelled_corpus, out, shards=3, part=Part(1, 2), jobs=1).finished
        return packed

    monkeypatch.setattr(packing._Packing, "pack_blocks", pack_then_wait)
    assert pack(labelled_corpus, out, shards=3, part=Part(2, 2), jobs=1).finished
    assert hashed == []
    store = Store(out)
    assert {name: store.files.read(name) for name in store.files.sizes() if "lock" not in name} == files_but_locks(
        stores / "folder"
    )


def files_but_locks(path: Path) -> dict[str, bytes]:
    """Every file of a store."""
    return {name: content for name, content in files(path).items() if "lock" not in name}


def test_parts_that_finish_at_once_in_a_bucket(
    labelled_corpus: Path, stores: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no lock keeps them apart, one may find that the other has finished the store and removed its records."""
    url = "memory://atonce/s"
    seal_shards = packing._Packing.seal_shards
    hashed: list[str] = []
    monkeypatch.setattr(packing, "hash_shard", lambda _files, name, _sizes: hashed.append(name))
    nested: list[int] = []

    def seal_then_wait(self: Any) -> bool:
        sealed = seal_shards(self)
        if not nested:
            nested.append(1)
            pack(labelled_corpus, url, shards=3, part=Part(1, 1), jobs=1)
        return sealed

    monkeypatch.setattr(packing._Packing, "seal_shards", seal_then_wait)
    assert pack(labelled_corpus, url, shards=3, part=Part(1, 1), jobs=1).finished
    assert hashed == []
    store = Store(url)
    assert {name: store.files.read(name) for name in store.files.sizes()} == files_but_locks(stores / "folder")
