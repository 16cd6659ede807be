"""Peering in virtual time, and on real hosts which peers connect and what they report."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from libp2p.peer.id import ID

from dms_host import HardenedHost, attach_protocols, dial, host_addresses, open_host
from dms_host.errors import DialError
from dms_host.keys.identity import new_identity
from dms_peer.discovery.adverts.advertiser import AdvertPusher
from dms_peer.discovery.known_peers import KnownPeers
from dms_peer.discovery.open import open_discovery
from dms_peer.discovery.peering import Peering
from dms_peer.discovery.settings import DiscoverySettings
from dms_simulation.providers import open_simulated_manager, simulated_machine

OWN, BOOTSTRAP, OTHER = (new_identity(bytes([number]) * 32).peer_id for number in (1, 2, 3))


class Network:
    """A host, its network and its connections. The test decides which peers it reaches."""

    def __init__(self) -> None:
        self.notifees: list[Any] = []
        self.connected: set[str] = set()
        self.failure: DialError | None = None
        self.dials: list[float] = []

    # A host

    def get_id(self) -> ID:
        return ID.from_string(OWN)

    def get_network(self) -> Network:
        return self

    def get_peerstore(self) -> Any:
        raise KeyError("nothing is known")

    def get_connected_peers(self) -> list[ID]:
        return [ID.from_string(name) for name in self.connected]

    def register_notifee(self, notifee: Any) -> None:
        self.notifees.append(notifee)

    # Its connections

    async def connect(self, peer_id: str, addrs: Sequence[str] = ()) -> None:
        await trio.lowlevel.checkpoint()
        self.dials.append(trio.current_time())
        if self.failure is not None:
            raise self.failure
        self.connected.add(peer_id)


@pytest.fixture
def network() -> Network:
    return Network()


@pytest.fixture
def keep_peering(network: Network, nursery: trio.Nursery) -> Any:
    """Keeps a host with one bootstrap peer connected, checking every 30 s."""

    def keep(draw: Any = lambda: 0.5) -> Peering:
        host: Any = network
        peering = Peering(host, host, {BOOTSTRAP: ("/ip4/192.0.2.1/tcp/4001",)}, KnownPeers(), draw=draw)
        peering.note = lambda: None  # type: ignore[method-assign]  # what peers serve is not of interest here
        nursery.start_soon(peering.keep, 30.0)
        return peering

    return keep


def failed(code: str) -> DialError:
    return DialError(f"it failed: {code}", code=code, address=BOOTSTRAP, hint="try again later")


def said(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    lines = [(one.levelname, one.getMessage()) for one in caplog.records if one.name.endswith("peering")]
    caplog.clear()
    return lines


async def test_a_dead_bootstrap_peer_is_said_once_and_again_when_something_changes(
    autojump_clock: Any, network: Network, keep_peering: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    network.failure = failed("refused")
    keep_peering()
    await trio.sleep(7200)
    ((level, line),) = said(caplog)
    assert (level, "a bootstrap peer is not there: it failed: refused" in line) == ("WARNING", True)
    # The back-off of the connections says nothing new about the peer.
    network.failure = failed("backing_off")
    await trio.sleep(3600)
    network.failure = failed("refused")
    await trio.sleep(3600)
    assert said(caplog) == []
    network.failure = failed("timeout")
    await trio.sleep(3600)
    assert [(level, "timeout" in line) for level, line in said(caplog)] == [("WARNING", True)]
    network.failure = None
    await trio.sleep(600)
    assert said(caplog) == [("INFO", f"a bootstrap peer is there again: {BOOTSTRAP}")]
    network.failure = failed("timeout")
    network.connected.clear()
    await trio.sleep(3600)
    assert [level for level, _ in said(caplog)] == ["WARNING"]


async def test_a_bootstrap_peer_that_comes_by_itself_is_there_again(
    autojump_clock: Any, network: Network, keep_peering: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    network.failure = failed("refused")
    keep_peering()
    await trio.sleep(1)
    assert len(said(caplog)) == 1

    class Connection:
        muxed_conn: Any

    connection: Any = Connection()
    for name in (OTHER, BOOTSTRAP):
        connection.muxed_conn = Connection()
        connection.muxed_conn.peer_id = ID.from_string(name)
        await network.notifees[0].connected(network, connection)
    assert said(caplog) == [("INFO", f"a bootstrap peer is there again: {BOOTSTRAP}")]


async def test_the_pauses_grow_within_bounds(autojump_clock: Any, network: Network, keep_peering: Any) -> None:
    network.failure = failed("refused")
    draws = [0.0, 1.0, 0.25]
    keep_peering(lambda: draws[len(network.dials) % 3])
    await trio.sleep(10_000)
    pauses = [after - before for before, after in zip(network.dials, network.dials[1:], strict=False)]
    assert [round(pause) for pause in pauses[:4]] == [75, 105, 180, 300]
    assert all(180 <= pause <= 300 for pause in pauses[3:])
    assert len(set(pauses[3:])) == 3


async def test_who_comes_and_what_it_serves_is_told(
    server: HardenedHost, client: HardenedHost, nursery: trio.Nursery
) -> None:
    connections: Any = None
    peering = Peering(server, connections, {}, KnownPeers(), enough=0)
    nursery.start_soon(peering.keep, 1000.0)
    await peering.wait_tried()

    async def wait_until(condition: Any) -> None:
        with trio.fail_after(10):
            while not condition():
                await peering.wait_changed()

    client_id, store = client.get_id(), server.get_peerstore()
    async with trio.open_nursery() as open_background:
        open_background.start_soon(wait_until, lambda: peering.connected)
        await trio.testing.wait_all_tasks_blocked()
        await dial(client, host_addresses(server)[0])
    await wait_until(lambda: store.has_peer(client_id) and store.get_protocols(client_id))

    async def answer(stream: Any, peer_id: str) -> None:
        await trio.lowlevel.checkpoint()

    async with attach_protocols(client, {"/said/1.0.0": answer}):
        await wait_until(lambda: "/said/1.0.0" in store.get_protocols(client_id))
    async with trio.open_nursery() as open_background:
        open_background.start_soon(wait_until, lambda: not peering.connected)
        await trio.testing.wait_all_tasks_blocked()
        await client.disconnect(server.get_id())


async def test_two_providers_that_meet_tell_each_other_at_once(
    tmp_path: Path, eventually: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There are no checks at intervals: without the event neither would hear of the other."""
    looks: Counter[Any] = Counter()
    original = AdvertPusher._look

    def look(pusher: AdvertPusher, nursery: trio.Nursery) -> float:
        looks[pusher] += 1
        return original(pusher, nursery)

    monkeypatch.setattr(AdvertPusher, "_look", look)
    settings = DiscoverySettings(mdns=False, dht=False, advert_interval=10_000)
    async with AsyncExitStack() as stack:
        hosts, tables = [], []
        for number in range(2):
            identity = new_identity()
            host = await stack.enter_async_context(open_host(identity, ["/ip4/127.0.0.1/tcp/0"]))
            manager = await stack.enter_async_context(
                open_simulated_manager(tmp_path / f"{number}.db", simulated_machine(cores=8))
            )
            discovery = await stack.enter_async_context(open_discovery(host, identity, settings, manager=manager))
            hosts.append(host)
            tables.append(discovery.adverts.table)
        # At the start, and for their first adverts.
        await eventually(lambda: len(looks) == 2 and min(looks.values()) >= 2)
        await dial(hosts[0], host_addresses(hosts[1])[0])
        await eventually(lambda: all(len(table) == 1 for table in tables))
