"""All sources together, on real hosts over loopback, and with a running peer."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
from libp2p.identity.identify_push.identify_push import ID_PUSH

from dms_host import HardenedHost, dial, host_addresses, open_host, open_stream
from dms_host.errors import AddressError
from dms_host.keys.identity import load_or_create_identity, new_identity
from dms_peer.config.access import read_access_file
from dms_peer.discovery.adverts import open as advert_opening
from dms_peer.discovery.open import Discovery, open_discovery, open_requester
from dms_peer.discovery.settings import DiscoverySettings
from dms_peer.home.home import Home
from dms_peer.node import Node
from dms_peer.owner import client as owner
from dms_peer.owner.offers import Offer
from dms_protocols.errors import RemoteError
from dms_protocols.messages.bid import BidRequest, EnsembleRequest, NodeRequest
from dms_protocols.messages.peers import AdvertsAnswer, AdvertsRequest
from dms_protocols.messages.resources import FreeRequest
from dms_protocols.protocol_ids import BID_DELIVERY_PROTOCOL, KADEMLIA_PROTOCOL, PEERS_PROTOCOL, RESOURCES_PROTOCOL
from dms_protocols.rpc.client import Client, open_client
from dms_protocols.rpc.operations import Caller, Operations
from dms_protocols.wire.conversion import to_map
from dms_resources.components import FreeResources
from dms_resources.demands import CPUDemand, Demand
from dms_resources.units import GIB, Cores
from dms_simulation.providers import open_simulated_manager, simulated_machine

LOOPBACK = ("/ip4/127.0.0.1/tcp/0",)
MACHINE = {"cpu": {"cores": 8}, "ram": {"size": "32GiB"}, "disk": {"size": "1TiB"}, "gpus": []}
OFFER = Offer(cpu=Cores.of(4), ram=16 * GIB, disk=100 * GIB, gpus=())
QUIET = DiscoverySettings(mdns=False, bootstrap_interval=0.2)


def request(cores: int) -> EnsembleRequest:
    node = NodeRequest(node_id="n", resources=Demand(cpu=CPUDemand(cores=Cores.of(cores))))
    return EnsembleRequest(id="e", nonce=1, deadline=2e9, request=(node,))


@pytest.fixture
def open_node(tmp_path: Path) -> Any:
    """Opens a running peer that offers 4 cores: `async with open_node("name") as ready`."""
    machine = tmp_path / "machine.json"
    machine.write_text(json.dumps(MACHINE))

    @asynccontextmanager
    async def open_peer(name: str, settings: DiscoverySettings = QUIET, listen: tuple[str, ...] = LOOPBACK) -> Any:
        home = Home(tmp_path / name, patience=0.2)
        await trio.to_thread.run_sync(owner.onboard_resources, home, OFFER, str(machine))
        async with Node(home=home, listen=listen, discovery=settings).open() as ready:
            yield ready

    return open_peer


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "own", patience=0.2)


async def found(discovery: Discovery, source: str, asked: EnsembleRequest) -> set[str]:
    (one,) = [one for one in discovery.sources if one.name == source]
    async with one.candidates(asked) as candidates:
        return {candidate.peer_id async for candidate in candidates}


async def test_each_source_can_be_switched_off(client: HardenedHost) -> None:
    off = replace(QUIET, known=False, dht=False, exchange=False, gossip=False)
    identity = new_identity()
    async with open_discovery(client, identity, off) as discovery:
        assert discovery.sources == ()
        assert discovery.broadcast is None
    for source, settings in {
        "known": replace(off, known=True),
        "dht": replace(off, dht=True),
        "mdns": replace(off, mdns=True),
        "adverts": replace(off, gossip=True),
    }.items():
        async with open_discovery(client, identity, settings) as discovery:
            assert {one.name for one in discovery.sources} == {source}


async def test_all_that_is_taken_off_together_is_told_once(
    foreign: Any, client: HardenedHost, eventually: Any, tmp_path: Path
) -> None:
    """Otherwise each attachment would announce its removal to each peer, on a host that continues."""
    told: list[Any] = []
    original = client.get_mux().handlers[ID_PUSH]

    async def count(stream: Any) -> None:
        told.append(stream)
        await original(stream)

    client.set_stream_handler(ID_PUSH, count)
    await dial(client, host_addresses(foreign)[0])
    known, peer_id = client.get_peerstore(), foreign.get_id()
    await eventually(lambda: known.has_peer(peer_id) and known.get_protocols(peer_id))
    async with open_simulated_manager(tmp_path / "ledger.db", simulated_machine(cores=8)) as manager:
        async with open_discovery(foreign, new_identity(), QUIET, manager=manager):
            await eventually(lambda: {PEERS_PROTOCOL, KADEMLIA_PROTOCOL} <= set(known.get_protocols(peer_id)))
            before = len(told)
        await eventually(lambda: not {PEERS_PROTOCOL, KADEMLIA_PROTOCOL} & set(known.get_protocols(peer_id)))
    assert len(told) == before + 1


async def test_who_asks_by_broadcast_has_the_owners_share_and_no_more(
    tmp_path: Path, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hold that exceeds the share would become a commitment without another check."""
    answering: list[Operations] = []

    class Recorded(advert_opening.BroadcastAnswers):
        def __init__(self, bids: Operations, *rest: Any, **named: Any) -> None:
            answering.append(bids)
            super().__init__(bids, *rest, **named)

    monkeypatch.setattr(advert_opening, "BroadcastAnswers", Recorded)
    machine, access = tmp_path / "machine.json", tmp_path / "access.yaml"
    machine.write_text(json.dumps(MACHINE))
    access.write_text("shares:\n  peer:\n    capacity: 250\n")
    await trio.to_thread.run_sync(owner.onboard_resources, home, OFFER, str(machine))
    settings = replace(QUIET, gossip=True)
    async with Node(home=home, listen=LOOPBACK, discovery=settings, access=read_access_file(access)).open():
        (bids,) = answering
        caller = Caller(new_identity().peer_id)
        within, beyond = (
            bids["bid_request"].handler(BidRequest(ensemble=to_map(request(cores))), caller) for cores in (1, 2)
        )
    assert (len(within.bids), within.refusals) == (1, ())
    assert (beyond.bids, [refusal.code for refusal in beyond.refusals]) == ((), ["policy"])


