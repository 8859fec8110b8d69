"""What a process that trains asks of its allocator and its processor."""

import subprocess
import sys

import pytest
import torch

from dsgen.errors import InvalidValueError
from dsgen.parallel.devices import is_device_failure, is_out_of_memory, pick_device, picture_failure

KEPT = """
import numpy as np, resource, torch
from dsgen.parallel.devices import keep_freed_memory

def resident_mb():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() / 1e6

def left_of_200_mb():
    before = resident_mb()
    torch.ones(50_000_000)
    return resident_mb() - before

print(left_of_200_mb())
keep_freed_memory()
print(left_of_200_mb())
keep_freed_memory(False)
torch.ones(50_000_000), torch.ones(50_000_000)
print(left_of_200_mb())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc")
def test_freed_memory_is_kept_when_asked_for():
    """A tensor that is let go of leaves its pages behind, and before and after that does not."""
    given, kept, usual = map(float, subprocess.check_output([sys.executable, "-c", KEPT], text=True).split())
    assert abs(given) < 20
    assert kept > 180
    assert usual < 20


def test_training_counts_tiny_numbers_as_zero():
    """In a process of its own, as it is for good."""
    code = "import torch; from dsgen.parallel.devices import tune_for_training; tune_for_training()\n"
    code += "print((torch.full((9,), 1e-38) * 0.01).sum().item())"
    assert float(subprocess.check_output([sys.executable, "-c", code], text=True)) == 0


@pytest.mark.parametrize(
    ("cuda", "mps", "picked"),
    [(True, True, "cuda"), (True, False, "cuda"), (False, True, "cpu"), (False, False, "cpu")],
)
def test_auto_is_cuda_or_the_cpu(monkeypatch: pytest.MonkeyPatch, cuda: bool, mps: bool, picked: str):
    """MPS is picked when it is named, where there is one."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: int(cuda))
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert pick_device("auto").type == picked
    if mps:
        assert pick_device("mps").type == "mps"
    else:
        with pytest.raises(
            InvalidValueError, match=r"--device: got 'mps', this machine has cpu.*; use one of these, or"
        ):
            pick_device("mps")


def test_what_an_error_is_about():
    """Memory, the device, or one picture."""
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert is_out_of_memory(RuntimeError("MPS backend out of memory (MPS allocated: 18 GB)"))
    assert not is_out_of_memory(ValueError("out of memory"))
    assert not is_out_of_memory(RuntimeError("shape mismatch"))
    assert is_device_failure(RuntimeError("CUDA error: device-side assert triggered"))
    assert not is_device_failure(RuntimeError("shape mismatch"))
    cpu = torch.device("cpu")
    assert str(picture_failure("a.png", MemoryError(), cpu)) == (
        "a.png: does not fit the memory of cpu; free some, scale it down, or use another --device"
    )
    assert str(picture_failure("a.png", RuntimeError("odd\nmore"), cpu)).startswith(
        "a.png: the network failed on it (RuntimeError: odd); scale or crop it"
    )
