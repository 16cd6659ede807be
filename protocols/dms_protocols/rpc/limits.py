"""All limits of a service. Those of a client are in `client_limits`.

Sizes are in bytes, times in seconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from msgspec import Struct

__all__ = ["ServiceLimits", "Share", "Shares"]

_WHOLE = 1000


@dataclass(frozen=True, slots=True)
class ServiceLimits:
    """The limits of the service on one stream."""

    frame_bytes: int = 64 * 1024
    """The largest request. A larger one is answered with `frame_too_large` and skipped."""
    skip_bytes: int = 1024 * 1024
    """The largest request that is skipped. A larger one is answered with `frame_too_large` and ends the stream."""
    answer_bytes: int = 1024 * 1024
    """The largest answer. A larger one is replaced by the error `answer_too_large`."""
    depth: int = 16
    """The nesting depth of containers within the map of a request."""
    items: int = 4096
    """Values in a request, at all depths together."""
    read_bytes: int = 64 * 1024
    """The largest amount that is read from the stream at once."""
    batch_frames: int = 256
    """Requests of one peer that are answered before other peers have their turn."""
    operations_in_flight: int = 64
    """Slow operations that run at the same time; one more is answered with `busy`."""
    watches: int = 8
    """Watches that run at the same time; one more is answered with `busy`."""
    busy_retry_after: float = 1.0
    """The `retry_after` of the answer `busy`."""
    operation_deadline: float = 30.0
    """The longest time that a slow operation may take. Then it is cancelled and answered with `deadline_exceeded`."""
    outgoing_bytes: int = 64 * 1024
    """Answers that wait to be written. Above this, nothing more is read until the peer has read some of its answers."""
    write_deadline: float = 20.0
    """The longest time that one write may stall. Then the stream is dropped."""
    close_deadline: float = 2.0
    """The longest time that the orderly close of a stream may take. Then the stream is dropped."""
    idle_deadline: float = 300.0
    """The longest time without a complete request and without a running operation. Then the stream is closed."""


class Share(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The limits of one peer on all its streams together, or of all peers together. A request above them is answered
    with `busy`, a commitment with `share_exceeded`.
    """

    requests: float
    """Requests per second, on average."""
    requests_burst: float
    """Requests that may arrive at once, after a quiet time."""
    bids: float
    """Requests for bids per second, on average; each costs signatures."""
    bids_burst: float
    """Requests for bids that may arrive at once, after a quiet time."""
    bytes_in_flight: int
    """Bytes of requests that are being answered, and of answers that the peer has not read yet."""
    operations: int
    """Slow operations and watches that run at the same time."""
    streams: int
    """Streams that are served at the same time."""
    commitments: int
    """Holds, commitments and allocations that are outstanding at the same time."""
    capacity: int = 1000
    """The part of each onboarded dimension that may be outstanding, in thousandths."""
    longest_ttl: float = inf
    """The longest time for which a commitment may be made or renewed, in seconds. The ledger allows 30 days."""

    def __post_init__(self) -> None:
        """Raise ValueError for a limit that would let nothing through."""
        for name in self.__struct_fields__:
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be more than 0")
        if min(self.requests_burst, self.bids_burst) < 1:
            raise ValueError("a burst is at least 1")
        if self.capacity > 1000:
            raise ValueError("capacity is in thousandths: at most 1000")


class Shares(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The limits of each peer and of all peers together. The defaults bound memory, and no peer can starve the others.

    An owner who also uses the machine for other work sets them lower.
    """

    peer: Share = Share(
        requests=5_000,
        requests_burst=20_000,
        bids=200,
        bids_burst=1_000,
        bytes_in_flight=4 * 1024 * 1024,
        operations=128,
        streams=48,
        commitments=1_024,
    )
    """The limits of one peer."""
    total: Share = Share(
        requests=20_000,
        requests_burst=60_000,
        bids=1_000,
        bids_burst=4_000,
        bytes_in_flight=64 * 1024 * 1024,
        operations=1_024,
        streams=256,
        commitments=16_384,
    )
    """The limits of all peers together."""
    stranger_capacity: int = _WHOLE
    """How much of what is onboarded all strangers at one address may have outstanding together, in thousandths of each
    dimension. A stranger is a peer that the access rules do not list and that has no token. It is at least 1 core, 1
    GiB of RAM and of disk, and one GPU.
    """
    assured_requests: float = 50.0
    """Requests per second that a peer gets even if all peers together have used up their share."""
    assured_bids: float = 5.0
    """Requests for bids per second that a peer gets even if all peers together have used up their share."""
    assured_bytes: int = 64 * 1024
    """Bytes in flight that a peer gets even if all peers together have used up their share."""
    assured_operations: int = 4
    """Slow operations and watches of a peer that may run even if all peers together have used up their share."""
    assured_streams: int = 4
    """Streams of a peer that are served even if all peers together have used up their share."""
    remembered: int = 4_096
    """Peers without a stream whose use is remembered until their rates are full again. The peer that left first is
    forgotten first.
    """

    def __post_init__(self) -> None:
        """Raise ValueError for a limit that would let nothing through."""
        for name in ("requests", "bids", "bytes", "operations", "streams"):
            if getattr(self, f"assured_{name}") < 1:
                raise ValueError(f"assured_{name} must be at least 1")
        if self.stranger_capacity < 1:
            raise ValueError("stranger_capacity must be at least 1")
        if self.stranger_capacity > _WHOLE:
            raise ValueError("stranger_capacity is in thousandths: at most 1000")
        if self.remembered < 1:
            raise ValueError("remembered must be at least 1")
