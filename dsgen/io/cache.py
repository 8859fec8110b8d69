"""Least recently used values, up to a number of bytes. Threads may share it."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any


class Cache:
    """Keeps what was made, which says by `nbytes` how large it is, until `limit` bytes are held.

    The newest entry stays, however large.
    """

    def __init__(self, limit: int):
        self._limit, self._held = limit, 0
        self._entries: OrderedDict[Hashable, Any] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """Return the value kept under `key`, or make it; two threads may make the same value at once."""
        with self._lock:
            if key in self._entries:
                self._entries.move_to_end(key)
                return self._entries[key]
        value = make()
        with self._lock:
            if key not in self._entries:
                self._entries[key] = value
                self._held += value.nbytes
                while self._held > self._limit and len(self._entries) > 1:
                    self._held -= self._entries.popitem(last=False)[1].nbytes
            return value
