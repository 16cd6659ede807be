"""Where a command begins to work: everything it needs is loaded by then."""

from __future__ import annotations

import gc
from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

__all__ = ["run_async"]

Result = TypeVar("Result")


def run_async(work: Callable[[], Awaitable[Result]]) -> Result:
    """Runs an async function in an event loop of its own, to its end. Raises what it raises."""
    if not gc.isenabled():
        # What was loaded (see `__main__`) is no garbage and stays: it is left out of all searches to come.
        gc.freeze()
        gc.enable()
    return trio.run(work)
