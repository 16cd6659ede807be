"""Calls to single peers, each with a time budget. All their errors become CallError."""

from __future__ import annotations

import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Final, TypeVar

import trio

from dms_protocols.bidding.signing import EnvelopeOpener
from dms_protocols.clients import AllocationClient, BidClient, Bids, ResourcesClient, SignedBid
from dms_protocols.errors import ProtocolError, RemoteError
from dms_protocols.jobs.client import JobClient
from dms_protocols.jobs.tunnels import open_tunnel
from dms_protocols.messages.bid import EnsembleRequest, OfferAnswer
from dms_protocols.protocol_ids import (
    ALLOCATION_PROTOCOL,
    BID_PROTOCOL,
    JOB_PROTOCOL,
    RESOURCES_PROTOCOL,
    TUNNEL_PROTOCOL,
)
from dms_protocols.rpc.answer_checks import (
    check_allocated,
    check_bids,
    check_ended,
    check_leases,
    check_offers,
    check_renewed,
)
from dms_protocols.rpc.client import Client
from dms_resources.components import FreeResources
from dms_resources.ledger.leases import EndedLease, Lease

from ..errors import PeerError
from .network import PeerNetwork, PeerObserver

__all__ = ["CallError", "PeerCalls", "PeerRef"]

_T = TypeVar("_T")

# Errors after which the operation may have taken place.
_UNCERTAIN: Final = frozenset({"deadline_exceeded", "internal"})
# The peer was not reached. The table of known peers records that.
_UNREACHABLE: Final = frozenset(
    {"unreachable", "refused", "timeout", "wrong_peer", "handshake_failed", "not_connected", "no_address",
     "relay_failed", "stream_failed"}
)  # fmt: skip


class CallError(Exception):
    """A call that got no answer, or an error. `code` is stable.

    `reached` says whether there was a connection, `uncertain` whether the operation may have taken place. `remote` is
    the peer's own error, if it sent one.
    """

    def __init__(
        self, code: str, message: str, *, reached: bool, uncertain: bool, remote: RemoteError | None = None
    ) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message
        self.reached = reached
        self.uncertain = uncertain
        self.remote = remote


@dataclass(frozen=True, slots=True)
class PeerRef:
    """A peer and its last known addresses."""

    peer_id: str
    addrs: tuple[str, ...] = ()


@dataclass(slots=True)
class _Attempt:
    """Whether the peer was reached."""

    reached: bool = False


class _NoObserver:
    def seen(self, peer_id: str, addrs: Sequence[str], free: FreeResources | None = None) -> None:
        pass

    def unreachable(self, peer_id: str) -> None:
        pass


