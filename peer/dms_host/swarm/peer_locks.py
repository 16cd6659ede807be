"""One lock for each peer on which a task works."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

__all__ = ["PeerLocks"]


class PeerLocks:
    """Locks that exist only while a task holds them or waits for them."""

    def __init__(self) -> None:
        self._locks: dict[str, tuple[trio.Lock, int]] = {}

    @asynccontextmanager
    async def held(self, peer_id: str) -> AsyncIterator[None]:
        """Hold the lock of a peer while the block runs. Waiting may be cancelled."""
        lock, users = self._locks.get(peer_id, (trio.Lock(), 0))
        self._locks[peer_id] = (lock, users + 1)
        try:
            async with lock:
                yield
        finally:
            lock, users = self._locks[peer_id]
            if users == 1:
                del self._locks[peer_id]
            else:
                self._locks[peer_id] = (lock, users - 1)
