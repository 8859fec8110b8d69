"""Prefetch the items of an iterable in a background thread."""

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from typing import TypeVar

T = TypeVar("T")


def prefetch(
    items: Iterable[T], limit: int, *, limit_bytes: int | None = None, size: Callable[[T], int] = lambda _: 0
) -> Generator[T, None, None]:
    """Yield the items in order while a background thread makes the next ones, at most `limit` in advance.

    With `limit_bytes` no more than so many bytes wait in advance, of which an item has `size(item)`; an item that is
    larger waits alone. The thread makes one item before it waits for room.

    An error raised by the iterable is raised here, after the items before it. Closing the generator early stops the
    thread.
    """
    ready: deque[tuple[T, int]] = deque()
    changed = threading.Condition()
    waiting_bytes, ended, left = 0, False, False
    errors: list[BaseException] = []

    def has_room(nbytes: int) -> bool:
        fits = limit_bytes is None or waiting_bytes + nbytes <= limit_bytes
        return not ready or (len(ready) < limit and fits)

    def produce() -> None:
        nonlocal waiting_bytes, ended
        try:
            for item in items:
                nbytes = size(item)
                with changed:
                    while not left and not has_room(nbytes):
                        changed.wait()
                    if left:
                        return
                    ready.append((item, nbytes))
                    waiting_bytes += nbytes
                    changed.notify_all()
                del item
        except BaseException as error:
            errors.append(error)
        finally:
            with changed:
                ended = True
                changed.notify_all()

    thread = threading.Thread(target=produce, daemon=True)
    thread.start()
    try:
        while True:
            with changed:
                changed.wait_for(lambda: ready or ended)
                if not ready:
                    break
                item, nbytes = ready.popleft()
                waiting_bytes -= nbytes
                changed.notify_all()
            yield item
            del item
        if errors:
            raise errors[0]
    finally:
        with changed:
            left = True
            changed.notify_all()
        thread.join()
