"""Loader: every sample once, one order for all who take part, resumed at once, errors that arrive."""

import gc
import itertools
import pickle
import shutil
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.corpora import SMALL, draw_background
from support.loading import count_reads, order, reading_threads
from support.rooms import make_room_corpus, write_room_pictures
from torch.utils.data import DataLoader

from dsgen.corpus.composed import label_composed
from dsgen.corpus.corpus import Corpus
from dsgen.corpus.plan import SPLITS
from dsgen.errors import DsgenError, InvalidValueError
from dsgen.store.loader import Loader
from dsgen.store.packing import pack, pack_source
from dsgen.store.picture_source import Pictures
from dsgen.store.reader import Shard, Store


@pytest.mark.parametrize("split", ["train", "validation", "unused", None])
@pytest.mark.parametrize(("shuffle", "workers"), [(True, 0), (True, 2), (False, 0), (False, 2)])
def test_every_row_of_the_split_once(
    three_shards: Path, labelled_corpus: Path, split: str | None, shuffle: bool, workers: int
) -> None:
    """An epoch is the split's rows, each once, in full batches but the last."""
    plan = Corpus(labelled_corpus).plan
    expected = np.arange(len(plan)) if split is None else np.flatnonzero(plan["split"] == SPLITS.index(split))
    loader = Loader(three_shards, split, 5, shuffle=shuffle, workers=workers)
    batches = order(loader)
    rows = [row for batch in batches for row in batch]
    assert loader.rows == len(expected) > 5
    assert len(batches) == len(loader)
    assert all(len(batch) == 5 for batch in batches[:-1])
    assert sorted(rows) == expected.tolist()
    assert (rows == expected.tolist()) is not shuffle


@pytest.mark.parametrize(("ranks", "shuffle"), [(1, True), (1, False), (3, True)])
def test_samples_are_those_of_the_corpus(three_shards: Path, labelled_corpus: Path, ranks: int, shuffle: bool) -> None:
    """Every tensor of every row, of whole chunks and of parts of them."""
    corpus = Corpus(labelled_corpus)
    assert corpus.depth is not None
    labels = corpus.depth[:]
    batches = [b for r in range(ranks) for b in Loader(three_shards, None, 11, rank=r, ranks=ranks, shuffle=shuffle)]
    assert sum(len(batch["row"]) for batch in batches) == len(labels)
    for batch in batches:
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


@pytest.fixture(scope="module")
def composed_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """People at random places in rooms whose depth is known; nothing is labelled yet."""
    folder = tmp_path_factory.mktemp("composed")
    pictures = write_room_pictures(folder / "pictures")
    make_room_corpus(folder / "c", pictures, replace(SMALL, positions=3))
    label_composed(folder / "c", background_depths=pictures / "depths", jobs=1)
    return folder / "c"


