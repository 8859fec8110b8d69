"""Which chunks are read when, and where their samples go, planned from the batches of an epoch before anything is read.

Samples of a split are numbered from 0, chunk by chunk. A visit reads, at once, all samples of a chunk that are needed.
"""

from typing import NamedTuple

import numpy as np

from dsgen.store.reader import Store


class Visits(NamedTuple):
    """The visits to chunks, in the order in which their samples are first needed."""

    samples: list[np.ndarray]
    """The samples of every visit."""
    batch: list[np.ndarray]
    """The batch that each sample of a visit belongs to."""
    place: list[np.ndarray]
    """The place of each sample of a visit in its batch."""
    started_by: list[int]
    """How many visits batches 0 to b need, for every batch b."""
    last: list[int]
    """The last batch that a visit has a sample for."""

    def most_open(self, ahead: int) -> int:
        """Return how many batches are begun and not handed out, at most, if `ahead` are made before the one that is."""
        count = len(self.started_by)
        furthest = np.maximum.accumulate(self.last)[np.array(self.started_by) - 1]
        made = np.minimum(np.arange(count) + ahead, count - 1)
        return int((furthest[made] - np.arange(count)).max()) + 1


def plan_visits(batches: list[np.ndarray], first: np.ndarray) -> Visits:
    """Plan the reading of batches of samples; `first` (chunks+1,) is the first sample of every chunk, and their end."""
    sequence = np.concatenate(batches)
    ends = np.cumsum([len(batch) for batch in batches])
    by_sample = np.argsort(sequence)
    chunk = np.searchsorted(first, sequence[by_sample], side="right")
    starts = np.flatnonzero(np.diff(chunk, prepend=0))
    needed_first = np.minimum.reduceat(by_sample, starts)
    needed_last = np.maximum.reduceat(by_sample, starts)
    order = np.argsort(needed_first)
    batch = np.searchsorted(ends, by_sample, side="right")
    place = by_sample - np.concatenate([[0], ends])[batch]

    def by_visit(values: np.ndarray) -> list[np.ndarray]:
        pieces = np.split(values, starts[1:])
        return [pieces[k] for k in order.tolist()]

    return Visits(
        samples=by_visit(sequence[by_sample]),
        batch=by_visit(batch),
        place=by_visit(place),
        started_by=np.searchsorted(needed_first[order], ends).tolist(),
        last=np.searchsorted(ends, needed_last[order], side="right").tolist(),
    )


def chunk_edges(store: Store, rows: np.ndarray) -> np.ndarray:
    """Return where in ascending `rows` every chunk starts, and their end: (chunks+1,) i8; empty chunks are left out."""
    first_chunk = 0
    chunk = np.empty(len(rows), np.int64)
    for shard, start in zip(store.shards, store.first_rows.tolist(), strict=False):
        inside = slice(*np.searchsorted(rows, (start, start + shard.rows)))
        chunk[inside] = first_chunk + (rows[inside] - start) // shard.chunk
        first_chunk += -(-shard.rows // shard.chunk)
    return np.append(np.flatnonzero(np.diff(chunk, prepend=-1)), len(rows))
