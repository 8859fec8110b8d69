"""Exponential moving averages (EMA) of a network's weights.

A step of the average a towards the weights w, with share s in 0..1, is

    a <- a + s (w - a)

which is Polyak and Juditsky's averaging of iterates (SIAM J. Control Optim. 30(4), 1992) in the exponential form of
Tarvainen and Valpola, "Mean teachers" (NIPS 2017, arXiv 1703.01780), with decay 1 - s. Single steps of an optimizer
jump about the minimum; their average lies nearer to it, so the average is the network to validate and to keep.

Batch norms keep running statistics in buffers. These are averaged like the weights, so that weights and statistics
fit each other: statistics of the newest weights would not be those of the averaged ones.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

SMALLEST_SHARE = 0.01  # an average over about a hundred steps


@torch.no_grad()
def move_averages(averages: Sequence[Tensor], values: Sequence[Tensor], share: float) -> None:
    """Move averages towards values by `share`, in place; integers are rounded towards 0.

    >>> average = torch.tensor([1.0, 2.0])
    >>> move_averages([average], [torch.tensor([3.0, 2.0])], 0.25)
    >>> average
    tensor([1.5000, 2.0000])
    """
    pairs = list(zip(averages, values, strict=True))
    if floats := [pair for pair in pairs if pair[0].is_floating_point()]:
        torch._foreach_lerp_([average for average, _ in floats], [value for _, value in floats], share)
    for average, value in pairs:
        if not average.is_floating_point():
            average.copy_(average * (1 - share) + value * share)


@torch.no_grad()
def update_ema(averaged: nn.Module, network: nn.Module, steps: int) -> None:
    """Move a network's averages of weights and batch statistics after its step number `steps`, counted from 1.

    The first step is taken over whole. The share then falls as 9 / (steps + 8), so that the random first weights are
    soon forgotten, down to a hundredth. Integer buffers, the batch norms' counters of batches, are copied.

    Single steps of Adam on small batches can leave batch statistics and weights far apart for a moment. An epoch that
    ended then would score as if nothing had been learnt; the average over about a hundred steps does not.
    """
    share = max(SMALLEST_SHARE, 9 / (steps + 8))
    pairs = list(zip(averaged.state_dict().values(), network.state_dict().values(), strict=True))
    floats = [pair for pair in pairs if pair[0].is_floating_point()]
    move_averages([average for average, _ in floats], [value for _, value in floats], share)
    for average, value in pairs:
        if not average.is_floating_point():
            average.copy_(value)


def fixed_decay(decay: float) -> Callable[[Sequence[Tensor], Sequence[Tensor], object], None]:
    """Return the `multi_avg_fn` of `torch.optim.swa_utils.AveragedModel` whose share is always 1 - `decay`.

    `AveragedModel` copies the weights at the first step. It averages integer buffers too, which `use_buffers=True`
    includes.
    """

    def move(averages: Sequence[Tensor], values: Sequence[Tensor], _: object) -> None:
        move_averages(averages, values, 1 - decay)

    return move
