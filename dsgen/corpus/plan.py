"""The plan: one row a sample, in natural order, for ever.

Row `((background * foregrounds + foreground) * flips + flip) * positions + position` says where a foreground lies on
a background. The placements of a (background, foreground, flip) depend on the seed, the two pictures' names and the
room there is, and on nothing else: other pictures, other workers, other machines change no row's content.
"""

import hashlib
import io
from pathlib import Path

import numpy as np

from dsgen.errors import DamagedError, DsgenError
from dsgen.io.atomic import write_bytes

SPLITS = ("train", "validation", "test", "unused")
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
) -> np.ndarray:
    """Lay out every foreground, and its mirror image if `flip`, at `positions` places on every background.

    `foreground_sizes` is (foregrounds, 2), height and width in pixels. Places are uniform over all where the
    foreground lies wholly inside `size` x `size`, and those of a pair are distinct while there is room. Returns a
    structured array of `DTYPE`.
    """
    flips = 2 if flip else 1
    count = len(backgrounds) * len(foregrounds) * flips
    plan = np.zeros((len(backgrounds), len(foregrounds), flips, positions), DTYPE)
    plan["background"] = np.arange(len(backgrounds))[:, None, None, None]
    plan["foreground"] = np.arange(len(foregrounds))[:, None, None]
    plan["flip"] = np.arange(flips)[:, None]
    plan["position"] = np.arange(positions)

    room = size + 1 - np.asarray(foreground_sizes, np.int64)
    rows, columns = (np.broadcast_to(r[None, :, None], (len(backgrounds), len(foregrounds), flips)) for r in room.T)
    keys = np.fromiter(
        (_key("place", seed, b, f, mirrored) for b in backgrounds for f in foregrounds for mirrored in range(flips)),
        np.uint64,
        count,
    )
    places = distinct_places(keys, (rows * columns).ravel(), positions).reshape(plan.shape)
    plan["top"] = places // columns[..., None]
    plan["left"] = places % columns[..., None]

    background_split = assign_splits(backgrounds, "background", seed, validation_share, test_share)
    foreground_split = assign_splits(foregrounds, "foreground", seed, validation_share, test_share)
    together = np.where(background_split[:, None] == foreground_split, foreground_split, SPLITS.index("unused"))
    plan["split"] = together[:, :, None, None]
    return plan.reshape(-1)


def assign_splits(names: list[str], kind: str, seed: int, validation_share: float, test_share: float) -> np.ndarray:
    """Say for every picture whether it is held out: (n,) u1, 0 train, 1 validation, 2 test.

    A picture's side is decided by its name alone, so the shares hold on average. Only where a wanted side would stay
    empty does the picture nearest to it change over, provided one is left to train on.
    """
    draw = np.array([_key(f"split {kind}", seed, name) / 2**64 for name in names])
    split = np.zeros(len(names), np.uint8)
    split[draw < validation_share + test_share] = 2
    split[draw < validation_share] = 1
    for side, share in ((1, validation_share), (2, test_share)):
        if share > 0 and not (split == side).any() and (split == 0).sum() > 1:
            free = np.flatnonzero(split == 0)
            split[free[np.argmin(draw[free])]] = side
    return split


def distinct_places(keys: np.ndarray, room: np.ndarray, positions: int) -> np.ndarray:
    """Draw `positions` places below `room[k]` for every key, without replacement while there is room.

    Where there are fewer places than positions, every place is used before any is used again. Returns
    (keys, positions) i8, a pure function of each (key, room).
    """
    places = np.empty((len(keys), positions), np.int64)
    taken = np.full((len(keys), positions), np.iinfo(np.int64).max)
    for k in range(positions):
        turn = k % room
        taken[(turn == 0)] = np.iinfo(np.int64).max
        left = (room - turn).astype(np.uint64)
        # the high half of a 64-bit hash times the number of places left: biased by less than 2**-32 * left
        place = ((_scramble(keys + np.uint64(k + 1)) >> np.uint64(32)) * left >> np.uint64(32)).astype(np.int64)
        for j in range(k):  # step over the places already taken, smallest first
            place += place >= taken[:, j]
        places[:, k] = place
        taken[:, k] = place
        taken[:, : k + 1].sort(axis=1)
    return places


def _key(*parts: object) -> int:
    """64 bits that depend on every part."""
    return int.from_bytes(hashlib.sha256("\0".join(map(str, parts)).encode()).digest()[:8], "little")


def _scramble(x: np.ndarray) -> np.ndarray:
    """SplitMix64's finalizer (Steele, Lea and Flood, OOPSLA 2014) over a Weyl sequence: u8 -> u8."""
    with np.errstate(over="ignore"):
        x = x * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def split_counts(plan: np.ndarray) -> dict[str, int]:
    """Count the rows of every split, by name."""
    counts = np.bincount(plan["split"], minlength=len(SPLITS))
    return {name: int(n) for name, n in zip(SPLITS, counts, strict=True)}


def save_plan(path: Path, plan: np.ndarray) -> None:
    """Write the plan atomically as `.npy`."""
    buffer = io.BytesIO()
    np.save(buffer, plan, allow_pickle=False)
    write_bytes(path, buffer.getvalue())


def load_plan(path: Path) -> np.ndarray:
    """Map the plan into memory, read-only."""
    try:
        plan = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DamagedError(path, f"no readable plan ({error})", "run dsgen composite again") from error
    if plan.dtype != DTYPE:
        raise DsgenError(path, f"got columns {plan.dtype.names}, expected {DTYPE.names}", "run dsgen composite again")
    return plan
