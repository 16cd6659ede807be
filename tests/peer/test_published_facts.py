"""The doors that a peer opens by itself, with each fact closed in turn: gossip, identify, mDNS and metrics."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
from libp2p.identity.identify.pb.identify_pb2 import Identify
from libp2p.utils.varint import read_varint_prefixed_bytes
from multiaddr import Multiaddr

from dms_host import HardenedHost, dial, host_addresses, open_host, open_stream
from dms_host.keys.identity import Identity, new_identity
from dms_peer.discovery import mdns
from dms_peer.discovery.adverts.source import ADVERTS_TOPIC
from dms_peer.discovery.gossip.gossip import Gossip, GossipVerdict, open_gossip
from dms_peer.discovery.open import open_discovery
from dms_peer.discovery.settings import DiscoverySettings
from dms_peer.serving import serve
from dms_peer.signing import EnvelopeChecker
from dms_peer.telemetry.metrics import PeerCollector
from dms_peer.telemetry.metrics_server import serve_metrics
from dms_protocols.adverts.adverts import open_advert
from dms_protocols.bidding.prices import PricesPerHour
from dms_protocols.bidding.service import BidTerms
from dms_protocols.messages.adverts import CapacityAdvert
from dms_protocols.messages.bid import Place
from dms_protocols.rpc.access import NOBODY, AccessRules
from dms_protocols.rpc.counts import ServiceCounts
from dms_protocols.rpc.facts import FACTS
from dms_resources.components import CPU, GPU, RAM, Disk, MachineResources, OnboardedResources
from dms_resources.demands import CPUDemand, Demand
from dms_resources.machine.usage import UsageMonitor
from dms_resources.manager import ResourceManager, open_manager
from dms_resources.units import GIB, Cores

LOOPBACK = "/ip4/127.0.0.1/tcp/0"
IDENTIFY = "/ipfs/id/1.0.0"
# Each with a text of its own that shows in whatever discloses it.
MACHINE = MachineResources(
    cpu=CPU(cores=Cores(8000), model="cpu-model-marker"),
    ram=RAM(size=8 * GIB),
    disk=Disk(size=64 * GIB, model="disk-model-marker"),
    gpus=(GPU(uuid="GPU-uuid-marker", model="gpu-model-marker", vram=8 * GIB, pci_address="0000:bb:00.0"),),
    simulated=True,
)
TERMS = BidTerms(
    location=Place(country="FR", city="city-marker"),
    executors=frozenset({"executor-marker"}),
    policies=(PricesPerHour(currency="XTS", core=123_457),),
)
LEASE, HOLDER = "lease-marker", "holder-marker"
MARKERS = (
    *("cpu-model-marker", "disk-model-marker", "GPU-uuid-marker", "gpu-model-marker", "0000:bb:00.0"),
    *("XTS", "city-marker", "executor-marker", LEASE, HOLDER),
)
SETTINGS = DiscoverySettings(mdns=False, dht=False, gossip=True, exchange=False, known=False, advert_interval=0.1)


def rules_without(*facts: str) -> AccessRules:
    return AccessRules(operations={FACTS[fact][0]: NOBODY for fact in facts})


@asynccontextmanager
async def offering(folder: Path) -> AsyncIterator[ResourceManager]:
    """A ledger that offers its machine and has a lease."""
    await trio.Path(folder).mkdir()
    monitor = UsageMonitor(MACHINE, folder)
    async with open_manager(folder / "ledger.db", MACHINE, usage_monitor=monitor) as manager:
        await manager.update_onboarded_resources(
            OnboardedResources(cpu=MACHINE.cpu, ram=MACHINE.ram, disk=MACHINE.disk, gpus=MACHINE.gpus)
        )
        await manager.commit_resources(LEASE, Demand(cpu=CPUDemand(cores=Cores(1000))), holder=HOLDER, ttl=3600)
        yield manager


@asynccontextmanager
async def provider(folder: Path, rules: AccessRules) -> AsyncIterator[HardenedHost]:
    async with AsyncExitStack() as stack:
        manager = await stack.enter_async_context(offering(folder))
        identity = new_identity()
        host = await stack.enter_async_context(open_host(identity, [LOOPBACK]))
        await stack.enter_async_context(serve(host, manager, identity=identity, terms=TERMS, access=rules))
        await stack.enter_async_context(
            open_discovery(host, identity, SETTINGS, manager=manager, terms=TERMS, access=rules)
        )
        yield host


class Listener:
    """A stranger that subscribes to the adverts and counts them."""

    def __init__(self, gossip: Gossip) -> None:
        self.gossip = gossip
        self.adverts: dict[str, list[CapacityAdvert]] = {}
        self._heard = trio.Event()

    async def validate(self, bringer: str, data: bytes) -> GossipVerdict:
        await trio.lowlevel.checkpoint()
        advert = open_advert(data, EnvelopeChecker(), now=time.time())
        self.adverts.setdefault(advert.peer_id, []).append(advert)
        self._heard.set()
        self._heard = trio.Event()
        return GossipVerdict.ACCEPT

    async def wait_adverts(self, peer_id: str, count: int) -> None:
        while len(self.adverts.get(peer_id, ())) < count:
            await self._heard.wait()


@asynccontextmanager
async def listener(*providers: HardenedHost) -> AsyncIterator[Listener]:
    async with open_host(new_identity(), [LOOPBACK]) as host, open_gossip(host) as gossip:
        listening = Listener(gossip)
        await gossip.subscribe(ADVERTS_TOPIC, listening.validate)
        for one in providers:
            await dial(host, host_addresses(one)[0])
        yield listening


@pytest.mark.parametrize("facts", [*((fact,) for fact in sorted(FACTS)), tuple(sorted(FACTS))], ids="+".join)
async def test_gossip_carries_no_closed_fact(tmp_path: Path, facts: tuple[str, ...]) -> None:
    """Beside the peer whose owner closed a fact is an open one, whose adverts show that the listener hears."""
    async with (
        provider(tmp_path / "closed", rules_without(*facts)) as closed,
        provider(tmp_path / "open", AccessRules()) as open_peer,
        listener(closed, open_peer) as heard,
    ):
        peer_id = closed.get_id().to_base58()
        with trio.fail_after(60):
            await heard.wait_adverts(open_peer.get_id().to_base58(), 5)
            if "free" not in facts:
                await heard.wait_adverts(peer_id, 1)
        adverts = heard.adverts.get(peer_id, [])
        assert bool(adverts) == ("free" not in facts)
        for advert in adverts:
            told = advert.location is not None or advert.executors
            assert bool(told) == ("terms" not in facts)
            assert not [marker for marker in ("0000:bb:00.0", "XTS", LEASE, HOLDER) if marker in str(advert)]


@pytest.mark.parametrize("rules", [AccessRules(), AccessRules(others=NOBODY)], ids=["open", "closed"])
async def test_identify_tells_addresses_and_protocols_alone(tmp_path: Path, rules: AccessRules) -> None:
    async with provider(tmp_path / "home", rules) as host, open_host(new_identity(), []) as stranger:
        await dial(stranger, host_addresses(host)[0])
        async with await open_stream(stranger, host.get_id().to_base58(), [IDENTIFY]) as stream:
            raw = await read_varint_prefixed_bytes(Reading(stream))
    message = Identify()
    message.ParseFromString(raw)
    known = {"protocol_version", "agent_version", "public_key", "listen_addrs", "observed_addr", "protocols"}
    assert {field.name for field, _ in message.ListFields()} <= known | {"signedPeerRecord"}
    assert all(str(Multiaddr(address)).startswith("/ip4/127.0.0.1/") for address in message.listen_addrs)
    assert not [marker for marker in MARKERS if marker.encode() in raw]


class Reading:
    """A stream as the library's reader takes it."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    async def read(self, count: int) -> bytes:
        received: bytes = await self._stream.receive_some(count)
        return received


