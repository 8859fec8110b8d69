"""Prefetch the items of an iterable in a background thread."""

import queue
import threading
from collections.abc import Generator, Iterable
from typing import Any, TypeVar

T = TypeVar("T")


def prefetch(items: Iterable[T], limit: int) -> Generator[T, None, None]:
    """Yield the items in order while a background thread makes the next ones, at most `limit` in advance.

    An error raised by the iterable is raised here, after the items before it. Closing the generator early stops the
    thread.
    """
    ready: queue.Queue[tuple[bool, Any]] = queue.Queue(maxsize=limit)
    stop = threading.Event()

    def put(entry: tuple[bool, Any]) -> None:
        while not stop.is_set():
            try:
                ready.put(entry, timeout=0.1)
                return
            except queue.Full:
                continue

    def produce() -> None:
        try:
            for item in items:
                put((True, item))
                if stop.is_set():
                    return
            put((False, None))
        except BaseException as error:
            put((False, error))

    thread = threading.Thread(target=produce, daemon=True)
    thread.start()
    try:
        while True:
            is_item, value = ready.get()
            if is_item:
                yield value
            elif value is None:
                return
            else:
                raise value
    finally:
        stop.set()
        thread.join()
