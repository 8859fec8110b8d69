"""Differences between neighbouring values of a chunk of depth, which compress to half the bytes of the values.

A chunk (n,h,w) u2 is stored as (h,n,w): each value less the one above it, and where the samples of a chunk share a
background, that less the same of the sample before, all modulo 2^16. It is what the Zarr codecs `transpose` and
`numcodecs.delta` do when they alternate as in `zarr_codecs`. `numcodecs.delta` flattens an array, so the first value of
a column is less the last of the column before. The two orders are chosen so that no transposition reverses all axes:
numcodecs flattens such an array in the order of memory, and would subtract along another axis. For the same reason a
chunk needs two samples, `LEAST_SAMPLES`.

`undo` does in one pass over a chunk what other readers do with five codecs.
"""

from typing import Any

import numpy as np

ROWS: tuple[str, ...] = ("y",)
SAMPLES_AND_ROWS: tuple[str, ...] = ("y", "sample")
LEAST_SAMPLES = 2


def zarr_codecs(along: tuple[str, ...]) -> list[dict[str, Any]]:
    """Return the Zarr v3 codecs, before `bytes`, that take differences `along` axes; none for no axis."""
    if not along:
        return []
    order = (1, 2, 0) if "sample" in along else (2, 0, 1)  # from x, y, sample or sample, x, y to y, sample, x
    return [
        _transpose(0, 2, 1),
        _DELTA,
        *([_transpose(1, 2, 0), _DELTA] if "sample" in along else []),
        _transpose(*order),
    ]


_DELTA = {"name": "numcodecs.delta", "configuration": {"dtype": "<u2"}}


def _transpose(*order: int) -> dict[str, Any]:
    return {"name": "transpose", "configuration": {"order": list(order)}}


def take(values: np.ndarray, along: tuple[str, ...]) -> np.ndarray:
    """Return the differences (h,n,w) u2 of a chunk (n,h,w) u2."""
    rows = np.ascontiguousarray(values.transpose(1, 0, 2))
    taken = np.empty_like(rows)
    np.subtract(rows[1:], rows[:-1], out=taken[1:])
    np.subtract(rows[0], _shift(rows[-1]), out=taken[0])
    if "sample" not in along:
        return taken
    rows, taken = taken, rows
    np.subtract(rows[:, 1:], rows[:, :-1], out=taken[:, 1:])
    np.subtract(rows[:, 0], _shift(rows[:, -1].T).T, out=taken[:, 0])
    return taken


def undo(differences: np.ndarray, along: tuple[str, ...], out: np.ndarray) -> None:
    """Restore a chunk into `out`, (n,h,w) u2, from its differences (h,n,w) u2, which are overwritten."""
    work = differences
    if "sample" in along:
        totals = np.add.reduce(work, axis=1, dtype=work.dtype)  # (h,w), of each pixel over the samples
        work[:, 0] += _shift(_add_up(totals.T)).T
        for sample in range(1, work.shape[1]):
            np.add(work[:, sample - 1], work[:, sample], out=work[:, sample])
    totals = np.add.reduce(work, axis=0, dtype=work.dtype)  # (n,w), of each column
    work[0] += _shift(_add_up(totals))
    for y in range(1, len(work)):
        np.add(work[y - 1], work[y], out=work[y])
    np.copyto(out, work.transpose(1, 0, 2))


def _add_up(values: np.ndarray) -> np.ndarray:
    return np.cumsum(values, dtype=values.dtype).reshape(values.shape)


def _shift(values: np.ndarray) -> np.ndarray:
    """Return what comes before each value when they are taken one after the other: 0 before the first."""
    shifted = np.zeros(values.shape, values.dtype)
    shifted.reshape(-1)[1:] = values.reshape(-1)[:-1]
    return shifted
