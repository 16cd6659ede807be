"""The interface of a requester to a network: sources of candidates, and clients for them.

The real network is made of libp2p (`dms_peer.connections`, `dms_peer.discovery`). The network of the simulations is
made of streams in memory. The requester cannot distinguish them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

import trio.abc

from dms_protocols.clients import Bids
from dms_protocols.messages.bid import EnsembleRequest
from dms_protocols.rpc.client import Client
from dms_resources.components import FreeResources

__all__ = ["Broadcast", "BroadcastBids", "Candidate", "CandidateSource", "PeerNetwork", "PeerObserver"]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A peer that may have the requested capacity, its last known addresses, and the source that named it.

    `free` is what it was known to have free at `free_at` (Unix seconds); None if unknown.
    """

    peer_id: str
    addrs: tuple[str, ...]
    source: str
    free: FreeResources | None = None
    free_at: float | None = None

    def age(self, now: float) -> float | None:
        """The age of the figure in seconds at `now` (Unix seconds); None if there is no figure."""
        return None if self.free_at is None else max(0.0, now - self.free_at)


class PeerNetwork(Protocol):
    """Provides clients for peers."""

    @property
    def peer_id(self) -> str:
        """The requester's peer id."""
        ...

    def client(self, peer_id: str, protocol: str, addrs: Sequence[str] = ()) -> AbstractAsyncContextManager[Client]:
        """A client of one protocol of a peer, over an existing connection and stream if possible.

        `protocol` may be any version: the newest version that the peer has is used (`Client.protocol`). If there is no
        connection, it connects to `addrs` or known addresses. Raises DialError.
        """
        ...

    def open_stream(
        self, peer_id: str, protocol: str, addrs: Sequence[str] = ()
    ) -> AbstractAsyncContextManager[trio.abc.HalfCloseableStream]:
        """A stream of one protocol to a peer, for this caller alone; closed when the block ends, if it still is open.

        Connects as `client` does. Raises DialError.
        """
        ...


class CandidateSource(Protocol):
    """Names peers that may have the requested capacity, the most promising first."""

    @property
    def name(self) -> str:
        """The name, for example "known", "mdns" or "dht"."""
        ...

    def candidates(self, request: EnsembleRequest) -> AbstractAsyncContextManager[AsyncIterator[Candidate]]:
        """The candidates for a request, as they are found. The iterator ends when the source knows no more.

        Raises nothing but cancellation: a source that fails ends early and logs the error.
        """
        ...


@dataclass(frozen=True, slots=True)
class BroadcastBids:
    """The answer of one provider to a broadcast. The peer `peer_id` delivered it, and the bids are checked."""

    peer_id: str
    addrs: tuple[str, ...]
    bids: Bids


class Broadcast(Protocol):
    """Broadcasts a request: the last resort."""

    def ask(
        self, request: EnsembleRequest, *, hold: float = 0.0, ttl: float = 0.0
    ) -> AbstractAsyncContextManager[AsyncIterator[BroadcastBids]]:
        """The answers as they arrive, until the request's deadline. Raises nothing but cancellation."""
        ...


class PeerObserver(Protocol):
    """Is informed of what a requester learns about peers, so that the next search is cheaper."""

    def seen(self, peer_id: str, addrs: Sequence[str], free: FreeResources | None = None) -> None:
        """The peer has just answered. `free` is what it has free, if it said so. Must not wait."""
        ...

    def unreachable(self, peer_id: str) -> None:
        """The peer could not be reached just now. Must not wait."""
        ...
