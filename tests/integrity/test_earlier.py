"""What the version before made: it opens, is whole, goes on, is packed to the same bytes, and trains."""

import json
import shutil
import zipfile
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from support.corpora import digest
from support.earlier import PARAMETERS, STORES, wall

from dsgen.corpus.build import composite
from dsgen.corpus.composed import composed_depth, label_composed
from dsgen.corpus.corpus import Corpus
from dsgen.corpus.depth_views import draw_missing_views
from dsgen.depth.label_corpus import label_corpus
from dsgen.integrity.repair import repair
from dsgen.integrity.verify import verify
from dsgen.store.loader import Loader
from dsgen.store.packing import pack
from dsgen.store.reader import Store
from dsgen.views.info import describe

MADE = Path(__file__).parent.parent / "data/earlier/made.zip"
LIBRARIES = {"zarr": "3.1.6", "numcodecs": "0.16.6", "opencv-python": "5.0.0.93"}  # of which bytes are compared
same_libraries = pytest.mark.skipif(
    {name: version(name) for name in LIBRARIES} != LIBRARIES, reason="other libraries write other bytes of the same"
)


@pytest.fixture(scope="module", autouse=True)
def small_blocks() -> None:
    """Blocks are as large as the version before made them."""


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """The folders `pictures`, `corpus`, `store` and `recipe`."""
    with zipfile.ZipFile(MADE) as archive:
        archive.extractall(tmp_path / "made")
    return tmp_path / "made"


@same_libraries
@pytest.mark.parametrize("name", ["corpus", *STORES])
def test_it_is_whole(made: Path, name: str):
    """Nothing is found, by itself and by comparison; looking changes nothing."""
    before = digest(made / name)
    report = verify(made / name, corpus=made / "corpus" if name in STORES else None, jobs=1)
    assert not report.findings
    assert not describe(made / name).table().startswith("error")
    assert digest(made / name) == before


@same_libraries
def test_composite_goes_on(made: Path):
    """Nothing is drawn, no byte changes; a missing folder of composites is drawn again to the same bytes."""
    pictures, before = made / "pictures", digest(made / "corpus")
    arguments = made / "corpus", pictures / "backgrounds", pictures / "foregrounds", PARAMETERS
    done = composite(*arguments, jobs=1, fov_deg=60)
    assert (done.drawn, done.already_there, done.rows) == (0, 36, 36)
    assert digest(made / "corpus") == before
    shutil.rmtree(next((made / "corpus/bg_fg").iterdir()))
    assert composite(*arguments, jobs=1, fov_deg=60).drawn == 12
    assert digest(made / "corpus") == before


@same_libraries
def test_the_same_corpus_is_made_today(made: Path, tmp_path: Path):
    """Of the same pictures: the same bytes in every file, the manifest too."""
    pictures = made / "pictures"
    composite(tmp_path / "c", pictures / "backgrounds", pictures / "foregrounds", PARAMETERS, jobs=1, fov_deg=60)
    earlier = {name: sha for name, sha in digest(made / "corpus").items() if not name.startswith("depth.zarr/")}
    assert digest(tmp_path / "c") == earlier


def test_labels_go_on(made: Path, monkeypatch: pytest.MonkeyPatch):
    """By the same function nothing is labelled again; without them, the same labels are made again."""
    before = digest(made / "corpus")
    done = label_corpus(made / "corpus", model=wall, device="cpu", check_flip=True, jobs=1)
    assert (done.labelled, done.already_there) == (0, 36)
    assert digest(made / "corpus") == before
    earlier = Corpus(made / "corpus")
    labels = earlier.labels.read(0, 36)
    shutil.rmtree(made / "corpus/depth.zarr")
    label_corpus(made / "corpus", model=wall, device="cpu", check_flip=True, jobs=1)
    np.testing.assert_allclose(Corpus(made / "corpus").labels.read(0, 36).astype(int), labels.astype(int), atol=1)
    draw_missing_views(Corpus(made / "corpus"), 1, None)


