"""Feeding: pictures keep their meaning at every size, and an epoch can be cut short."""

from typing import Any

import pytest
import torch
from support.scenes import Scenes

from dsgen.training.batches import prepare, take
from dsgen.training.ranks import Ranks


def test_prepare_keeps_what_the_numbers_mean():
    """Pictures in 0..1 that keep their mean, masks of 0 and 1, depths in metres that all occur in the truth."""
    batch = next(iter(Scenes(4)))
    batch["depth"][:, ::5] = 0
    background, image, mask, depth_m = prepare(batch, 32, torch.device("cpu"))
    assert background.shape == image.shape == (4, 3, 32, 32)
    assert mask.shape == depth_m.shape == (4, 1, 32, 32)
    assert image.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(image.mean((2, 3)), batch["image"].float().mean((1, 2)) / 255, atol=0.01, rtol=0)
    assert set(mask.unique().tolist()) == {0.0, 1.0}
    assert mask.mean().item() == pytest.approx(batch["mask"].float().mean().item() / 255, abs=0.01)
    assert set(depth_m.unique().tolist()) <= set((batch["depth"].float() / 1000).unique().tolist())
    assert (depth_m == 0).any()
    untouched = prepare(batch, 40, torch.device("cpu"))
    assert torch.equal(untouched[1].mul(255).round().byte().permute(0, 2, 3, 1), batch["image"])
    assert torch.equal(untouched[3][:, 0].mul(1000).round().int(), batch["depth"].int())


def test_an_epoch_can_be_cut_short():
    """`take` gives exactly as many samples as asked, or all, over all ranks, and goes on in mid-epoch."""

    def taken(samples: int | None, **options: Any) -> list[tuple[int, int]]:
        return [(len(batch["row"]), end) for batch, end in take(Scenes(10, **options), samples)]

    assert taken(6) == [(4, 4), (2, 6)]
    assert taken(99) == taken(None) == [(4, 4), (4, 8), (2, 10)]
    for samples in (3, 6, 7, 10):
        rows = []
        for rank in range(2):
            batches = Scenes(10, rank=rank, ranks=2)
            ours = list(take(batches, samples, Ranks(rank, 2)))
            rows += [row for batch, _ in ours for row in batch["row"].tolist()]
        alone = [row for batch, _ in take(Scenes(10), samples) for row in batch["row"].tolist()]
        assert sorted(rows) == sorted(alone)
    begun = Scenes(10)
    begun.load_state_dict({"epoch": 0, "samples": 4})
    assert [end for _, end in take(begun, 7)] == [7]
    begun.load_state_dict({"epoch": 0, "samples": 7})
    assert list(take(begun, 7)) == []
