"""What is decided once per epoch: image size, learning rate, the best epoch so far, and whether to stop early.

All of it follows from the settings and the history, so that a resumed run decides as an uninterrupted one.
"""

import math
from collections.abc import Sequence

from dsgen.training.settings import Settings

# as in torch.optim.lr_scheduler.ReduceLROnPlateau
FACTOR = 0.5
PATIENCE = 2
THRESHOLD = 1e-3

History = Sequence[dict[str, float]]  # one entry per finished epoch, with the columns of metrics.csv


def sizes_by_epoch(epochs: int, sizes: tuple[int, ...]) -> list[int]:
    """Return every epoch's image size: equal work for each size, and at least one epoch while there are enough.

    The work of an epoch is in proportion to the pixels of an image, so the epochs of a size are in proportion to
    1 / size^2.

    >>> sizes_by_epoch(10, (96, 192))
    [96, 96, 96, 96, 96, 96, 96, 96, 192, 192]
    """
    sizes = sizes[:epochs]
    shares = [size**-2 / sum(other**-2 for other in sizes) for size in sizes]
    later = [max(1, round(epochs * share)) for share in shares[1:]]
    while sum(later) >= epochs:
        later[later.index(max(later))] -= 1
    return [size for size, count in zip(sizes, [epochs - sum(later), *later], strict=True) for _ in range(count)]


def sizes_of_run(history: History, epochs: int, sizes: tuple[int, ...], size_now: int = 0) -> list[int]:
    """Return every epoch's image size, finished or to come, of a run that may be extended to more epochs.

    Images never shrink. `size_now` is the size of the epoch in progress, if one is.
    """
    run_sizes = [int(entry["size"]) for entry in history]
    for size in sizes_by_epoch(epochs, sizes)[len(history) :]:
        run_sizes.append(max(size, *run_sizes[-1:], size_now))
    return run_sizes


def learning_rate(settings: Settings, history: History, sizes: Sequence[int], share: float) -> float:
    """Return the learning rate of a step that lies `share` of an epoch, 0..1, after the epochs of `history`.

    `sizes` are the image sizes of all epochs of the run.

    `plateau` halves the rate when the validation loss has not improved by a thousandth for more than two epochs. It
    also halves it when the image size grows; the count of epochs then restarts, since losses of two sizes do not
    compare. `cosine` falls to 0 along half a wave over the work of the run, an epoch's work being its pixels
    (Loshchilov and Hutter, ICLR 2017, arXiv 1608.03983, without restarts). `constant` stays. A warm-up multiplies any
    of them by a straight line from 0 to 1.
    """
    rate, done = settings.learning_rate, len(history)
    if settings.schedule == "plateau":
        rate *= FACTOR ** _count_plateaus(history, sizes[done])
    elif settings.schedule == "cosine":
        work = [size**2 for size in sizes]
        rate *= (1 + math.cos(math.pi * (sum(work[:done]) + share * work[done]) / sum(work))) / 2
    return rate * min(1.0, (done + share) / settings.warm_up) if settings.warm_up else rate


def _count_plateaus(history: History, size: int) -> int:
    """Count how many times the rate has been lowered before an epoch at `size`."""
    plateaus, best, without_gain = 0, math.inf, 0
    sizes = [*(entry["size"] for entry in history), size]
    for entry, next_size in zip(history, sizes[1:], strict=True):
        if entry["validation_loss"] < best * (1 - THRESHOLD):
            best, without_gain = entry["validation_loss"], 0
        else:
            without_gain += 1
        if without_gain > PATIENCE:
            plateaus, without_gain = plateaus + 1, 0
        if next_size != entry["size"]:
            plateaus, best, without_gain = plateaus + 1, math.inf, 0
    return plateaus


def should_stop_early(settings: Settings, history: History) -> bool:
    """Say whether the validation loss has not improved by a thousandth for `early_stop` epochs at the last size."""
    if settings.early_stop is None:
        return False
    losses = [entry["validation_loss"] for entry in history if entry["size"] == settings.sizes[-1]]
    best, since = math.inf, 0
    for loss in losses:
        best, since = (loss, 0) if loss < best * (1 - THRESHOLD) else (best, since + 1)
    return since >= settings.early_stop


def best_epoch(history: History, has_masks: bool) -> dict[str, float]:
    """Return the best epoch among those at the largest image size so far, the first of equals.

    It has the highest mask IoU, or the lowest loss if the store has no masks.
    """
    entries = [entry for entry in history if entry["size"] == history[-1]["size"]]
    return max(entries, key=lambda entry: entry["iou"] if has_masks else -entry["validation_loss"])
