"""A least recently used (LRU) cache that is limited in bytes. Threads may share it."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any


class Cache:
    """Keep the most recently used values, up to `limit` bytes in all.

    A value states its size in its attribute `nbytes`. The newest value is kept even if it exceeds the limit by itself.
    """

    def __init__(self, limit: int):
        self._limit, self._nbytes = limit, 0
        self._entries: OrderedDict[Hashable, Any] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """Return the value of `key`, made by `make()` if it is not cached; two threads may make it at the same time."""
        with self._lock:
            if key in self._entries:
                self._entries.move_to_end(key)
                return self._entries[key]
        value = make()
        with self._lock:
            if key not in self._entries:
                self._entries[key] = value
                self._nbytes += value.nbytes
                while self._nbytes > self._limit and len(self._entries) > 1:
                    self._nbytes -= self._entries.popitem(last=False)[1].nbytes
            return value
