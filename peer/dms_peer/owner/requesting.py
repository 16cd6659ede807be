"""Performs the requests of the owner's commands to other peers, over a network of this process.

A running peer performs them for its owner's commands, over its own connections, so that a command needs no libp2p. If
no peer runs, the command performs them itself over a host that it opens.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Final, TypeVar

from msgspec import Struct
from msgspec.structs import asdict

from dms_host import parse_peer_address
from dms_host.errors import AddressError
from dms_protocols.bidding.signing import EnvelopeOpener, open_bid
from dms_protocols.clients import AllocationClient, BidClient, ResourcesClient
from dms_protocols.errors import BidError, RemoteError
from dms_protocols.messages.bid import Bid
from dms_protocols.protocol_ids import ALLOCATION_PROTOCOL, BID_PROTOCOL, RESOURCES_PROTOCOL
from dms_protocols.rpc.answer_checks import (
    check_allocated,
    check_bids,
    check_ended,
    check_leases,
    check_offers,
    check_own_leases,
    check_renewed,
)
from dms_protocols.rpc.operations import Caller, Operations
from dms_resources.ledger.leases import Lease

from ..errors import PeerError
from ..requesting.discovering import FoundPeer
from ..requesting.network import PeerNetwork, PeerObserver
from ..requesting.reports import (
    EnsembleBidReport,
    Found,
    FoundRow,
    OfferedBid,
    PeerEndedLease,
    PeerFree,
    PeerLease,
    PeerLeases,
    PeerMachine,
    PeerUsage,
    Pong,
)
from ..requesting.requester import Requester
from .remote_messages import (
    DiscoverRequest,
    PeerRequest,
    RemoteAllocateRequest,
    RemoteBidRequest,
    RemoteCommitRequest,
    RemoteFreeRequest,
    RemoteListRequest,
    RemoteMachineRequest,
    RemotePingRequest,
    RemoteReleaseRequest,
    RemoteRenewRequest,
    RemoteUsageRequest,
    SearchEvent,
)

__all__ = ["Ping", "RemoteRequests", "discover_operations", "found_row", "remote_operations"]

_T = TypeVar("_T")

# Leases in one page of the wire's `list`, and the most pages that are read from one provider.
_PAGE: Final = 500
_MOST_PAGES: Final = 20

Ping = Callable[[str, Sequence[str]], Awaitable[tuple[float, bool]]]
"""One round trip to a peer at these addresses: its seconds, and whether it goes through a relay. Raises DialError."""


class RemoteRequests:
    """Performs requests to other peers as one requester, over `network`. `observer` gets the peers that answer."""

    def __init__(
        self, network: PeerNetwork, opener: EnvelopeOpener, ping: Ping, observer: PeerObserver | None = None
    ) -> None:
        self._network = network
        self._observer = observer
        self._opener = opener
        self._ping = ping

    async def perform(self, request: PeerRequest) -> Struct:
        """The answer of the peer that the request names, checked against the request.

        Raises AddressError, DialError, RemoteError with the peer's own error, and ProtocolError if the check fails. May
        be cancelled; it is then unknown whether a change took place.
        """
        _check_addresses(request.addrs)
        answer = await self._perform(request)
        if self._observer is not None and request.peer_id != self._network.peer_id:
            # The next search begins with this peer.
            free = answer.plain() if isinstance(answer, PeerFree) else None
            self._observer.seen(request.peer_id, request.addrs, free)
        return answer

    async def _perform(self, request: PeerRequest) -> Struct:
        match request:
            case RemotePingRequest():
                return await self._pong(request)
            case RemoteFreeRequest() | RemoteUsageRequest() | RemoteMachineRequest():
                return await self._resources(request)
            case RemoteBidRequest():
                return await self._bids(request)
            case _:
                async with self._network.client(request.peer_id, ALLOCATION_PROTOCOL, request.addrs) as client:
                    return await self._allocation(request, AllocationClient(client, token=request.token))

    async def _pong(self, request: RemotePingRequest) -> Pong:
        if request.peer_id == self._network.peer_id:
            return Pong(peer_id=request.peer_id, round_trip=0.0)
        round_trip, relayed = await self._ping(request.peer_id, request.addrs)
        return Pong(peer_id=request.peer_id, round_trip=round_trip, relayed=relayed)

    async def _resources(self, request: PeerRequest) -> Struct:
        peer_id = request.peer_id
        async with self._network.client(peer_id, RESOURCES_PROTOCOL, request.addrs) as client:
            resources = ResourcesClient(client, token=request.token)
            match request:
                case RemoteFreeRequest():
                    return PeerFree(**asdict(await resources.free()), peer_id=peer_id)
                case RemoteUsageRequest():
                    return PeerUsage(**asdict(await resources.usage()), peer_id=peer_id)
                case _:
                    return PeerMachine(peer_id=peer_id, machine=await resources.machine())

    async def _bids(self, request: RemoteBidRequest) -> EnsembleBidReport:
        requester, peer_id = self._network.peer_id, request.peer_id
        async with self._network.client(peer_id, BID_PROTOCOL, request.addrs) as client:
            asking = BidClient(client, self._opener, requester=requester, provider=peer_id, token=request.token)
            if request.dry_run:
                offer = await asking.dry_run(request.ensemble, hold=request.hold)
                check_offers(offer, request.ensemble, requester=requester, provider=peer_id, now=time.time())
                bids, refusals = [OfferedBid(bid=bid) for bid in offer.offers], offer.refusals
            else:
                answer = await asking.request_bids(request.ensemble, hold=request.hold)
                check_bids(answer, request.ensemble, requester=requester, provider=peer_id, now=time.time())
                bids = [OfferedBid(bid=one.bid, envelope=one.envelope) for one in answer.bids]
                refusals = answer.refusals
        place = {node.node_id: number for number, node in enumerate(request.ensemble.request)}
        return EnsembleBidReport(
            peer_id=peer_id,
            dry_run=request.dry_run,
            bids=tuple(sorted(bids, key=lambda one: place.get(one.bid.node_id, len(place)))),
            refusals=tuple(sorted(refusals, key=lambda one: place.get(one.node_id, len(place)))),
        )

    async def _allocation(self, request: PeerRequest, peer: AllocationClient) -> Struct:
        holder = self._network.peer_id
        match request:
            case RemoteCommitRequest():
                bids = self._own_bids(request)
                asked_at = time.time()
                leases = await peer.commit(request.bids, ttl=request.ttl)
                check_leases(leases, bids, ttl=request.ttl, asked_at=asked_at)
                return PeerLeases(peer_id=request.peer_id, leases=leases)
            case RemoteRenewRequest():
                lease = await peer.renew(request.lease_id, ttl=request.ttl, fence=request.fence)
                check_renewed(lease, request.lease_id, holder=holder, fence=request.fence)
            case RemoteAllocateRequest():
                lease = await peer.allocate(request.lease_id, fence=request.fence)
                check_allocated(lease, request.lease_id, holder=holder, fence=request.fence)
            case RemoteReleaseRequest():
                ended = await peer.release(request.lease_id, fence=request.fence)
                check_ended(ended, request.lease_id, holder=holder, fence=request.fence)
                return PeerEndedLease(**asdict(ended), peer_id=request.peer_id)
            case RemoteListRequest():
                return PeerLeases(peer_id=request.peer_id, leases=await self._own_leases(peer))
            case _:
                raise TypeError(f"no request to a peer: {type(request).__name__}")
        return PeerLease(**asdict(lease), peer_id=request.peer_id)

    def _own_bids(self, request: RemoteCommitRequest) -> list[Bid]:
        bids = [open_bid(envelope, self._opener) for envelope in request.bids]
        for bid in bids:
            if bid.provider != request.peer_id:
                raise BidError(f"the bid was made by {bid.provider}, not by {request.peer_id}", code="not_my_bid")
        return bids

    async def _own_leases(self, peer: AllocationClient) -> tuple[Lease, ...]:
        leases: list[Lease] = []
        for _ in range(_MOST_PAGES):
            after = leases[-1].lease_id if leases else ""
            page = await peer.list(after=after, limit=_PAGE)
            check_own_leases(page, holder=self._network.peer_id, after=after, limit=_PAGE)
            leases += page.leases
            if not page.more:
                break
        return tuple(leases)


def _check_addresses(addrs: Sequence[str]) -> None:
    """Raise AddressError if there are addresses but none of them is valid."""
    failure: AddressError | None = None
    for address in addrs:
        try:
            parse_peer_address(address)
            return
        except AddressError as error:
            failure = failure or error
    if failure is not None:
        raise failure


def remote_operations(requests: RemoteRequests) -> Operations:
    """The operations for the owner's socket. An error on the way to the peer becomes an error of the operation."""

    async def perform(request: PeerRequest, caller: Caller) -> Struct:
        try:
            return await requests.perform(request)
        except PeerError as error:
            raise _relayed(error) from error

    operations = Operations()
    for request_type in (
        RemoteFreeRequest,
        RemoteUsageRequest,
        RemoteMachineRequest,
        RemotePingRequest,
        RemoteBidRequest,
        RemoteCommitRequest,
        RemoteRenewRequest,
        RemoteAllocateRequest,
        RemoteReleaseRequest,
        RemoteListRequest,
    ):
        operations.slow(request_type, perform)
    return operations


