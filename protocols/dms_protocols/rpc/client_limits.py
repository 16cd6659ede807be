"""All limits of a client. Sizes are in bytes, times in seconds.

They are separate from those of a service, so that a short command need not load both.
"""

from __future__ import annotations

from msgspec import Struct

__all__ = ["ClientLimits"]


class ClientLimits(Struct, frozen=True, kw_only=True):
    """The limits of a client on one stream."""

    request_bytes: int = 64 * 1024
    """The largest request. For a larger one the caller gets FrameError."""
    frame_bytes: int = 1024 * 1024
    """The largest answer. A larger one ends the connection."""
    depth: int = 16
    """The nesting depth of containers in an answer."""
    items: int = 65536
    """Values in an answer, at every depth together."""
    read_bytes: int = 64 * 1024
    """The largest amount that is read from the stream at once."""
    calls_in_flight: int = 256
    """Calls and watches that wait for answers at the same time. Further callers wait, within their own deadlines."""
    watch_events: int = 16
    """Events that wait for a slow reader of a watch. If there are more, the oldest are dropped."""
    outgoing_bytes: int = 256 * 1024
    """Requests that wait to be written. Above this, callers wait."""
    write_deadline: float = 20.0
    """The longest time that one write may stall. After that the connection counts as lost."""
    close_deadline: float = 2.0
    """The longest time that closing may take."""
