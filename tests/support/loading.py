"""What tests of loaders look at: the order of rows, the reads, the threads."""

import threading
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest

from dsgen.store.reader import Shard


def order(batches: Iterable[dict[str, Any]]) -> list[list[int]]:
    """The rows of every batch."""
    return [batch["row"].tolist() for batch in batches]


def reading_threads() -> list[str]:
    """The loader's threads that are alive."""
    return [t.name for t in threading.enumerate() if t.name.startswith("dsgen-")]


def count_reads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Note every read of a chunk of images from now on."""
    reads: list[tuple[str, int]] = []
    original = Shard.samples

    def counted(self: Shard, start: int, last: int, fields: Any = None, *more: Any) -> dict[str, np.ndarray]:
        if fields is None or "image" in fields:
            reads.append((str(self.files), start // self.chunk))
        return original(self, start, last, fields, *more)

    monkeypatch.setattr(Shard, "samples", counted)
    return reads
