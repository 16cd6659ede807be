"""Every bound of the connections that this peer makes, in one place."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ConnectionLimits"]


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """Bounds on connections to peers. Times in seconds."""

    dials: int = 16
    """Peers that are dialled at the same time; further ones wait their turn."""
    addresses: int = 8
    """Addresses of one peer that are tried in one dial."""
    dial_deadline: float = 15.0
    """One dial of one peer, over all its addresses."""
    attempt_deadline: float = 8.0
    """One address."""
    head_start: float = 0.25
    """How long one address is ahead of the next (RFC 8305, section 5, "Connection Attempt Delay")."""
    stream_deadline: float = 10.0
    """Opening a stream on a connection that is there."""
    clients: int = 1024
    """Streams that are kept, one for each peer and protocol; above it the longest unused gives way."""
    stream_idle: float = 60.0
    """A stream that was idle for this time is closed."""
    connection_idle: float = 60.0
    """A connection that we dialled, and on which there was no stream for this time, is closed."""
    backoff_first: float = 1.0
    """How long a peer is left alone after it was not reached; doubles with each further failure."""
    backoff_longest: float = 300.0
    """The longest that a peer is left alone."""
    peers: int = 4096
    """Peers whose last address and back-off are remembered."""

    def __post_init__(self) -> None:
        """Raise ValueError for a bound that would let nothing through."""
        for name in self.__slots__:
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive")
