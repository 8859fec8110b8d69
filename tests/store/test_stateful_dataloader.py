"""`StatefulDataLoader` of torchdata: its state resumes a loader in mid-epoch, in this process and in workers."""

import pickle
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from torchdata.stateful_dataloader import StatefulDataLoader

from dsgen.errors import ConflictError
from dsgen.store.loader import Loader

pytestmark = [
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
    pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning"),  # torchdata with a newer torch
]


def through(loader: Loader, count: int, **more: Any) -> StatefulDataLoader:
    """The loader in a DataLoader with `count` workers, none for 0."""
    return StatefulDataLoader(loader, batch_size=None, num_workers=count, **more)


def rows(batches: Iterator[Any]) -> list[list[int]]:
    """The rows of every batch."""
    return [batch["row"].tolist() for batch in batches]


def reading_of(store: Path, epoch: int = 0, **more: Any) -> list[list[int]]:
    """The rows of every batch of an epoch, without any DataLoader."""
    loader = Loader(store, None, 7, seed=5, **more)
    loader.set_epoch(epoch)
    return rows(iter(loader))


@pytest.mark.parametrize("count", [0, 1, 2])
@pytest.mark.parametrize("stop", [0, 4, 10])
def test_resumes_in_mid_epoch(three_shards: Path, count: int, stop: int) -> None:
    """No row is read twice or missed, batch for batch, and the epoch after is a whole one."""
    loader = Loader(three_shards, None, 7, seed=5)
    loader.set_epoch(3)
    loading = through(loader, count)
    before = rows(islice(iter(loading), stop))
    state = pickle.loads(pickle.dumps(loading.state_dict()))
    del loading

    loader = Loader(three_shards, None, 7, seed=5)
    resumed = through(loader, count)
    resumed.load_state_dict(state)
    assert before + rows(iter(resumed)) == reading_of(three_shards, 3)
    loader.set_epoch(4)
    assert rows(iter(resumed)) == reading_of(three_shards, 4)


@pytest.mark.parametrize("count", [0, 2])
def test_resumes_twice_from_what_was_resumed(three_shards: Path, count: int) -> None:
    """A job that is stopped again and again sees the epoch once."""
    loading = through(Loader(three_shards, None, 7, seed=5), count)
    seen = rows(islice(iter(loading), 3))
    for _ in range(2):
        state = loading.state_dict()
        loading = through(Loader(three_shards, None, 7, seed=5), count)
        loading.load_state_dict(state)
        seen += rows(islice(iter(loading), 3))
    assert seen == reading_of(three_shards)[:9]


def test_a_loader_that_starts_in_mid_epoch(three_shards: Path) -> None:
    """By its own state first, by that of the DataLoader then."""
    loader = Loader(three_shards, None, 7, seed=5)
    loader.load_state_dict({"seed": 5, "epoch": 1, "samples": 14})
    loading = through(loader, 2)
    seen = rows(islice(iter(loading), 3))
    resumed = through(Loader(three_shards, None, 7, seed=5), 2)
    resumed.load_state_dict(loading.state_dict())
    assert seen + rows(iter(resumed)) == reading_of(three_shards, 1)[2:]


def test_workers_that_stay_and_rare_snapshots(three_shards: Path) -> None:
    """Workers that stay alive take the new epoch after the resumed one; torchdata reads on from its last snapshot."""
    loading = through(Loader(three_shards, None, 7, seed=5), 2, persistent_workers=True, snapshot_every_n_steps=3)
    seen = rows(islice(iter(loading), 5))
    state = loading.state_dict()
    loader = Loader(three_shards, None, 7, seed=5)
    resumed = through(loader, 2, persistent_workers=True, snapshot_every_n_steps=3)
    resumed.load_state_dict(state)
    assert seen + rows(iter(resumed)) == reading_of(three_shards)
    for epoch in (1, 2):
        loader.set_epoch(epoch)
        assert rows(iter(resumed)) == reading_of(three_shards, epoch)


@pytest.mark.parametrize("count", [0, 2])
@pytest.mark.parametrize("rank", [0, 2])
def test_every_rank_resumes(three_shards: Path, count: int, rank: int) -> None:
    """Each with its own share, the short last batch too."""
    ranks = {"rank": rank, "ranks": 3}
    loading = through(Loader(three_shards, None, 7, seed=5, **ranks), count)
    seen = rows(islice(iter(loading), 2))
    resumed = through(Loader(three_shards, None, 7, seed=5, **ranks), count)
    resumed.load_state_dict(loading.state_dict())
    assert seen + rows(iter(resumed)) == reading_of(three_shards, **ranks)


@pytest.mark.parametrize("count", [0, 2])
def test_the_state_after_an_epoch_begins_the_next(three_shards: Path, count: int) -> None:
    """As one that is saved between two epochs."""
    loading = through(Loader(three_shards, None, 7, seed=5), count)
    assert len(rows(iter(loading))) == 11
    loader = Loader(three_shards, None, 7, seed=5)
    resumed = through(loader, count)
    resumed.load_state_dict(loading.state_dict())
    loader.set_epoch(1)
    assert rows(iter(resumed)) == reading_of(three_shards, 1)


@pytest.mark.parametrize("count", [0, 2])
@pytest.mark.parametrize(("other", "named"), [({"seed": 6}, "seed"), ({"batch_size": 6}, "batch_size")])
def test_the_state_of_another_loader_is_refused(
    three_shards: Path, count: int, other: dict[str, int], named: str
) -> None:
    """One that makes other batches, by what differs."""
    loading = through(Loader(three_shards, None, 7, seed=5), count)
    next(iter(loading))
    resumed = through(Loader(three_shards, None, **{"batch_size": 7, "seed": 5, **other}), count)
    resumed.load_state_dict(loading.state_dict())
    with pytest.raises((ConflictError, RuntimeError), match=named):
        next(iter(resumed))