@pytest.mark.parametrize(
    ("source", "options"),
    [
        ("labelled_corpus", {}),
        ("labelled_corpus", {"compact": True}),
        ("labelled_corpus", {"recipe": True}),
        ("composed_corpus", {"recipe": True}),
    ],
)
def test_samples_are_the_same_without_numba(
    source: str, options: dict[str, Any], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Decoded and drawn by numpy and by compiled loops, of chunks of which the split has all samples or some."""
    pack(request.getfixturevalue(source), tmp_path / "s", shards=2, jobs=1, **options)
    compiled, whole = list(Loader(tmp_path / "s", "train", 7)), Store(tmp_path / "s").read(0, 60)
    request.getfixturevalue("without_numba")
    for batch, other in zip(compiled, Loader(tmp_path / "s", "train", 7), strict=True):
        assert batch.keys() == other.keys() >= {"image", "mask", "depth", "row"}
        assert all(torch.equal(batch[name], other[name]) for name in batch)
    again = Store(tmp_path / "s").read(0, 60)
    assert all(np.array_equal(whole[name], again[name]) for name in whole)


def test_order_depends_on_seed_and_epoch_alone(many: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No thread, one and three give the same batches, also when reads take unequal time; another epoch others."""
    first = order(Loader(many, None, 11, seed=3, workers=0, pool=8))
    original = Shard.place

    def uneven(self: Shard, field: str, start: int, *more: Any) -> None:
        time.sleep(start % 3 * 0.005)
        original(self, field, start, *more)

    monkeypatch.setattr(Shard, "place", uneven)
    for workers in (1, 3):
        loader = Loader(many, None, 11, seed=3, workers=workers, pool=8)
        assert order(loader) == first
        assert order(loader) == first
    loader.set_epoch(1)
    assert order(loader) != first
    assert order(Loader(many, None, 11, seed=4, pool=8)) != first
    loader.set_epoch(0)
    assert order(loader) == first


def test_order_depends_on_no_batch_size_memory_or_rank(many: Path) -> None:
    """One sequence of rows, cut in any way and read with any memory."""
    sequence = list(itertools.chain(*order(Loader(many, None, 11))))
    assert list(itertools.chain(*order(Loader(many, None, 64, memory_mb=200, workers=0)))) == sequence
    for ranks in (2, 3):
        parts = [list(itertools.chain(*order(Loader(many, None, 7, rank=r, ranks=ranks)))) for r in range(ranks)]
        assert [parts[i % ranks][i // ranks] for i in range(len(sequence))] == sequence


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize(("split", "batch_size", "ranks"), [(None, 7, 1), (None, 7, 2), (None, 5, 3), (None, 64, 7)])
def test_ranks_share_without_overlap_or_loss(
    many: Path, split: str | None, batch_size: int, ranks: int, drop_last: bool
) -> None:
    """Every rank has the same number of batches, all have all rows once, whole global batches with `drop_last`."""
    loaders = [Loader(many, split, batch_size, rank=r, ranks=ranks, drop_last=drop_last) for r in range(ranks)]
    of = [order(loader) for loader in loaders]
    assert {len(batches) for batches in of} == {len(loader) for loader in loaders}
    rows = [row for batches in of for batch in batches for row in batch]
    assert len(set(rows)) == len(rows)
    assert {len(batch) for batches in of for batch in batches[:-1]} <= {batch_size}
    if drop_last:
        assert {len(batches[-1]) for batches in of} == {batch_size}
        assert len(rows) == 960 - 960 % (ranks * batch_size)
    else:
        assert len(rows) == 960
        assert all(batches[-1] for batches in of)
        assert len({loader.state_dict()["samples"] for loader in loaders} | {960}) == 1


def test_last_rows_too_few_for_all_ranks_join_the_batch_before(many: Path) -> None:
    """960 rows are 53 global batches of 18 and 6 more; of 137 x 7, one more, which would be no batch for 6 ranks."""
    of = [order(Loader(many, None, 137, rank=r, ranks=7)) for r in range(7)]
    assert [[len(batch) for batch in batches] for batches in of] == [[138]] + [[137]] * 6
    assert len({row for batches in of for batch in batches for row in batch}) == 960


def test_too_many_ranks_or_too_large_full_batches(many: Path) -> None:
    """What would leave a rank without a batch is refused."""
    with pytest.raises(DsgenError, match=r"960 rows in split None, expected 1000 or more for 1000 ranks; use fewer"):
        Loader(many, None, ranks=1000)
    with pytest.raises(DsgenError, match=r"expected 1200 or more for 2 ranks and full batches of 600; use smaller"):
        Loader(many, None, 600, ranks=2, drop_last=True)
    with pytest.raises(DsgenError, match="rank: got 2 of 2 ranks"):
        Loader(many, None, rank=2, ranks=2)


@pytest.mark.parametrize(("workers", "ranks", "batch_size"), [(2, 1, 16), (0, 1, 9), (1, 2, 8), (2, 4, 4), (0, 3, 5)])
def test_resumes_in_mid_epoch(
    many: Path, workers: int, ranks: int, batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After 40 batches of 16 the rest of the rows comes, in order, for any workers, ranks and batches."""
    whole = Loader(many, None, 16, seed=2, pool=8)
    whole.set_epoch(3)
    iterator = iter(whole)
    seen = [next(iterator)["row"].tolist() for _ in range(40)]
    state = whole.state_dict()
    assert {name: state[name] for name in ("seed", "epoch", "samples")} == {"seed": 2, "epoch": 3, "samples": 640}
    sequence = [row for batch in [*seen, *(batch["row"].tolist() for batch in iterator)] for row in batch]
    chunks = {row // 20 for row in sequence[640:]}

    reads = count_reads(monkeypatch)
    of = []
    for rank in range(ranks):
        loader = Loader(many, None, batch_size, seed=2, pool=8, workers=workers, rank=rank, ranks=ranks)
        loader.load_state_dict(state)
        assert loader.state_dict() == state
        of.append([row for batch in order(loader) for row in batch])
        assert loader.state_dict()["samples"] == 960
    assert [of[i % ranks][i // ranks] for i in range(320)] == sequence[640:]
    assert len(set(reads)) == len(chunks) < 48 // 2
    assert order(loader)[0] != of[-1][:batch_size]  # after that the epoch begins at its beginning


def test_state_counts_what_was_handed_out(many: Path) -> None:
    """Batches read ahead do not count; an epoch that is over has nothing left, and the next begins at its beginning."""
    loader = Loader(many, None, 100, workers=2)
    assert loader.state_dict()["samples"] == 0
    counts = []
    for _ in loader:
        time.sleep(0.01)
        counts.append(loader.state_dict()["samples"])
    assert counts == [*range(100, 1000, 100), 960]
    loader.load_state_dict(loader.state_dict())
    assert order(loader) == []
    assert len(order(loader)) == 10
    loader.set_epoch(1)
    assert (loader.state_dict()["epoch"], loader.state_dict()["samples"]) == (1, 0)


def test_rows_left_for_too_few_ranks_are_said(many: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Resuming near the end with more ranks than rows ends the epoch, and says so."""
    loader = Loader(many, None, 4, rank=1, ranks=8)
    loader.load_state_dict({"seed": 0, "epoch": 0, "samples": 957})
    assert order(loader) == []
    assert "3 rows left for 8 ranks" in caplog.text


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"pool": 16}, r"the state is of another order; make the loader as it was\n  pool 16 \(the state has 8\)$"),
        ({"seed": 1}, r"\n  seed 1 \(the state has 0\)$"),
        ({"split": "train"}, r"\n  split train \(the state has none\)$"),
        ({"shuffle": False}, r"\n  shuffle False \(the state has True\)$"),
    ],
)
def test_state_of_another_order_is_refused(many: Path, other: dict[str, Any], message: str) -> None:
    """By name, with both values."""
    state = Loader(many, None, pool=8).state_dict()
    options: dict[str, Any] = {"split": None, "pool": 8, "seed": 0} | other
    with pytest.raises(DsgenError, match=message):
        Loader(many, **options).load_state_dict(state)


