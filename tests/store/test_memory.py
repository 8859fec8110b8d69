"""The memory of a loader: enough is asked for, no more is taken, and it is reused only when nobody sees it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.loading import count_reads, order

from dsgen.errors import InvalidValueError
from dsgen.store.loader import Loader


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"ranks": 2},
        {"ranks": 3},
        {"shuffle": False, "batch_size": 200},
        {"pool": 8},
        {"floats": True},
        {"workers": 8},
        {"workers": 0},
    ],
)
def test_stated_need_of_memory_is_enough(many: Path, options: dict[str, Any]) -> None:
    """The memory the error asks for is accepted, and an epoch comes to its end with it."""
    with pytest.raises(InvalidValueError) as raised:
        Loader(many, None, memory_mb=1, **options)
    need = int(str(raised.value).split("expected ")[1].split()[0])
    rows = 960 // options.get("ranks", 1)
    loader = Loader(many, None, memory_mb=need, **options)
    assert sum(map(len, order(loader))) == rows
    assert loader._arena is not None
    assert loader._arena.nbytes < need * 10**6


def test_pool_is_as_large_as_memory_allows(many: Path) -> None:
    """96 chunks, or as many as fit; ranks and batches have no say."""
    assert Loader(many, None).pool == 96
    pools = {Loader(many, None, b, memory_mb=13, ranks=r).pool for r, b in ((1, 8), (1, 16), (2, 8), (4, 4))}
    assert len(pools) == 1
    assert 8 <= pools.pop() < 96


@pytest.mark.parametrize("workers", [0, 2])
def test_memory_used_again_and_again(many: Path, workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a small pool few batches are begun at a time, each chunk is read once, and every sample is the right one."""
    loader = Loader(many, None, 16, pool=8, workers=workers)
    whole = loader._store.read(0, loader.rows)
    reads = count_reads(monkeypatch)
    for epoch in range(2):
        loader.set_epoch(epoch)
        for batch in loader:
            rows = batch["row"].numpy()
            for part in ("image", "mask", "background"):
                np.testing.assert_array_equal(batch[part].numpy(), whole[part][rows])
        assert len(reads) == len(set(reads)) == 48
        reads.clear()
    assert loader._arena is not None
    assert loader._arena.batches * 16 < 24 * 20


@pytest.mark.parametrize("workers", [0, 2])
def test_memory_is_not_used_again_while_it_is_seen(many: Path, workers: int) -> None:
    """Batches, views of them, and arrays of views keep their values; the memory of others is used again."""
    loader = Loader(many, None, 16, workers=workers, pool=8)
    kept, copies, places = [], [], set()
    for k, batch in enumerate(loader):
        places.add(batch["mask"].data_ptr())
        if k in (0, 20):
            kept += [batch["image"], batch["mask"][3:5].numpy()]
            copies += [batch["image"].clone(), batch["mask"][3:5].numpy().copy()]
        elif k == 10:
            kept.append(batch["background"].permute(0, 3, 1, 2)[2])
            copies.append(kept[-1].clone())  # type: ignore[attr-defined]
    del batch
    assert all((one == other).all() for one, other in zip(kept, copies, strict=True))  # type: ignore[attr-defined]
    assert len(places) < 30 < len(loader)
