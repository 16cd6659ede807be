"""Thirty real peers on loopback, each with a ledger of its own, and a new one that knows a single address."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import trio
from msgspec.structs import replace as with_fields

from dms_host import host_addresses, open_host
from dms_host.keys.identity import new_identity
from dms_peer.discovery.open import Discovery, open_discovery
from dms_peer.discovery.settings import DiscoverySettings
from dms_peer.serving import serve
from dms_protocols.messages.bid import EnsembleRequest, NodeRequest
from dms_resources.components import CPU, GPU, RAM, Disk, MachineResources, OnboardedResources
from dms_resources.demands import CPUDemand, Demand, GPUDemand, RAMDemand
from dms_resources.ledger.leases import LeaseRequest
from dms_resources.manager import ResourceManager, open_manager
from dms_resources.units import GIB, Cores

LOOPBACK = ["/ip4/127.0.0.1/tcp/0"]
PEERS = 30
# Each source alone starts from these settings.
NOTHING = DiscoverySettings(
    known=False, exchange=False, mdns=False, dht=False, gossip=False, broadcast=False, bootstrap_interval=2.0
)
WAYS = {
    "by the DHT": replace(NOTHING, dht=True),
    "by gossip": replace(NOTHING, gossip=True, broadcast=True, advert_interval=15.0),
    "by known peers": replace(NOTHING, known=True, exchange=True),
}


@dataclass
class Provider:
    """One of the thirty."""

    peer_id: str
    addrs: tuple[str, ...]
    manager: ResourceManager
    discovery: Discovery


def machine(number: int) -> MachineResources:
    """Every third one has a GPU, every sixth a large one."""
    vram = 0 if number % 3 else (24 * GIB if number % 6 else 8 * GIB)
    gpus = (GPU(uuid=f"GPU-{number}", vram=vram),) if vram else ()
    return MachineResources(
        cpu=CPU(cores=Cores.of(2)), ram=RAM(size=4 * GIB), disk=Disk(size=64 * GIB), gpus=gpus, simulated=True
    )


def request(demand: Demand) -> EnsembleRequest:
    node = NodeRequest(node_id="n", resources=demand)
    return EnsembleRequest(id="e", nonce=time.time_ns() >> 11, deadline=time.time() + 20, request=(node,))


NODE = Demand(cpu=CPUDemand(cores=Cores.of(1)), gpus=(GPUDemand(vram=20 * GIB),))
LARGE = request(NODE)
ANY = request(Demand(cpu=CPUDemand(cores=Cores.of(2)), ram=RAMDemand(size=4 * GIB)))


@asynccontextmanager
async def open_provider(home: Path, number: int, settings: DiscoverySettings) -> AsyncIterator[Provider]:
    identity, has = new_identity(), machine(number)
    async with open_manager(home.with_suffix(".db"), has) as manager:
        await manager.update_onboarded_resources(
            OnboardedResources(cpu=has.cpu, ram=has.ram, disk=has.disk, gpus=has.gpus)
        )
        async with (
            open_host(identity, LOOPBACK) as host,
            serve(host, manager, identity=identity),
            open_discovery(host, identity, settings, manager=manager) as discovery,
        ):
            yield Provider(identity.peer_id, host_addresses(host), manager, discovery)
            # So that no goodbyes are sent: thirty goodbyes to thirty peers take most of this test's time.
            await host.close()


@asynccontextmanager
async def open_thirty(directory: Path, settings: DiscoverySettings) -> AsyncIterator[list[Provider]]:
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(open_provider(directory / "0", 0, settings))
        settings = replace(settings, bootstrap=first.addrs)
        others = [
            await stack.enter_async_context(open_provider(directory / str(number), number, settings))
            for number in range(1, PEERS)
        ]
        yield [first, *others]


@asynccontextmanager
async def open_newcomer(first: Provider, settings: DiscoverySettings) -> AsyncIterator[Discovery]:
    identity = new_identity()
    async with (
        open_host(identity, LOOPBACK) as host,
        open_discovery(host, identity, replace(settings, bootstrap=first.addrs)) as discovery,
    ):
        await discovery.peering.wait_tried()
        yield discovery


def settled(providers: list[Provider], way: str) -> bool:
    """Whether the network is connected: all have announced themselves, or have a peer to announce to."""
    match way:
        case "by the DHT":
            return all(provider.discovery.dht.announced for provider in providers if provider.discovery.dht)
        case "by gossip":
            gossips = [provider.discovery.adverts.gossip for provider in providers]
            return all(gossip.statistics.peers > 1 for gossip in gossips if gossip)
        case _:
            return len(providers[0].discovery.adverts.table) == PEERS - 1


async def finds(discovery: Discovery, asked: EnsembleRequest, able: set[str]) -> bool:
    """Whether the requester finds exactly these peers before its deadline."""
    fresh = with_fields(asked, nonce=time.time_ns() >> 11)
    async with discovery.requester().discover(fresh, count=len(able), deadline=time.time() + 15) as peers:
        found = [peer.peer_id async for peer in peers if peer.able]
    return set(found) == able


@pytest.mark.parametrize("way", WAYS)
async def test_a_new_peer_with_one_address_finds_every_able_provider(way: str, tmp_path: Path, eventually: Any) -> None:
    settings = WAYS[way]
    async with open_thirty(tmp_path, settings) as providers:
        everybody = {provider.peer_id for provider in providers}
        large = {provider.peer_id for number, provider in enumerate(providers) if number % 3 == 0 and number % 6}
        assert len(large) == 5
        await eventually(lambda: settled(providers, way), 120)
        async with open_newcomer(providers[0], settings) as newcomer:
            # Messages on their way arrive, and what gossip loses is sent again.
            with trio.fail_after(180):
                for asked, able in ((LARGE, large), (ANY, everybody)):
                    while not await finds(newcomer, asked, able):  # noqa: ASYNC110
                        await trio.sleep(0.5)


async def test_one_that_fills_up_midway_is_replaced(
    tmp_path: Path, eventually: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It bids, but when its bid is committed another requester has the capacity: the ensemble is placed elsewhere."""
    filled: list[str] = []
    settings = WAYS["by known peers"]
    async with open_thirty(tmp_path, settings) as providers:
        large = {p.peer_id: p for number, p in enumerate(providers) if number % 3 == 0 and number % 6}

        def fill_first(provider: Provider) -> None:
            commit = provider.manager.commit_group

            async def overtaken(requests: Any, **options: Any) -> Any:
                if not filled:
                    filled.append(provider.peer_id)
                    rival = LeaseRequest(lease_id="rival", holder="rival", demand=NODE, ttl=600.0)
                    await commit([rival])
                return await commit(requests, **options)

            monkeypatch.setattr(provider.manager, "commit_group", overtaken)

        for provider in large.values():
            fill_first(provider)
        await eventually(lambda: settled(providers, "by known peers"), 120)
        nodes = tuple(NodeRequest(node_id=f"n{number}", resources=NODE) for number in range(3))
        ensemble = EnsembleRequest(id="e", nonce=1, deadline=time.time() + 55, request=nodes)
        async with open_newcomer(providers[0], settings) as newcomer:
            async with newcomer.requester().reserve(ensemble, ttl=60) as reservation:
                taken = set(reservation.peers.values())
                assert len(taken) == 3
                assert taken <= large.keys() - set(filled)
                held = {peer_id: [lease.holder for lease in p.manager.leases()] for peer_id, p in large.items()}
                own = newcomer.network.peer_id
                assert held == {
                    peer_id: ["rival"] if peer_id in filled else [own] if peer_id in taken else [] for peer_id in large
                }
            assert [lease.holder for p in large.values() for lease in p.manager.leases()] == ["rival"]
        assert len(filled) == 1
