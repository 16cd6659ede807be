"""Connections come and go, and the host continues."""

import errno
import signal
import socket
import subprocess
import sys
from contextlib import AsyncExitStack

import pytest
import trio
import trio.testing
from libp2p.network.connection.exceptions import RawConnError
from libp2p.network.connection.swarm_connection import SwarmConn
from libp2p.network.exceptions import SwarmException
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo
from libp2p.transport.exceptions import OpenConnectionError
from multiaddr import Multiaddr

from dms_host import HostLimits, dial, host_addresses, open_host, open_stream
from dms_host.addresses import parse_peer_address
from dms_host.errors import AddressError, ListenError
from dms_host.keys.identity import new_identity
from dms_host.yamux.connection import BoundedYamux
from libp2p_hosts import MemoryConnection

LOOPBACK = "/ip4/127.0.0.1/tcp/0"
PING = "/ipfs/ping/1.0.0"


async def cut(host) -> None:
    """Close the sockets of a host's connections without notice."""
    for connection in host.get_network().get_connections():
        await connection.muxed_conn.secured_conn.close()
        await connection.muxed_conn.event_closed.wait()


async def test_three_hundred_connections_one_after_the_other(server, client, eventually) -> None:
    address = host_addresses(server)[0]
    for _ in range(300):
        await dial(client, address)
        await cut(client)
    await dial(client, address)
    await eventually(lambda: server.swarm.inbound_connections == 1)


async def test_a_connection_that_ends_while_it_is_registered_is_not_kept(server, monkeypatch) -> None:
    left, right = trio.testing.memory_stream_pair()
    muxed = BoundedYamux(MemoryConnection(right, False), ID(b"stranger"), HostLimits())
    start = SwarmConn.start

    async def start_late(connection: SwarmConn) -> None:
        # Its other side is gone before the swarm has it in the list.
        await left.aclose()
        await muxed.event_closed.wait()
        await start(connection)

    monkeypatch.setattr(SwarmConn, "start", start_late)
    with trio.fail_after(10):
        await server.swarm.add_conn(muxed, direction="inbound")
    assert server.swarm.get_connections() == []


async def test_a_slot_is_free_again_when_its_connection_ends(client, eventually) -> None:
    async with open_host(new_identity(), [LOOPBACK], HostLimits(max_inbound_connections=3)) as host:
        address = host_addresses(host)[0]
        for _ in range(10):
            await dial(client, address)
            await cut(client)
            await eventually(lambda: not client.get_connected_peers())
            await eventually(lambda: host.swarm.inbound_connections == 0)


async def test_beyond_the_bound_strangers_are_turned_away_and_peers_served(eventually) -> None:
    limits = HostLimits(max_inbound_connections=2, close_timeout=0.5)
    async with (
        open_host(new_identity(), [LOOPBACK], limits) as host,
        open_host(new_identity()) as first,
        open_host(new_identity()) as second,
    ):
        target = parse_peer_address(address := host_addresses(host)[0])
        await dial(first, address)
        await dial(second, address)
        async with await trio.open_tcp_stream(target.host, target.port) as stranger:
            with trio.fail_after(5):
                assert await stranger.receive_some() == b""
        assert await dial(first, address) == host.get_id().to_base58()


async def test_handshakes_under_way_are_bounded(eventually) -> None:
    async with open_host(new_identity(), [LOOPBACK], HostLimits(max_inbound_handshakes=3)) as host:
        target = parse_peer_address(host_addresses(host)[0])
        strangers = [await trio.open_tcp_stream(target.host, target.port) for _ in range(3)]
        await eventually(lambda: host.swarm.inbound_handshakes == 3)
        async with await trio.open_tcp_stream(target.host, target.port) as one_more:
            with trio.fail_after(5):
                assert await one_more.receive_some() == b""
        for stranger in strangers:
            await stranger.aclose()
        await eventually(lambda: host.swarm.inbound_handshakes == 0)


async def test_one_peer_cannot_hold_many_connections(server, eventually) -> None:
    identity = new_identity()
    address = host_addresses(server)[0]
    # The host sees the same key in five processes.
    async with (
        open_host(identity) as a,
        open_host(identity) as b,
        open_host(identity) as c,
        open_host(identity) as d,
        open_host(identity) as e,
    ):
        for host in (a, b, c, d, e):
            await dial(host, address)
        await eventually(lambda: server.swarm.inbound_connections == 2)
        # The newest connections are kept.
        assert [bool(host.get_connected_peers()) for host in (d, e)] == [True, True]


