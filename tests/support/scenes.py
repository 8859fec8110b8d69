"""A loader of made-up scenes in memory, for tests of training: what `feeding.Batches` asks for, and no more."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor


class Scenes:
    """A disc of one colour before a smooth wall, in each scene another; `fields` says what is known of it.

    `at` and `happens` make something happen before a given batch of a given epoch is handed out.
    """

    def __init__(
        self,
        rows: int = 8,
        size: int = 40,
        seed: int = 0,
        fields: tuple[str, ...] = ("image", "mask", "depth", "background"),
        batch_size: int = 4,
        rank: int = 0,
        ranks: int = 1,
    ):
        rng = np.random.default_rng(seed)
        y, x = np.mgrid[:size, :size]
        self.rows, self.size, self.fields, self.sha256 = rows, size, fields, f"scenes {rows} {size} {seed}"
        self.batch_size, self.rank, self.ranks = batch_size, rank, ranks
        self.at: tuple[float, float] = (math.inf, math.inf)
        self.happens: Any = None
        self._epoch = self._samples = 0
        self.samples = []
        for row in range(rows):
            wall = 128 + 60 * np.sin(x[..., None] / rng.uniform(3, 9, 3) + y[..., None] / rng.uniform(3, 9, 3))
            centre, radius = rng.uniform(12, size - 12, 2), rng.uniform(6, 11)
            disc = np.hypot(y - centre[0], x - centre[1]) < radius
            image = np.where(disc[..., None], rng.integers(0, 256, 3), wall)
            sample = {
                "background": torch.from_numpy(wall.astype(np.uint8)),
                "image": torch.from_numpy(image.astype(np.uint8)),
                "mask": torch.from_numpy(np.where(disc, 255, 0).astype(np.uint8)),
                "depth": torch.from_numpy(np.where(disc, 1500, 2000 + 60 * x).astype(np.uint16)),
            }
            self.samples.append({name: sample[name] for name in fields} | {"row": torch.tensor(row)})

    def set_epoch(self, epoch: int) -> None:
        """As the real loader: the order follows from the epoch."""
        self._epoch, self._samples = epoch, 0

    def state_dict(self) -> dict[str, Any]:
        """As the real loader: samples over all ranks."""
        return {"epoch": self._epoch, "samples": self._samples}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """As the real loader."""
        self._epoch, self._samples = state["epoch"], state["samples"]

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """Yield this rank's part of each batch."""
        order = np.random.default_rng(self._epoch).permutation(self.rows)
        for start in range(self._samples, self.rows, self.batch_size):
            if self.at == (self._epoch, start // self.batch_size):
                self.at = (math.inf, math.inf)
                self.happens()
            self._samples = min(start + self.batch_size, self.rows)
            chosen = [self.samples[k] for k in order[start : self._samples][self.rank :: self.ranks]]
            yield {name: torch.stack([sample[name] for sample in chosen]) for name in chosen[0]}
