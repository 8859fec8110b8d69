"""Which chunks are read when, planned from the batches of an epoch before anything is read.

Samples of a split are numbered from 0, chunk by chunk. A visit reads, at once, all samples of a chunk that are needed.
"""

from typing import NamedTuple

import numpy as np

from dsgen.store.reader import Store


class Visits(NamedTuple):
    """The visits to chunks, in the order in which their samples are first needed."""

    samples: list[np.ndarray]
    """The samples of every visit."""
    started_by: list[int]
    """How many visits batches 0 to b need, for every batch b."""
    ended_by: list[list[int]]
    """The visits that batch b is the last to need."""
    visit: list[np.ndarray]
    """The visit of each sample of batch b."""
    position: list[np.ndarray]
    """The position of each sample of batch b within its visit."""

    def most_at_a_time(self, ahead: int) -> int:
        """Return how many visits are in use at once, at most, if batches are made `ahead` of the one handed out."""
        ended = np.cumsum([0, *map(len, self.ended_by)])[:-1]
        started = np.array(self.started_by)
        return int((started[np.minimum(np.arange(len(started)) + ahead, len(started) - 1)] - ended).max())


def plan_visits(batches: list[np.ndarray], first: np.ndarray) -> Visits:
    """Plan the reading of batches of samples; `first` (chunks+1,) is the first sample of every chunk, and their end."""
    sequence = np.concatenate(batches)
    ends = np.cumsum([len(batch) for batch in batches])
    by_sample = np.argsort(sequence)
    chunk = np.searchsorted(first, sequence[by_sample], side="right")
    starts = np.flatnonzero(np.diff(chunk, prepend=0))
    counts = np.diff(starts, append=len(sequence))
    needed_first = np.minimum.reduceat(by_sample, starts)
    needed_last = np.maximum.reduceat(by_sample, starts)
    order = np.argsort(needed_first)
    number = np.empty_like(order)
    number[order] = np.arange(len(order))
    visit, position = np.empty_like(sequence), np.empty_like(sequence)
    visit[by_sample] = np.repeat(number, counts)
    position[by_sample] = np.arange(len(sequence)) - np.repeat(starts, counts)
    pieces = np.split(sequence[by_sample], starts[1:])
    ended_by: list[list[int]] = [[] for _ in batches]
    for v, b in enumerate(np.searchsorted(ends, needed_last[order], side="right").tolist()):
        ended_by[b].append(v)
    return Visits(
        samples=[pieces[k] for k in order.tolist()],
        started_by=np.searchsorted(needed_first[order], ends).tolist(),
        ended_by=ended_by,
        visit=np.split(visit, ends[:-1]),
        position=np.split(position, ends[:-1]),
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