async def test_two_that_dial_each_other_at_once_stay_connected(server) -> None:
    async with open_host(new_identity(), [LOOPBACK]) as other:
        for _ in range(3):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(dial, server, host_addresses(other)[0])
                nursery.start_soon(dial, other, host_addresses(server)[0])
            for host, peer in ((server, other), (other, server)):
                async with await open_stream(host, peer.get_id().to_base58(), [PING]) as stream:
                    await stream.send_all(bytes(32))
                    assert await stream.receive_some() == bytes(32)
            await cut(server)


async def test_a_peer_that_is_gone_is_forgotten(server, eventually) -> None:
    for _ in range(2):
        async with open_host(new_identity()) as visitor:
            await dial(visitor, host_addresses(server)[0])
            await eventually(lambda visitor=visitor: visitor.get_id() in server._identified_peers)
        await eventually(lambda: not server.get_connected_peers())
    swarm = server.swarm
    assert len(swarm.auto_connector._recent_disconnects) == 0
    await eventually(lambda: swarm.peerstore.peer_ids() == [server.get_id()])


async def test_a_port_in_use_is_refused(server) -> None:
    taken = host_addresses(server)[0].partition("/p2p/")[0]
    with pytest.raises(ListenError) as caught:
        async with open_host(new_identity(), [taken]):
            pytest.fail("two hosts on one port")
    assert caught.value.code == "address_in_use"
    assert taken in caught.value.message


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM])
async def test_a_port_that_the_system_keeps_is_forbidden(monkeypatch, number: int) -> None:
    def refuse(*values: object, **options: object) -> None:
        raise OSError(number, "no")

    monkeypatch.setattr(socket.socket, "bind", refuse)
    with pytest.raises(ListenError) as caught:
        async with open_host(new_identity(), ["/ip4/127.0.0.1/tcp/80"]):
            pass
    assert caught.value.code == "address_forbidden"


async def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(ListenError) as caught:
        async with open_host(new_identity(), ["/ip4/192.0.2.1/tcp/0"]):
            pytest.fail("listening on an address that this machine does not have")
    assert caught.value.code == "address_unavailable"


@pytest.mark.parametrize("text", ["", "nonsense", "/ip4/127.0.0.1/udp/4001/quic-v1", "/ip4/1.2.3/tcp/1", "/tcp/1"])
async def test_what_is_no_listen_address_is_refused(text: str) -> None:
    with pytest.raises(AddressError) as caught:
        async with open_host(new_identity(), [text]):
            pytest.fail("listening on nonsense")
    assert caught.value.code in ("bad_address", "unsupported_address")


async def test_an_error_in_the_block_comes_out_as_it_is() -> None:
    with pytest.raises(KeyError, match="mine"):
        async with open_host(new_identity(), [LOOPBACK]):
            raise KeyError("mine")


async def test_wildcards_are_shown_as_addresses_that_can_be_dialed(client) -> None:
    async with open_host(new_identity(), ["/ip4/0.0.0.0/tcp/0"]) as host:
        addresses = host_addresses(host)
        assert addresses
        assert all("/0.0.0.0/" not in address for address in addresses)
        (loopback,) = [address for address in addresses if "/127.0.0.1/" in address]
        assert await dial(client, loopback) == host.get_id().to_base58()


async def test_peers_that_take_nothing_do_not_hold_up_the_closing() -> None:
    limits = HostLimits(close_timeout=0.5)
    async with AsyncExitStack() as stack:
        host = await stack.enter_async_context(open_host(new_identity(), [LOOPBACK], limits))
        for _ in range(8):
            visitor = await stack.enter_async_context(open_host(new_identity(), limits=limits))
            await dial(visitor, host_addresses(host)[0])
        connections = host.get_network().get_connections()
        for connection in connections:
            stall(connection.muxed_conn.secured_conn)
        # One after the other they would take four seconds.
        with trio.fail_after(3):
            await host.close()
        assert all(connection.muxed_conn.event_closed.is_set() for connection in connections)


def stall(secured) -> None:
    """Let writes block until the socket is closed, as if the other machine did not read."""
    closed, close = trio.Event(), secured.close

    async def write_when_closed(data: bytes) -> None:
        await closed.wait()
        raise RawConnError("the socket was closed")

    async def close_and_tell() -> None:
        closed.set()
        await close()

    secured.write, secured.close = write_when_closed, close_and_tell