def test_state_of_another_store_is_refused(many: Path, three_shards: Path) -> None:
    """A store is known by its hash, and has so many rows."""
    with pytest.raises(DsgenError, match=r"\n  store [0-9a-f]{64} \(the state has [0-9a-f]{64}\)"):
        Loader(three_shards, None).load_state_dict(Loader(many, None).state_dict())
    with pytest.raises(DsgenError, match="samples: got 1000, expected 0 to 960"):
        Loader(many, None).load_state_dict({"seed": 0, "epoch": 0, "samples": 1000})


def test_through_a_dataloader_without_workers(three_shards: Path) -> None:
    """The same batches."""
    loader = Loader(three_shards, None, 9)
    through: DataLoader[Any] = DataLoader(loader, batch_size=None)
    assert len(through) == len(loader)
    assert [batch["row"].tolist() for batch in through] == order(loader)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("workers", [0, 1])
def test_data_loader_with_a_batch_size_is_told_what_to_do(three_shards: Path, workers: int) -> None:
    """Batches of batches are refused before anything is read; a collate function of the user's is not."""
    loader = Loader(three_shards, None, 9)
    for options in ({}, {"batch_size": 4}):
        batches: DataLoader[Any] = DataLoader(loader, num_workers=workers, **options)  # type: ignore[arg-type]
        with pytest.raises(InvalidValueError, match=r"use DataLoader\(loader, batch_size=None, num_workers=1\)"):
            next(iter(batches))
    rows = [row for group in DataLoader(loader, batch_size=2, collate_fn=list) for row in order(group)]
    assert rows == order(loader)


def test_drop_last(three_shards: Path) -> None:
    """Only full batches, and `len` says so."""
    loader = Loader(three_shards, None, 7, drop_last=True)
    batches = order(loader)
    assert len(batches) == len(loader) == 10
    assert {len(batch) for batch in batches} == {7}
    assert len(Loader(three_shards, None, 7)) == 11


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_error_reaches_the_caller(tmp_path: Path, three_shards: Path, workers: int) -> None:
    """A file lost after opening stops the epoch with its name, and the threads."""
    path = Path(shutil.copytree(three_shards, tmp_path / "shards"))
    loader = Loader(path, None, 11, workers=workers)
    (path / "shard-00001-of-00003.zarr/image/c/0/0/0/0").unlink()
    with pytest.raises(DsgenError, match=r"shard-00001-of-00003\.zarr: cannot read image"):
        order(loader)
    assert not reading_threads()


