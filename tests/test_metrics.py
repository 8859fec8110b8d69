"""The formulas of the depth metrics, against plain Python and on both kinds of array."""

import math
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch

from dsgen import metrics

RNG = np.random.default_rng(7)
DEPTH_M = RNG.uniform(0.05, 12, (3, 1, 11, 13))
TRUTH_M = RNG.uniform(0.05, 12, (3, 1, 11, 13))

FORMULAS: dict[str, tuple[Callable, Callable[[float, float], float]]] = {
    "relative_error": (metrics.relative_error, lambda d, t: abs(d - t) / t),
    "squared_error": (metrics.squared_error, lambda d, t: (d - t) ** 2),
    "squared_relative_error": (metrics.squared_relative_error, lambda d, t: (d - t) ** 2 / t),
    "depth_ratio": (metrics.depth_ratio, lambda d, t: max(d / t, t / d)),
    "log_error": (lambda d, t: metrics.log_error(metrics.depth_ratio(d, t)), lambda d, t: abs(math.log(d / t))),
    "delta1": (lambda d, t: metrics.within_delta(metrics.depth_ratio(d, t)), lambda d, t: max(d / t, t / d) < 1.25),
    "delta3": (
        lambda d, t: metrics.within_delta(metrics.depth_ratio(d, t), 3),
        lambda d, t: max(d / t, t / d) < 1.953125,
    ),
    "valid_depth": (lambda _, t: metrics.valid_depth(t), lambda _, t: 0.1 <= t <= 10),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_every_pixel_has_the_value_of_the_formula(name: str):
    """NumPy and torch agree with plain Python, and keep the shape."""
    formula, slow = FORMULAS[name]
    expected = [slow(d, t) for d, t in zip(DEPTH_M.ravel().tolist(), TRUTH_M.ravel().tolist(), strict=True)]
    arrays = formula(DEPTH_M, TRUTH_M)
    tensors = formula(torch.from_numpy(DEPTH_M), torch.from_numpy(TRUTH_M))
    assert isinstance(arrays, np.ndarray)
    assert isinstance(tensors, torch.Tensor)
    assert arrays.shape == tuple(tensors.shape) == DEPTH_M.shape
    np.testing.assert_allclose(arrays.ravel(), expected, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(tensors.numpy().ravel(), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_precision_of_the_input_is_kept(dtype: str):
    """Single precision stays single, double stays double, and both libraries give the same bits."""
    depth_m, truth_m = DEPTH_M.astype(dtype), TRUTH_M.astype(dtype)
    for formula in (metrics.relative_error, metrics.squared_error, metrics.depth_ratio):
        arrays = formula(depth_m, truth_m)
        assert arrays.dtype == dtype
        np.testing.assert_array_equal(arrays, formula(torch.from_numpy(depth_m), torch.from_numpy(truth_m)).numpy())


def test_limits_are_included_and_can_be_chosen():
    """The limits themselves are valid; 0, nan and infinity are not."""
    truth_m = np.array([0.0, 0.1, 10.0, 10.01, np.nan, np.inf])
    assert metrics.valid_depth(truth_m).tolist() == [False, True, True, False, False, False]
    assert metrics.valid_depth(truth_m, 5.0, 20.0).tolist() == [False, False, True, True, False, False]


def test_a_depth_that_is_not_a_number_is_within_no_delta():
    """Neither nan nor a depth of 0 counts as a hit."""
    truth_m = np.ones(2)
    with np.errstate(divide="ignore"):
        ratio = metrics.depth_ratio(np.array([np.nan, 0.0]), truth_m)
    assert not metrics.within_delta(ratio, 3).any()


def test_the_module_does_not_need_torch():
    """Importing it loads no torch."""
    code = "import sys, dsgen.metrics; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
