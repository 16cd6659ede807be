"""Adverts and broadcasts over real gossip, between real hosts with real signatures."""

from __future__ import annotations

import time
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

import pytest
import trio

from dms_host import attach_protocols, host_addresses
from dms_peer.connections import open_connections
from dms_peer.discovery.adverts.broadcast import BROADCASTS_TOPIC, GossipBroadcast
from dms_peer.discovery.adverts.broadcast_answers import BroadcastAnswers, BroadcastValidator
from dms_peer.discovery.adverts.own_advert import OwnAdvert
from dms_peer.discovery.adverts.peer_count import PeerCount
from dms_peer.discovery.adverts.source import ADVERTS_TOPIC, AdvertSource, AdvertValidator
from dms_peer.signing import EnvelopeChecker, IdentitySigner, host_identity
from dms_protocols.adverts.adverts import AdvertTable
from dms_protocols.adverts.bid_delivery import Deliveries
from dms_protocols.bidding.service import bid_operations
from dms_protocols.bidding.versions import BID_1_1
from dms_protocols.messages.bid import EnsembleRequest, NodeRequest
from dms_protocols.protocol_ids import BID_DELIVERY_PROTOCOL
from dms_protocols.rpc.operations import Caller
from dms_protocols.rpc.service import serve_stream
from dms_resources.components import OnboardedResources
from dms_resources.manager import open_manager
from dms_simulation.providers import simulated_demand, simulated_machine


def request_for(cores: float, *, deadline: float = 8.0) -> EnsembleRequest:
    node = NodeRequest(node_id="n1", resources=simulated_demand(cores=cores))
    return EnsembleRequest(id="e", nonce=1, deadline=time.time() + deadline, request=(node,))


async def named_by(table: AdvertTable, request: EnsembleRequest) -> set[str]:
    async with AdvertSource(table).candidates(request) as found:
        return {candidate.peer_id async for candidate in found}


@pytest.fixture
async def manager(tmp_path: Any) -> Any:
    """A ledger that offers eight cores."""
    machine = simulated_machine(cores=8)
    async with open_manager(tmp_path / "ledger.db", machine) as manager:
        await manager.update_onboarded_resources(
            OnboardedResources(cpu=machine.cpu, ram=machine.ram, disk=machine.disk, gpus=machine.gpus)
        )
        yield manager


async def test_an_advert_reaches_everybody_also_when_a_quarter_is_gone(
    gossipers: Any, eventually: Any, manager: Any
) -> None:
    async with gossipers(8) as peers:
        tables = [AdvertTable(EnvelopeChecker(), own_id=peer.peer_id) for peer in peers]
        for peer, table in zip(peers, tables, strict=True):
            await peer.gossip.subscribe(ADVERTS_TOPIC, AdvertValidator(table))
        await eventually(lambda: all(peer.gossip.peers(ADVERTS_TOPIC) >= 4 for peer in peers))
        provider = peers[0]
        own = OwnAdvert(IdentitySigner(host_identity(provider.host)), lambda: host_addresses(provider.host))
        raw = own.renew(manager.get_free_resources(), 60)
        assert await provider.gossip.publish(ADVERTS_TOPIC, raw)
        await eventually(lambda: all(table.get(provider.peer_id) for table in tables[1:]), 30)
        assert await named_by(tables[5], request_for(4)) == {provider.peer_id}
        assert await named_by(tables[5], request_for(40)) == set()
        for peer in peers[1:3]:
            await peer.stop()
        await manager.commit_resources("lease", simulated_demand(cores=6), holder="somebody", ttl=60)
        await provider.gossip.publish(ADVERTS_TOPIC, own.renew(manager.get_free_resources(), 60))
        living = tables[3:]
        await eventually(lambda: all(held_cores(table, provider) == 2 for table in living), 30)
        # The earlier advert is old, whichever peer forwards it.
        await peers[4].gossip.publish(ADVERTS_TOPIC, raw)
        await peers[4].gossip.publish(ADVERTS_TOPIC, own.renew(manager.get_free_resources(), 61))
        await eventually(lambda: all(table.get(provider.peer_id).advert.ttl == 61 for table in living[2:]), 30)
        assert all(held_cores(table, provider) == 2 for table in living)


def held_cores(table: AdvertTable, provider: Any) -> float:
    return float(table.get(provider.peer_id).advert.free.cpu.cores.to_number())


async def test_a_broadcast_is_answered_by_a_stranger(gossipers: Any, eventually: Any, manager: Any) -> None:
    """The provider is at the far end of a line; it dials the requester."""
    async with gossipers(3, line=True) as (asker, between, provider), AsyncExitStack() as stack:
        network = await stack.enter_async_context(open_connections(provider.host))
        identity = host_identity(provider.host)
        bids = bid_operations(manager, IdentitySigner(identity), version=BID_1_1)
        checker = EnvelopeChecker()
        answers = BroadcastAnswers(bids, network, AdvertTable(checker), PeerCount(clock=trio.current_time))
        nursery = await stack.enter_async_context(trio.open_nursery())
        nursery.start_soon(answers.run)
        for peer, accepted in ((asker, None), (between, None), (provider, answers.put)):
            validator = BroadcastValidator(checker, accepted) if accepted else BroadcastValidator(checker)
            await peer.gossip.subscribe(BROADCASTS_TOPIC, validator)
        await eventually(lambda: between.gossip.peers(BROADCASTS_TOPIC) == 2)
        deliveries = Deliveries(checker, requester=asker.peer_id)

        async def serve(stream: Any, peer_id: str) -> None:
            await serve_stream(stream, deliveries.operations, Caller(peer_id))

        await stack.enter_async_context(attach_protocols(asker.host, {BID_DELIVERY_PROTOCOL: serve}, 0.1))
        broadcast = GossipBroadcast(
            partial(asker.gossip.publish, BROADCASTS_TOPIC),
            deliveries,
            IdentitySigner(host_identity(asker.host)),
            lambda: host_addresses(asker.host),
        )
        async with broadcast.ask(request_for(4)) as arriving:
            answer = await anext(arriving)
        assert answer.peer_id == provider.peer_id
        assert answer.bids.bids[0].bid.node_id == "n1"
        nursery.cancel_scope.cancel()
