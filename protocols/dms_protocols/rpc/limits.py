"""Every bound of a service, in one place; those of a client are in `client_limits`.

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
    """What one stream may cost the service."""

    frame_bytes: int = 64 * 1024
    """The largest request; a larger one is answered with `frame_too_large` and skipped."""
    skip_bytes: int = 1024 * 1024
    """The largest request that is skipped; a larger one is answered with `frame_too_large` and ends the stream."""
    answer_bytes: int = 1024 * 1024
    """The largest answer; a larger one becomes `answer_too_large`."""
    depth: int = 16
    """The depth of containers within the map of a request."""
    items: int = 4096
    """Values in a request, at every depth together."""
    read_bytes: int = 64 * 1024
    """The most that is taken from the stream at once."""
    batch_frames: int = 256
    """Requests of one peer that are answered before other peers have their turn."""
    operations_in_flight: int = 64
    """Slow operations that run at the same time; one more is answered with `busy`."""
    watches: int = 8
    """Watches that run at the same time; one more is answered with `busy`."""
    busy_retry_after: float = 1.0
    """After how long a request that was answered with `busy` may be sent again."""
    operation_deadline: float = 30.0
    """The longest that a slow operation may take; then it is cancelled and answered with `deadline_exceeded`."""
    outgoing_bytes: int = 64 * 1024
    """Answers that wait to be written; above this, nothing is read until the peer takes its answers."""
    write_deadline: float = 20.0
    """The longest that one write may stall before the stream is dropped."""
    close_deadline: float = 2.0
    """The longest that the orderly close of a stream may take; then it is dropped."""
    idle_deadline: float = 300.0
    """The longest time without a whole request and without a running operation; then the stream is closed."""


class Share(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one peer may have on all its streams together, or all peers together; more is answered with `busy`, a
    commitment with `share_exceeded`."""

    requests: float
    """Requests per second, on average."""
    requests_burst: float
    """Requests that may come at once, after a time with few."""
    bids: float
    """Requests for bids per second, on average; each costs signatures."""
    bids_burst: float
    """Requests for bids that may come at once."""
    bytes_in_flight: int
    """Bytes of requests that are being answered and of answers that are not taken yet."""
    operations: int
    """Slow operations and watches that run at the same time."""
    streams: int
    """Streams that are served at the same time."""
    commitments: int
    """Holds, commitments and allocations that are outstanding at the same time."""
    capacity: int = 1000
    """The part of each onboarded dimension that may be outstanding, in thousandths."""
    longest_ttl: float = inf
    """The longest that a commitment may last before it is renewed, in seconds; the ledger allows 30 days."""

    def __post_init__(self) -> None:
        """Raise ValueError for a bound that would let nothing through."""
        for name in self.__struct_fields__:
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be more than 0")
        if min(self.requests_burst, self.bids_burst) < 1:
            raise ValueError("a burst is at least 1")
        if self.capacity > 1000:
            raise ValueError("capacity is in thousandths: at most 1000")


class Shares(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How peers share one peer. The defaults bound memory and keep each peer from starving the others.

    An owner who keeps the machine for other uses sets them lower.
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
    """What one peer may have."""
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
    """What all peers may have together."""
    stranger_capacity: int = _WHOLE
    """How much of what is onboarded all peers at one address may have outstanding together, in thousandths of each
    dimension, if the access rules do not list them and they have no token. At least 1 core, 1 GiB of RAM and of disk
    and one GPU."""
    assured_requests: float = 50.0
    """Requests per second that a peer gets when all peers together have used up their share."""
    assured_bids: float = 5.0
    """Requests for bids per second that a peer gets when all peers together have used up their share."""
    assured_bytes: int = 64 * 1024
    """Bytes in flight that a peer gets when all peers together have used up their share."""
    assured_operations: int = 4
    """Slow operations and watches of a peer that run when all peers together have used up their share."""
    assured_streams: int = 4
    """Streams of a peer that are served when all peers together have used up their share."""
    remembered: int = 4_096
    """Peers without a stream whose use is remembered until their rates are full again; the peer that left first is
    forgotten first."""

    def __post_init__(self) -> None:
        """Raise ValueError for a bound that would let nothing through."""
        for name in ("requests", "bids", "bytes", "operations", "streams"):
            if getattr(self, f"assured_{name}") < 1:
                raise ValueError(f"assured_{name} must be at least 1")
        if self.stranger_capacity < 1:
            raise ValueError("stranger_capacity must be at least 1")
        if self.stranger_capacity > _WHOLE:
            raise ValueError("stranger_capacity is in thousandths: at most 1000")
        if self.remembered < 1:
            raise ValueError("remembered must be at least 1")