async def test_a_host_dials_nobody_on_its_own(server, client) -> None:
    client.get_peerstore().add_addr(server.get_id(), server.get_transport_addrs()[0], 1000)
    await client.swarm.auto_connector.maybe_connect()
    assert client.get_network().get_connections() == []


async def test_the_librarys_own_dial_tries_once_and_waits_for_nothing(client, monkeypatch) -> None:
    attempts = []
    transport = client.swarm.transport_manager.get_transports()[0]

    async def refuse(address) -> None:
        attempts.append(str(address))
        raise OpenConnectionError("nobody there")

    monkeypatch.setattr(transport, "dial", refuse)
    somebody = ID.from_string(new_identity().peer_id)
    with pytest.raises(SwarmException):
        await client.connect(PeerInfo(somebody, [Multiaddr("/ip4/127.0.0.1/tcp/1")]))
    assert len(attempts) == 1
    # With more than one, a successful dial takes a quarter of a second longer.
    assert client.swarm.connection_config.max_connections_per_peer == 1


STOPPABLE = """
import trio
from dms_host import host_addresses, open_host
from dms_host.keys.identity import new_identity

async def main():
    async with open_host(new_identity(), ["/ip4/127.0.0.1/tcp/0"]) as host:
        print(host_addresses(host)[0], flush=True)
        await trio.sleep_forever()

trio.run(main)
"""


@pytest.fixture
def peer_process():
    """A host in a separate process. The first line of its output is its address."""
    environment = {"PYTHONPATH": ":".join(path for path in sys.path if path)}
    with subprocess.Popen([sys.executable, "-c", STOPPABLE], env=environment, stdout=subprocess.PIPE) as process:
        yield process
        process.kill()


async def test_a_peer_whose_process_is_stopped_is_dropped(peer_process) -> None:
    address = (await trio.to_thread.run_sync(peer_process.stdout.readline)).decode().strip()
    async with open_host(new_identity(), limits=HostLimits(ping_interval=0.2, ping_timeout=0.4)) as host:
        peer_id = await dial(host, address)
        stream = await open_stream(host, peer_id, [PING])
        peer_process.send_signal(signal.SIGSTOP)
        with trio.fail_after(10), pytest.raises(trio.BrokenResourceError):
            await stream.receive_some()


async def test_a_cancelled_host_closes_its_sockets(server, eventually) -> None:
    with trio.CancelScope() as scope:
        async with open_host(new_identity()) as visitor:
            await dial(visitor, host_addresses(server)[0])
            await eventually(lambda: server.get_connected_peers())
            (connection,) = visitor.get_network().get_connections()
            scope.cancel()
            await trio.sleep_forever()
    assert connection.muxed_conn.event_closed.is_set()
    await eventually(lambda: server.swarm.inbound_connections == 0)


async def test_who_uses_a_host_may_finish_when_all_is_cancelled(server) -> None:
    """Its sockets are open until then. Gossip once used a closed one to find its address, and failed with EBADF."""
    with trio.fail_after(20), trio.CancelScope() as scope:
        async with open_host(new_identity(), [LOOPBACK]) as host:
            addresses = host_addresses(host)
            peer_id = await dial(host, host_addresses(server)[0])
            try:
                scope.cancel()
                await trio.sleep_forever()
            finally:
                with trio.CancelScope(shield=True):
                    await trio.testing.wait_all_tasks_blocked()
                    assert host_addresses(host) == addresses
                    async with await open_stream(host, peer_id, [PING]) as stream:
                        await stream.send_all(bytes(32))
                        assert await stream.receive_some() == bytes(32)
    assert scope.cancelled_caught


@pytest.mark.parametrize("change", [{"max_inbound_streams": 0}, {"ping_timeout": -1}, {"max_unread_bytes": 1000}])
def test_limits_that_let_nothing_through_are_refused(change) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        HostLimits(**change)


async def test_what_is_turned_away_is_counted_by_its_limit() -> None:
    limits = HostLimits(max_inbound_connections=2, max_inbound_handshakes=1, max_inbound_per_address=2)
    async with open_host(new_identity(), [LOOPBACK], limits) as host:
        target = parse_peer_address(host_addresses(host)[0])
        silent = [await trio.open_tcp_stream(target.host, target.port) for _ in range(2)]
        with trio.fail_after(5):
            # The second one exceeds the limit of handshakes, and is closed.
            assert await silent[1].receive_some() == b""
        assert host.swarm.limits_hit == {"inbound_handshakes": 1}
        for stream in silent:
            await stream.aclose()
