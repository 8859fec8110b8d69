"""Loader: every sample once, the same order for any number of threads, errors that arrive."""

import gc
import pickle
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from dsgen.corpus import Corpus
from dsgen.errors import DsgenError
from dsgen.loader import Loader
from dsgen.pack import pack
from dsgen.plan import SPLITS
from dsgen.store import Shard


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory, labelled_corpus: Path) -> Path:
    """A store of three shards with depth; not to be written to."""
    out = tmp_path_factory.mktemp("store") / "shards"
    pack(labelled_corpus, out, shards=3, jobs=1)
    return out


def order(loader: Loader) -> list[list[int]]:
    """The rows of every batch."""
    return [batch["row"].tolist() for batch in loader]


def reading_threads() -> list[str]:
    """The loader's threads that are alive."""
    return [t.name for t in threading.enumerate() if t.name.startswith("dsgen-")]


@pytest.mark.parametrize("split", ["train", "validation", "unused", None])
@pytest.mark.parametrize(("shuffle", "workers"), [(True, 0), (True, 2), (False, 0), (False, 2)])
def test_every_row_of_the_split_once(
    shards: Path, labelled_corpus: Path, split: str | None, shuffle: bool, workers: int
) -> None:
    """An epoch is the split's rows, each once, in full batches but the last."""
    plan = Corpus(labelled_corpus).plan
    expected = np.arange(len(plan)) if split is None else np.flatnonzero(plan["split"] == SPLITS.index(split))
    loader = Loader(shards, split, 5, shuffle=shuffle, workers=workers)
    batches = order(loader)
    rows = [row for batch in batches for row in batch]
    assert loader.rows == len(expected) > 5
    assert len(batches) == len(loader)
    assert all(len(batch) == 5 for batch in batches[:-1])
    assert sorted(rows) == expected.tolist()
    assert (rows == expected.tolist()) is not shuffle


@pytest.mark.parametrize("memory_mb", [512, 2])
def test_samples_are_those_of_the_corpus(shards: Path, labelled_corpus: Path, memory_mb: int) -> None:
    """Every tensor of every row, also when slots of the pool are used many times over."""
    corpus = Corpus(labelled_corpus)
    assert corpus.depth is not None
    labels = corpus.depth[:]
    loader = Loader(shards, None, 11, memory_mb=memory_mb)
    for batch in loader:
        rows = batch["row"].numpy()
        image, mask = corpus.render(corpus.plan[rows])
        assert {name: (tuple(t.shape), t.dtype) for name, t in batch.items()} == {
            "image": ((len(rows), 48, 48, 3), torch.uint8),
            "mask": ((len(rows), 48, 48), torch.uint8),
            "depth": ((len(rows), 48, 48), torch.uint16),
            "background": ((len(rows), 48, 48, 3), torch.uint8),
            "row": ((len(rows),), torch.int64),
        }
        np.testing.assert_array_equal(batch["image"].numpy(), image)
        np.testing.assert_array_equal(batch["mask"].numpy(), mask)
        np.testing.assert_array_equal(batch["depth"].numpy(), labels[rows])
        for picture, row in zip(batch["background"].numpy(), corpus.plan[rows], strict=True):
            np.testing.assert_array_equal(picture, corpus.background(int(row["background"])))


