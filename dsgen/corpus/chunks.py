"""How many rows are encoded together: one rule for the labels and for the stores that copy their chunks."""

_CHUNK_ROWS, _CHUNK_BYTES = 20, 2**24


def chunk_rows(positions: int, size: int) -> int:
    """Return how many rows make a chunk: about 20 and 16 MiB of RGB at most.

    They are whole runs of `positions`, or an even fraction of one run.

    >>> chunk_rows(positions=7, size=224), chunk_rows(positions=7, size=2048)
    (14, 1)
    """
    if positions <= _CHUNK_ROWS:
        rows = positions * (_CHUNK_ROWS // positions)
    else:
        rows = -(-positions // round(positions / _CHUNK_ROWS))
    return min(rows, max(1, _CHUNK_BYTES // (size * size * 3)))
