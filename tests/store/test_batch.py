"""Batches as floats and on devices: the same values."""

from pathlib import Path

import numpy as np
import pytest
import torch

from dsgen.errors import DsgenError
from dsgen.store.batch import as_floats
from dsgen.store.loader import Loader


@pytest.mark.parametrize("workers", [0, 2])
def test_floats(three_shards: Path, workers: int) -> None:
    """Pictures 0..1 as BCHW, masks 0 or 1, depth in metres to the millimetre."""
    exact = list(Loader(three_shards, None, 9, workers=workers))
    for batch, whole in zip(Loader(three_shards, None, 9, workers=workers, floats=True), exact, strict=True):
        assert all(values.dtype == torch.float32 for name, values in batch.items() if name != "row")
        torch.testing.assert_close(batch["image"], whole["image"].permute(0, 3, 1, 2) / 255, rtol=0, atol=0)
        torch.testing.assert_close(batch["background"], whole["background"].permute(0, 3, 1, 2) / 255, rtol=0, atol=0)
        assert batch["image"].is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(batch["mask"][:, 0], (whole["mask"] > 0).float())
        depth_m = torch.from_numpy(whole["depth"].numpy() / 1000).float()
        torch.testing.assert_close(batch["depth"][:, 0], depth_m, rtol=1e-6, atol=0)
        assert torch.equal(batch["row"], whole["row"])


def test_depth_beyond_what_a_signed_integer_holds() -> None:
    """The farthest depth, 65.535 m, survives, and none stays 0."""
    depth = torch.from_numpy(np.array([[[0, 1, 32767, 32768, 65535]]], np.uint16))
    assert as_floats({"depth": depth})["depth"].flatten().tolist() == pytest.approx([0, 0.001, 32.767, 32.768, 65.535])


def test_on_the_cpu_a_device_changes_nothing(three_shards: Path) -> None:
    """No pinned memory and no copies."""
    batch = next(iter(Loader(three_shards, None, 9, device="cpu")))
    assert batch["image"].dtype == torch.uint8
    assert not batch["image"].is_pinned()
    with pytest.raises(DsgenError, match="got 'tpu', this machine has"):
        Loader(three_shards, None, device="tpu")


@pytest.mark.gpu
@pytest.mark.parametrize("floats", [False, True])
def test_on_a_gpu_batches_are_the_same(three_shards: Path, floats: bool) -> None:
    """Copied ahead from pinned memory and turned into floats there: the same values."""
    expected = list(Loader(three_shards, None, 9, floats=floats))
    for batch, whole in zip(Loader(three_shards, None, 9, floats=floats, device="cuda"), expected, strict=True):
        assert batch["image"].is_cuda
        for name, values in whole.items():
            torch.testing.assert_close(batch[name].cpu(), values, rtol=1e-6, atol=0)