def test_mdns_is_given_nothing_but_addresses() -> None:
    identity: Identity = new_identity()
    addresses = [f"/ip4/192.0.2.{number}/tcp/4001/p2p/{identity.peer_id}" for number in range(1, 4)]
    info = mdns._service_info(addresses)
    text, strings = info.text or b"", []
    while text:
        strings.append(text[1 : 1 + text[0]].decode())
        text = text[1 + text[0] :]
    assert strings == [f"dnsaddr={address}" for address in addresses]
    name = info.name.partition(".")[0]
    assert (len(name), name.isalnum(), identity.peer_id in info.name) == (40, True, False)


async def test_metrics_tell_amounts_and_never_who_or_what(tmp_path: Path) -> None:
    """Every account of the machine may read them, whatever the access rules are: they name no holder and no device."""
    async with offering(tmp_path / "home") as manager:
        collector = PeerCollector(manager, ServiceCounts(), connections=lambda: 1, limits_hit={}, version="1")
        async with serve_metrics(collector, "127.0.0.1", 0) as port, httpx.AsyncClient(trust_env=False) as client:
            text = (await client.get(f"http://127.0.0.1:{port}/metrics")).text
    assert 'dms_cores{kind="onboarded"} 8.0' in text
    assert 'dms_cores{kind="free"} 7.0' in text
    assert [marker for marker in MARKERS if marker in text] == []
