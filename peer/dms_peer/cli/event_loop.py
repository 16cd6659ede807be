"""Runs the asynchronous part of a command, after everything that it needs has been imported."""

from __future__ import annotations

import gc
from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

__all__ = ["run_async"]

Result = TypeVar("Result")


def run_async(work: Callable[[], Awaitable[Result]]) -> Result:
    """Run an async function in a new event loop, and return its result. Raises what it raises."""
    if not gc.isenabled():
        # Imported modules (see `__main__`) are never garbage, so the collector ignores them from now on.
        gc.freeze()
        gc.enable()
    return trio.run(work)