@pytest.mark.parametrize("memory_mb", [512, 2])
def test_order_hangs_on_seed_and_epoch_alone(shards: Path, memory_mb: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """No thread, one and three give the same batches, also when reads take unequal time; another epoch others."""
    first = order(Loader(shards, None, 11, seed=3, workers=0, memory_mb=memory_mb))
    original = Shard.read

    def uneven(self: Shard, part: str, start: int, stop: int) -> np.ndarray:
        time.sleep(start % 3 * 0.02)
        return original(self, part, start, stop)

    monkeypatch.setattr(Shard, "read", uneven)
    for workers in (1, 3):
        loader = Loader(shards, None, 11, seed=3, workers=workers, memory_mb=memory_mb)
        assert order(loader) == first
        assert order(loader) == first
    loader.set_epoch(1)
    assert order(loader) != first
    assert order(Loader(shards, None, 11, seed=4, memory_mb=memory_mb)) != first
    loader.set_epoch(0)
    assert order(loader) == first


def test_batches_mix_pairs(shards: Path) -> None:
    """A batch draws on several chunks, and nearly all batches on several backgrounds."""
    batches = order(Loader(shards, None, 12))
    assert np.mean([len({row // 20 for row in batch}) for batch in batches]) > 2.5


def test_small_pool_still_rolls(shards: Path) -> None:
    """With room for few chunks, rows of one chunk are spread over many batches."""
    loader = Loader(shards, None, 11, memory_mb=2)
    assert loader._slots < loader.rows
    spread = [len({k for k, batch in enumerate(order(loader)) for row in batch if row // 20 == c}) for c in range(3)]
    assert min(spread) >= 3


def test_drop_last(shards: Path) -> None:
    """Only full batches, and `len` says so."""
    loader = Loader(shards, None, 7, drop_last=True)
    batches = order(loader)
    assert len(batches) == len(loader) == 10
    assert {len(batch) for batch in batches} == {7}
    assert len(Loader(shards, None, 7)) == 11


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_copies(shards: Path, workers: int) -> None:
    """A batch kept while others are made does not change."""
    loader = Loader(shards, None, 11, workers=workers, memory_mb=2)
    iterator = iter(loader)
    first = next(iterator)
    kept = {name: tensor.clone() for name, tensor in first.items()}
    for _ in iterator:
        pass
    assert all(torch.equal(kept[name], first[name]) for name in kept)


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_error_reaches_the_caller(tmp_path: Path, shards: Path, workers: int) -> None:
    """A file lost after opening stops the epoch with its name, and the threads."""
    path = Path(shutil.copytree(shards, tmp_path / "shards"))
    loader = Loader(path, None, 11, workers=workers, memory_mb=2)
    (path / "shard-00001-of-00003.zarr/image/c/0/0/0/0").unlink()
    with pytest.raises(DsgenError, match=r"shard-00001-of-00003\.zarr: cannot read image"):
        order(loader)
    assert not reading_threads()


@pytest.mark.parametrize("way", ["close", "drop", "break"])
def test_abandoned_half_way_threads_stop(shards: Path, way: str) -> None:
    """An iterator left early takes its threads along."""
    iterator = iter(Loader(shards, None, 11, workers=2, memory_mb=2))
    next(iterator)
    assert reading_threads()
    if way == "close":
        iterator.close()  # type: ignore[attr-defined]
    elif way == "break":
        for _ in iterator:
            break
    del iterator
    gc.collect()
    assert not reading_threads()


def test_empty_split_says_what_to_do(shards: Path) -> None:
    """A split without rows is an error with the counts and the remedy."""
    with pytest.raises(DsgenError, match=r"no rows in split 'test' \(.*0 test.*more pictures, or with a larger share"):
        Loader(shards, "test")


def test_bad_arguments(shards: Path, tmp_path: Path) -> None:
    """What cannot be is refused by name, value and rule."""
    with pytest.raises(DsgenError, match="split: got 'trian', expected one of train, validation"):
        Loader(shards, "trian")
    with pytest.raises(DsgenError, match="batch size: got 0"):
        Loader(shards, batch_size=0)
    with pytest.raises(DsgenError, match="workers: got -1"):
        Loader(shards, workers=-1)
    with pytest.raises(DsgenError, match=r"memory_mb: got 1, expected \d+ or more for batches of 32 at 48x48"):
        Loader(shards, memory_mb=1)
    with pytest.raises(DsgenError, match="no store"):
        Loader(tmp_path)


def test_stated_need_of_memory_is_enough(shards: Path) -> None:
    """The memory the error asks for is accepted."""
    with pytest.raises(DsgenError) as raised:
        Loader(shards, memory_mb=1)
    need = int(str(raised.value).split("expected ")[1].split()[0])
    assert sum(map(len, order(Loader(shards, memory_mb=need)))) == Loader(shards).rows


def test_store_without_depth(tmp_path: Path, corpus: Path) -> None:
    """No labels, no key."""
    pack(corpus, tmp_path / "s", shards=1, jobs=1)
    loader = Loader(tmp_path / "s")
    assert loader.has_depth is False
    assert set(next(iter(loader))) == {"image", "background", "mask", "row"}


def test_loader_can_be_pickled(shards: Path) -> None:
    """A loader crosses to another process and gives the same batches there."""
    loader = Loader(shards, None, 6, seed=5)
    assert order(pickle.loads(pickle.dumps(loader))) == order(loader)


def _rows_to(queue: "torch.multiprocessing.Queue", loader: Loader) -> None:
    queue.put(order(loader))


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_forked_child_reads(shards: Path) -> None:
    """A forked process of a parent that has read before gets the right batches and does not hang."""
    loader = Loader(shards, None, 6, seed=5)
    expected = order(loader)
    context = torch.multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_rows_to, args=(queue, loader))
    child.start()
    try:
        assert queue.get(timeout=60) == expected
    finally:
        child.kill()
        child.join()
