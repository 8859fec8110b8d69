"""The order of an epoch: a permutation, mixed like a uniform draw, of which few chunks are in use at a time."""

import time

import numpy as np
import pytest

from dsgen.corpus.plan import SPLITS, make_plan
from dsgen.store.memory import MemoryModel
from dsgen.store.order import LANES, epoch_order


@pytest.mark.parametrize("lengths", [[1], [3], [1, 2, 3], [5] * 7, [20] * 50, [1, 40] * 30])
@pytest.mark.parametrize("pool", [8, 96])
def test_epoch_order_is_a_permutation(lengths: list[int], pool: int) -> None:
    """Any number of chunks of any lengths: every sample once, in another order for another seed or epoch."""
    total = sum(lengths)
    orders = [epoch_order(np.array(lengths), seed, epoch, pool) for seed, epoch in ((0, 0), (0, 1), (1, 0), (0, 0))]
    for samples in orders:
        assert sorted(samples.tolist()) == list(range(total))
    np.testing.assert_array_equal(orders[0], orders[3])
    if total > 20:
        assert (orders[0] != orders[1]).any()
        assert (orders[0] != orders[2]).any()


@pytest.fixture(scope="module")
def full_plan() -> np.ndarray:
    """The training rows of a corpus of full size: 100 backgrounds x 100 foregrounds x 2 flips x 20 positions."""
    names = [f"{n:03d}" for n in range(100)]
    plan = make_plan(names, names, np.tile([110, 60], (100, 1)))
    return plan[plan["split"] == SPLITS.index("train")]


def default_pool(lengths: np.ndarray) -> int:
    """The default pool at 224 pixels with depth and 1000 MB."""
    model = MemoryModel(
        size=224,
        fields=("image", "mask", "depth", "background"),
        lengths=lengths,
        chunk=20,
        batch_size=32,
        ranks=1,
        workers=2,
        shuffle=True,
        host_floats=False,
        limit_mb=1000,
    )
    return model.default_pool()


def distinct(values: np.ndarray, samples: np.ndarray, batch_size: int = 64) -> np.ndarray:
    """Count the different values in each full batch of a sequence of samples."""
    count = len(samples) // batch_size
    drawn = np.sort(values[samples[: count * batch_size]].reshape(count, batch_size), axis=1)
    return (np.diff(drawn, axis=1) != 0).sum(axis=1) + 1


def test_default_mixes_like_a_draw_from_all_rows(full_plan: np.ndarray) -> None:
    """A batch of 64 of full-size data has over 0.95 of the pairs and backgrounds of a uniform draw, 0.8 at the ends."""
    lengths = np.full(len(full_plan) // 20, 20)
    pool = default_pool(lengths)
    samples = epoch_order(lengths, 0, 0, pool)
    uniform = np.random.default_rng(0).permutation(len(full_plan))
    pair = full_plan["background"].astype(np.int64) * 100 + full_plan["foreground"]
    for values in (pair, full_plan["background"]):
        ideal, got = distinct(values, uniform).mean(), distinct(values, samples)
        assert got.mean() > 0.95 * ideal
        assert got[:10].mean() > 0.8 * ideal
        assert got[-10:].mean() > 0.8 * ideal
        assert got.min() > 0.6 * ideal


def test_few_chunks_are_in_use_at_a_time(full_plan: np.ndarray) -> None:
    """Never more than the pool and one for each lane, and of the samples of one chunk no two are close together."""
    chunk = np.arange(len(full_plan)) // 20
    samples = epoch_order(np.bincount(chunk), 0, 0, 96)
    places = np.argsort(chunk[samples], kind="stable").reshape(-1, 20)
    live = np.zeros(len(samples) + 1, np.int64)
    np.add.at(live, places[:, 0], 1)
    np.add.at(live, places[:, -1] + 1, -1)
    assert live.cumsum().max() <= 96 + LANES
    gaps = np.diff(places, axis=1)[len(places) // 4 : -len(places) // 4]
    assert np.percentile(gaps, 1) > 24


def test_ranks_that_divide_the_lanes_share_few_chunks(full_plan: np.ndarray) -> None:
    """With 2, 4 or 8 ranks a chunk is one rank's, but for those cut between lanes."""
    samples = epoch_order(np.full(len(full_plan) // 20, 20), 0, 0, 96)
    for ranks in (2, 4, 8):
        of = [set((samples[r::ranks] // 20).tolist()) for r in range(ranks)]
        assert sum(map(len, of)) <= len(full_plan) // 20 + LANES - 1


def test_order_of_full_size_is_made_at_once(full_plan: np.ndarray) -> None:
    """Going forward to any place in 400,000 rows takes less than two seconds of computing."""
    started = time.process_time()
    assert len(epoch_order(np.full(20_000, 20), 0, 0, 96)[399_000:]) == 1000
    assert time.process_time() - started < 2
