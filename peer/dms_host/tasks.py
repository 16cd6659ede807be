"""Background tasks that live as long as a block of code, and work that a cancellation must not interrupt.

`dms_host` imports nothing else of this project, so it has its own copy of these few lines.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import trio

__all__ = ["open_background", "shielded"]


def shielded(seconds: float) -> trio.CancelScope:
    """A scope that an outer cancellation does not reach. It cancels its block after `seconds`."""
    # Not trio.move_on_after(shield=True), because the type stubs that libp2p installs do not know it.
    return trio.CancelScope(deadline=trio.current_time() + seconds, shield=True)


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
