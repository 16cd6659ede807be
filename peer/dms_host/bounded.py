"""A dictionary of bounded size that drops its oldest entry."""

from __future__ import annotations

from collections import OrderedDict
from typing import TypeVar

__all__ = ["BoundedDict"]

K = TypeVar("K")
V = TypeVar("V")


class BoundedDict(OrderedDict[K, V]):
    """An OrderedDict of at most `most` entries: setting one more removes the first. `move_to_end` keeps an entry
    longer.
    """

    def __init__(self, most: int) -> None:
        """Raise ValueError for a size below 1."""
        if most < 1:
            raise ValueError("a BoundedDict holds at least one entry")
        super().__init__()
        self.most = most

    def __setitem__(self, key: K, value: V) -> None:
        super().__setitem__(key, value)
        while len(self) > self.most:
            self.popitem(last=False)
