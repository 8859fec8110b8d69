"""The plan: rows, places, splits."""

import io
from pathlib import Path

import numpy as np
import pytest

from dsgen.corpus.plan import (
    DTYPE,
    SPLITS,
    assign_splits,
    draw_locations,
    load_plan,
    make_plan,
    save_plan,
    split_counts,
)
from dsgen.errors import DamagedError

NAMES = [f"b{n}" for n in range(12)], [f"f{n}" for n in range(9)]
SHAPES = np.array([[20, 8 + n] for n in range(9)])


def plan(backgrounds=NAMES[0], foregrounds=NAMES[1], shapes=SHAPES, **options):
    """A plan of 48-pixel pictures."""
    return make_plan(backgrounds, foregrounds, shapes, **({"size": 48} | options))


def test_rows_are_in_natural_order():
    """Row number and columns determine each other."""
    rows = plan(positions=5)
    index = ((rows["background"] * 9 + rows["foreground"]) * 2 + rows["flip"]) * 5 + rows["position"]
    assert (index == np.arange(12 * 9 * 2 * 5)).all()


def test_foregrounds_lie_wholly_inside_and_reach_every_edge():
    """No place is outside, and the first and last row and column are all used."""
    rows = plan(positions=200)
    height, width = SHAPES[rows["foreground"]].T
    assert (rows["top"] + height <= 48).all()
    assert (rows["left"] + width <= 48).all()
    assert rows["top"].min() == 0
    assert rows["left"].min() == 0
    assert (rows["top"] + height).max() == 48
    assert (rows["left"] + width).max() == 48


def test_places_of_a_pair_are_distinct():
    """No two positions of a (background, foreground, flip) share a place."""
    rows = plan(positions=50)
    keys = rows[["background", "foreground", "flip", "top", "left"]]
    assert len(np.unique(keys)) == len(rows)


def test_places_are_uniform():
    """Every place, and every place as k-th position, is drawn equally often (chi-square, 24 places)."""
    places = draw_locations(np.arange(48_000, dtype=np.uint64) * np.uint64(0x1234567), np.full(48_000, 24), 6)
    for column in places.T:
        counts = np.bincount(column, minlength=24)
        assert ((counts - 2000) ** 2 / 2000).sum() < 60  # 23 degrees of freedom: 1 in 30,000


def test_when_there_is_no_room_every_place_is_used_before_any_again():
    """Seven positions on three places: each place two or three times, evenly through time."""
    places = draw_locations(np.arange(50, dtype=np.uint64), np.full(50, 3), 7)
    for row in places:
        assert sorted(row[:3]) == [0, 1, 2]
        assert sorted(row[3:6]) == [0, 1, 2]


def test_adding_pictures_changes_no_other_row():
    """The rows of a pair are the same whatever else is in the folders, but for their numbers."""
    few = plan(NAMES[0][::2], NAMES[1][::2], SHAPES[::2])
    many = plan()
    kept = many[np.isin(many["background"] % 2, 0) & np.isin(many["foreground"] % 2, 0)]
    for column in ("flip", "position", "top", "left"):
        assert (few[column] == kept[column]).all()


def test_seed_decides():
    """Same seed same plan; another seed, seed 0 included, another plan."""
    assert (plan(seed=0) == plan(seed=0)).all()
    assert (plan(seed=0)["top"] != plan(seed=1)["top"]).mean() > 0.8


def test_flips_have_places_of_their_own():
    """The mirror image is not put where the picture was."""
    rows = plan(positions=1).reshape(-1, 2)
    assert (rows["left"][:, 0] != rows["left"][:, 1]).mean() > 0.8


def test_splits_hold_out_backgrounds_and_foregrounds():
    """No background and no foreground of validation or test is ever trained on."""
    rows = plan(validation_share=0.3, test_share=0.2)
    for column in ("background", "foreground"):
        seen = [set(rows[column][rows["split"] == side]) for side in range(3)]
        assert all(seen)
        assert not (seen[0] & seen[1])
        assert not (seen[0] & seen[2])
        assert not (seen[1] & seen[2])
    counts = split_counts(rows)
    assert sum(counts.values()) == len(rows)
    assert list(counts) == list(SPLITS)


def test_split_of_a_picture_depends_on_its_name_alone():
    """Adding names moves none that was there."""
    names = [f"n{i}" for i in range(400)]
    all_of_them = assign_splits(names, "background", 0, 0.1, 0.1)
    assert (assign_splits(names[:200], "background", 0, 0.1, 0.1) == all_of_them[:200]).all()
    assert 20 <= (all_of_them == 1).sum() <= 60
    assert 20 <= (all_of_them == 2).sum() <= 60


def test_small_folders_still_get_every_side():
    """With three pictures one is held out for each side; with one it is trained on."""
    assert sorted(assign_splits(["a", "b", "c"], "background", 0, 0.1, 0.1)) == [0, 1, 2]
    assert list(assign_splits(["a"], "background", 0, 0.001, 0.001)) == [0]


