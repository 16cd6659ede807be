"""A name for one errand, which both sides write into their logs.

It travels as `trace` beside a request's own fields. All that is asked within `tracing()` carries the same, at whatever
peers, so that one reservation can be followed through the logs of all who took part.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final

__all__ = ["MAX_TRACE", "current_trace", "read_trace", "tracing"]

MAX_TRACE: Final = 64
"""Characters; a longer one is cut where it is logged."""

_trace: ContextVar[str] = ContextVar("trace", default="")


@contextmanager
def tracing(trace: str = "") -> Iterator[str]:
    """All requests of this task and of those that it starts carry the trace, by default a new one; yields it."""
    trace = trace or secrets.token_hex(8)
    token = _trace.set(trace)
    try:
        yield trace
    finally:
        _trace.reset(token)


def current_trace() -> str:
    """The trace of this task; empty when it has none."""
    return _trace.get()


def read_trace(message: dict[str, Any]) -> str:
    """The trace of a request; empty where there is none, or what is there is no text: it binds nobody to anything."""
    trace = message.get("trace", "")
    return trace[:MAX_TRACE] if type(trace) is str else ""
