"""Where a peer listens, and which addresses others and its owner are told, also when they change."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import pytest
import trio
from multiaddr import Multiaddr

from dms_host import HostLimits, addresses, new_identity, open_host
from dms_peer.config.limits import PeerLimits
from dms_peer.connections import open_connections
from dms_peer.discovery.settings import DiscoverySettings
from dms_peer.home.home import Home
from dms_peer.node import Node
from dms_peer.owner import client as owner
from dms_peer.signing import EnvelopeChecker
from dms_protocols.adverts.adverts import open_advert
from dms_protocols.adverts.exchange import PeersClient
from dms_protocols.protocol_ids import PEERS_PROTOCOL


async def test_a_peer_listens_on_both_families_and_keeps_its_port(tmp_path: Path) -> None:
    node = Node(home=Home(tmp_path))
    async with node.open() as first:
        families = {address.split("/")[1] for address in first.addrs}
        ports = {address.split("/")[4] for address in first.addrs}
    assert families == ({"ip4", "ip6"} if _has_ipv6() else {"ip4"})
    assert len(ports) == 1
    async with node.open() as again:
        assert {address.split("/")[4] for address in again.addrs} == ports


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


async def test_a_peer_that_only_its_own_machine_can_reach_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(addresses, "expand_wildcard_address", lambda address: [address])
    async with Node(home=Home(tmp_path)).open():
        pass
    assert "no other machine can reach this peer" in caplog.text
    caplog.clear()
    async with Node(home=Home(tmp_path), listen=("/ip4/127.0.0.1/tcp/0",)).open():
        pass
    assert "no other machine" not in caplog.text


async def test_status_and_adverts_follow_a_new_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A laptop that moves to another network."""
    ips = ["192.0.2.10"]

    def expand(address: Multiaddr) -> list[Multiaddr]:
        return [Multiaddr(f"/ip4/{ip}/tcp/{address.value_for_protocol('tcp')}") for ip in ips]

    monkeypatch.setattr(addresses, "expand_wildcard_address", expand)
    node = Node(
        home=Home(tmp_path),
        listen=("/ip4/0.0.0.0/tcp/0",),
        announce=("/dns4/node.example.org/tcp/4001",),
        discovery=DiscoverySettings(mdns=False, dht=False),
        limits=PeerLimits(host=HostLimits(address_interval=0.1)),
    )
    async with node.open() as ready, open_host(new_identity()) as host, open_connections(host) as pool:
        loopback = next(address for address in ready.addrs if "/127.0.0.1/" in address)

        async def told() -> tuple[str, ...]:
            async with pool.client(ready.peer_id, PEERS_PROTOCOL, [loopback]) as client:
                (raw,) = (await PeersClient(client).adverts()).adverts
            return open_advert(raw, EnvelopeChecker(), now=time.time()).addrs

        async def status() -> tuple[str, ...]:
            return (await trio.to_thread.run_sync(owner.read_status, node.home)).addrs

        for read in (told, status):
            found = await read()
            assert found[0] == f"/dns4/node.example.org/tcp/4001/p2p/{ready.peer_id}"
            assert any("/192.0.2.10/" in address for address in found)
        ips[:] = ["192.0.2.20"]
        with trio.fail_after(20):
            for read in (told, status):
                while not any("/192.0.2.20/" in address for address in await read()):  # noqa: ASYNC110  # another process
                    await trio.sleep(0.05)
        assert not any("/192.0.2.10/" in address for address in await told())
