"""Prefetching in a background thread: order, limit, errors, leaving early."""

import threading
import time
from collections.abc import Iterator

import pytest

from dsgen.parallel.prefetch import prefetch


def test_ahead_keeps_order_and_bounds():
    """Never more than asked for is made before it is wanted."""
    made = []

    def items():
        for n in range(20):
            made.append(n)
            yield n

    taken = 0
    for n in prefetch(items(), 3):
        assert n == taken
        taken += 1
        assert len(made) <= taken + 3 + 1  # queued, and one in the hand of the thread
    assert taken == 20


def test_ahead_hands_errors_on_in_order():
    """What was made before the error is yielded first."""

    def items():
        yield 1
        raise ValueError("two")

    ready = prefetch(items(), 4)
    assert next(ready) == 1
    with pytest.raises(ValueError, match="two"):
        next(ready)


def test_leaving_early_stops_the_thread():
    """No thread is left behind."""
    before = threading.active_count()

    def endless():
        n = 0
        while True:
            yield n
            n += 1

    ready = prefetch(endless(), 2)
    assert next(ready) == 0
    ready.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


def test_what_waits_is_bounded_in_bytes():
    """Two of 40 bytes wait, not three; one that is larger than the limit waits alone."""
    made: list[int] = []

    def items() -> Iterator[int]:
        for nbytes in (40, 40, 40, 500, 500, 40):
            made.append(nbytes)
            yield nbytes

    taken = 0
    for nbytes in prefetch(items(), 9, limit_bytes=100, size=lambda nbytes: nbytes):
        time.sleep(0.05)
        waiting = made[taken + 1 : -1]  # the thread has made the last one, and waits for room
        assert sum(waiting) <= 100 or len(waiting) == 1 or len(made) == 6
        assert nbytes == made[taken]
        taken += 1
    assert made == [40, 40, 40, 500, 500, 40]
    assert taken == 6


def test_an_interrupt_of_the_iterable_is_handed_on():
    """Also one that is no Exception."""

    def items() -> Iterator[int]:
        yield 1
        raise KeyboardInterrupt

    ready = prefetch(items(), 2)
    assert next(ready) == 1
    with pytest.raises(KeyboardInterrupt):
        next(ready)
