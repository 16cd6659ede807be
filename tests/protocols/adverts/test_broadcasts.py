"""Broadcast requests prove their requester, and bids on them reach only a requester that waits."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio.testing
from msgspec.structs import replace

from dms_protocols.adverts.bid_delivery import BidDeliveryClient, Deliveries
from dms_protocols.adverts.broadcasts import (
    BROADCAST_BIDS,
    OpenedBroadcast,
    SeenBroadcasts,
    open_broadcast,
    seal_broadcast,
)
from dms_protocols.bidding.service import bid_operations
from dms_protocols.errors import BroadcastError, EnvelopeError, RemoteError
from dms_protocols.messages.bid import BidAnswer, BidRequest, EnsembleRequest, request_digest
from dms_protocols.messages.broadcast import LONGEST_BROADCAST, MAX_BROADCAST_SIZE, BroadcastRequest
from dms_protocols.rpc.client import open_client
from dms_protocols.rpc.operations import Caller
from dms_protocols.rpc.service import serve_stream
from dms_protocols.wire.conversion import to_map

NOW = 1_700_000_000.0


def broadcast(signer: Any, asked: EnsembleRequest, **fields: Any) -> BroadcastRequest:
    return BroadcastRequest(
        **{"requester": signer.peer_id, "addrs": (), "ensemble": to_map(asked), "issued_at": NOW} | fields
    )


def opened(signer: Any, ensemble: EnsembleRequest, **fields: Any) -> OpenedBroadcast:
    return OpenedBroadcast(broadcast(signer, ensemble, **fields), ensemble)


async def test_what_was_sealed_is_opened(provider: Any, requester: Any, ask: Any) -> None:
    request = broadcast(requester, ask(), hold=5.0, want=3)
    again = open_broadcast(seal_broadcast(request, requester), provider.opener, now=NOW)
    assert (again.request.hold, again.request.want, again.ensemble) == (5.0, 3, ask())
    assert request_digest(again.request.ensemble) == request_digest(to_map(ask()))


async def test_fields_of_a_later_version_stay_in_the_ensemble(provider: Any, requester: Any, ask: Any) -> None:
    request = broadcast(requester, ask(), ensemble=to_map(ask()) | {"colour": "blue"})
    again = open_broadcast(seal_broadcast(request, requester), provider.opener, now=NOW)
    assert again.request.ensemble["colour"] == "blue"


async def test_a_request_names_its_signer(provider: Any, requester: Any, stranger: Any, ask: Any) -> None:
    raw = seal_broadcast(broadcast(requester, ask()), stranger)
    with pytest.raises(BroadcastError):
        open_broadcast(raw, provider.opener, now=NOW)


@pytest.mark.parametrize(
    ("deadline", "fields", "code"),
    [
        (-1.0, {}, "broadcast_expired"),
        (LONGEST_BROADCAST + 1, {}, "bad_broadcast"),
        (400.0, {"issued_at": NOW + 120}, "broadcast_expired"),
    ],
)
async def test_a_time_that_is_not_now_is_refused(
    provider: Any, requester: Any, ask: Any, deadline: float, fields: dict[str, float], code: str
) -> None:
    raw = seal_broadcast(broadcast(requester, ask(deadline=deadline), **fields), requester)
    with pytest.raises(BroadcastError) as error:
        open_broadcast(raw, provider.opener, now=NOW)
    assert error.value.code == code


@pytest.mark.parametrize("ensemble", [{}, {"id": "e"}, {"id": "", "nonce": -1, "deadline": 1.0, "request": []}])
async def test_an_ensemble_that_is_none_is_refused(provider: Any, requester: Any, ask: Any, ensemble: Any) -> None:
    raw = seal_broadcast(broadcast(requester, ask(), ensemble=ensemble), requester)
    with pytest.raises(EnvelopeError):
        open_broadcast(raw, provider.opener, now=NOW)


async def test_a_request_that_is_too_large_is_refused_on_both_sides(provider: Any, requester: Any, ask: Any) -> None:
    large = broadcast(requester, ask(), ensemble=to_map(ask()) | {"padding": "x" * MAX_BROADCAST_SIZE})
    with pytest.raises(BroadcastError):
        seal_broadcast(large, requester)
    with pytest.raises(BroadcastError):
        open_broadcast(bytes(MAX_BROADCAST_SIZE + 1), provider.opener, now=NOW)


async def test_a_request_is_new_once(requester: Any, stranger: Any, ask: Any) -> None:
    seen = SeenBroadcasts()
    assert seen.add(opened(requester, ask()), now=NOW)
    assert not seen.add(opened(requester, ask()), now=NOW)
    assert seen.add(opened(requester, ask(nonce=2)), now=NOW)
    assert seen.add(opened(stranger, ask()), now=NOW)


async def test_what_was_seen_is_bounded_and_forgotten_at_its_deadline(requester: Any, ask: Any) -> None:
    seen = SeenBroadcasts(most=10)
    for nonce in range(100):
        assert seen.add(opened(requester, ask(nonce=nonce)), now=NOW)
    assert len(seen) == 10
    assert not seen.add(opened(requester, ask(nonce=99)), now=NOW)
    seen.add(opened(requester, ask(nonce=100, deadline=200)), now=NOW + 100)
    assert len(seen) == 1


# Delivery


class Market:
    """A requester that waits for bids on one request, and a provider that has some."""

    def __init__(self, provider: Any, requester: Any, request: BroadcastRequest) -> None:
        self.provider = provider
        self.request = request
        self.deliveries = Deliveries(provider.opener, requester=requester.peer_id, clock=provider.clock.wall)

    async def bids(self, caller: str = "", version: Any = BROADCAST_BIDS) -> tuple[bytes, ...]:
        provider = self.provider
        operations = bid_operations(
            provider.manager, provider.signer, provider.terms, clock=provider.clock.wall, version=version
        )
        request = BidRequest(ensemble=self.request.ensemble)
        answer = operations["bid_request"].handler(request, Caller(caller or self.request.requester))
        assert isinstance(answer, BidAnswer)
        return answer.bids

    @asynccontextmanager
    async def connected(self, peer_id: str | None = None) -> AsyncIterator[BidDeliveryClient]:
        ours, theirs = trio.testing.memory_stream_pair()
        caller = Caller(peer_id or self.provider.signer.peer_id)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_stream, theirs, self.deliveries.operations, caller)
            async with open_client(ours) as client:
                yield BidDeliveryClient(client)


@pytest.fixture
def market(provider: Any, requester: Any, ask: Any) -> Market:
    return Market(provider, requester, broadcast(requester, ask()))


async def test_bids_reach_whoever_waits(market: Market, provider: Any, requester: Any, ask: Any) -> None:
    with market.deliveries.expected(opened(requester, ask()), most=8) as arriving:
        async with market.connected() as delivery:
            await delivery.deliver("e1", 1, await market.bids(), ())
        delivered = await arriving.receive()
    assert delivered.peer_id == provider.signer.peer_id
    (bid,) = delivered.bids.bids
    assert bid.bid.node_id == "n1"
    assert provider.manager is not None


async def refused(market: Market, bids: tuple[bytes, ...], peer_id: str | None = None, nonce: int = 1) -> str:
    async with market.connected(peer_id) as delivery:
        with pytest.raises(RemoteError) as error:
            await delivery.deliver("e1", nonce, bids, ())
    return error.value.code


async def test_nobody_waits(market: Market, requester: Any, ask: Any) -> None:
    bids = await market.bids()
    assert await refused(market, bids) == "not_waiting"
    with market.deliveries.expected(opened(requester, ask()), most=8):
        assert await refused(market, bids, nonce=2) == "not_waiting"
    assert await refused(market, bids) == "not_waiting"


async def test_bids_of_others_are_refused(market: Market, requester: Any, stranger: Any, ask: Any) -> None:
    bids = await market.bids()
    with market.deliveries.expected(opened(requester, ask()), most=8):
        assert await refused(market, bids, peer_id=stranger.peer_id) == "not_my_bid"


async def test_bids_that_are_not_for_this_are_refused(
    market: Market, provider: Any, requester: Any, stranger: Any, ask: Any
) -> None:
    with market.deliveries.expected(opened(requester, ask()), most=8):
        assert await refused(market, await market.bids(caller=stranger.peer_id)) == "not_your_bid"
        assert await refused(market, (b"garbage",)) == "bad_envelope"
        market.request = broadcast(requester, ask(nonce=5))
        assert await refused(market, await market.bids()) == "bad_bid"


async def test_a_peer_delivers_once(market: Market, requester: Any, ask: Any) -> None:
    bids = await market.bids()
    with market.deliveries.expected(opened(requester, ask()), most=8):
        async with market.connected() as delivery:
            await delivery.deliver("e1", 1, bids, ())
        assert await refused(market, bids) == "delivered_already"


async def test_as_many_deliver_as_may(market: Market, requester: Any, ask: Any) -> None:
    bids = await market.bids()
    with market.deliveries.expected(opened(requester, ask()), most=1) as arriving:
        async with market.connected() as delivery:
            await delivery.deliver("e1", 1, bids, ())
        # There is no reader yet, and nothing is lost.
        assert await refused(market, bids, peer_id="another") == "not_waiting"
        assert (await arriving.receive()).bids.bids


async def test_the_same_request_is_waited_for_once(market: Market, requester: Any, ask: Any) -> None:
    one = opened(requester, ask())
    with market.deliveries.expected(one, most=1):
        with pytest.raises(BroadcastError), market.deliveries.expected(one, most=1):
            pass
        async with market.connected() as delivery:
            await delivery.deliver("e1", 1, await market.bids(), ())
    with market.deliveries.expected(replace_nonce(one), most=1):
        pass


def replace_nonce(one: OpenedBroadcast) -> OpenedBroadcast:
    return OpenedBroadcast(one.request, replace(one.ensemble, nonce=9))
