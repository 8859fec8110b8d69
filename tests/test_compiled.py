"""Compiled loops are found where numba is, and refuse memory that is not as they expect."""

import subprocess
import sys
from types import ModuleType

import numpy as np
import pytest

from dsgen.compiled import find_loops
from dsgen.compiled.memory import addresses


def test_without_numba_there_are_no_loops(without_numba: None, caplog: pytest.LogCaptureFixture) -> None:
    """Which is no fault."""
    assert find_loops("decoding") is None
    assert not caplog.records


def test_a_numba_that_cannot_be_used_is_warned_of(monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    """Too old for the numpy beside it, say; what is not numba's fault is raised."""

    errors: list[ImportError] = [
        ModuleNotFoundError("No module named 'dsgen.compiled.none'", name="dsgen.compiled.none"),
        ImportError("Numba needs NumPy 2.0 or less. Got NumPy 2.4."),
    ]

    def fail(name: str) -> ModuleType:
        raise errors.pop()

    find_loops.cache_clear()
    monkeypatch.setattr("dsgen.compiled.importlib.import_module", fail)
    assert find_loops("decoding") is find_loops("decoding") is None
    assert [record.getMessage() for record in caplog.records] == [
        "numba cannot be used (Numba needs NumPy 2.0 or less. Got NumPy 2.4.): decoding and drawing take longer"
    ]
    find_loops.cache_clear()
    with pytest.raises(ModuleNotFoundError, match="none"):
        find_loops("none")


def test_samples_go_to_their_addresses() -> None:
    """Those that have one, and nothing beside them changes."""
    loops = find_loops("decoding")
    assert loops is not None
    samples = np.random.default_rng(0).integers(0, 256, (5, 77)).astype(np.uint8)
    out = np.zeros((4, 77), np.uint8)
    targets = np.zeros(5, np.int64)
    targets[[3, 0]] = addresses([out[1], out[2]], 77)
    loops.copy(samples, targets)
    np.testing.assert_array_equal(out, [np.zeros(77), samples[3], samples[0], np.zeros(77)])
    np.testing.assert_array_equal(addresses(out, 77), addresses(list(out), 77))


@pytest.mark.parametrize("array", [np.zeros((3, 8), np.uint8), np.zeros((3, 10), np.uint8)[:, :9]])
def test_memory_of_another_size_or_with_gaps_is_refused(array: np.ndarray) -> None:
    """Before anything is written to it."""
    for arrays in (array, list(array)):
        with pytest.raises(ValueError, match=r"got \d+ bytes in memory, expected 10, one after the other"):
            addresses(arrays, 10)


def test_where_nothing_can_be_kept_it_is_compiled_all_the_same() -> None:
    """In a package that is read-only, without a cache folder of one's own."""
    code = """
import numba.core.caching as caching, numpy as np
(getattr(caching, "CacheImpl", None) or caching._CacheImpl)._locator_classes = []
from dsgen.compiled.decoding import copy
from dsgen.compiled.memory import addresses
out = np.zeros((1, 3), np.uint8)
copy(np.array([[1, 2, 3]], np.uint8), addresses(out, 3))
print(out.tolist())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("[[1, 2, 3]]\n", 0), done.stderr
