"""A market in memory and in virtual time."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio.testing

from dms_peer.requesting import BroadcastBids
from dms_protocols.clients import BidClient
from dms_protocols.protocol_ids import BID_PROTOCOL
from dms_simulation.market import SimulatedMarket, open_market
from dms_simulation.signing import SimulatedOpener


@pytest.fixture
async def market(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> AsyncIterator[SimulatedMarket]:
    """Providers and a network, in virtual time; no providers yet."""
    async with open_market(tmp_path, random.Random(1)) as opened:
        yield opened


class EverybodyHears:
    """A broadcast that queries every provider directly, and records when it was used."""

    def __init__(self, market):
        self.market = market
        self.used = 0

    @asynccontextmanager
    async def ask(self, request, *, hold=0.0, ttl=0.0):
        self.used += 1

        async def answers():
            for peer_id in self.market.peer_ids:
                async with self.market.network.peer("requester").client(peer_id, BID_PROTOCOL) as client:
                    bidder = BidClient(
                        client, SimulatedOpener(), requester="requester", provider=peer_id, clock=self.market.clock.wall
                    )
                    yield BroadcastBids(peer_id, (), await bidder.request_bids(request, hold=hold, ttl=ttl))

        yield answers()


@pytest.fixture
def everybody_hears() -> type[EverybodyHears]:
    """Makes a broadcast of a market."""
    return EverybodyHears