class PeerCalls:
    """Calls peers over a network, as one requester. It sends its `token` to providers that require one.

    Every call raises CallError, and may be cancelled at any time.
    """

    def __init__(
        self,
        network: PeerNetwork,
        opener: EnvelopeOpener,
        *,
        observer: PeerObserver | None = None,
        clock: Callable[[], float] = time.time,
        token: bytes | None = None,
    ) -> None:
        self._network = network
        self._token = token
        self._opener = opener
        # Not `or`: an observer without peers may have the length 0.
        self._observer = _NoObserver() if observer is None else observer
        self._clock = clock

    @property
    def requester(self) -> str:
        """The requester's peer id."""
        return self._network.peer_id

    async def bids(
        self, peer: PeerRef, ensemble: EnsembleRequest, *, hold: float, ttl: float, budget: float
    ) -> tuple[Bids, float]:
        """The peer's checked bids and refusals, and how long (seconds) it took to answer."""

        async def ask(client: Client) -> tuple[Bids, float]:
            started = trio.current_time()
            bids = await self._bidder(client, peer, budget).request_bids(ensemble, hold=hold, ttl=ttl)
            check_bids(bids, ensemble, requester=self.requester, provider=peer.peer_id, now=self._clock())
            return bids, trio.current_time() - started

        return await self._call(peer, BID_PROTOCOL, budget, ask)

    async def dry_run(
        self, peer: PeerRef, ensemble: EnsembleRequest, *, ttl: float, budget: float
    ) -> tuple[OfferAnswer, float]:
        """What the peer would bid, and how long (seconds) it took to answer."""

        async def ask(client: Client) -> tuple[OfferAnswer, float]:
            started = trio.current_time()
            offers = await self._bidder(client, peer, budget).dry_run(ensemble, ttl=ttl)
            check_offers(offers, ensemble, requester=self.requester, provider=peer.peer_id, now=self._clock())
            return offers, trio.current_time() - started

        return await self._call(peer, BID_PROTOCOL, budget, ask)

    async def free(self, peer: PeerRef, *, budget: float) -> FreeResources:
        """What the peer has free now."""
        free = await self._call(
            peer,
            RESOURCES_PROTOCOL,
            budget,
            lambda client: ResourcesClient(client, timeout=budget, token=self._token).free(),
        )
        self._seen(peer, free)
        return free

    async def commit(self, peer: PeerRef, bids: Sequence[SignedBid], *, ttl: float, budget: float) -> tuple[Lease, ...]:
        """Commit bids of the peer for `ttl` seconds, all or none. The leases are in the order of the bids."""

        async def commit(client: AllocationClient) -> tuple[Lease, ...]:
            asked_at = self._clock()
            leases = await client.commit([one.envelope for one in bids], ttl=ttl)
            check_leases(leases, [one.bid for one in bids], ttl=ttl, asked_at=asked_at)
            return leases

        return await self._allocations(peer, budget, commit)

    async def renew(
        self,
        peer: PeerRef,
        lease_id: str,
        *,
        ttl: float,
        fence: int | None,
        budget: float,
        before: Lease | None = None,
    ) -> Lease:
        """Move the deadline of a lease to `ttl` seconds from now. `before` is the lease as it was."""

        async def renew(client: AllocationClient) -> Lease:
            lease = await client.renew(lease_id, ttl=ttl, fence=fence)
            check_renewed(lease, lease_id, holder=self.requester, fence=fence, before=before)
            return lease

        return await self._allocations(peer, budget, renew)

    async def allocate(
        self, peer: PeerRef, lease_id: str, *, fence: int | None, budget: float, before: Lease | None = None
    ) -> Lease:
        """Turn a commitment into an allocation. `before` is the lease as it was."""

        async def allocate(client: AllocationClient) -> Lease:
            lease = await client.allocate(lease_id, fence=fence)
            check_allocated(lease, lease_id, holder=self.requester, fence=fence, before=before)
            return lease

        return await self._allocations(peer, budget, allocate)

    async def release(self, peer: PeerRef, lease_id: str, *, fence: int | None, budget: float) -> EndedLease:
        """Releases a lease."""

        async def release(client: AllocationClient) -> EndedLease:
            ended = await client.release(lease_id, fence=fence)
            check_ended(ended, lease_id, holder=self.requester, fence=fence)
            return ended

        return await self._allocations(peer, budget, release)

    def _seen(self, peer: PeerRef, free: FreeResources | None = None) -> None:
        # The observer is for other peers, not for the requester itself.
        if peer.peer_id != self.requester:
            self._observer.seen(peer.peer_id, peer.addrs, free)

    def _bidder(self, client: Client, peer: PeerRef, budget: float) -> BidClient:
        return BidClient(
            client,
            self._opener,
            requester=self.requester,
            provider=peer.peer_id,
            timeout=budget,
            token=self._token,
            clock=self._clock,
        )

    async def _allocations(self, peer: PeerRef, budget: float, work: Callable[[AllocationClient], Awaitable[_T]]) -> _T:
        return await self._call(
            peer,
            ALLOCATION_PROTOCOL,
            budget,
            lambda client: work(AllocationClient(client, timeout=budget, token=self._token)),
        )

    @asynccontextmanager
    async def jobs(self, peer: PeerRef, *, budget: float) -> AsyncIterator[JobClient]:
        """A client for the jobs at a peer while the block runs. Connecting and each call take `budget` seconds at most.

        Errors of the block become CallError as well.
        """
        with self._translated(peer, budget) as call, trio.fail_after(budget) as connecting:
            async with self._network.client(peer.peer_id, JOB_PROTOCOL, peer.addrs) as client:
                call.reached, connecting.deadline = True, math.inf
                yield JobClient(client, timeout=budget, token=self._token)

    @asynccontextmanager
    async def tunnel(
        self, peer: PeerRef, lease_id: str, port: int, *, budget: float
    ) -> AsyncIterator[trio.abc.HalfCloseableStream]:
        """A connection to a port of the job on a lease, closed when the block ends; opened within `budget` seconds."""
        async with AsyncExitStack() as stack:
            with self._translated(peer, budget) as call, trio.fail_after(budget):
                stream = await stack.enter_async_context(
                    self._network.open_stream(peer.peer_id, TUNNEL_PROTOCOL, peer.addrs)
                )
                call.reached = True
                tunnel = await open_tunnel(stream, lease_id, port, token=self._token, timeout=budget)
            yield tunnel

    async def _call(self, peer: PeerRef, protocol: str, budget: float, work: Callable[[Client], Awaitable[_T]]) -> _T:
        with self._translated(peer, budget) as call, trio.fail_after(budget):
            async with self._network.client(peer.peer_id, protocol, peer.addrs) as client:
                call.reached = True
                return await work(client)

    @contextmanager
    def _translated(self, peer: PeerRef, budget: float) -> Iterator[_Attempt]:
        """Turns the errors of the block into CallError, and tells the observer of the peer."""
        call = _Attempt()
        try:
            yield call
        except RemoteError as error:
            self._seen(peer)
            raise CallError(
                error.code, error.message, reached=True, uncertain=error.code in _UNCERTAIN, remote=error
            ) from error
        except trio.TooSlowError as error:
            if not call.reached:
                self._observer.unreachable(peer.peer_id)
            message = f"no answer within {budget:g} s"
            raise CallError("timeout", message, reached=call.reached, uncertain=call.reached) from error
        except PeerError as error:
            if error.code in _UNREACHABLE:
                self._observer.unreachable(peer.peer_id)
            raise CallError(error.code, error.message, reached=call.reached, uncertain=call.reached) from error
        except ProtocolError as error:
            raise CallError(error.code, error.message, reached=call.reached, uncertain=call.reached) from error
        self._seen(peer)
