"""The plan: a table with one row per sample, in a fixed order.

Row `((background * foregrounds + foreground) * flips + flip) * positions + position` says where a foreground is pasted
on a background; where unused pairs are skipped, their rows are left out and the others move up. The locations of a
(background, foreground, flip) depend only on the seed, on the names of the two pictures and on the number of possible
locations. Other pictures, workers or machines change no row's content.

Rows whose people have a size of their own have one more column, `people`, see `dsgen.corpus.placement`.
"""

import hashlib
import io
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.lib.format import MAGIC_PREFIX

from dsgen.errors import DamagedError, reason_of
from dsgen.io.atomic import write_bytes
from dsgen.io.regular_files import regular

SPLITS = ("train", "validation", "test", "unused")
UNUSED = SPLITS.index("unused")
SPLIT_BY = ("both", "background", "foreground")
DTYPE = np.dtype(
    [
        ("background", "<u4"),
        ("foreground", "<u4"),
        ("flip", "u1"),
        ("position", "<u2"),
        ("top", "<u2"),
        ("left", "<u2"),
        ("split", "u1"),
    ]
)
PERSON = np.dtype(
    [
        ("foreground", "<u4"),
        ("flip", "u1"),
        ("look", "u1"),
        ("height", "<u4"),
        ("top", "<i4"),
        ("left", "<i4"),
        ("distance", "<u2"),
        ("tilt", "<i2"),
    ]
)
MAX_PEOPLE = 16  # in a row
_DRAWS_AT_ONCE = 2**19
_BLOCK_BITS = 5  # blocks of at most 32 draws


def plan_dtype(people: int) -> np.dtype:
    """Return the columns of a plan: `DTYPE`, and with `people` above 0 so many slots of `PERSON` in each row."""
    return np.dtype([*DTYPE.descr, ("people", PERSON, (people,))]) if people else DTYPE


def join_plan(column: Callable[[str], np.ndarray], rows: int, people: int) -> np.ndarray:
    """Make a plan from its columns, which `column` returns by name; those of people are `person_top` and so on."""
    plan = np.empty(rows, plan_dtype(people))
    for name in DTYPE.names or ():
        plan[name] = column(name)
    for name in PERSON.names or () if people else ():
        plan["people"][name] = column(f"person_{name}")
    return plan