@pytest.mark.parametrize("way", ["close", "drop", "break"])
def test_abandoned_half_way_threads_stop(three_shards: Path, way: str) -> None:
    """An iterator left early takes its threads along."""
    iterator = iter(Loader(three_shards, None, 11, workers=2))
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


@pytest.mark.parametrize("workers", [0, 2])
def test_only_the_fields_that_are_wanted(three_shards: Path, workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others are not in a batch, and their chunks are not decoded; the order stays the same."""
    decoded = set()
    original = Shard._decode

    def noted(self: Shard, array: Any, *more: Any) -> np.ndarray:
        decoded.add(array.name)
        return original(self, array, *more)

    whole = Store(three_shards).read(0, 72)
    everything = order(Loader(three_shards, None, 8))
    loader = Loader(three_shards, None, 8, workers=workers, fields=("depth", "image"))
    assert (loader.fields, loader.has_depth) == (("image", "depth"), True)
    monkeypatch.setattr(Shard, "_decode", noted)
    batches = list(loader)
    assert order(batches) == everything
    for batch in batches:
        assert list(batch) == ["image", "depth", "row"]
        for field in ("image", "depth"):
            np.testing.assert_array_equal(batch[field].numpy(), whole[field][batch["row"].numpy()])
    assert {"mask", "background"}.isdisjoint(decoded)
    assert not Loader(three_shards, None, 8, fields=["mask"]).has_depth


@pytest.mark.parametrize("fields", [(), ("picture",)])
def test_fields_that_the_store_lacks(three_shards: Path, fields: tuple[str, ...]) -> None:
    """Are refused with those it has."""
    with pytest.raises(InvalidValueError, match=r"fields: got .*, expected some of image, mask, depth, background"):
        Loader(three_shards, None, fields=fields)


def test_empty_split_says_what_to_do(three_shards: Path) -> None:
    """A split without rows is an error with the counts and the remedy."""
    with pytest.raises(DsgenError, match=r"no rows in split 'test' \(.*0 test.*more pictures, or with a larger share"):
        Loader(three_shards, "test")


def test_bad_arguments(three_shards: Path, tmp_path: Path) -> None:
    """Bad arguments are refused by name, value and rule."""
    with pytest.raises(DsgenError, match="--split: got trian, expected one of train, validation"):
        Loader(three_shards, "trian")
    with pytest.raises(DsgenError, match="--batch-size: got 0"):
        Loader(three_shards, batch_size=0)
    with pytest.raises(DsgenError, match="seed: got -1"):
        Loader(three_shards, seed=-1)
    with pytest.raises(DsgenError, match="pool: got 20, expected a multiple of 8"):
        Loader(three_shards, pool=20)
    with pytest.raises(DsgenError, match="workers: got -1"):
        Loader(three_shards, workers=-1)
    with pytest.raises(DsgenError, match=r"memory_mb: got 1, expected \d+ or more for batches of 32 at 48x48"):
        Loader(three_shards, memory_mb=1)
    with pytest.raises(DsgenError, match="expected a store"):
        Loader(tmp_path)


def test_store_without_depth(tmp_path: Path, corpus: Path) -> None:
    """Without labels there is no depth."""
    pack(corpus, tmp_path / "s", shards=1, jobs=1)
    loader = Loader(tmp_path / "s")
    assert loader.has_depth is False
    assert set(next(iter(loader))) == {"image", "background", "mask", "row"}


def test_store_drawn_as_it_is_read(tmp_path: Path, corpus: Path, three_shards: Path) -> None:
    """A recipe gives the same pictures as a store of them."""
    pack(corpus, tmp_path / "s", shards=3, jobs=1, recipe=True)
    drawn, packed = Loader(tmp_path / "s", None, 9), Loader(three_shards, None, 9)
    for batch, other in zip(drawn, packed, strict=True):
        for part in ("row", "image", "mask", "background"):
            assert torch.equal(batch[part], other[part])


def test_store_without_masks_and_backgrounds(tmp_path: Path) -> None:
    """A field that the store lacks is absent, and rows of a split may lie anywhere in a chunk."""
    (tmp_path / "images").mkdir()
    for n in range(50):
        Image.fromarray(draw_background(n, 32, 32)).save(tmp_path / "images" / f"{n:02d}.png")
    pack_source(Pictures(tmp_path / "images", size=32), tmp_path / "s", shards=1, jobs=1)
    loader = Loader(tmp_path / "s", "train", 8, pool=8)
    whole = loader._store.read(0, 50)
    for batch in loader:
        assert set(batch) == {"image", "row"}
        np.testing.assert_array_equal(batch["image"].numpy(), whole["image"][batch["row"].numpy()])


@pytest.mark.parametrize("workers", [0, 2])
def test_truncated_chunk(tmp_path: Path, many: Path, workers: int) -> None:
    """A file cut short after opening is an error with its name."""
    path = Path(shutil.copytree(many, tmp_path / "shards"))
    loader = Loader(path, None, 16, workers=workers)
    file = path / "shard-00001-of-00002.zarr/image/c/0/0/0/0"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(DsgenError, match=r"shard-00001-of-00002\.zarr: cannot read image"):
        order(loader)
    assert not reading_threads()


@pytest.mark.parametrize("workers", [0, 2])
def test_store_deleted_while_it_is_read(tmp_path: Path, many: Path, workers: int) -> None:
    """An error that names it, and no waiting."""
    path = Path(shutil.copytree(many, tmp_path / "shards"))
    iterator = iter(Loader(path, None, 16, workers=workers, pool=8))
    next(iterator)
    shutil.rmtree(path)
    with pytest.raises(DsgenError, match="cannot read"):
        list(iterator)
    assert not reading_threads()


def test_store_made_anew_is_noticed(tmp_path: Path, many: Path, three_shards: Path) -> None:
    """A loader that crosses to another process reads the store it was made for, or says that it is gone."""
    path = Path(shutil.copytree(many, tmp_path / "shards"))
    pickled = pickle.dumps(Loader(path, None))
    shutil.rmtree(path)
    shutil.copytree(three_shards, path)
    with pytest.raises(DsgenError, match="not the store it was when the loader was made"):
        next(iter(pickle.loads(pickled)))


def test_collected_by_a_thread_of_its_own(many: Path) -> None:
    """An iterator in a reference cycle may be collected in one of its reading threads, which cannot wait for itself."""
    iterator = iter(Loader(many, None, 16))
    next(iterator)
    errors: list[str] = []

    def close() -> None:
        try:
            iterator.close()  # type: ignore[attr-defined]
        except RuntimeError as error:
            errors.append(str(error))

    thread = threading.Thread(target=close, name="dsgen-read-test")
    thread.start()
    thread.join(20)
    assert not thread.is_alive()
    assert not errors
    for reader in [t for t in threading.enumerate() if t.name.startswith("dsgen-")]:
        reader.join(20)
    assert not reading_threads()


def test_loader_can_be_pickled(three_shards: Path) -> None:
    """A loader crosses to another process and gives the same batches there."""
    loader = Loader(three_shards, None, 6, seed=5)
    assert order(pickle.loads(pickle.dumps(loader))) == order(loader)


def test_a_recipe_is_drawn_into_any_memory(tmp_path: Path, composed_corpus: Path) -> None:
    """Parts of larger pictures too; what is read-only or has too few pictures is refused and left alone."""
    pack(composed_corpus, tmp_path / "s", shards=1, jobs=1, recipe=True)
    shard = Store(tmp_path / "s").shards[0]
    fields = ("image", "mask", "depth")
    expected = shard.draw(slice(3, 8), fields)
    for field in fields:
        side = shard.size + 4
        part = np.zeros((5, side, side, *expected[field].shape[3:]), expected[field].dtype)[:, 2:-2, 2:-2]
        shard.draw(slice(3, 8), fields, {field: part})
        np.testing.assert_array_equal(part, expected[field])
        fixed, short = np.zeros_like(expected[field]), np.zeros_like(expected[field][:1])
        fixed.flags.writeable = False
        for out in (fixed, short):
            with pytest.raises((ValueError, DsgenError), match=r"read-only|expected 5|argument 2 is"):
                shard.draw(slice(3, 8), fields, {field: out})
        assert not fixed.any()