async def test_streams_of_all_protocols_count_against_one_share(
    tmp_path: Path, home: Home, client: HardenedHost
) -> None:
    access = tmp_path / "access.yaml"
    access.write_text("shares:\n  peer:\n    streams: 2\n")
    settings = replace(QUIET, gossip=True, broadcast=True)
    async with Node(home=home, listen=LOOPBACK, discovery=settings, access=read_access_file(access)).open() as ready:
        peer_id = await dial(client, ready.addrs[0])

        @asynccontextmanager
        async def stream(protocol: str) -> AsyncIterator[Client]:
            async with open_client(await open_stream(client, peer_id, [protocol])) as opened:
                yield opened

        async with stream(RESOURCES_PROTOCOL) as first, stream(PEERS_PROTOCOL) as second:
            await first.call(FreeRequest(), FreeResources, timeout=10)
            await second.call(AdvertsRequest(), AdvertsAnswer, timeout=10)
            for protocol in (RESOURCES_PROTOCOL, PEERS_PROTOCOL, BID_DELIVERY_PROTOCOL):
                async with stream(protocol) as third:
                    with pytest.raises(RemoteError) as caught:
                        await third.call(AdvertsRequest(), AdvertsAnswer, timeout=10)
                assert caught.value.code == "busy", protocol


async def test_the_cheapest_source_comes_first(client: HardenedHost) -> None:
    async with open_discovery(client, new_identity(), replace(QUIET, mdns=True, gossip=True)) as discovery:
        names = [one.name for one in discovery.sources]
        # Known peers that are not likely to have free capacity come last.
        assert names == ["known", "adverts", "exchange", "mdns", "dht", "known"]
        assert discovery.broadcast is not None
    async with open_discovery(client, new_identity(), replace(QUIET, gossip=True, broadcast=False)) as discovery:
        assert discovery.broadcast is None


async def test_a_bootstrap_address_that_cannot_be_one_is_refused(client: HardenedHost, home: Home) -> None:
    settings = replace(QUIET, bootstrap=("/ip4/192.0.2.1/tcp/4001",))
    with pytest.raises(AddressError, match="which peer"):
        async with open_discovery(client, new_identity(), settings):
            pass
    with pytest.raises(AddressError, match="which peer"):
        async with Node(home=home, discovery=settings).open():
            pass
    assert not home.path.exists()


