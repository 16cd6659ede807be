"""Adverts and broadcasts, opened as the settings say: publishing, receiving, exchanging and answering."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial

import trio
import trio.abc
from libp2p.abc import IHost

from dms_host import attach_protocols
from dms_host.keys.identity import Identity
from dms_protocols.adverts.adverts import AdvertTable
from dms_protocols.adverts.bid_delivery import Deliveries
from dms_protocols.adverts.broadcasts import OpenedBroadcast
from dms_protocols.adverts.exchange import advert_exchange_operations
from dms_protocols.bidding.service import BidTerms, CurrentTerms
from dms_protocols.errors import BusyError
from dms_protocols.messages.adverts import CapacityAdvert
from dms_protocols.protocol_ids import BID_DELIVERY_PROTOCOL, BID_PROTOCOL_1_1, PEERS_PROTOCOL
from dms_protocols.rpc.access import CurrentRules
from dms_protocols.rpc.limits import ServiceLimits, Shares
from dms_protocols.rpc.operations import Caller, Operations
from dms_protocols.rpc.service import refuse_stream, serve_stream
from dms_protocols.rpc.shares import SharesInUse
from dms_resources.manager import ResourceManager
from dms_resources.tasks import open_background

from ...connections import ConnectionPool
from ...requesting.network import Broadcast, CandidateSource
from ...serving import peer_operations, stream_network
from ...signing import EnvelopeChecker, IdentitySigner
from ..gossip.gossip import Gossip, open_gossip
from ..settings import DiscoverySettings
from .advertiser import AdvertKeeper, AdvertPusher
from .broadcast import BROADCASTS_TOPIC, GossipBroadcast
from .broadcast_answers import BroadcastAnswers, BroadcastValidator
from .exchange import ExchangeSource
from .networks import peer_network
from .own_advert import OwnAdvert
from .peer_count import PeerCount
from .schedule import AdvertSchedule
from .source import ADVERTS_TOPIC, AdvertSource, AdvertValidator

__all__ = ["AdvertSetup", "Adverts", "Provider", "open_adverts"]

Partners = Callable[[], Mapping[str, Sequence[str]]]


@dataclass(frozen=True, slots=True)
class Provider:
    """A peer that offers something: its ledger, its terms, its access rules, and the shares of requesters."""

    manager: ResourceManager
    terms: BidTerms | CurrentTerms | None
    access: CurrentRules
    shares: Shares | None = None


@dataclass(frozen=True, slots=True)
class Adverts:
    """The open adverts: those of other peers. `sources` are in the order of their cost."""

    table: AdvertTable
    sources: tuple[CandidateSource, ...] = ()
    gossip: Gossip | None = None
    broadcast: Broadcast | None = None


@dataclass(frozen=True, slots=True)
class AdvertSetup:
    """What the adverts of a peer need.

    Others reach this peer at `addrs` (multiaddrs) and deliver their bids on a broadcast there. `partners` returns
    connected peers to exchange adverts with, and `partners_changed` returns when these may have changed. Streams of
    other peers count against `shares`. `trusts` says which peers this one knows by their answers. `on_own`
    is called with every advert of this peer's own id that others bring, and the sequence number of its newest.
    `addrs_changed` returns when `addrs` have changed.
    """

    host: IHost
    identity: Identity
    addrs: Callable[[], Sequence[str]]
    settings: DiscoverySettings
    network: ConnectionPool
    partners: Partners
    partners_changed: Callable[[], Awaitable[None]]
    shares: SharesInUse
    trusts: Callable[[str], bool]
    on_own: Callable[[CapacityAdvert, int], None]
    addrs_changed: Callable[[], Awaitable[None]] = trio.sleep_forever


@asynccontextmanager
async def open_adverts(setup: AdvertSetup, provider: Provider | None) -> AsyncIterator[Adverts]:
    """Receive, exchange and pass on adverts while the block runs. A `provider` also publishes its own and answers
    broadcasts.

    Raises ProtocolTakenError if the host already serves one of the protocols. May be cancelled.
    """
    settings, count = setup.settings, PeerCount(clock=trio.current_time)
    own: OwnAdvert | None = None
    if provider is not None:
        own = OwnAdvert(IdentitySigner(setup.identity), setup.addrs, provider.terms, access=provider.access)

    def heard_own(advert: CapacityAdvert) -> None:
        # A requester has no advert: what it hears is that of the peer that ran in its home before.
        if own is not None:
            setup.on_own(advert, own.sequence)

    table = AdvertTable(
        EnvelopeChecker(),
        own_id=setup.identity.peer_id,
        most=settings.max_adverts,
        on_new=lambda advert: count.heard(advert.peer_id),
        on_own=heard_own,
        trusts=setup.trusts,
    )
    network_of = partial(peer_network, setup.host)
    async with AsyncExitStack() as stack:
        gossip: Gossip | None = None
        if settings.gossip:
            gossip = await stack.enter_async_context(open_gossip(setup.host, settings.gossip_limits))
            await gossip.subscribe(ADVERTS_TOPIC, AdvertValidator(table, network_of))
        sources: list[CandidateSource] = []
        if gossip is not None or settings.exchange:
            sources.append(AdvertSource(table))
        if settings.exchange:
            sources.append(ExchangeSource(setup.network, table, setup.partners, network_of=network_of))
        if provider is not None and own is not None:
            await stack.enter_async_context(_publishing(setup, provider, own, table, count, gossip))
        broadcast: Broadcast | None = None
        if gossip is not None and settings.broadcast:
            accepted: Callable[[OpenedBroadcast], None] = _nobody_answers
            if provider is not None:
                accepted = await stack.enter_async_context(_answering(setup, provider, table, count))
            await gossip.subscribe(BROADCASTS_TOPIC, BroadcastValidator(EnvelopeChecker(), accepted))
            broadcast = await stack.enter_async_context(_broadcasting(setup, gossip))
        yield Adverts(table, tuple(sources), gossip, broadcast)


@asynccontextmanager
async def _publishing(
    setup: AdvertSetup,
    provider: Provider,
    own: OwnAdvert,
    table: AdvertTable,
    count: PeerCount,
    gossip: Gossip | None,
) -> AsyncIterator[None]:
    """Publish the own advert: by gossip, to partners by exchange, and to peers that request it.

    An advert passes through other peers, so it is not published if the owner hides free capacity from some of them.
    """
    settings = setup.settings
    schedule = AdvertSchedule(interval=settings.advert_interval, ttl=settings.advert_ttl)
    publish = partial(gossip.publish, ADVERTS_TOPIC) if gossip is not None else None
    keeper = AdvertKeeper(own, provider.manager, schedule, count, publish, moved=setup.addrs_changed)
    async with AsyncExitStack() as stack:
        if settings.exchange:
            operations = advert_exchange_operations(
                table, lambda: own.raw, lambda: schedule.interval_for(count.estimate())
            )
            await stack.enter_async_context(_served(setup, PEERS_PROTOCOL, operations))
            pusher = AdvertPusher(own, keeper, setup.network, setup.partners, setup.partners_changed, schedule)
            await stack.enter_async_context(open_background(pusher.keep))
        if gossip is not None or settings.exchange:
            await stack.enter_async_context(open_background(keeper.keep))
        yield


@asynccontextmanager
async def _answering(
    setup: AdvertSetup, provider: Provider, table: AdvertTable, count: PeerCount
) -> AsyncIterator[Callable[[OpenedBroadcast], None]]:
    """Answer broadcast requests. Yields the function that accepts them."""
    operations = peer_operations(
        provider.manager, setup.identity, provider.terms, shares=provider.shares, access=provider.access
    )
    answers = BroadcastAnswers(
        operations[BID_PROTOCOL_1_1],
        setup.network,
        table,
        count,
        may_ask=lambda requester: provider.access.rules.admits("bid_request", requester),
    )
    async with open_background(answers.run):
        yield answers.put


@asynccontextmanager
async def _broadcasting(setup: AdvertSetup, gossip: Gossip) -> AsyncIterator[Broadcast]:
    """Broadcast requests. Providers deliver their bids to this host."""
    deliveries = Deliveries(EnvelopeChecker(), requester=setup.identity.peer_id)
    async with _served(setup, BID_DELIVERY_PROTOCOL, deliveries.operations):
        yield GossipBroadcast(
            partial(gossip.publish, BROADCASTS_TOPIC), deliveries, IdentitySigner(setup.identity), setup.addrs
        )


def _served(setup: AdvertSetup, protocol: str, operations: Operations) -> AbstractAsyncContextManager[None]:
    return attach_protocols(setup.host, {protocol: partial(_answer_stream, operations, setup.shares)})


def _nobody_answers(broadcast: OpenedBroadcast) -> None:
    """Accept a broadcast that this peer passes on without answering."""


async def _answer_stream(
    operations: Operations, shares: SharesInUse, stream: trio.abc.HalfCloseableStream, peer_id: str
) -> None:
    try:
        with shares.stream(peer_id) as share:
            await serve_stream(stream, operations, Caller(peer_id, group=stream_network(stream)), share=share)
    except BusyError as error:
        await refuse_stream(stream, error, ServiceLimits())
