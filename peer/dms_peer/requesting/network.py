"""The interface of a requester to a network: sources of candidates, and clients for them.

The real one is made of libp2p (`dms_peer.connections`, `dms_peer.discovery`), the one of the simulations of streams in
memory: the requester cannot tell them apart.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from dms_protocols.clients import Bids
from dms_protocols.messages.bid import EnsembleRequest
from dms_protocols.rpc.client import Client
from dms_resources.components import FreeResources

__all__ = ["Broadcast", "BroadcastBids", "Candidate", "CandidateSource", "PeerNetwork", "PeerObserver"]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A peer that may have what is asked for, where it was last reached, and which source named it.

    `free` is what it was known to have free at `free_at` (Unix seconds); None where that is unknown.
    """

    peer_id: str
    addrs: tuple[str, ...]
    source: str
    free: FreeResources | None = None
    free_at: float | None = None

    def age(self, now: float) -> float | None:
        """How old (seconds) the figure is at `now` (Unix seconds); None where there is none."""
        return None if self.free_at is None else max(0.0, now - self.free_at)


class PeerNetwork(Protocol):
    """Reaches peers."""

    @property
    def peer_id(self) -> str:
        """The requester's peer id."""
        ...

    def client(self, peer_id: str, protocol: str, addrs: Sequence[str] = ()) -> AbstractAsyncContextManager[Client]:
        """A client of one protocol of a peer, over a connection and stream that are reused where they live.

        Of the protocol, named by any of its versions, the newest is spoken that the peer has: `Client.protocol`.
        Connects where there is no connection, at `addrs` or at known addresses. Raises DialError.
        """
        ...


class CandidateSource(Protocol):
    """Names peers that may have what is asked for, the most promising first."""

    @property
    def name(self) -> str:
        """Such as "known", "mdns" or "dht"."""
        ...

    def candidates(self, request: EnsembleRequest) -> AbstractAsyncContextManager[AsyncIterator[Candidate]]:
        """The candidates for a request, as they are found; the iterator ends when the source knows no more.

        Raises nothing but cancellation: a source that fails ends early and says so in the log.
        """
        ...


@dataclass(frozen=True, slots=True)
class BroadcastBids:
    """What one provider answered to a broadcast; `peer_id` delivered it, and the bids are checked."""

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
    """Is told what a requester learns of peers, so that the next search is cheaper."""

    def seen(self, peer_id: str, addrs: Sequence[str], free: FreeResources | None = None) -> None:
        """The peer answered now; `free` is what it has free, where it said so. Must not wait."""
        ...

    def unreachable(self, peer_id: str) -> None:
        """The peer could not be reached now. Must not wait."""
        ...