async def test_from_one_address_to_a_provider_and_next_time_without_one(
    open_node: Any, home: Home, eventually: Any
) -> None:
    home.prepare()
    identity = load_or_create_identity(home.key_path)
    async with open_node("a") as one, open_node("b", replace(QUIET, bootstrap=one.addrs)) as other:
        settings = replace(QUIET, bootstrap=one.addrs)
        async with open_host(identity) as host, open_discovery(host, identity, settings, home=home) as discovery:
            await discovery.peering.wait_tried()
            await eventually(lambda: discovery.known.get(one.peer_id) is not None)
            with trio.fail_after(20):
                # Until both have announced themselves.
                while await found(discovery, "dht", request(4)) != {one.peer_id, other.peer_id}:  # noqa: ASYNC110
                    await trio.sleep(0.1)
            requester = discovery.requester()
            async with requester.discover(request(4), count=2, deadline=time.time() + 10) as peers:
                answered = {peer.peer_id async for peer in peers}
            assert answered == {one.peer_id, other.peer_id}
        # What they had free was saved, for the next program.
        listed = await trio.to_thread.run_sync(owner.read_peers, home)
        assert not listed.running
        assert {row.peer_id for row in listed.peers} == {one.peer_id, other.peer_id}
        assert all(row.free is not None and row.free.cpu.cores == Cores.of(4) for row in listed.peers)
        assert all(row.free_age is not None and 0 <= row.free_age < 60 for row in listed.peers)
        async with (
            open_host(identity) as host,
            open_requester(host, QUIET, home=home) as again,
            again.discover(request(4), count=2, deadline=time.time() + 10) as peers,
        ):
            assert {peer.peer_id async for peer in peers} == answered


async def test_the_owner_sees_whom_the_running_peer_knows(open_node: Any, tmp_path: Path, eventually: Any) -> None:
    async with open_node("a") as one, open_node("b", replace(QUIET, bootstrap=one.addrs)):
        b = Home(tmp_path / "b")

        async def rows() -> dict[str, Any]:
            answer = await trio.to_thread.run_sync(owner.read_peers, b)
            assert answer.running
            return {row.peer_id: row for row in answer.peers}

        with trio.fail_after(10):
            # Until both have reported what they serve.
            while (row := (await rows()).get(one.peer_id)) is None or not row.sources:  # noqa: ASYNC110
                await trio.sleep(0.05)
        assert row.connected
        assert set(row.addrs) == set(one.addrs)
        assert row.seen_age is not None
        assert row.seen_age < 5


async def test_who_went_away_is_dialled_again(open_node: Any, server: HardenedHost, eventually: Any) -> None:
    async with open_node("a") as ready:
        peer_id, addrs = ready.peer_id, ready.addrs
    listen = tuple(address.rpartition("/p2p/")[0] for address in addrs)
    async with open_discovery(server, new_identity(), replace(QUIET, bootstrap=addrs)) as discovery:
        # It is not running yet.
        await discovery.peering.wait_tried()
        for _ in range(2):
            async with open_node("a", listen=listen):
                await eventually(lambda: discovery.peering.connected == (peer_id,), 20)
            await eventually(lambda: not discovery.peering.connected)


async def test_the_company_is_kept_through_idleness_and_let_go_at_the_end(
    client: HardenedHost, server: HardenedHost
) -> None:
    settings = replace(QUIET, dht=False, bootstrap=host_addresses(server))
    async with open_discovery(client, new_identity(), settings) as discovery:
        await discovery.peering.wait_tried()
        assert client.get_network().is_protected(server.get_id())
    assert not client.get_network().is_protected(server.get_id())


async def test_two_homes_on_one_machine_find_each_other_by_mdns_alone(
    multicast: str, open_node: Any, tmp_path: Path
) -> None:
    alone = replace(QUIET, mdns=True, known=False, exchange=False, dht=False)
    async with open_node("a", alone) as one, open_node("b", alone) as other:
        for home, wanted in (("a", other.peer_id), ("b", one.peer_id)):

            async def met(home: str = home, wanted: str = wanted) -> bool:
                listed = await trio.to_thread.run_sync(owner.read_peers, Home(tmp_path / home), 1000)
                rows = [row for row in listed.peers if row.peer_id == wanted]
                # Heard, and connected in either direction, so that the handshake has proved its id.
                return any(row.connected and "mdns" in row.sources for row in rows)

            with trio.fail_after(60):
                while not await met():  # noqa: ASYNC110
                    await trio.sleep(0.1)
