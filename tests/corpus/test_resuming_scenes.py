"""A corpus of people on floors is resumed with the same depth and heights only; classes reach its stores."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.corpora import SMALL, digest
from support.rooms import STANDING, make_room_corpus

from dsgen.corpus.build import composite
from dsgen.errors import ConflictError
from dsgen.integrity.verify import verify
from dsgen.store.packing import pack
from dsgen.store.reader import Store

ONE = replace(STANDING, people=1, positions=1)


@pytest.fixture
def pictures(tmp_path: Path, room_pictures: Path) -> Path:
    """A copy of the pictures, to be changed."""
    return Path(shutil.copytree(room_pictures, tmp_path / "pictures"))


def test_the_same_depth_continues_and_another_is_refused(tmp_path: Path, pictures: Path):
    """The error names the background whose depth map changed; nothing is written."""
    path = make_room_corpus(tmp_path / "c", pictures, ONE)
    before = digest(path)
    make_room_corpus(path, pictures, ONE)
    depth = np.load(pictures / "depths/room1.npy")
    np.save(pictures / "depths/room1.npy", depth * 1.01)
    with pytest.raises(ConflictError, match="other depth") as caught:
        make_room_corpus(path, pictures, ONE)
    assert [difference.name for difference in caught.value.differences] == ["depth of room1"]
    make_room_corpus(path, pictures, ONE, background_depths=None)  # it knows its depth
    assert digest(path) == before


def test_another_height_is_refused(tmp_path: Path, pictures: Path):
    """The plan depends on it."""
    path = make_room_corpus(tmp_path / "c", pictures, ONE)
    (pictures / "foregrounds.csv").write_text("name,height_m\nperson2,1.2\n")
    with pytest.raises(ConflictError) as caught:
        make_room_corpus(path, pictures, ONE)
    assert [(d.name, d.now, d.was) for d in caught.value.differences] == [("height of person2.png", 1.2, 1.7)]


@pytest.mark.parametrize("recipe", [False, True])
def test_classes_make_instances(tmp_path: Path, pictures: Path, recipe: bool):
    """At random places with one foreground a row too: the instance is 1 where the mask is."""
    for name in ("person", "chair"):
        (pictures / "foregrounds" / name).mkdir()
    for number, file in enumerate(sorted((pictures / "foregrounds").glob("*.png"))):
        file.rename(file.parent / ("chair" if number % 2 else "person") / file.name)
    path = tmp_path / "c"
    composite(path, pictures / "backgrounds", pictures / "foregrounds", SMALL, pictures=False, jobs=1)
    pack(path, tmp_path / "s", shards=1, recipe=recipe, jobs=1)
    store = Store(tmp_path / "s")
    assert "instance" in store.fields
    rows = store.read(0, store.rows)
    assert np.array_equal(rows["instance"], rows["mask"] // 255)
    assert store.index["format"] == (2 if recipe else 1)
    classes = {record["class"] for record in store.shards[0].attributes["foregrounds"]}
    assert classes == {"chair", "person"}
    assert not verify(tmp_path / "s", corpus=path, jobs=1).findings
