"""The order of the samples of an epoch, computed before anything is read."""

import numpy as np

LANES = 8


def epoch_order(lengths: np.ndarray, seed: int, epoch: int, pool: int) -> np.ndarray:
    """Shuffle samples that lie in chunks so that few chunks are in use at any time; a pure function, (samples,) i8.

    `lengths` (chunks,) are the numbers of samples in each chunk; samples are numbered from 0, chunk by chunk. The
    chunks, in random order, are cut into 8 lanes of equal length, and sample i of the order is the next one of lane
    i % 8. So processes whose number divides 8 take whole lanes each, and share only the 7 chunks that are cut.

    A lane has `pool` / 8 chunks in use at a time, fewer at either end. Chunk k spreads its samples, in random order,
    evenly over the time from k - pool / 16 to k + pool / 16, each with a random shift of up to a quarter of the
    distance to the next. So there are about `pool` / 2 other samples between two of the same chunk, and a batch has
    about as many different chunks as a draw from all samples would have.
    """
    rng = np.random.default_rng([seed, epoch])
    chunks = rng.permutation(len(lengths))
    length = lengths[chunks]
    owner = np.repeat(np.arange(len(chunks)), length)
    total = len(owner)
    samples = np.arange(total) + np.repeat((np.cumsum(lengths) - lengths)[chunks] - np.cumsum(length) + length, length)
    samples = samples[np.argsort(owner + rng.random(total), kind="stable")]
    shift = rng.uniform(0.25, 0.75, total)
    order = np.empty(total, np.int64)
    last = 0
    for lane in range(min(LANES, total)):
        first, last = last, last + -((lane - total) // LANES)
        chunk = owner[first:last] - owner[first]
        count = np.bincount(chunk)
        position = np.arange(last - first) - (np.cumsum(count) - count)[chunk]
        middle = np.arange(len(count)) + 0.5
        start = np.maximum(middle - pool / LANES / 2, 0)
        end = np.minimum(middle + pool / LANES / 2, len(count))
        time = start[chunk] + (end - start)[chunk] * (position + shift[first:last]) / count[chunk]
        # odd lanes run backwards, so that both pieces of a chunk cut between two lanes are needed at the same time
        order[lane::LANES] = samples[first:last][np.argsort(-time if lane % 2 else time, kind="stable")]
    return order
