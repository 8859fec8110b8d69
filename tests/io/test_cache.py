"""Cache: made once, bounded by bytes, the oldest goes first."""

import numpy as np

from dsgen.io.cache import Cache


def test_bounded_and_least_recently_used() -> None:
    """What was used last stays, what was not goes, and a kept value is not made again."""
    cache, made = Cache(250), []

    def get(key: str, size: int = 100) -> np.ndarray:
        def make() -> np.ndarray:
            made.append(key)
            return np.zeros(size, np.uint8)

        return cache.get(key, make)

    for key in ("a", "b", "a", "c", "a", "b"):
        get(key)
    assert made == ["a", "b", "c", "b"]
    get("large", 1000)
    get("large", 1000)
    assert made[4:] == ["large"]
