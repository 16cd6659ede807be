"""Every bound of a client, in one place. Sizes are in bytes, times in seconds.

They are apart from those of a service so that a short command does not load both.
"""

from __future__ import annotations

from msgspec import Struct

__all__ = ["ClientLimits"]


class ClientLimits(Struct, frozen=True, kw_only=True):
    """What one stream may cost the client."""

    request_bytes: int = 64 * 1024
    """The largest request; a larger one raises FrameError at the caller."""
    frame_bytes: int = 1024 * 1024
    """The largest answer; a larger one ends the connection."""
    depth: int = 16
    """Containers within containers in an answer."""
    items: int = 65536
    """Values in an answer, at every depth together."""
    read_bytes: int = 64 * 1024
    """The most that is taken from the stream at once."""
    calls_in_flight: int = 256
    """Calls and watches that wait for answers at the same time; further callers wait, within their own deadlines."""
    watch_events: int = 16
    """Events that wait for a slow reader of a watch; the oldest are dropped."""
    outgoing_bytes: int = 256 * 1024
    """Requests that wait to be written; above it callers wait."""
    write_deadline: float = 20.0
    """The longest that one write may stall before the connection counts as lost."""
    close_deadline: float = 2.0
    """The longest that closing may take."""
