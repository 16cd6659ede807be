"""Locks that cost nothing while nobody else wants them.

What breaks: `trio.Lock.acquire` lets all other tasks run before it takes even a free lock, and py-libp2p's `NetStream`
takes one before and one after most of what it does, its Yamux one for every frame: of the 70 turns that a question on a
stream of its own took of the scheduler, 29 were for locks that were free.
Measure: `QuickLock`, put in their place by `use_quick_lock` and in `BoundedYamux`.
Upstream: https://github.com/libp2p/py-libp2p/pull/637 (a stream's state without locks, closed); no report of what they
cost found (November 2026).
"""

from __future__ import annotations

import trio
from libp2p.abc import INetStream

__all__ = ["QuickLock", "use_quick_lock"]


class QuickLock:
    """Used as a trio.Lock is, in an `async with`; it is taken at once when it is free, which is no checkpoint then."""

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock = trio.Lock()

    async def __aenter__(self) -> None:
        """Takes the lock, waiting while another task has it. May be cancelled while it waits."""
        try:
            self._lock.acquire_nowait()
        except trio.WouldBlock:
            await self._lock.acquire()

    async def __aexit__(self, *raised: object) -> None:
        """Gives it to whoever waits for longest."""
        self._lock.release()


def use_quick_lock(stream: INetStream) -> None:
    """Gives a stream of the library, whose lock is free, one that costs less."""
    if type(getattr(stream, "_state_lock", None)) is trio.Lock:
        stream._state_lock = QuickLock()  # type: ignore[attr-defined]
