"""The plan: a table with one row per sample, in a fixed order.

Row `((background * foregrounds + foreground) * flips + flip) * positions + position` says where a foreground is pasted
on a background. The locations of a (background, foreground, flip) depend only on the seed, on the names of the two
pictures and on the number of possible locations. Other pictures, workers or machines change no row's content.
"""

import hashlib
import io
from pathlib import Path

import numpy as np
from numpy.lib.format import MAGIC_PREFIX

from dsgen.errors import DamagedError, reason_of
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
    """Draw `positions` locations for every foreground, and its mirror image if `flip`, on every background.

    `backgrounds` and `foregrounds` are the pictures' names, `foreground_sizes` is (foregrounds, 2), height and width
    in pixels. Locations are uniform over all where the foreground is entirely inside `size` x `size` pixels; those of
    a pair are distinct as long as there are enough. Returns a structured array of `DTYPE`, of shape (rows,).
    """
    flips = 2 if flip else 1
    count = len(backgrounds) * len(foregrounds) * flips
    plan = np.zeros((len(backgrounds), len(foregrounds), flips, positions), DTYPE)
    plan["background"] = np.arange(len(backgrounds))[:, None, None, None]
    plan["foreground"] = np.arange(len(foregrounds))[:, None, None]
    plan["flip"] = np.arange(flips)[:, None]
    plan["position"] = np.arange(positions)

    tops_and_lefts = size + 1 - np.asarray(foreground_sizes, np.int64)  # how many there are of each
    shape = len(backgrounds), len(foregrounds), flips
    tops, lefts = (np.broadcast_to(number[None, :, None], shape) for number in tops_and_lefts.T)
    keys = np.fromiter(
        (_key("place", seed, b, f, mirrored) for b in backgrounds for f in foregrounds for mirrored in range(flips)),
        np.uint64,
        count,
    )
    locations = draw_locations(keys, (tops * lefts).ravel(), positions).reshape(plan.shape)
    plan["top"] = locations // lefts[..., None]
    plan["left"] = locations % lefts[..., None]

    background_split = assign_splits(backgrounds, "background", seed, validation_share, test_share)
    foreground_split = assign_splits(foregrounds, "foreground", seed, validation_share, test_share)
    together = np.where(background_split[:, None] == foreground_split, foreground_split, SPLITS.index("unused"))
    plan["split"] = together[:, :, None, None]
    return plan.reshape(-1)


def assign_splits(names: list[str], kind: str, seed: int, validation_share: float, test_share: float) -> np.ndarray:
    """Assign every picture to a split: (n,) u1, 0 train, 1 validation, 2 test.

    A picture's split depends only on its name, the seed and `kind` ("background" or "foreground"), so the shares hold
    on average. Only if a split with a share above 0 would be empty, the training picture with the lowest draw is moved
    to it, provided that another one is left to train on.
    """
    draws = np.array([_key(f"split {kind}", seed, name) / 2**64 for name in names])
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
    (keys, positions) i8, a pure function of each (key, count).
    """
    locations = np.empty((len(keys), positions), np.int64)
    taken = np.full((len(keys), positions), np.iinfo(np.int64).max)  # in this round, ascending
    for k in range(positions):
        used = k % counts
        taken[used == 0] = np.iinfo(np.int64).max  # a new round starts
        left = (counts - used).astype(np.uint64)
        # the high half of a 64-bit hash times the number of locations left: biased by less than 2**-32 * left
        location = ((_scramble(keys + np.uint64(k + 1)) >> np.uint64(32)) * left >> np.uint64(32)).astype(np.int64)
        for j in range(k):  # skip the locations already taken, smallest first
            location += location >= taken[:, j]
        locations[:, k] = location
        taken[:, k] = location
        taken[:, : k + 1].sort(axis=1)
    return locations


def _key(*values: object) -> int:
    """Return 64 bits that depend on every value: the start of a SHA-256."""
    return int.from_bytes(hashlib.sha256("\0".join(map(str, values)).encode()).digest()[:8], "little")


def _scramble(x: np.ndarray) -> np.ndarray:
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


def save_plan(path: Path, plan: np.ndarray) -> None:
    """Write the plan atomically as `.npy`."""
    buffer = io.BytesIO()
    np.save(buffer, plan, allow_pickle=False)
    write_bytes(path, buffer.getvalue())


def load_plan(path: Path, rows: int, sha256: str | None) -> np.ndarray:
    """Memory-map the plan, read-only; raise `DamagedError` unless it has `rows` rows and, if recorded, this SHA-256.

    A header that asks for more than the file holds is found before any memory is allocated.
    """
    remedy = f"run dsgen repair {path.parent}"
    try:
        with path.open("rb") as file:
            start = file.read(len(MAGIC_PREFIX))
            file.seek(0)
            digest = None if sha256 is None else hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError as error:
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
    if plan.dtype != DTYPE or plan.shape != (rows,):
        found = f"got {plan.shape} of {plan.dtype.names or plan.dtype}"
        raise DamagedError(path, f"damaged, {found}, expected ({rows},) of {DTYPE.names}", remedy)
    return plan