@same_libraries
@pytest.mark.parametrize("name", STORES)
def test_it_is_packed_to_the_same_bytes(made: Path, tmp_path: Path, name: str):
    """Today's stores of one person at random places are those of the version before; packing again changes nothing."""
    before = digest(made / name)
    assert pack(made / "corpus", made / name, shards=2, jobs=1, **STORES[name]).packed == 0
    assert digest(made / name) == before
    pack(made / "corpus", tmp_path / "again", shards=2, jobs=1, **STORES[name])
    assert digest(tmp_path / "again") == before


@same_libraries
@pytest.mark.parametrize("name", STORES)
def test_it_is_repaired(made: Path, name: str):
    """A shard that is lost comes back byte for byte."""
    before = digest(made / name)
    shard = min((made / name).glob("shard-*"))
    for file in (shard / "zarr.json", next((shard / "background/c").rglob("0"))):
        if file.is_file():
            file.unlink()
    shutil.rmtree(shard / "row")
    repair(made / name, corpus=made / "corpus", jobs=1)
    assert digest(made / name) == before


@pytest.mark.parametrize("name", STORES)
def test_rows_are_read(made: Path, name: str):
    """As the corpus draws them, and by the loader; no instances."""
    corpus, store = Corpus(made / "corpus"), Store(made / name)
    assert store.fields == ("image", "mask", "depth", "background")
    rows = store.read(0, 36)
    image, mask = corpus.render(corpus.plan)
    assert (rows["image"] == image).all()
    assert (rows["mask"] == mask).all()
    assert (rows["depth"] == corpus.labels.read(0, 36)).all()
    assert (store.plan == corpus.plan).all()
    for batch in Loader(made / name, None, batch_size=8, workers=0):
        assert (batch["image"].numpy() == image[batch["row"].numpy()]).all()


@pytest.mark.slow
def test_a_network_trains_from_them_alike(made: Path, tmp_path: Path):
    """From the store and from the recipe, to the same scores."""
    from dsgen.training.fit import train
    from dsgen.training.settings import Settings

    settings = Settings(batch_size=(4,), sizes=(32,), width=4, validation_samples=None)
    scores = [train(made / name, tmp_path / name, settings, epochs=1, device="cpu").best for name in STORES]
    timed = {"seconds", "images_per_second"}
    one, other = ({name: score for name, score in each.items() if name not in timed} for each in scores)
    assert one == pytest.approx(other, nan_ok=True)


def test_depth_is_composed_beside_its_labels(made: Path, tmp_path: Path):
    """Its corpus gains rooms, and packs with composed depth; its own files stay."""
    before = digest(made / "corpus")
    depths = tmp_path / "depths"
    depths.mkdir()
    for n in range(3):
        np.save(depths / f"room{n}.npy", np.full((40, 44), 3 + n, np.float32))
    done = label_composed(made / "corpus", background_depths=depths, jobs=1)
    assert done.beside == "function:support.earlier.wall"
    after = digest(made / "corpus")
    assert {name: sha for name, sha in after.items() if not name.startswith("rooms.zarr")} == before
    corpus = Corpus(made / "corpus")
    assert {record["fov_from"] for record in corpus.rooms.records} == {"option"}
    pack(made / "corpus", tmp_path / "s", jobs=1, composed=True, recipe=True)
    assert (Store(tmp_path / "s").read(0, 36)["depth"] == composed_depth(corpus, corpus.plan)).all()
    assert not verify(made / "corpus", jobs=1).findings


def test_manifests_have_no_new_keys(made: Path):
    """What the version before can read: format 1, and the parameters that it knows."""
    manifest = json.loads((made / "corpus/corpus.json").read_bytes())
    assert manifest["format"] == 1
    assert set(manifest) == {
        *("format", "dsgen", "rows", "splits", "parameters", "sha256", "backgrounds", "foregrounds", "manifest_sha256")
    }
