"""Hosts on loopback, connections in memory, and an attacker that speaks raw frames."""

from __future__ import annotations

import struct
from contextlib import asynccontextmanager

import pytest
import trio
from libp2p import new_host
from libp2p.io.exceptions import IOException
from libp2p.io.trio import TrioTCPStream
from libp2p.io.utils import read_exactly
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.peer.id import ID
from multiaddr import Multiaddr
from trio.testing import memory_stream_pair

from dms_peer.host import HostLimits, attach_protocols, dial, host_addresses, open_host, open_stream
from dms_peer.host.addresses import parse_peer_address
from dms_peer.host.upgrade import hardened_upgrader
from dms_peer.host.yamux import BoundedYamux
from dms_peer.identity import new_identity

LOOPBACK = "/ip4/127.0.0.1/tcp/0"


@pytest.fixture
async def server():
    """A hardened host that listens on loopback."""
    async with open_host(new_identity(), [LOOPBACK]) as host:
        yield host


@pytest.fixture
async def client():
    """A hardened host that only dials."""
    async with open_host(new_identity()) as host:
        yield host


class MemoryConnection:
    """A secured connection in memory that sends each write in two halves, with a gate in between."""

    def __init__(self, stream: trio.StapledStream, is_initiator: bool) -> None:
        self.stream = stream
        self.is_initiator = is_initiator
        self.gate = trio.Event()
        self.gate.set()
        self.at_gate = trio.Event()
        self.closed = False

    async def write(self, data: bytes) -> None:
        middle = len(data) // 2
        await self.stream.send_all(data[:middle])
        self.at_gate.set()
        await self.gate.wait()
        await self.stream.send_all(data[middle:])

    async def read(self, n: int | None = None) -> bytes:
        try:
            return await self.stream.receive_some(n)
        except trio.ClosedResourceError:
            return b""

    async def close(self) -> None:
        self.closed = True
        self.gate.set()
        await self.stream.aclose()

    def get_remote_address(self):
        return None


@pytest.fixture
def yamux_pair():
    """Opens two BoundedYamux that are connected in memory: `async with yamux_pair(limits) as (dialer, listener)`."""

    @asynccontextmanager
    async def pair(limits: HostLimits | None = None, listener_limits: HostLimits | None = None):
        left, right = memory_stream_pair()
        limits = limits or HostLimits()
        dialer = BoundedYamux(MemoryConnection(left, True), ID(b"listener"), limits)
        listener = BoundedYamux(MemoryConnection(right, False), ID(b"dialer"), listener_limits or limits)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(dialer.start)
            nursery.start_soon(listener.start)
            await dialer.event_started.wait()
            await listener.event_started.wait()
            yield dialer, listener
            nursery.cancel_scope.cancel()

    return pair


class Frames:
    """Yamux frames by hand, over anything with `read` and `write`."""

    DATA, ROOM, PING, GO_AWAY = range(4)
    SYN, ACK, FIN, RST = 1, 2, 4, 8

    def __init__(self, connection) -> None:
        self.connection = connection

    async def send(self, kind: int, flags: int, stream_id: int, value: int = 0, data: bytes = b"") -> None:
        await self.connection.write(struct.pack("!BBHII", 0, kind, flags, stream_id, value) + data)

    async def send_data(self, stream_id: int, data: bytes, flags: int = 0) -> None:
        await self.send(self.DATA, flags, stream_id, len(data), data)

    async def receive(self) -> tuple[int, int, int, int, bytes]:
        _, kind, flags, stream_id, value = struct.unpack("!BBHII", await read_exactly(self.connection, 12))
        data = await read_exactly(self.connection, value) if kind == self.DATA and value else b""
        return kind, flags, stream_id, value, data

    async def receive_until(self, kind: int, flags: int, stream_id: int) -> None:
        while (await self.receive())[:3] != (kind, flags, stream_id):
            pass

    async def wait_dropped(self) -> None:
        """Return when the other side has closed the connection."""
        try:
            while True:
                await self.receive()
        except (IOException, trio.BrokenResourceError):
            return


@pytest.fixture
def yamux_attacker():
    """Opens one BoundedYamux in memory whose other side is ours to abuse: `as (frames, victim)`."""

    @asynccontextmanager
    async def attack(limits: HostLimits | None = None):
        left, right = memory_stream_pair()
        victim = BoundedYamux(MemoryConnection(right, False), ID(b"attacker"), limits or HostLimits())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(victim.start)
            await victim.event_started.wait()
            yield Frames(MemoryConnection(left, True)), victim
            nursery.cancel_scope.cancel()

    return attack


async def _open_raw(address: str) -> RawConnection:
    target = parse_peer_address(address)
    return RawConnection(TrioTCPStream(await trio.open_tcp_stream(target.host, target.port)), True)


@pytest.fixture
def noise_attacker():
    """Opens a connection that has gone through Noise: `async with noise_attacker(address) as secured`."""

    @asynccontextmanager
    async def attack(address: str):
        raw = await _open_raw(address)
        try:
            upgrader = hardened_upgrader(new_identity().key_pair(), HostLimits())
            yield await upgrader.upgrade_security(raw, True, parse_peer_address(address).peer_id)
        finally:
            await raw.close()

    return attack


@pytest.fixture
def frame_attacker(noise_attacker):
    """Opens a connection that has gone through Noise and agreed on Yamux: `as frames`."""

    @asynccontextmanager
    async def attack(address: str):
        async with noise_attacker(address) as secured:
            upgrader = hardened_upgrader(new_identity().key_pair(), HostLimits())
            await upgrader.muxer_multistream._selector.select(secured, True)
            yield Frames(secured)

    return attack


@pytest.fixture
def eventually():
    """Waits for a condition that no event announces: `await eventually(lambda: ...)`, ten seconds at most."""

    async def wait(condition, seconds: float = 10.0) -> None:
        with trio.fail_after(seconds):
            while not condition():  # noqa: ASYNC110  # nothing announces it
                await trio.sleep(0.005)

    return wait


@pytest.fixture
async def foreign():
    """A plain libp2p host as somebody else would make it, listening on loopback."""
    host = new_host()
    async with host.run([Multiaddr(LOOPBACK)]):
        yield host


@pytest.fixture
async def stream_pair(server, client):
    """Opens a stream between the two hosts: `ours, theirs = await stream_pair()`, both PeerStream."""
    sender, receiver = trio.open_memory_channel(1)
    release = trio.Event()

    async def hand_over(stream, peer_id: str) -> None:
        await sender.send(stream)
        # The stream is the test's until the fixture ends.
        await release.wait()

    async def open_pair():
        peer_id = await dial(client, host_addresses(server)[0])
        ours = await open_stream(client, peer_id, ["/pair/1.0.0"])
        return ours, await receiver.receive()

    async with attach_protocols(server, {"/pair/1.0.0": hand_over}):
        yield open_pair
        release.set()
    sender.close()
    receiver.close()
