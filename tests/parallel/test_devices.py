"""What a process that trains asks of its allocator and its processor."""

import subprocess
import sys

import pytest

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
