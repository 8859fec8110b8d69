"""Work in the background: order, the bound in bytes, errors, the end."""

import threading

import pytest

from dsgen.parallel.backlog import Backlog


def test_results_come_in_order_and_calls_overlap():
    """Two calls that wait for each other can only end together."""
    meet = threading.Barrier(2, timeout=20)

    def work(number: int) -> int:
        if number < 2:
            meet.wait()
        return number

    with Backlog[int](2, 100) as backlog:
        early = [each for number in range(6) for each in backlog.add(1, work, number)]
        assert [*early, *backlog.finish()] == list(range(6))


def test_what_waits_is_bounded_in_bytes():
    """The third call of 40 bytes waits for the first, whatever the number of threads; a large one waits for all."""
    go, running = threading.Event(), []

    def work(number: int) -> int:
        running.append(number)
        assert go.wait(20)
        return number

    with Backlog[int](8, 100) as backlog:
        assert not list(backlog.add(40, work, 0))
        assert not list(backlog.add(40, work, 1))
        taken: list[int] = []
        caller = threading.Thread(target=lambda: taken.extend(backlog.add(40, work, 2)))
        caller.start()
        caller.join(0.2)
        assert caller.is_alive()
        assert 2 not in running
        go.set()
        caller.join()
        assert taken[0] == 0
        rest = list(backlog.add(1000, work, 3))
        assert [*taken, *rest] == [0, 1, 2]
        assert list(backlog.finish()) == [3]


def test_an_error_is_raised_by_the_caller():
    """By the next call, or at the end."""

    def fail() -> None:
        raise ValueError("disk")

    with Backlog[None](1, 10) as backlog:
        backlog.add(10, fail)
        with pytest.raises(ValueError, match="disk"):
            backlog.add(10, lambda: None)
        backlog.add(10, fail)
        with pytest.raises(ValueError, match="disk"):
            list(backlog.finish())


def test_leaving_waits_for_what_has_begun():
    """Also when it is left by an error."""
    done: list[int] = []
    started = threading.Event()

    def work() -> None:
        started.set()
        threading.Event().wait(0.1)
        done.append(1)

    def interrupted() -> None:
        with Backlog[None](1, 10) as backlog:
            backlog.add(1, work)
            assert started.wait(20)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert done == [1]
