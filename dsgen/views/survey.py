"""Survey a store: what a report says of its rows, in numbers.

Columns are read whole, a shard at a time, so counts and positions are those of all rows. Pixels are read of rows chosen
at random with a fixed seed; of a small store, of all of them. What is kept does not grow with the rows, but for one
byte each.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

import numpy as np

from dsgen.corpus.figures import UNIT
from dsgen.corpus.placement import FLOOR
from dsgen.corpus.plan import SPLITS, UNUSED
from dsgen.store.reader import Shard, Store

T = TypeVar("T")
R = TypeVar("R")
SEED = 0
HEAT_SIDE = 56  # cells of the heat map of feet
_MOST_ROWS, _LEAST_ROWS, _PIXELS = 1000, 24, 2**26  # sampled rows, and about how many pixels they have in all
_DEPTHS = 2**16
_THREADS, _AHEAD = 4, 16
DISTANCE_STEP_MM = 250


@dataclass(frozen=True)
class Use:
    """How often each background or foreground is used: `rows` is (pictures, 4), by split as in `SPLITS`."""

    names: tuple[str, ...]
    rows: np.ndarray

    @property
    def total(self) -> np.ndarray:
        """How often each is used in all, (pictures,)."""
        return self.rows.sum(axis=1)

    def pictures_of(self, split: str) -> int:
        """Count the pictures that a split shows."""
        return int(np.count_nonzero(self.rows[:, SPLITS.index(split)]))

    @property
    def shared(self) -> int:
        """Count the pictures that more than one of train, validation and test show."""
        return int(np.count_nonzero((self.rows[:, :UNUSED] > 0).sum(axis=1) > 1))


@dataclass(frozen=True)
class People:
    """The people of all rows, where they have places of their own.

    `per_row` counts rows by how many people were placed in them, `distances` people by 0.25 m of distance, and
    `unknown` those without one. `median_m` is the median distance in metres. `rows_without` counts the rows that show
    nobody. `feet` is (56,56), people by where the middle of what is seen of them and their feet are; `feet_below` are
    those whose feet are out of the picture. Both are None where people do not stand on floors.
    """

    per_row: tuple[int, ...]
    distances: np.ndarray
    unknown: int
    median_m: float | None
    rows_without: int
    feet: np.ndarray | None
    feet_below: int


@dataclass(frozen=True)
class Masks:
    """The masks of the sampled rows: the share of the picture that each covers, and where.

    `shares` is (rows,) of 0 to 1, `where` (S,S) how many of the rows have a mask at each pixel.
    """

    shares: np.ndarray
    where: np.ndarray

    @property
    def empty(self) -> int:
        """Count the masks without a pixel."""
        return int(np.count_nonzero(self.shares == 0))


@dataclass(frozen=True)
class Depths:
    """The depth of the sampled rows: `pixels` counts pixels by millimetres, (65536,), at 0 those without depth."""

    pixels: np.ndarray

    @property
    def share_without(self) -> float:
        """The share of pixels without depth."""
        return float(self.pixels[0] / self.pixels.sum())

    def percentile_m(self, percent: float) -> float | None:
        """Return a percentile of the known depth in metres; None where none is known."""
        return _percentile(np.concatenate([[0], self.pixels[1:]]), percent, 0.001)


@dataclass(frozen=True)
class Survey:
    """What a report says of the rows of a store; what the store lacks is None.

    `shown` are the rows that the sheet of each split shows, by split. `sampled` are those whose pixels were counted.
    `foregrounds` are counted for each person that was placed.
    """

    sampled: np.ndarray
    shown: dict[str, tuple[int, ...]]
    backgrounds: Use | None
    foregrounds: Use | None
    people: People | None
    masks: Masks | None
    depths: Depths | None


def survey(store: Store, *, shown: int = 6) -> Survey:
    """Count what a report says of a store. `shown` is how many rows of each split it is to show."""
    sampled = _choose(np.arange(store.rows), _sampled_rows(store))
    masks, depths = _survey_pixels(store, sampled)
    split = np.concatenate([shard.column("split") for shard in store.shards])
    return Survey(
        sampled=sampled,
        shown={
            name: tuple(_choose(np.flatnonzero(split == number), shown, number + 1).tolist())
            for number, name in enumerate(SPLITS)
            if store.splits.get(name)
        },
        backgrounds=_count_use(store, "backgrounds", _background_use),
        foregrounds=_count_use(store, "foregrounds", _foreground_use),
        people=_survey_people(store) if store.people else None,
        masks=masks,
        depths=depths,
    )


def read_row(store: Store, row: int, fields: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Read fields of one row, without the backgrounds."""
    number, first = store.locate(row)
    return {name: values[0] for name, values in store.shards[number].samples(first, first + 1, fields).items()}


def read_plan(store: Store, rows: Iterable[int]) -> dict[int, np.void]:
    """Read the rows of the plan of these numbers, a shard at a time."""
    places: dict[Shard, list[tuple[int, int]]] = {}
    for row in rows:
        number, place = store.locate(row)
        places.setdefault(store.shards[number], []).append((row, place))
    planned = {}
    for shard, found in places.items():
        plan = shard.plan_rows()
        planned.update({row: plan[place].copy() for row, place in found})
    return planned


def _choose(rows: np.ndarray, count: int, seed: int = SEED) -> np.ndarray:
    """Choose some of the rows at random, in order, or all if there are no more."""
    chosen = np.random.default_rng([SEED, seed]).choice(len(rows), min(count, len(rows)), replace=False)
    return rows[np.sort(chosen)]