def test_plan_survives_the_disk(tmp_path: Path):
    """Saved and loaded it is the same, and nothing unfinished is left."""
    rows = plan()
    save_plan(tmp_path / "plan.npy", rows)
    loaded = load_plan(tmp_path / "plan.npy", len(rows), None)
    assert loaded.dtype == DTYPE
    assert (loaded == rows).all()
    assert [p.name for p in tmp_path.iterdir()] == ["plan.npy"]


def npy(description: str, more: bytes = b"") -> bytes:
    """An npy file with any header."""
    header = description.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + more


def zipped() -> bytes:
    """What np.savez writes, under the name of an npy file."""
    buffer = io.BytesIO()
    np.savez(buffer, plan=np.zeros(3, DTYPE))
    return buffer.getvalue()


_DESCR = f"{DTYPE.descr!r}"
HOSTILE = {
    "nonsense": b"nonsense",
    "empty": b"",
    "zip": zipped(),
    "half a header": npy("{'descr'")[:12],
    "no header": b"\x93NUMPY\x01\x00",
    "no dictionary": npy("[" * 300),
    "shape of 1e11": npy(f"{{'descr': {_DESCR}, 'fortran_order': False, 'shape': (100000000000,)}}", b"x" * 45),
    "shape of 1e30": npy(f"{{'descr': {_DESCR}, 'fortran_order': False, 'shape': (10**30,)}}", b"x" * 45),
    "shape below 0": npy(f"{{'descr': {_DESCR}, 'fortran_order': False, 'shape': (-3,)}}", b"x" * 45),
    "two dimensions": npy(f"{{'descr': {_DESCR}, 'fortran_order': True, 'shape': (3, 1)}}", b"x" * 45),
    "objects": npy("{'descr': '|O', 'fortran_order': False, 'shape': (3,)}", b"x" * 45),
    "another table": npy("{'descr': '<f8', 'fortran_order': False, 'shape': (3,)}", b"x" * 24),
    "cut off": npy(f"{{'descr': {_DESCR}, 'fortran_order': False, 'shape': (3,)}}", b"x" * 44),
    "one row too few": npy(f"{{'descr': {_DESCR}, 'fortran_order': False, 'shape': (2,)}}", b"x" * 30),
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_a_damaged_plan_is_refused(tmp_path: Path, content: bytes):
    """Whatever the header says: one line with the file and the command, and no memory for what it asks for."""
    path = tmp_path / "plan.npy"
    path.write_bytes(content)
    with pytest.raises(DamagedError, match=rf"^{path}: damaged.*; run dsgen repair {tmp_path}$"):
        load_plan(path, 3, None)
    with pytest.raises(DamagedError, match=r"damaged, its hash differs from the one in corpus.json"):
        load_plan(path, 3, "0" * 64)


def draw_one_after_the_other(key: int, count: int, positions: int) -> list[int]:
    """Draw from a list of the free locations, which is filled again when it is empty: the oracle."""
    drawn, free = [], []
    for k in range(positions):
        free = free or list(range(count))
        x = (key + k + 1) * 0x9E3779B97F4A7C15 % 2**64
        x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
        drawn.append(free.pop(((x ^ x >> 31) >> 32) * len(free) >> 32))
    return drawn


@pytest.mark.parametrize(
    ("counts", "positions"), [((1, 9, 3), 1), ((40, 7, 20), 20), ((33, 500), 65), ((900, 130), 700)]
)
def test_draws_are_those_from_a_list_of_the_free(counts: tuple[int, ...], positions: int):
    """Short and long, within a round and across rounds."""
    keys = np.array([2**64 - 7 - 31 * k for k in range(len(counts))], np.uint64)
    expected = [
        draw_one_after_the_other(int(key), *pair, positions) for key, pair in zip(keys, zip(counts), strict=True)
    ]
    assert draw_locations(keys, np.array(counts), positions).tolist() == expected


@pytest.mark.timeout(60)
def test_the_largest_number_of_positions_ends():
    """65,535 positions of one pair, in well under the minutes that a quadratic time would take."""
    rows = plan(NAMES[0][:1], NAMES[1][:1], SHAPES[:1], positions=65535, size=400, flip=False)
    assert len(np.unique(rows[["top", "left"]])) == 65535


def test_one_picture_alone_can_decide_the_split():
    """Then no row is unused, and that picture is in one split only."""
    for kind in ("background", "foreground"):
        rows = plan(validation_share=0.3, test_share=0.2, split_by=kind)
        assert split_counts(rows)["unused"] == 0
        for number in np.unique(rows[kind]):
            assert len(np.unique(rows["split"][rows[kind] == number])) == 1


def test_skipped_rows_are_the_unused_ones():
    """All others are the same, in the same order."""
    options = {"validation_share": 0.3, "test_share": 0.2, "positions": 3}
    rows = plan(**options)
    assert (plan(**options, skip_unused=True) == rows[rows["split"] != SPLITS.index("unused")]).all()
