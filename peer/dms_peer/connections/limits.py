"""All limits of the connections that this peer makes."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ConnectionLimits"]


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """Limits of connections to peers. Times are in seconds."""

    dials: int = 16
    """Peers that are dialled at the same time. Further ones wait."""
    addresses: int = 8
    """Addresses of one peer that are tried in one dial."""
    dial_deadline: float = 15.0
    """The longest time for dialling one peer, over all its addresses."""
    attempt_deadline: float = 8.0
    """The longest time for one address."""
    head_start: float = 0.25
    """The head start of one address before the next (RFC 8305, section 5, "Connection Attempt Delay")."""
    stream_deadline: float = 10.0
    """The longest time for opening a stream on an existing connection."""
    clients: int = 1024
    """Streams that are kept, one for each peer and protocol. Beyond this the one that was unused for
    longest is closed.
    """
    stream_idle: float = 60.0
    """A stream that was idle for this time is closed."""
    connection_idle: float = 60.0
    """A connection that we dialled is closed if it had no stream for this time."""
    backoff_first: float = 1.0
    """How long a peer is not dialled after it was not reached. It doubles with each further failure."""
    backoff_longest: float = 300.0
    """The longest time for which a peer is not dialled."""
    peers: int = 4096
    """Peers whose last address and back-off are remembered."""

    def __post_init__(self) -> None:
        """Raise ValueError for a limit that would let nothing through."""
        for name in self.__slots__:
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive")
