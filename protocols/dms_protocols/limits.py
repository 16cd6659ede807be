"""Every bound of a service and of a client, in one place each.

Sizes are in bytes, times in seconds. What is not bounded here is bounded by one of these.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ClientLimits", "ServiceLimits"]


@dataclass(frozen=True, slots=True)
class ServiceLimits:
    """What one stream may cost the side that answers."""

    frame_bytes: int = 64 * 1024
    """The largest request; a larger one is answered with `frame_too_large` and passed over."""
    skip_bytes: int = 1024 * 1024
    """The largest request that is passed over; one that announces more ends the stream."""
    answer_bytes: int = 1024 * 1024
    """The largest answer; a larger one becomes `answer_too_large`."""
    depth: int = 16
    """Containers within containers in a request."""
    items: int = 4096
    """Values in a request, at every depth together."""
    read_bytes: int = 64 * 1024
    """The most that is taken from the stream at once."""
    batch_frames: int = 256
    """Requests that are answered before other streams get their turn."""
    operations_in_flight: int = 64
    """Slow operations that run at the same time; one more is answered with `busy`."""
    watches: int = 8
    """Watches that run at the same time; one more is answered with `busy`."""
    busy_retry_after: float = 1.0
    """When a request that was answered with `busy` may be tried again."""
    operation_deadline: float = 30.0
    """The longest that a slow operation may take; then it is cancelled and answered with `deadline_exceeded`."""
    outgoing_bytes: int = 256 * 1024
    """Answers that wait to be written; above it nothing is read until the peer takes its answers."""
    write_deadline: float = 20.0
    """The longest that one write may stall before the stream is dropped."""
    close_deadline: float = 2.0
    """The longest that closing a stream in good order may take; then it is dropped."""
    idle_deadline: float = 300.0
    """The longest without a whole request and without anything running; then the stream is closed."""


@dataclass(frozen=True, slots=True)
class ClientLimits:
    """What one stream may cost the side that asks."""

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
    """Events that wait for a slow reader of a watch; the oldest give way."""
    outgoing_bytes: int = 256 * 1024
    """Requests that wait to be written; above it callers wait."""
    write_deadline: float = 20.0
    """The longest that one write may stall before the connection counts as lost."""
    close_deadline: float = 2.0
    """The longest that closing may take."""
