"""Where in its epochs a loader starts to read, shared with the worker processes of a DataLoader."""

import contextlib

import torch


class Position:
    """The epoch, and the sample of it that the next iterator starts at.

    It lies in shared memory, so that DataLoader workers that stay alive are told of a new epoch too.
    """

    def __init__(self) -> None:
        self._values = torch.zeros(2, dtype=torch.int64)
        with contextlib.suppress(RuntimeError):  # some systems have no shared memory
            self._values.share_memory_()

    @property
    def epoch(self) -> int:
        """The epoch."""
        return int(self._values[0])

    @property
    def start(self) -> int:
        """The first sample of the epoch to read."""
        return int(self._values[1])

    def set(self, epoch: int, start: int) -> None:
        """Set both."""
        self._values.copy_(torch.tensor([epoch, start]))
