"""Limits the handshakes in progress, and shares them fairly between addresses."""

from __future__ import annotations

import trio

__all__ = ["Handshakes"]


class Handshakes:
    """At most `most` handshakes of strangers at a time.

    At the limit, the address with the most handshakes loses its oldest one to an address that has fewer. So a few
    machines that connect and stay silent do not keep the others out.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        # By the group that counts as one machine, the oldest first.
        self._under_way: dict[str, dict[trio.CancelScope, None]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._under_way.values()))

    def begin(self, group: str) -> trio.CancelScope | None:
        """A scope for one more handshake, which is cancelled when another takes its slot. None if there is no slot."""
        if len(self) >= self._most and not self._free_a_slot(group):
            return None
        scope = trio.CancelScope()
        self._under_way.setdefault(group, {})[scope] = None
        return scope

    def end(self, group: str, scope: trio.CancelScope) -> None:
        """Free the slot of a handshake that `begin` has counted."""
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
