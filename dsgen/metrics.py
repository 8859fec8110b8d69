"""The formulas of the depth metrics, pixel by pixel, for NumPy arrays and torch tensors alike.

This module owns the formulas; each caller owns the reduction, which differs: per sample or per picture, in single or in
double precision. Depths and errors are in metres, of any one shape; results have that shape and the type of the input.
torch is not imported, so that commands which need only NumPy start at once.

    AbsRel   mean of `relative_error`             Eigen, Puhrsch and Fergus, NIPS 2014, arXiv 1406.2283
    SqRel    mean of `squared_relative_error`     the same
    RMSE     root of the mean of `squared_error`  the same
    RMSElog  root of the mean of `log_error`^2    the same
    log10    mean of `log_error` / ln 10          Saxena, Sun and Ng, IEEE TPAMI 31(5), 2009
    delta_k  mean of `within_delta`               Ladicky, Shi and Pollefeys, CVPR 2014; arXiv 1406.2283
"""

from typing import TYPE_CHECKING, TypeVar

import numpy as np

from dsgen.units import MAX_DEPTH_M, MIN_DEPTH_M

if TYPE_CHECKING:
    from torch import Tensor

Array = TypeVar("Array", np.ndarray, "Tensor")

DELTA = 1.25


def valid_depth(truth_m: Array, min_depth_m: float = MIN_DEPTH_M, max_depth_m: float = MAX_DEPTH_M) -> Array:
    """Return where the true depth lies within the limits, both included; only these pixels are scored.

    Zero, which marks a missing depth, is outside.

    >>> valid_depth(np.array([0.0, 0.1, 10.0, 10.5])).tolist()
    [False, True, True, False]
    """
    return (truth_m >= min_depth_m) & (truth_m <= max_depth_m)


def relative_error(depth_m: Array, truth_m: Array) -> Array:
    """Return |d - t| / t."""
    return abs(depth_m - truth_m) / truth_m


def squared_error(depth_m: Array, truth_m: Array) -> Array:
    """Return (d - t)^2, in square metres."""
    return (depth_m - truth_m) ** 2


def squared_relative_error(depth_m: Array, truth_m: Array) -> Array:
    """Return (d - t)^2 / t, in metres."""
    return squared_error(depth_m, truth_m) / truth_m


def depth_ratio(depth_m: Array, truth_m: Array) -> Array:
    """Return max(d / t, t / d), which is 1 where both are equal and larger elsewhere.

    >>> depth_ratio(np.array([1.0, 2.0, 4.0]), np.array([2.0, 2.0, 2.0])).tolist()
    [2.0, 1.0, 2.0]
    """
    one, other = depth_m / truth_m, truth_m / depth_m
    return np.maximum(one, other) if isinstance(one, np.ndarray) else one.maximum(other)


def log_error(ratio: Array) -> Array:
    """Return |ln d - ln t|, which is the logarithm of their `depth_ratio`."""
    return np.log(ratio) if isinstance(ratio, np.ndarray) else ratio.log()


def within_delta(ratio: Array, power: int = 1) -> Array:
    """Return where a `depth_ratio` is below 1.25^power."""
    return ratio < DELTA**power
