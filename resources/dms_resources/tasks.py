"""Background tasks that live as long as a block of the caller's code, and blocking calls in threads."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Protocol

import trio

__all__ = ["Worker", "new_worker", "open_background"]


@asynccontextmanager
async def open_background(*work: Callable[[], Awaitable[object]]) -> AsyncIterator[trio.Nursery]:
    """Run each of `work` while the block runs, in the nursery that is yielded. At the end, cancel what still runs.

    An exception of the block is raised as it is. An exception of a background task cancels the block and is raised in
    an exception group. May be cancelled.
    """
    failure: BaseException | None = None
    async with trio.open_nursery() as nursery:
        for one in work:
            nursery.start_soon(one)
        try:
            yield nursery
        except BaseException as error:
            # Raised after the nursery has closed, because the nursery would wrap it in a group.
            failure = error
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure


class Worker(Protocol):
    """Runs a blocking call to its end without blocking the event loop, as `trio.to_thread.run_sync` does."""

    def __call__(self, call: Callable[[], None], /) -> Awaitable[None]: ...


def new_worker(threads: int = 2) -> Worker:
    """A worker with `threads` threads of its own, which no other part of the process can occupy.

    The ledger needs two: one writes to the disk, one queries the operating system for an audit.
    """
    limiter = trio.CapacityLimiter(threads)

    async def work(call: Callable[[], None]) -> None:
        await trio.to_thread.run_sync(call, limiter=limiter)

    return work
