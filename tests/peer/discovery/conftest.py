"""Fixtures for the tests of discovery."""

from __future__ import annotations

import socket
import struct
import threading
import time
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial

import pytest

from dms_host import HardenedHost, dial, host_addresses, open_host
from dms_host.keys.identity import new_identity
from dms_peer.connections import ConnectionPool, open_connections
from dms_peer.discovery.dht import kademlia
from dms_peer.discovery.dht.kademlia import Kademlia, open_kademlia

MDNS_GROUP = "224.0.0.251"
LOOPBACK = "/ip4/127.0.0.1/tcp/0"


def _multicast_error() -> str | None:
    """Why a datagram to a multicast group does not arrive over the loopback interface; None if it does."""
    try:
        with (
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver,
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
        ):
            receiver.bind(("", 0))
            loopback = socket.inet_aton("127.0.0.1")
            receiver.setsockopt(
                socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, struct.pack("4s4s", socket.inet_aton(MDNS_GROUP), loopback)
            )
            sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, loopback)
            receiver.settimeout(2)
            sender.sendto(b"?", (MDNS_GROUP, receiver.getsockname()[1]))
            receiver.recv(1)
    except OSError as error:
        return str(error)
    return None


@pytest.fixture(scope="session")
def _loopback_multicast():
    if (error := _multicast_error()) is not None:
        pytest.skip(f"this machine has no multicast on its loopback interface: {error}")


@pytest.fixture
def multicast(_loopback_multicast):
    """Multicast over loopback. No thread is left afterwards."""
    before = set(threading.enumerate())
    yield "127.0.0.1"
    deadline = time.monotonic() + 5
    while {thread for thread in threading.enumerate() if "trio" not in thread.name.lower()} - before:
        assert time.monotonic() < deadline, threading.enumerate()
        time.sleep(0.01)


@dataclass
class DHTPeer:
    """A peer of the DHT on loopback."""

    host: HardenedHost
    connections: ConnectionPool
    dht: Kademlia

    @property
    def peer_id(self) -> str:
        return self.host.get_id().to_base58()

    @property
    def addr(self) -> str:
        return host_addresses(self.host)[0]


@pytest.fixture
def open_dht_peer():
    """Opens a peer of the DHT: `async with open_dht_peer(server=True) as peer`."""

    @asynccontextmanager
    async def open_peer(*, server: bool = True, listen: bool = True):
        async with (
            open_host(new_identity(), [LOOPBACK] if listen else []) as host,
            open_connections(host) as connections,
            open_kademlia(host, connections, partial(host_addresses, host), server=server) as dht,
        ):
            yield DHTPeer(host, connections, dht)

    return open_peer


@pytest.fixture
def dht_network(open_dht_peer, eventually, monkeypatch):
    """Opens this many peers that know the first one and through it the others: `async with dht_network(9) as peers`."""

    # They find each other in the usual way, with shorter pauses.
    monkeypatch.setattr(kademlia, "_BREATH", 0.1)
    monkeypatch.setattr(kademlia, "_LOOK_AGAIN", 0.2)

    @asynccontextmanager
    async def open_network(number: int):
        async with AsyncExitStack() as stack:
            peers = [await stack.enter_async_context(open_dht_peer()) for _ in range(number)]
            for peer in peers[1:]:
                await dial(peer.host, peers[0].addr)
            await eventually(lambda: all(peer.dht.peers >= min(number - 1, 8) for peer in peers), 90)
            yield peers

    return open_network
