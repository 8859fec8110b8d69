"""What tests of loaders look at: the order of rows, the reads, the threads."""

import threading
from collections.abc import Iterable
from typing import Any

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
    original = Shard.place

    def counted(self: Shard, field: str, first: int, *more: Any) -> None:
        if field == "image":
            reads.append((str(self.files), first // self.chunk))
        original(self, field, first, *more)

    monkeypatch.setattr(Shard, "place", counted)
    return reads
