"""Work that a few threads do in the background, bounded by the bytes it holds on to."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Backlog(Generic[T]):
    """Calls made by `threads` threads while the caller goes on; results come in the order of the calls.

    A call states how many bytes its arguments hold. While calls that are not done hold more than `limit` bytes in all,
    the caller waits; one call is always taken, however large. The error of a call is raised by the next `add` or
    `finish`. Leaving the `with` block waits for the calls that have begun.
    """

    def __init__(self, threads: int, limit: int):
        self._pool = ThreadPoolExecutor(threads)
        self._limit, self._nbytes = limit, 0
        self._calls: deque[tuple[int, Future[T]]] = deque()

    def __enter__(self) -> "Backlog[T]":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Wait for the calls; their results and errors are dropped."""
        self._pool.shutdown()

    def add(self, nbytes: int, work: Callable[..., T], *arguments: Any) -> Iterator[T]:
        """Make a call once there is room for it; return the results of earlier calls that have come since."""
        results = []
        while self._calls and (self._calls[0][1].done() or self._nbytes + nbytes > self._limit):
            results.append(self._take())
        self._calls.append((nbytes, self._pool.submit(work, *arguments)))
        self._nbytes += nbytes
        return iter(results)

    def finish(self) -> Iterator[T]:
        """Yield the results that are left, as they come."""
        while self._calls:
            yield self._take()

    def _take(self) -> T:
        nbytes, call = self._calls.popleft()
        self._nbytes -= nbytes
        return call.result()