def _sampled_rows(store: Store) -> int:
    return max(_LEAST_ROWS, min(_MOST_ROWS, _PIXELS // store.size**2))


def _survey_pixels(store: Store, rows: np.ndarray) -> tuple[Masks | None, Depths | None]:
    fields = tuple(name for name in ("mask", "depth") if name in store.fields)
    if not fields:
        return None, None
    covered: list[np.ndarray] = []
    where = np.zeros((store.size, store.size), np.int64)
    pixels = np.zeros(_DEPTHS, np.int64)
    for counts, places, depths in _in_order(lambda run: _count_pixels(*run, fields), _runs(store, rows)):
        covered.append(counts)
        where += places
        pixels += depths
    shares = np.concatenate(covered) / store.size**2
    return Masks(shares, where) if "mask" in fields else None, Depths(pixels) if "depth" in fields else None


def _runs(store: Store, rows: np.ndarray) -> Iterator[tuple[Shard, int, int]]:
    """Yield the rows as runs of consecutive ones within a chunk: shard, first and last, exclusive, within the shard.

    Shards are opened anew, one after the other, so that what each of them keeps in memory goes with it.
    """
    for number, first in enumerate(store.first_rows[:-1].tolist()):
        places = rows[(rows >= first) & (rows < store.first_rows[number + 1])] - first
        if not len(places):
            continue
        shard = Shard(store.shards[number].files)
        for run in np.split(places, np.flatnonzero((np.diff(places) > 1) | (places[1:] % shard.chunk == 0)) + 1):
            yield shard, int(run[0]), int(run[-1]) + 1


def _count_pixels(
    shard: Shard, first: int, last: int, fields: tuple[str, ...]
) -> tuple[np.ndarray, np.ndarray | int, np.ndarray | int]:
    """Return the masked pixels of every row of a run, how many rows are masked at each, and pixels by their depth."""
    read = shard.samples(first, last, fields)
    mask = read["mask"] > 0 if "mask" in read else np.zeros((last - first, 1, 1), bool)
    depth = np.bincount(read["depth"].ravel(), minlength=_DEPTHS) if "depth" in read else 0
    return mask.sum(axis=(1, 2)), mask.sum(axis=0) if "mask" in read else 0, depth


def _in_order(work: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """Yield what threads make of the items, in order; they are only a few items ahead."""
    rest = iter(items)
    with ThreadPoolExecutor(_THREADS) as pool:
        waiting: deque[Future[R]] = deque(pool.submit(work, item) for item in islice(rest, _AHEAD))
        while waiting:
            done = waiting.popleft().result()
            waiting.extend(pool.submit(work, item) for item in islice(rest, 1))
            yield done


def _count_use(
    store: Store, kind: str, numbers_of: Callable[[Shard, np.ndarray], tuple[np.ndarray, np.ndarray]]
) -> Use | None:
    """Count how often each picture of a kind is used, by split; None for pictures that are no corpus."""
    records: list[dict[str, Any]] = store.shards[0].attributes.get(kind, [])
    if not records:
        return None
    counts = np.zeros(len(records) * len(SPLITS), np.int64)
    for shard in store.shards:
        numbers, splits = numbers_of(shard, shard.column("split"))
        counts += np.bincount(numbers.astype(np.int64) * len(SPLITS) + splits, minlength=len(counts))
    return Use(tuple(str(record["name"]) for record in records), counts.reshape(-1, len(SPLITS)))


def _background_use(shard: Shard, split: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return shard.column("background_number"), split


def _foreground_use(shard: Shard, split: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if not shard.people:
        return shard.column("foreground"), split
    placed = shard.column("person_height") > 0
    return shard.column("person_foreground")[placed], np.broadcast_to(split[:, None], placed.shape)[placed]


def _survey_people(store: Store) -> People:
    on_floor = store.index["made_from"].get("parameters", {}).get("place") == FLOOR
    per_row = np.zeros(store.people + 1, np.int64)
    distances = np.zeros(_DEPTHS, np.int64)
    feet = np.zeros((HEAT_SIDE, HEAT_SIDE), np.int64)
    unknown = without = below = 0
    for shard in store.shards:
        height, distance, box = (shard.column(f"person_{name}") for name in ("height", "distance", "box"))
        placed, seen = height > 0, box[..., 2] > 0
        per_row += np.bincount(placed.sum(axis=1), minlength=len(per_row))
        distances += np.bincount(distance[placed & (distance > 0)], minlength=_DEPTHS)
        unknown += int(np.count_nonzero(placed & (distance == 0)))
        without += int(np.count_nonzero(~seen.any(axis=1)))
        stands = placed & seen & (distance > 0)
        y = (shard.column("person_top")[stands].astype(np.float64) + height[stands]) / UNIT / store.size
        x = (box[..., 0][stands] + box[..., 2][stands] / 2) / store.size
        inside = y < 1
        below += int(np.count_nonzero(~inside))
        feet += np.histogram2d(y[inside], x[inside], HEAT_SIDE, ((0, 1), (0, 1)))[0].astype(np.int64)
    return People(
        per_row=tuple(per_row.tolist()),
        distances=np.add.reduceat(distances, np.arange(0, _DEPTHS, DISTANCE_STEP_MM)),
        unknown=unknown,
        median_m=_percentile(distances, 50, 0.001),
        rows_without=without,
        feet=feet if on_floor else None,
        feet_below=below if on_floor else 0,
    )


def _percentile(counts: np.ndarray, percent: float, unit: float) -> float | None:
    """Return the least value, in `unit`, that so many percent of what was counted do not exceed; None for nothing."""
    total = counts.sum()
    if not total:
        return None
    return float(np.searchsorted(np.cumsum(counts), percent / 100 * total)) * unit
