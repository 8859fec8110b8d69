"""What follows epoch by epoch: picture sizes, learning rates, and when to stop early."""

import math
from collections.abc import Sequence

from dsgen.training.settings import Settings

SLOWER = 0.5
PATIENCE = 2
GAIN = 1e-3

History = Sequence[dict[str, float]]


def sizes_by_epoch(epochs: int, sizes: tuple[int, ...]) -> list[int]:
    """Say every epoch's picture size: equal work for each size, one epoch at least while there are enough.

    >>> sizes_by_epoch(10, (96, 192))
    [96, 96, 96, 96, 96, 96, 96, 96, 192, 192]
    """
    sizes = sizes[:epochs]
    share = [size**-2 / sum(other**-2 for other in sizes) for size in sizes]
    later = [max(1, round(epochs * part)) for part in share[1:]]
    while sum(later) >= epochs:
        later[later.index(max(later))] -= 1
    return [size for size, count in zip(sizes, [epochs - sum(later), *later], strict=True) for _ in range(count)]


def learning_rate(settings: Settings, history: History, sizes: Sequence[int], share: float) -> float:
    """Return the rate of a step, `share` of an epoch after those of `history`, of a run whose epochs have these sizes.

    With `plateau` it halves when the validation loss has not improved by a thousandth for more than two epochs, and
    when the pictures grow, at which the count starts afresh, since losses of two sizes do not compare. `cosine` goes
    down to 0 in half a wave over the run's work, an epoch's being its pixels (Loshchilov and Hutter, ICLR 2017, arXiv
    1608.03983, without restarts). A warm-up rises to either in a straight line.
    """
    rate, done = settings.learning_rate, len(history)
    if settings.schedule == "plateau":
        rate *= SLOWER ** _plateaus(history, sizes[done])
    elif settings.schedule == "cosine":
        work = [size**2 for size in sizes]
        rate *= (1 + math.cos(math.pi * (sum(work[:done]) + share * work[done]) / sum(work))) / 2
    return rate * min(1.0, (done + share) / settings.warm_up) if settings.warm_up else rate


def _plateaus(history: History, size: int) -> int:
    """Count after how many epochs the rate was to be lowered."""
    plateaus, best, without_gain = 0, math.inf, 0
    sizes = [*(past["size"] for past in history), size]
    for past, following in zip(history, sizes[1:], strict=True):
        if past["validation_loss"] < best * (1 - GAIN):
            best, without_gain = past["validation_loss"], 0
        else:
            without_gain += 1
        if without_gain > PATIENCE:
            plateaus, without_gain = plateaus + 1, 0
        if following != past["size"]:
            plateaus, best, without_gain = plateaus + 1, math.inf, 0
    return plateaus


def should_stop_early(settings: Settings, history: History) -> bool:
    """Say whether to stop early: no gain of a thousandth in validation loss for so many epochs at the last size."""
    if settings.early_stop is None:
        return False
    losses = [past["validation_loss"] for past in history if past["size"] == settings.sizes[-1]]
    best, since = math.inf, 0
    for loss in losses:
        best, since = (loss, 0) if loss < best * (1 - GAIN) else (best, since + 1)
    return since >= settings.early_stop
