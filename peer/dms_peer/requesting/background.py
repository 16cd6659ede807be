"""Work that runs beside a block of its user's code."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import trio

__all__ = ["open_background"]


@asynccontextmanager
async def open_background(work: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
    """Run `work` while the block runs; at the block's end it is cancelled. What the block raises comes out as it is."""
    failure: BaseException | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(work)
        try:
            yield
        except BaseException as error:
            # Raised behind the nursery, which would wrap it in a group.
            failure = error
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
