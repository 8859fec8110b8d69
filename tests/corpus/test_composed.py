"""Composed depth: what it is by its definition, resumed, beside a network's labels, packed, verified and repaired."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from support.corpora import SMALL, digest, files
from support.damage import flip, linked, named
from support.earlier import wall
from support.rooms import FOV_DEG, draw_room_depth, make_room_corpus

from dsgen.camera import focal_px
from dsgen.corpus import labels as labels_module
from dsgen.corpus.composed import composed_depth, find_boxes, label_composed
from dsgen.corpus.corpus import Corpus
from dsgen.corpus.rooms import RoomDepth
from dsgen.errors import ConflictError, DsgenError, InvalidValueError
from dsgen.integrity.repair import repair
from dsgen.integrity.verify import verify
from dsgen.parallel.parts import Part
from dsgen.store.packing import pack
from dsgen.store.reader import Store
from dsgen.views.info import describe


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Labels of small corpora have several blocks."""
    monkeypatch.setattr(labels_module, "BLOCK_ROWS", 20)


@pytest.fixture(scope="module")
def random_corpus(tmp_path_factory: pytest.TempPathFactory, room_pictures: Path) -> Path:
    """People at random places, all 20 pixels high, in rooms whose depth is known."""
    path = tmp_path_factory.mktemp("random") / "corpus"
    make_room_corpus(path, room_pictures, replace(SMALL, positions=3))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(labels_module, "BLOCK_ROWS", 20)
        label_composed(path, background_depths=room_pictures / "depths", jobs=1)
    return path


