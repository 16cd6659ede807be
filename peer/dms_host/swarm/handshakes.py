"""Handshakes under way: how many there may be, and who gives way when there are as many."""

from __future__ import annotations

import trio

__all__ = ["Handshakes"]


class Handshakes:
    """At most `most` handshakes of strangers at a time, shared between the addresses that they come from.

    When there are as many, the address with the most gives way to one that has fewer: a few machines that connect and
    say nothing do not keep everybody else out.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        # By what counts as one machine; the oldest first.
        self._under_way: dict[str, dict[trio.CancelScope, None]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._under_way.values()))

    def begin(self, group: str) -> trio.CancelScope | None:
        """A scope for one more handshake, which is cancelled when it has to give way; None where there is no room."""
        if len(self) >= self._most and not self._free_a_slot(group):
            return None
        scope = trio.CancelScope()
        self._under_way.setdefault(group, {})[scope] = None
        return scope

    def end(self, group: str, scope: trio.CancelScope) -> None:
        """Takes a handshake away that `begin` has counted."""
        own = self._under_way.get(group, {})
        own.pop(scope, None)
        if not own:
            self._under_way.pop(group, None)

    def _free_a_slot(self, group: str) -> bool:
        largest = max(self._under_way, key=lambda one: len(self._under_way[one]))
        if len(self._under_way[largest]) <= len(self._under_way.get(group, ())) + 1:
            return False
        oldest = next(iter(self._under_way[largest]))
        oldest.cancel()
        self.end(largest, oldest)
        return True