def _relayed(error: PeerError) -> RemoteError:
    # The socket carries errors of the wire, and those of the host have the same form.
    details = {"hint": error.hint} | ({"retry_after": wait} if (wait := getattr(error, "retry_after", None)) else {})
    return RemoteError(error.message, code=error.code, details=details)


def discover_operations(requester: Callable[[bytes | None], Requester]) -> Operations:
    """The operation `discover` for the owner's socket. `requester` makes a requester that sends this token."""

    @asynccontextmanager
    async def discover(request: DiscoverRequest, caller: Caller) -> AsyncIterator[AsyncIterator[SearchEvent]]:
        asking = requester(request.token)
        async with asking.discover(request.ensemble, count=request.count) as peers:

            async def events() -> AsyncGenerator[SearchEvent, None]:
                able = 0
                async for peer in peers:
                    able += peer.able
                    yield SearchEvent(progress=peers.progress, row=found_row(peer))
                yield SearchEvent(found=Found(able=able, progress=peers.progress))

            async with aclosing(events()) as answers:
                yield answers

    operations = Operations()
    operations.watch(DiscoverRequest, discover)
    return operations


def found_row(peer: FoundPeer) -> FoundRow:
    """The report of one found peer."""
    return FoundRow(
        peer_id=peer.peer_id,
        addrs=peer.addrs,
        source=peer.source,
        able=peer.able,
        offers=peer.offers,
        refusals=peer.refusals,
        free=peer.free,
        age=peer.age,
        round_trip=peer.round_trip,
    )
