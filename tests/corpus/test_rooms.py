"""Backgrounds as rooms: what is written is read, damage is named, and depth maps that cannot be right are refused."""

import json
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zarr
from PIL import Image
from support.damage import flip, linked, named
from support.rooms import draw_room_depth

from dsgen.camera import focal_px
from dsgen.corpus.floor import find_floor
from dsgen.corpus.rooms import DepthFolder, DepthSource, RoomDepth, Rooms, to_millimetres, write_rooms
from dsgen.corpus.sources import SourceFile
from dsgen.errors import DamagedError, DsgenError, SeveralErrors
from dsgen.integrity.verify import verify
from dsgen.io.assets import asset

NAMES = ["hall", "wall"]
VIEWS = [(60.0, "csv"), (70.0, "assumed")]
DEPTHS = [draw_room_depth(96, 96), np.full((96, 96), 2.5, np.float32)]


def write(path: Path, **options: object) -> Path:
    """Write two rooms, the second without a floor."""
    depths = [RoomDepth(DEPTHS[0], "file", "a" * 64), RoomDepth(DEPTHS[1], "a network", "b" * 64)]
    write_rooms(path, NAMES, VIEWS, [48, 96], lambda number: depths[number], **options)
    return path


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The rooms; not to be written to."""
    return write(tmp_path_factory.mktemp("rooms") / "rooms.zarr")


def test_what_is_written_is_read(written: Path):
    """Depth at every size, the floor, views, margins, and where all of it is from."""
    rooms = Rooms(written, 2)
    assert rooms.heights_m is None
    assert [record["name"] for record in rooms.records] == NAMES
    assert [(record["fov_deg"], record["fov_from"]) for record in rooms.records] == VIEWS
    assert [record["depth_from"] for record in rooms.records] == ["file", "a network"]
    assert [record["margin_permille"] for record in rooms.records] == [20, 100]
    assert rooms.without_floor() == ["wall"]
    for number, depth in enumerate(DEPTHS):
        assert (rooms.read("depth", number, 96) == np.rint(depth * 1000.0)).all()
        assert (rooms.read("depth", number, 48) == np.rint(depth[1::2, 1::2] * 1000.0)).all()
    found = find_floor(DEPTHS[0], focal_px(60, 96))
    floor = rooms.floor(0, 48)
    assert floor is not None
    assert (floor.mask == found.mask[1::2, 1::2]).all()
    np.testing.assert_allclose(floor.normal, found.normal, atol=1e-6)
    assert floor.height_m == pytest.approx(1.5, abs=0.01)
    assert rooms.floor(1, 48) is None
    assert not rooms.read("floor", 1, 48).any()
    lean = 2**20 * floor.normal[2] / focal_px(rooms.records[0]["fov_deg"], 1)
    assert rooms.geometry(0) == (20, round(1000 * floor.height_m), round(lean))
    assert rooms.geometry(1) == (100, 0, 0)
    assert rooms.focal_px(1, 48) == round(focal_px(70, 48), 4)
    room = rooms.room(0, np.zeros((48, 48, 3), np.uint8))
    assert (room.depth == rooms.read("depth", 0, 48)).all()
    assert ((room.hides == 65535) == (floor.mask | (room.depth == 0))).all()


def test_other_programs_read_metres(written: Path):
    """Plain zarr: whole, with the attributes of the CF conventions."""
    array = zarr.open_group(written, mode="r")["depth_96"]
    assert array.attrs["scale_factor"] == 0.001
    assert array.attrs["_FillValue"] == 0
    np.testing.assert_allclose(array[0] * 0.001, DEPTHS[0], atol=0.0006)


def test_writing_again_gives_the_same_hash(tmp_path: Path, written: Path):
    """And heights of people, where they are given, change it."""
    assert Rooms(write(tmp_path / "again"), 2).sha256 == Rooms(written, 2).sha256
    told = Rooms(write(tmp_path / "heights", heights_m=[1.7, 1.5]), 2)
    assert told.heights_m == [1.7, 1.5]
    assert told.sha256 != Rooms(written, 2).sha256


def test_nothing_is_left_of_rooms_that_fail(tmp_path: Path):
    """Errors of several backgrounds are told together."""

    def fail(number: int) -> RoomDepth:
        raise DsgenError(f"room {number}", "broken", "mend it")

    with pytest.raises(SeveralErrors, match=r"(?s)room 0.*room 1"):
        write_rooms(tmp_path / "rooms.zarr", NAMES, VIEWS, [48], fail)
    assert not list(tmp_path.iterdir())


def edit(path: Path, change: Callable[[dict], None]) -> None:
    """Change the metadata."""
    content = json.loads(path.read_bytes())
    change(content["attributes"])
    path.unlink()
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    "change",
    [
        lambda attributes: attributes["rooms"][0].update(fov_deg=61.0),
        lambda attributes: attributes["rooms"][0]["floor"].update(height_m=1.4),
        lambda attributes: attributes["rooms"][1].update(margin_permille=20),
        lambda attributes: attributes["rooms"].pop(),
        lambda attributes: attributes["rooms"][0].pop("name"),
        lambda attributes: attributes["files_sha256"].popitem(),
        lambda attributes: attributes.pop("sha256"),
        lambda attributes: attributes.update(sha256="0" * 64),
        lambda attributes: attributes["rooms"][0].update(depth_from=7),
    ],
)
def test_changed_metadata_is_damage(tmp_path: Path, written: Path, change: Callable[[dict], None]):
    """Named, with the command that restores it."""
    path = linked(written, tmp_path / "rooms.zarr")
    edit(path / "zarr.json", change)
    with pytest.raises(DamagedError, match="run dsgen repair") as error:
        Rooms(path, 2)
    assert str(error.value.what).endswith("zarr.json")


def test_rooms_of_another_corpus_are_damage(written: Path):
    """By their hash in `corpus.json`, and by their number."""
    with pytest.raises(DamagedError, match=r"differs from the hash in corpus\.json"):
        Rooms(written, 2, "0" * 64)
    with pytest.raises(DamagedError):
        Rooms(written, 3)


@pytest.mark.parametrize("file", ["depth_48/c/0/0/0", "floor_96/c/1/0/0"])
@pytest.mark.parametrize("damage", [flip, Path.unlink], ids=["flip", "remove"])
def test_a_damaged_file_is_named_when_it_is_read(
    tmp_path: Path, written: Path, file: str, damage: Callable[[Path], None]
):
    """And only then: others are read."""
    path = linked(written, tmp_path / "rooms.zarr")
    damage(path / file)
    rooms = Rooms(path, 2)
    kind, size, number = file[:5], int(file[6:8]), int(file[11])
    assert rooms.read(kind, 1 - number, size).any() == (kind == "depth" or number == 1)
    with pytest.raises(DamagedError, match="run dsgen repair") as error:
        rooms.read(kind, number, size)
    assert str(error.value.what).endswith(file)


@pytest.mark.parametrize("file", ["depth_48/zarr.json", "floor_48/zarr.json", "depth_48/c/0/0/0", "depth_96/c/1/0/0"])
def test_verify_names_every_file(tmp_path: Path, floor_corpus: Path, file: str):
    """Flipped or gone; what does not belong there is told too."""
    path = linked(floor_corpus, tmp_path / "c")
    flip(path / "rooms.zarr" / file)
    assert named(verify(path, fast=True, jobs=1)) == {f"rooms.zarr/{file}"}
    (path / "rooms.zarr" / file).unlink()
    assert named(verify(path, fast=True, jobs=1)) == {f"rooms.zarr/{file}"}
    shutil.copy(floor_corpus / "rooms.zarr" / file, path / "rooms.zarr" / file)
    (path / "rooms.zarr/notes.txt").write_text("mine")
    assert named(verify(path, fast=True, jobs=1)) == {"rooms.zarr/notes.txt"}


@pytest.mark.parametrize("key", ["sha256", "rooms", "files_sha256"])
def test_verify_names_metadata_that_lack_a_key(tmp_path: Path, floor_corpus: Path, key: str):
    """By the name of the file within the corpus."""
    path = linked(floor_corpus, tmp_path / "c")
    edit(path / "rooms.zarr/zarr.json", lambda attributes: attributes.pop(key))
    assert named(verify(path, fast=True, jobs=1)) == {"rooms.zarr/zarr.json"}


def test_a_missing_folder_of_rooms_is_found(tmp_path: Path, floor_corpus: Path):
    """It says what lacks, and reading tells so too."""
    path = linked(floor_corpus, tmp_path / "c")
    shutil.rmtree(path / "rooms.zarr")
    assert "rooms.zarr" in named(verify(path, fast=True, jobs=1))


@pytest.mark.parametrize(("side", "size"), [(96, 48), (96, 96), (448, 224), (224, 448), (50, 10)])
def test_maps_are_reduced_to_their_nearest_pixels(side: int, size: int):
    """No value is mixed of others; even factors take the one below and right of the middle."""
    depth = np.arange(side * side, dtype=np.float32).reshape(side, side) / 1000 + 0.001
    found = to_millimetres(depth, size)
    assert found.dtype == np.uint16
    middle = [(2 * i + 1) * side // (2 * size) for i in range(size)]
    expected = np.clip(np.rint(depth[np.ix_(middle, middle)] * 1000.0), 1, 65534)
    assert (found == expected).all()


def test_millimetres_know_what_is_not_known():
    """0, negative, infinite and NaN are 0; near and far are kept within 1 to 65534."""
    depth = np.array([[0, -1, np.nan], [np.inf, 0.0001, 99], [1.2344, 1.2346, 65.5349]], np.float32)
    assert to_millimetres(depth, 3).tolist() == [[0, 0, 0], [0, 1, 65534], [1234, 1235, 65534]]


def folder_with(tmp_path: Path, **maps: np.ndarray) -> DepthFolder:
    """A folder of npy files."""
    folder = tmp_path / "maps"
    folder.mkdir(exist_ok=True)
    for name, values in maps.items():
        np.save(folder / f"{name}.npy", values)
    return DepthFolder(folder)


def test_maps_of_both_kinds_are_read(tmp_path: Path):
    """PNG in millimetres, npy in metres of any number; the centre square; the hash of the file."""
    depth = draw_room_depth(60, 80)
    given = folder_with(tmp_path, a=depth, b=depth.astype(np.float64), c=np.full((60, 80), 3))
    Image.fromarray(np.rint(depth * 1000).astype(np.uint16)).save(given.folder / "d.PNG")
    given = DepthFolder(given.folder)
    assert [given.has(name) for name in "abcde"] == [True, True, True, True, False]
    for name, tolerance in (("a", 0), ("b", 0), ("d", 0.0006)):
        found = given.read(name, (120, 160))
        assert found.depth_m.dtype == np.float32
        assert found.depth_m.shape == (60, 60)
        np.testing.assert_allclose(found.depth_m, depth[:, 10:70], atol=tolerance)
        assert found.depth_from == "file"
        assert len(found.sha256) == 64
        assert found.margin_permille == 20
    assert (given.read("c", None).depth_m == 3).all()


def test_what_is_no_depth_is_not_known(tmp_path: Path):
    """NaN, infinite and negative values become 0, the others stay."""
    values = np.full((8, 8), 2.0)
    values[0, :4] = np.nan, np.inf, -np.inf, -3
    found = folder_with(tmp_path, a=values).read("a", (8, 8)).depth_m
    assert found[0].tolist() == [0, 0, 0, 0, 2, 2, 2, 2]
    assert (found[1:] == 2).all()


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (np.zeros((8, 8)), "no depth anywhere"),
        (np.full((8, 8), np.nan), "no depth anywhere"),
        (np.full((8, 8), -1.0), "no depth anywhere"),
        (np.full((8, 16), 2.0), "16x8 pixels, expected the proportions of its picture, 80x80"),
        (np.full((8, 8, 3), 2.0), "expected a map of metres"),
        (np.full(8, 2.0), "expected a map of metres"),
        (np.full((8, 8), 2j), "expected a map of metres"),
        (np.full((8, 8), "near"), None),
    ],
)
def test_maps_that_cannot_be_right_are_refused(tmp_path: Path, values: np.ndarray, reason: str | None):
    """Named, with what was found and what was expected."""
    given = folder_with(tmp_path, a=values)
    with pytest.raises(DamagedError, match=reason) as error:
        given.read("a", (80, 80))
    assert str(error.value.what).endswith("a.npy")


@pytest.mark.parametrize("ending", ["png", "npy"])
@pytest.mark.parametrize("damage", ["cut", "nothing", "noise"])
def test_damaged_files_are_refused(tmp_path: Path, ending: str, damage: str):
    """Whatever is wrong with them."""
    path = tmp_path / f"a.{ending}"
    if ending == "png":
        Image.fromarray(np.full((80, 80), 2000, np.uint16)).save(path)
    else:
        np.save(path, np.full((80, 80), 2.0))
    content = path.read_bytes()
    path.write_bytes({"cut": content[: len(content) // 2], "nothing": b"", "noise": zlib.compress(content)}[damage])
    with pytest.raises(DamagedError) as error:
        DepthFolder(tmp_path).read("a", (80, 80))
    assert str(error.value.what).endswith(path.name)


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_eight_bit_pictures_are_no_depth(tmp_path: Path, mode: str):
    """They are views of depth, not millimetres."""
    Image.new(mode, (80, 80), "white").save(tmp_path / "a.png")
    with pytest.raises(DsgenError, match=r"a\.png.*16"):
        DepthFolder(tmp_path).read("a", (80, 80))


def test_two_maps_of_a_background_are_refused(tmp_path: Path):
    """Whichever endings they have."""
    given = folder_with(tmp_path, a=np.full((8, 8), 2.0))
    Image.fromarray(np.full((8, 8), 2000, np.uint16)).save(given.folder / "a.png")
    with pytest.raises(DsgenError, match=r"a\.npy and a\.png are depth maps of the same background"):
        DepthFolder(given.folder).read("a", (8, 8))


def test_a_folder_that_is_none_is_refused(tmp_path: Path):
    """It says what is expected."""
    with pytest.raises(DsgenError, match="nowhere is no folder, expected one with depth maps"):
        DepthFolder(tmp_path / "nowhere")


def source(
    files: list[SourceFile], picture: Callable[[int], np.ndarray], folder: Path | None = None, estimate: object = None
) -> DepthSource:
    """A source of the depth of backgrounds of 60 degrees."""
    return DepthSource(files, [(60.0, "csv")] * len(files), picture, folder, estimate)  # type: ignore[arg-type]


def bundled_file(name: str) -> SourceFile:
    """A bundled background, by its name."""
    import hashlib

    content = (asset("backgrounds") / f"{name}.jpg").read_bytes()
    return SourceFile(name, f"{name}.jpg", hashlib.sha256(content).hexdigest())


def test_bundled_depth_is_known_by_the_hash_of_the_picture():
    """Another picture of the same name has none; what is bundled needs no estimate."""
    file = bundled_file("bg_0003")
    black = np.zeros((448, 448, 3), np.uint8)
    found = source([file], lambda _: black).read(0)
    assert found.depth_from == "bundled"
    assert found.depth_m.shape == (448, 448)
    assert found.margin_permille == 20
    other = SourceFile(file.name, file.file, "0" * 64)
    with pytest.raises(DsgenError, match=r"bg_0003\.jpg: its depth is not known"):
        source([other], lambda _: black).read(0)


def test_depth_is_estimated_only_where_it_is_not_known(tmp_path: Path):
    """Of the centre square, with its field of view; not where a folder of maps is given."""
    asked = []

    def estimate(picture: np.ndarray, fov_deg: float) -> RoomDepth:
        asked.append((picture.shape, fov_deg))
        return RoomDepth(np.full((4, 4), 2, np.float32), "a network", "c" * 64)

    files = [bundled_file("bg_0003"), SourceFile("mine", "mine.png", "1" * 64)]
    pictures = [np.zeros((448, 448, 3), np.uint8), np.zeros((50, 80, 3), np.uint8)]
    found = source(files, lambda n: pictures[n], estimate=estimate)
    assert [found.read(n).depth_from for n in (0, 1)] == ["bundled", "a network"]
    assert asked == [((50, 50, 3), 60.0)]
    folder_with(tmp_path, bg_0003=np.full((30, 30), 2.0), mine=np.full((25, 40), 2.0))
    found = source(files, lambda n: pictures[n], tmp_path / "maps", estimate)
    assert [found.read(n).depth_from for n in (0, 1)] == ["file", "file"]
    assert len(asked) == 1


def test_a_folder_must_have_all_maps(tmp_path: Path):
    """It names those that lack before anything is read."""
    folder_with(tmp_path, one=np.full((8, 8), 2.0))
    files = [SourceFile(name, f"{name}.png", "1" * 64) for name in ("one", "two", "three")]
    with pytest.raises(DsgenError, match=r"lacks the depth of 2 of the 3 backgrounds \(two, three\)"):
        source(files, lambda _: np.zeros((8, 8, 3), np.uint8), tmp_path / "maps")


def test_pictures_that_are_not_square(tmp_path: Path):
    """Depth is that of the centre square, of maps as large as the picture or smaller."""
    depth = draw_room_depth(60, 90)
    folder_with(tmp_path, small=depth, large=np.kron(depth, np.ones((2, 2), np.float32)))
    files = [SourceFile(name, f"{name}.png", "1" * 64) for name in ("small", "large")]
    given = source(files, lambda _: np.zeros((120, 180, 3), np.uint8), tmp_path / "maps")
    small, large = (to_millimetres(given.read(n).depth_m, 60) for n in (0, 1))
    assert (small == np.rint(depth[:, 15:75] * 1000.0)).all()
    assert (large == small).all()
