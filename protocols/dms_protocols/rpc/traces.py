"""A name for one piece of work, which both sides write into their logs.

It is sent as `trace` beside the fields of a request. All requests within `tracing()` carry the same trace, so that one
reservation can be followed through the logs of all peers that took part.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final

__all__ = ["MAX_TRACE", "current_trace", "read_trace", "tracing"]

MAX_TRACE: Final = 64
"""The largest number of characters. A longer trace is cut in the log."""

_trace: ContextVar[str] = ContextVar("trace", default="")


@contextmanager
def tracing(trace: str = "") -> Iterator[str]:
    """All requests of this task, and of tasks that it starts, carry the trace; without an argument, a new one. Yields
    it.
    """
    trace = trace or secrets.token_hex(8)
    token = _trace.set(trace)
    try:
        yield trace
    finally:
        _trace.reset(token)


def current_trace() -> str:
    """The trace of this task; empty if it has none."""
    return _trace.get()


def read_trace(message: dict[str, Any]) -> str:
    """The trace of a request; empty if there is none or it is not text."""
    trace = message.get("trace", "")
    return trace[:MAX_TRACE] if type(trace) is str else ""
