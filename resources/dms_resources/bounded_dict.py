"""A dictionary of bounded size, for entries that strangers can cause."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import TypeVar

__all__ = ["BoundedDict"]

Key = TypeVar("Key")
Value = TypeVar("Value")


class BoundedDict(OrderedDict[Key, Value]):
    """At most `most` entries, the oldest first. Setting an entry makes it the newest. Beyond `most`, the oldest is
    dropped.

    For a cache that drops the least recently used entry, read with `recent`.
    """

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = most

    def __setitem__(self, key: Key, value: Value) -> None:
        super().__setitem__(key, value)
        self.move_to_end(key)
        while len(self) > self._most:
            self.popitem(last=False)

    def recent(self, key: Key) -> Value | None:
        """The entry of `key`, which becomes the newest; None if there is none."""
        value = self.get(key)
        if value is not None:
            self.move_to_end(key)
        return value

    def drop_oldest_while(self, is_over: Callable[[Value], bool]) -> None:
        """Remove entries, the oldest first, until one is not over."""
        while self and is_over(next(iter(self.values()))):
            self.popitem(last=False)