@pytest.fixture(scope="module")
def floor_labelled(tmp_path_factory: pytest.TempPathFactory, floor_corpus: Path) -> Path:
    """The corpus of people on floors with composed labels."""
    path = tmp_path_factory.mktemp("standing") / "corpus"
    shutil.copytree(floor_corpus, path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(labels_module, "BLOCK_ROWS", 20)
        label_composed(path, jobs=1)
    return path


def room_millimetres(pictures: Path, number: int, size: int) -> np.ndarray:
    """The depth of a room at a size that divides its own: the nearest pixels."""
    depth = np.load(pictures / "depths" / f"room{number}.npy")
    step = len(depth) // size
    return np.rint(depth[step // 2 :: step, step // 2 :: step] * 1000.0).astype(int)


def implied(room: np.ndarray, seen: np.ndarray, height_px: float, height_m: float = 1.7) -> int:
    """What a floating person's height implies, but before the tenth percentile of what they cover."""
    pinhole = round(1000 * round(focal_px(FOV_DEG, len(room)), 4) * height_m / height_px)
    covered = np.sort(room[seen])
    if not len(covered):
        return pinhole
    return min(pinhole, covered[(len(covered) - 1) // 10] * 95 // 100)


def test_depth_of_people_at_random_places(random_corpus: Path, room_pictures: Path):
    """The room's outside the mask; within it f H / h, or 0.95 of the 10th percentile of what is covered."""
    corpus = Corpus(random_corpus)
    assert corpus.labels is not None
    depth = corpus.labels.read(0, len(corpus))
    _, mask = corpus.render(corpus.plan)
    behind = 0
    for i, row in enumerate(corpus.plan):
        room, seen = room_millimetres(room_pictures, int(row["background"]), 48), mask[i] > 0
        height = corpus.foreground(int(row["foreground"])).shape[0]
        expected = implied(room, seen, height)
        assert (depth[i] == np.where(seen, expected, room)).all()
        assert expected < np.percentile(room[seen], 10)
        behind += expected < round(1000 * focal_px(FOV_DEG, 48) * 1.7 / height)
    assert 0 < behind < len(corpus)


def test_depth_of_people_on_floors(floor_labelled: Path, room_pictures: Path):
    """The room's, and where a person is seen their distance; those in the room without a floor float."""
    corpus = Corpus(floor_labelled)
    assert corpus.labels is not None
    depth = corpus.labels.read(0, len(corpus))
    instance = corpus.draw(corpus.plan, ("instance",))["instance"]
    floating = 0
    for i, row in enumerate(corpus.plan):
        room = room_millimetres(room_pictures, int(row["background"]), 48)
        expected = room.copy()
        for slot, person in enumerate(row["people"]):
            seen = instance[i] == slot + 1
            if not person["distance"] and person["height"]:
                expected[seen] = implied(room, seen, person["height"] / 64)
                floating += 1
            else:
                expected[seen] = person["distance"]
        assert (depth[i] == expected).all()
    assert floating


def test_people_float_only_where_there_is_no_floor(floor_labelled: Path):
    """In the third room; all others stand at a distance."""
    plan = Corpus(floor_labelled).plan
    there = plan["people"]["height"] > 0
    assert ((plan["people"]["distance"] > 0) == (there & (plan["background"] < 2)[:, None])).all()


def test_labels_do_not_depend_on_blocks_lost_and_made_again(tmp_path: Path, floor_labelled: Path):
    """A missing block is composed again, and only it; the folder ends byte for byte the same."""
    path = linked(floor_labelled, tmp_path / "c")
    before = files(path)
    blocks = sorted((path / "depth.zarr/depth/c").iterdir())
    assert len(blocks) == 2
    shutil.rmtree(blocks[0])
    done = label_composed(path, jobs=1)
    assert (done.labelled, done.already_there, done.left) == (20, 10, 0)
    assert files(path) == before
    again = label_composed(path, jobs=2)
    assert (again.labelled, again.already_there) == (0, 30)
    assert files(path) == before


def test_parts_and_processes_make_the_same_labels(tmp_path: Path, floor_corpus: Path, floor_labelled: Path):
    """Two parts, the second with two processes, end as one run does."""
    path = linked(floor_corpus, tmp_path / "c")
    first = label_composed(path, part=Part(1, 2), jobs=1)
    assert first.left > 0
    assert label_composed(path, part=Part(2, 2), jobs=2).left == 0
    assert digest(path) == digest(floor_labelled)


def test_pictures_are_not_drawn_in_parts(floor_corpus: Path):
    """They need all labels."""
    with pytest.raises(InvalidValueError, match="not with --part"):
        label_composed(floor_corpus, part=Part(1, 2), pictures=True)


def test_other_depth_is_a_conflict(tmp_path: Path, random_corpus: Path, room_pictures: Path):
    """The same folder goes on; another depth of one room does not, and nothing is written."""
    path = linked(random_corpus, tmp_path / "c")
    assert label_composed(path, background_depths=room_pictures / "depths", jobs=1).labelled == 0
    other = Path(shutil.copytree(room_pictures / "depths", tmp_path / "other"))
    np.save(other / "room1.npy", draw_room_depth(camera_m=1.4))
    before = files(path)
    with pytest.raises(ConflictError, match=r"(?s)other depth.*depth of room1 sha256"):
        label_composed(path, background_depths=other, jobs=1)
    assert files(path) == before


def test_without_depth_of_the_backgrounds_it_is_refused(tmp_path: Path, room_pictures: Path):
    """Nothing is left behind; what estimates depth is asked once for each background."""
    path = make_room_corpus(tmp_path / "c", room_pictures, replace(SMALL, positions=1))
    before = files(path)
    with pytest.raises(DsgenError, match="depth is not known"):
        label_composed(path, jobs=1)
    assert files(path) == before
    asked = []

    def estimate(picture: np.ndarray, fov_deg: float) -> RoomDepth:
        asked.append((picture.shape, fov_deg))
        return RoomDepth(draw_room_depth(96, 96), "drawn", "0" * 64)

    assert label_composed(path, estimate_depth=estimate, jobs=1).left == 0
    assert asked == [((96, 96, 3), FOV_DEG)] * 3
    rooms = Corpus(path).rooms
    assert rooms is not None
    assert {record["depth_from"] for record in rooms.records} == {"drawn"}
    assert {record["margin_permille"] for record in rooms.records} == {100}


def test_the_labels_of_a_network_stay(tmp_path: Path, labelled_corpus: Path, room_pictures: Path, pictures: Path):
    """Composed depth is known beside them, compared by info, and packed where it is asked for."""
    path = Path(shutil.copytree(labelled_corpus, tmp_path / "c"))
    before = digest(path / "depth.zarr")
    done = label_composed(path, background_depths=room_pictures / "depths", fov_deg=FOV_DEG, jobs=1)
    assert (done.beside, done.labelled, done.left) == ("drawn", 0, 0)
    assert digest(path / "depth.zarr") == before
    corpus = Corpus(path)
    composed, network = composed_depth(corpus, corpus.plan), corpus.labels.read(0, len(corpus))
    told = describe(path).composed
    errors = np.abs(composed / 1000 - network / 1000) / (composed / 1000)
    assert told.abs_rel == pytest.approx(errors.mean(), rel=0.05)
    pack(path, tmp_path / "network", shards=1, jobs=1)
    pack(path, tmp_path / "composed", shards=1, jobs=1, composed=True)
    assert (Store(tmp_path / "network").read(0, 72)["depth"] == network).all()
    assert (Store(tmp_path / "composed").read(0, 72)["depth"] == composed).all()
    assert not verify(tmp_path / "composed", corpus=path, jobs=1).findings


def test_composed_packing_without_rooms_is_refused(tmp_path: Path, corpus: Path):
    """The remedy names the command that makes them known."""
    with pytest.raises(InvalidValueError, match="dsgen depth --composed"):
        pack(corpus, tmp_path / "s", composed=True, jobs=1)


@pytest.mark.parametrize("kind", ["random_corpus", "floor_labelled"])
def test_stores_and_recipes_have_the_labels_bit_for_bit(tmp_path: Path, kind: str, request: pytest.FixtureRequest):
    """Packed from labels, drawn by a recipe, with and without labels on disk."""
    path = linked(request.getfixturevalue(kind), tmp_path / "c")
    corpus = Corpus(path)
    rows = len(corpus)
    expected = corpus.labels.read(0, rows)
    pack(path, tmp_path / "s", shards=2, jobs=1)
    pack(path, tmp_path / "r", shards=2, jobs=1, recipe=True)
    shutil.rmtree(path / "depth.zarr")
    pack(path, tmp_path / "s2", shards=2, jobs=1)
    pack(path, tmp_path / "r2", shards=2, jobs=1, recipe=True)
    for name in ("s", "r", "s2", "r2"):
        assert (Store(tmp_path / name).read(0, rows)["depth"] == expected).all()
    assert not verify(tmp_path / "r2", corpus=path, jobs=1).findings
    assert not (next((tmp_path / "r").glob("shard-*")) / "depth").exists()


def test_verify_finds_a_changed_label(tmp_path: Path, floor_labelled: Path):
    """One value that decodes well, of a row in the second block; nothing is found before."""
    path = linked(floor_labelled, tmp_path / "c")
    assert not verify(path, jobs=1).findings
    file = path / "depth.zarr/depth/c/1/0/0"
    content = file.read_bytes()
    file.unlink()
    file.write_bytes(content)  # no longer shared with the other folder
    array = zarr.open_array(path / "depth.zarr/depth", mode="r+")
    array[21, 5, 5] += 1
    assert named(verify(path, jobs=1)) == {"depth.zarr/depth/c/1/0/0"}


@pytest.mark.parametrize(
    "name",
    [
        "rooms.zarr/depth_48/c/1/0/0",
        pytest.param("plan.npy", marks=pytest.mark.slow),
        pytest.param("sources.zarr/figure/c/0/0/0/0", marks=pytest.mark.slow),
    ],
)
def test_what_a_floor_corpus_is_made_of_is_repaired(
    tmp_path: Path, floor_labelled: Path, room_pictures: Path, name: str
):
    """Byte for byte, each alone; composed labels stay."""
    path = linked(floor_labelled, tmp_path / "c")
    before = files(path)
    flip(path / name)
    assert name in named(verify(path, jobs=1))
    options = {kind: room_pictures / kind for kind in ("backgrounds", "foregrounds")}
    done = repair(path, **options, background_depths=room_pictures / "depths", jobs=1)
    assert done.after is not None
    assert not done.after.findings
    assert files(path) == before


def test_all_of_a_floor_corpus_is_repaired_at_once(tmp_path: Path, floor_labelled: Path, room_pictures: Path):
    """The rooms' metadata, sources, plan and labels."""
    path = linked(floor_labelled, tmp_path / "c")
    before = files(path)
    for name in ("plan.npy", "sources.zarr/figure_shape/c/0/0", "rooms.zarr/zarr.json", "depth.zarr/depth/c/0/0/0"):
        flip(path / name)
    options = {kind: room_pictures / kind for kind in ("backgrounds", "foregrounds")}
    repair(path, **options, background_depths=room_pictures / "depths", jobs=1)
    assert files(path) == before


def test_rooms_are_not_repaired_from_other_depth(tmp_path: Path, floor_labelled: Path, room_pictures: Path):
    """They must have the recorded hash; nothing is changed."""
    path = linked(floor_labelled, tmp_path / "c")
    flip(path / "rooms.zarr/depth_48/c/1/0/0")
    before = files(path)
    other = Path(shutil.copytree(room_pictures / "depths", tmp_path / "other"))
    np.save(other / "room1.npy", draw_room_depth(camera_m=1.4))
    options = {kind: room_pictures / kind for kind in ("backgrounds", "foregrounds")}
    with pytest.raises(DsgenError, match="--background-depths"):
        repair(path, **options, background_depths=other, jobs=1)
    assert files(path) == before


@pytest.mark.parametrize("name", ["rooms.zarr/depth_48/c/1/0/0", "rooms.zarr/zarr.json"])
@pytest.mark.parametrize("labelled", [True, False])
def test_the_rooms_of_a_random_corpus_are_repaired(
    tmp_path: Path, random_corpus: Path, room_pictures: Path, name: str, labelled: bool
):
    """Though `corpus.json` does not vouch for them: byte for byte, with heights and fields of view."""
    path = linked(random_corpus, tmp_path / "c")
    if not labelled:
        shutil.rmtree(path / "depth.zarr")
    before = files(path)
    flip(path / name)
    done = repair(path, background_depths=room_pictures / "depths", jobs=1)
    assert done.after is not None
    assert not done.after.findings
    if name.endswith("zarr.json") and not labelled:  # nothing tells which fields of view it had
        assert files(path) == {file: content for file, content in before.items() if not file.startswith("rooms.zarr")}
        assert "dsgen depth --composed makes it again" in "".join(done.notes)
        label_composed(path, background_depths=room_pictures / "depths", jobs=1)
        shutil.rmtree(path / "depth.zarr")
    assert files(path) == before


def test_rooms_with_a_field_of_view_of_an_option_are_made_again(tmp_path: Path, corpus: Path, room_pictures: Path):
    """Where repair cannot know it, the remedy it tells works: the labels stay as they were."""
    path = Path(shutil.copytree(corpus, tmp_path / "c"))
    options: dict[str, Any] = {"background_depths": room_pictures / "depths", "fov_deg": 71.0, "jobs": 1}
    label_composed(path, **options)
    before = files(path)
    flip(path / "rooms.zarr/zarr.json")
    with pytest.raises(
        DsgenError, match=r"or remove rooms\.zarr and run dsgen depth --composed with the options it had"
    ):
        repair(path, background_depths=room_pictures / "depths", jobs=1)
    shutil.rmtree(path / "rooms.zarr")
    assert label_composed(path, **options).labelled == 0
    assert files(path) == before


def test_another_field_of_view_is_a_conflict(tmp_path: Path, corpus: Path, floor_corpus: Path, room_pictures: Path):
    """It would be ignored otherwise; the same, or none, goes on."""
    path = Path(shutil.copytree(corpus, tmp_path / "c"))
    label_composed(path, background_depths=room_pictures / "depths", fov_deg=71, jobs=1)
    assert label_composed(path, fov_deg=71, jobs=1).labelled == label_composed(path, jobs=1).labelled == 0
    before = files(path)
    with pytest.raises(ConflictError, match=r"(?s)other fields of view.*field of view of room0 60"):
        label_composed(path, fov_deg=60, jobs=1)
    assert files(path) == before
    standing = linked(floor_corpus, tmp_path / "floor")  # has fields of view of its own
    assert label_composed(standing, fov_deg=71, jobs=1).left == 0


def test_boxes_are_those_of_a_slow_loop():
    """Left, top, width and height of what is seen; 0 where nothing is."""
    rng = np.random.default_rng(0)
    instance = np.zeros((6, 20, 30), np.uint8)
    for picture in instance:
        for slot in range(1, 4):
            y, x = rng.integers(0, 18), rng.integers(0, 28)
            picture[y : y + rng.integers(0, 9), x : x + rng.integers(0, 9)] = slot
    boxes = find_boxes(instance, 3)
    assert boxes.dtype == np.uint16
    for picture, row in zip(instance, boxes, strict=True):
        for slot, box in enumerate(row.tolist()):
            places = [(y, x) for y, x in np.ndindex(picture.shape) if picture[y, x] == slot + 1]
            if not places:
                assert box == [0, 0, 0, 0]
                continue
            ys, xs = zip(*places, strict=True)
            assert box == [min(xs), min(ys), max(xs) - min(xs) + 1, max(ys) - min(ys) + 1]


def test_labels_say_what_they_are(floor_labelled: Path):
    """Composed, in whole millimetres, of the rooms by their hash; complete; read as metres by the CF attributes."""
    group = zarr.open_group(floor_labelled / "depth.zarr", mode="r")
    rooms = Corpus(floor_labelled).rooms
    assert rooms is not None
    told = dict(group.attrs)
    assert (told["model"], told["precision"], told["units"], told["complete"]) == ("composed", "integers", "mm", True)
    assert told["weights_sha256"] == rooms.sha256
    assert dict(group["depth"].attrs)["scale_factor"] == 0.001


def test_a_network_does_not_go_on_with_composed_labels(floor_labelled: Path):
    """The message says what to do."""
    from dsgen.depth.label_corpus import label_corpus

    with pytest.raises(ConflictError, match=r"labelled with composed depth.*remove the folder"):
        label_corpus(floor_labelled, model=wall, device="cpu")


def test_a_corpus_is_the_same_with_labels_and_without(tmp_path: Path, random_corpus: Path, room_pictures: Path):
    """What `composite` made is not changed by composing depth."""
    path = make_room_corpus(tmp_path / "c", room_pictures, replace(SMALL, positions=3))
    kept = {name: content for name, content in files(random_corpus).items() if name in files(path)}
    assert files(path) == kept
