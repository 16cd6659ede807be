"""Adverts and broadcasts, put together as the settings say: what is told, heard, exchanged and answered."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
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
from ...serving import peer_operations
from ...signing import EnvelopeChecker, IdentitySigner
from ..gossip.gossip import Gossip, open_gossip
from ..settings import DiscoverySettings
from .advertiser import AdvertKeeper, AdvertPusher
from .broadcast import BROADCASTS_TOPIC, GossipBroadcast
from .broadcast_answers import BroadcastAnswers, BroadcastValidator
from .exchange import ExchangeSource
from .own_advert import OwnAdvert
from .peer_count import PeerCount
from .schedule import AdvertSchedule
from .source import ADVERTS_TOPIC, AdvertSource, AdvertValidator

__all__ = ["Adverts", "Provider", "open_adverts"]

Partners = Callable[[], Mapping[str, Sequence[str]]]


@dataclass(frozen=True, slots=True)
class Provider:
    """A peer that offers something: its ledger, its terms, its access rules, and how much each requester may have."""

    manager: ResourceManager
    terms: BidTerms | CurrentTerms | None
    access: CurrentRules
    shares: Shares | None = None


@dataclass(frozen=True, slots=True)
class Adverts:
    """What is heard of others and told to them. `sources` are in the order of their cost."""

    table: AdvertTable
    sources: tuple[CandidateSource, ...] = ()
    gossip: Gossip | None = None
    broadcast: Broadcast | None = None


@asynccontextmanager
async def open_adverts(
    host: IHost,
    identity: Identity,
    addrs: Callable[[], Sequence[str]],
    settings: DiscoverySettings,
    network: ConnectionPool,
    partners: Partners,
    partners_changed: Callable[[], Awaitable[None]],
    provider: Provider | None,
    shares: SharesInUse,
) -> AsyncIterator[Adverts]:
    """Adverts while the block runs; a `provider` tells its own, and answers broadcast requests.

    Others reach this peer where `addrs` says (multiaddrs), and bring their answers to a broadcast there; `partners`
    names connected peers to exchange with, and `partners_changed` returns when they may be others. Their streams count
    against `shares`. Raises ProtocolError where the host serves one of the protocols.
    """
    count = PeerCount(clock=trio.current_time)
    table = AdvertTable(
        EnvelopeChecker(),
        own_id=identity.peer_id,
        most=settings.max_adverts,
        on_new=lambda advert: count.heard(advert.peer_id),
    )
    async with AsyncExitStack() as stack:
        opening = _Opening(
            stack, host, identity, addrs, settings, network, partners, partners_changed, shares, table, count
        )
        yield await opening.open(provider)


@dataclass(frozen=True, slots=True)
class _Opening:
    stack: AsyncExitStack
    host: IHost
    identity: Identity
    addrs: Callable[[], Sequence[str]]
    settings: DiscoverySettings
    network: ConnectionPool
    partners: Partners
    partners_changed: Callable[[], Awaitable[None]]
    shares: SharesInUse
    table: AdvertTable
    count: PeerCount

    async def open(self, provider: Provider | None) -> Adverts:
        gossip = await self._open_gossip() if self.settings.gossip else None
        broadcasts = gossip if self.settings.broadcast else None
        sources: list[CandidateSource] = []
        if gossip is not None:
            await gossip.subscribe(ADVERTS_TOPIC, AdvertValidator(self.table))
        if gossip is not None or self.settings.exchange:
            sources.append(AdvertSource(self.table))
        if self.settings.exchange:
            sources.append(ExchangeSource(self.network, self.table, self.partners))
        accepted: Callable[[OpenedBroadcast], None] = _nobody_answers
        if provider is not None:
            await self._tell(provider, gossip)
            if broadcasts is not None:
                accepted = await self._answer(provider)
        broadcast = None
        if broadcasts is not None:
            await broadcasts.subscribe(BROADCASTS_TOPIC, BroadcastValidator(EnvelopeChecker(), accepted))
            broadcast = await self._ask(broadcasts)
        return Adverts(self.table, tuple(sources), gossip, broadcast)

    async def _open_gossip(self) -> Gossip:
        return await self.stack.enter_async_context(open_gossip(self.host, self.settings.gossip_limits))

    async def _tell(self, provider: Provider, gossip: Gossip | None) -> None:
        """Publishes the own advert: by gossip, to partners by exchange, and to peers that request it.

        An advert passes through other peers, so that there is none where not everybody may know what is free.
        """
        schedule = AdvertSchedule(interval=self.settings.advert_interval, ttl=self.settings.advert_ttl)
        own = OwnAdvert(IdentitySigner(self.identity), self.addrs, provider.terms, access=provider.access)
        publish = partial(gossip.publish, ADVERTS_TOPIC) if gossip is not None else None
        keeper = AdvertKeeper(own, provider.manager, schedule, self.count, publish)
        if self.settings.exchange:
            operations = advert_exchange_operations(
                self.table, lambda: own.raw, lambda: schedule.interval_for(self.count.estimate())
            )
            await self._serve(PEERS_PROTOCOL, operations)
            pusher = AdvertPusher(own, keeper, self.network, self.partners, self.partners_changed, schedule)
            await self.stack.enter_async_context(open_background(pusher.keep))
        if gossip is not None or self.settings.exchange:
            await self.stack.enter_async_context(open_background(keeper.keep))

    async def _answer(self, provider: Provider) -> Callable[[OpenedBroadcast], None]:
        """Answers broadcast requests; what is returned takes them."""
        operations = peer_operations(
            provider.manager, self.identity, provider.terms, shares=provider.shares, access=provider.access
        )
        answers = BroadcastAnswers(
            operations[BID_PROTOCOL_1_1],
            self.network,
            self.table,
            self.count,
            may_ask=lambda requester: provider.access.rules.admits("bid_request", requester),
        )
        await self.stack.enter_async_context(open_background(answers.run))
        return answers.put

    async def _ask(self, gossip: Gossip) -> Broadcast:
        """Broadcasts requests, whose answers are brought to this host."""
        deliveries = Deliveries(EnvelopeChecker(), requester=self.identity.peer_id)
        await self._serve(BID_DELIVERY_PROTOCOL, deliveries.operations)
        return GossipBroadcast(
            partial(gossip.publish, BROADCASTS_TOPIC),
            deliveries,
            IdentitySigner(self.identity),
            self.addrs,
        )

    async def _serve(self, protocol: str, operations: Operations) -> None:
        answer = partial(_answer_stream, operations, self.shares)
        await self.stack.enter_async_context(attach_protocols(self.host, {protocol: answer}))


def _nobody_answers(broadcast: OpenedBroadcast) -> None:
    """It is passed on, and that is all."""


async def _answer_stream(
    operations: Operations, shares: SharesInUse, stream: trio.abc.HalfCloseableStream, peer_id: str
) -> None:
    try:
        with shares.stream(peer_id) as share:
            await serve_stream(stream, operations, Caller(peer_id), share=share)
    except BusyError as error:
        await refuse_stream(stream, error, ServiceLimits())
