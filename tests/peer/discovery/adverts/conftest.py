"""Peers in memory and in virtual time that advertise, exchange and broadcast."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import trio

from dms_peer.discovery.adverts.own_advert import OwnAdvert
from dms_peer.discovery.adverts.peer_count import PeerCount
from dms_protocols.adverts.adverts import AdvertTable
from dms_protocols.adverts.bid_delivery import Deliveries
from dms_protocols.adverts.exchange import advert_exchange_operations
from dms_protocols.messages.bid import EnsembleRequest, NodeRequest
from dms_protocols.protocol_ids import BID_DELIVERY_PROTOCOL, PEERS_PROTOCOL
from dms_resources.components import MachineResources
from dms_resources.demands import Demand
from dms_simulation.network import SimulatedNetwork
from dms_simulation.providers import open_simulated_manager, provider_operations, simulated_demand, simulated_machine
from dms_simulation.scheduling import EPOCH
from dms_simulation.signing import SimulatedOpener, SimulatedSigner


def unix_time() -> float:
    """Virtual time as Unix seconds."""
    return EPOCH + trio.current_time()


class Peer:
    """One peer: its ledger, the adverts of others, and its connections."""

    def __init__(self, peer_id: str, manager: Any, network: SimulatedNetwork, *, again_after: float = 60.0) -> None:
        self.peer_id = peer_id
        self.manager = manager
        self.network = network.peer(peer_id)
        self.signer = SimulatedSigner(peer_id)
        self.opener = SimulatedOpener()
        self.count = PeerCount(clock=trio.current_time)
        self.table = AdvertTable(
            self.opener, own_id=peer_id, clock=unix_time, on_new=lambda advert: self.count.heard(advert.peer_id)
        )
        self.own = OwnAdvert(self.signer, lambda: (f"/memory/{peer_id}",), clock=unix_time)
        self.deliveries = Deliveries(self.opener, requester=peer_id, clock=unix_time)
        self.again_after = again_after
        self.operations = {
            PEERS_PROTOCOL: advert_exchange_operations(self.table, lambda: self.own.raw, lambda: self.again_after),
            BID_DELIVERY_PROTOCOL: self.deliveries.operations,
        }
        if manager is not None:
            self.operations |= provider_operations(manager, peer_id)
        network.add_host(peer_id, self.operations)

    def advertise(self, ttl: float = 600.0) -> bytes:
        """An advert of what is free now."""
        return self.own.renew(self.manager.get_free_resources(), ttl)


@pytest.fixture
def network(nursery: trio.Nursery) -> SimulatedNetwork:
    """A network in memory. A test in virtual time requests `autojump_clock` itself."""
    return SimulatedNetwork(nursery, random.Random(1))


@pytest.fixture
def new_peer(network: SimulatedNetwork, tmp_path: Path, nursery: trio.Nursery) -> Any:
    """Makes peers. A peer without a machine is only a requester."""

    async def keep(path: Path, machine: MachineResources, task_status: Any) -> None:
        async with open_simulated_manager(path, machine) as manager:
            task_status.started(manager)
            await trio.sleep_forever()

    async def make(peer_id: str, machine: MachineResources | None = None, **options: Any) -> Peer:
        manager = None if machine is None else await nursery.start(keep, tmp_path / f"{peer_id}.db", machine)
        return Peer(peer_id, manager, network, **options)

    return make


@pytest.fixture
def machine() -> Callable[..., MachineResources]:
    """Makes machines: cores, and GiB."""
    return simulated_machine


@pytest.fixture
def demand() -> Callable[..., Demand]:
    """Makes demands: cores, and GiB."""
    return simulated_demand


@pytest.fixture
def ensemble() -> Callable[..., EnsembleRequest]:
    """Makes an ensemble request of these demands."""

    def make(*demands: Demand, deadline: float = 10.0, nonce: int = 1, excluded: Sequence[str] = ()) -> EnsembleRequest:
        nodes = tuple(NodeRequest(node_id=f"n{number}", resources=one) for number, one in enumerate(demands))
        return EnsembleRequest(
            id="e", nonce=nonce, deadline=unix_time() + deadline, request=nodes, peer_exclusion=tuple(excluded)
        )

    return make


@pytest.fixture
def found() -> Callable[..., Any]:
    """Collects all candidates that a source names."""

    async def take(source: Any, request: EnsembleRequest) -> list[Any]:
        async with source.candidates(request) as candidates:
            return [candidate async for candidate in candidates]

    return take