def make_plan(
    backgrounds: list[str],
    foregrounds: list[str],
    foreground_sizes: np.ndarray,
    *,
    size: int = 224,
    positions: int = 20,
    flip: bool = True,
    seed: int = 0,
    validation_share: float = 0.1,
    test_share: float = 0.1,
    split_by: str = "both",
    skip_unused: bool = False,
) -> np.ndarray:
    """Draw `positions` locations for every foreground, and its mirror image if `flip`, on every background.

    `backgrounds` and `foregrounds` are the pictures' names, `foreground_sizes` is (foregrounds, 2), height and width
    in pixels. Locations are uniform over all where the foreground is entirely inside `size` x `size` pixels; those of
    a pair are distinct as long as there are enough. `split_by` is that of `split_pairs`; with `skip_unused` the pairs
    that are in no split have no rows. Returns a structured array of `DTYPE`, of shape (rows,).
    """
    flips = 2 if flip else 1
    splits = split_pairs(backgrounds, foregrounds, seed, validation_share, test_share, split_by)
    background, foreground = np.nonzero(splits != UNUSED if skip_unused else np.ones_like(splits, bool))
    plan = np.empty((len(background), flips, positions), DTYPE)
    plan["background"] = background[:, None, None]
    plan["foreground"] = foreground[:, None, None]
    plan["flip"] = np.arange(flips)[:, None]
    plan["position"] = np.arange(positions)
    plan["split"] = splits[background, foreground][:, None, None]

    tops, lefts = size + 1 - np.asarray(foreground_sizes, np.int64).T  # how many there are of each
    pairs_at_once = max(1, _DRAWS_AT_ONCE // (flips * positions))
    for start in range(0, len(background), pairs_at_once):
        part = slice(start, start + pairs_at_once)
        names = [(backgrounds[b], foregrounds[f]) for b, f in zip(background[part], foreground[part], strict=True)]
        keys = np.array(
            [key_of("place", seed, b, f, mirrored) for b, f in names for mirrored in range(flips)], np.uint64
        )
        counts = np.repeat((tops * lefts)[foreground[part]], flips)
        locations = draw_locations(keys, counts, positions).reshape(-1, flips, positions)
        plan["top"][part], plan["left"][part] = np.divmod(locations, lefts[foreground[part]][:, None, None])
    return plan.reshape(-1)


def split_pairs(
    backgrounds: list[str],
    foregrounds: list[str],
    seed: int,
    validation_share: float,
    test_share: float,
    split_by: str = "both",
) -> np.ndarray:
    """Assign every pair of a background and a foreground to a split: (backgrounds, foregrounds) u1, as in `SPLITS`.

    With `split_by` "both" a pair whose pictures are in different splits is unused, so that no picture is in two
    splits. With "background" or "foreground" a pair is in the split of that picture alone, and no pair is unused.
    """
    background_split = assign_splits(backgrounds, "background", seed, validation_share, test_share)[:, None]
    foreground_split = assign_splits(foregrounds, "foreground", seed, validation_share, test_share)[None, :]
    shape = len(backgrounds), len(foregrounds)
    if split_by != "both":
        return np.broadcast_to(background_split if split_by == "background" else foreground_split, shape)
    return np.where(background_split == foreground_split, foreground_split, UNUSED).astype(np.uint8)


def planned_splits(splits: np.ndarray, rows_per_pair: int, skip_unused: bool) -> dict[str, int]:
    """Return the number of rows of every split, by name, from the splits of all pairs, before any plan is drawn."""
    counts = np.bincount(splits.ravel(), minlength=len(SPLITS)) * rows_per_pair
    if skip_unused:
        counts[UNUSED] = 0
    return {name: int(count) for name, count in zip(SPLITS, counts, strict=True)}


def assign_splits(names: list[str], kind: str, seed: int, validation_share: float, test_share: float) -> np.ndarray:
    """Assign every picture to a split: (n,) u1, 0 train, 1 validation, 2 test.

    A picture's split depends only on its name, the seed and `kind` ("background" or "foreground"), so the shares hold
    on average. Only if a split with a share above 0 would be empty, the training picture with the lowest draw is moved
    to it, provided that another one is left to train on.
    """
    draws = np.array([key_of(f"split {kind}", seed, name) / 2**64 for name in names])
    splits = np.zeros(len(names), np.uint8)
    splits[draws < validation_share + test_share] = 2
    splits[draws < validation_share] = 1
    for split, share in ((1, validation_share), (2, test_share)):
        if share > 0 and not (splits == split).any() and (splits == 0).sum() > 1:
            training = np.flatnonzero(splits == 0)
            splits[training[np.argmin(draws[training])]] = split
    return splits


def draw_locations(keys: np.ndarray, counts: np.ndarray, positions: int) -> np.ndarray:
    """Draw `positions` of the locations 0 to `counts[k]` - 1 for every key, without replacement while any are left.

    If there are fewer locations than positions, each is used once before any is used again. Returns
    (keys, positions) i8, a pure function of each (key, count). Takes time in O(n log² n) for n positions.
    """
    left = counts[:, None] - np.arange(positions) % counts[:, None]  # a new round starts when none is left
    hashes = scramble(keys[:, None] + np.arange(1, positions + 1, dtype=np.uint64))
    # the high half of a 64-bit hash times the number of locations left: biased by less than 2**-32 * left
    ranks = ((hashes >> np.uint64(32)) * left.astype(np.uint64) >> np.uint64(32)).astype(np.int64)
    rounds = np.minimum(counts, positions)  # the draws of a round, all distinct
    for length in np.unique(rounds).tolist():
        chosen = rounds == length
        whole = positions - positions % length
        ranks[chosen, :whole] = _take_free(ranks[chosen, :whole].reshape(-1, length)).reshape(-1, whole)
        if whole < positions:
            ranks[chosen, whole:] = _take_free(ranks[chosen, whole:])
    return ranks


def _take_free(ranks: np.ndarray) -> np.ndarray:
    """Turn ranks among the locations that earlier draws left free, (rounds, draws) i8, into locations.

    The draws are cut into short blocks. Within a block the locations are found as if nothing had been taken before it.
    Then neighbouring blocks are merged: each rank of the later one moves behind what the earlier one took.
    """
    rounds, draws = ranks.shape
    blocks = 1 << max(0, (draws - 1).bit_length() - _BLOCK_BITS)
    length = -(-draws // blocks)
    locations = np.zeros((rounds, blocks * length), np.int64)  # what fills the last block is drawn last: it moves none
    locations[:, :draws] = ranks
    locations = _take_free_of_block(locations.reshape(-1, length))
    while blocks > 1:
        pairs = locations.reshape(-1, 2, length)
        apart = np.arange(len(pairs))[:, None] * (pairs.max() + 1)  # one sorted table serves all pairs
        taken = np.sort(pairs[:, 0], axis=1) - np.arange(length) + apart  # the rank of each among the free ones
        before = np.searchsorted(taken.ravel(), (pairs[:, 1] + apart).ravel(), side="right").reshape(-1, length)
        pairs[:, 1] += before - np.arange(len(pairs))[:, None] * length
        blocks, length = blocks // 2, length * 2
    return locations.reshape(rounds, -1)[:, :draws]


def _take_free_of_block(ranks: np.ndarray) -> np.ndarray:
    """Do what `_take_free` does for a few draws, in time proportional to their square."""
    locations = ranks.T.copy()
    taken = np.empty_like(locations)  # ascending
    for k, location in enumerate(locations):
        for other in taken[:k]:  # skip the locations already taken, smallest first
            location += location >= other
        taken[k] = location
        for j in range(k, 0, -1):
            if not (taken[j] < taken[j - 1]).any():
                break
            taken[j - 1], taken[j] = np.minimum(taken[j - 1], taken[j]), np.maximum(taken[j - 1], taken[j])
    return np.ascontiguousarray(locations.T)


def key_of(*values: object) -> int:
    """Return 64 bits that depend on every value: the start of a SHA-256."""
    return int.from_bytes(hashlib.sha256("\0".join(map(str, values)).encode()).digest()[:8], "little")


def scramble(x: np.ndarray) -> np.ndarray:
    """Apply SplitMix64's finalizer (Steele, Lea and Flood, OOPSLA 2014) to a Weyl sequence: u8 -> u8."""
    with np.errstate(over="ignore"):
        x = x * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def split_counts(plan: np.ndarray) -> dict[str, int]:
    """Return the number of rows of every split, by name."""
    counts = np.bincount(plan["split"], minlength=len(SPLITS))
    return {name: int(n) for name, n in zip(SPLITS, counts, strict=True)}


def encode_plan(plan: np.ndarray) -> memoryview:
    """Encode a plan as `.npy`."""
    buffer = io.BytesIO()
    np.save(buffer, plan, allow_pickle=False)
    return buffer.getbuffer()


def save_plan(path: Path, plan: np.ndarray) -> None:
    """Write the plan atomically as `.npy`."""
    write_bytes(path, encode_plan(plan))


def load_plan(path: Path, rows: int, sha256: str | None, people: int = 0) -> np.ndarray:
    """Memory-map the plan, read-only; raise `DamagedError` unless it has `rows` rows and, if recorded, this SHA-256.

    `people` is the number of slots that its rows have.

    A header that asks for more than the file holds is found before any memory is allocated.
    """
    remedy = f"run dsgen repair {path.parent}"
    try:
        with regular(path).open("rb") as file:
            start = file.read(len(MAGIC_PREFIX))
            file.seek(0)
            digest = None if sha256 is None else hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError as error:
        if os.path.lexists(path):
            raise DamagedError(path, "not a file", f"remove it, then {remedy}") from error
        raise DamagedError(path, "missing", remedy) from error
    if digest != sha256:
        raise DamagedError(path, "damaged, its hash differs from the one in corpus.json", remedy)
    if start != MAGIC_PREFIX:
        raise DamagedError(path, "damaged, not an npy file", remedy)
    try:
        plan = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError:
        raise
    except Exception as error:  # numpy raises errors of any class on damaged headers
        raise DamagedError(path, f"damaged ({reason_of(error, path)})", remedy) from error
    dtype = plan_dtype(people)
    if plan.dtype != dtype or plan.shape != (rows,):
        found = f"got {plan.shape} of {plan.dtype.names or plan.dtype}"
        raise DamagedError(path, f"damaged, {found}, expected ({rows},) of {dtype.names}", remedy)
    return plan
