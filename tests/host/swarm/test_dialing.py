"""Dialling real sockets: right, wrong, silent, moved, cancelled."""

import contextlib
import os
from functools import partial

import pytest
import trio
from libp2p.peer.id import ID
from multiaddr import Multiaddr

from dms_host import HostLimits, attach_protocols, dial, host_addresses, open_host, open_stream
from dms_host.addresses import parse_peer_address
from dms_host.errors import AddressError, DialError
from dms_host.keys.identity import new_identity

LOOPBACK = "/ip4/127.0.0.1/tcp/0"
SOMEBODY = new_identity(b"somebody".ljust(32)).peer_id
PING = "/ipfs/ping/1.0.0"


@pytest.fixture
async def silent_listener():
    """The port of a TCP listener that accepts connections and sends nothing."""
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    yield listener.socket.getsockname()[1]
    await listener.aclose()


async def refusal(host, address: str, **options: float) -> DialError:
    with pytest.raises(DialError) as caught:
        await dial(host, address, **options)
    assert caught.value.address == address
    assert caught.value.message
    assert caught.value.hint
    return caught.value


def open_sockets() -> list[str]:
    # Without the standard streams. The epoll and wake-up descriptors of trio are not sockets.
    found = []
    for descriptor in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found.append(os.readlink(f"/proc/self/fd/{descriptor}"))
    return sorted(name for name in found if name.startswith("socket:"))


async def test_dialed_once_and_used_again(server, client) -> None:
    address = host_addresses(server)[0]
    peer_id = server.get_id().to_base58()
    assert await dial(client, address) == peer_id
    assert await dial(client, address) == peer_id
    assert len(client.get_network().get_connections()) == 1


async def test_many_dials_at_once_make_one_connection(server, client) -> None:
    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(dial, client, host_addresses(server)[0])
    assert len(client.get_network().get_connections()) == 1


async def test_names_are_resolved(server, client) -> None:
    port = parse_peer_address(host_addresses(server)[0]).port
    address = f"/dns4/localhost/tcp/{port}/p2p/{server.get_id().to_base58()}"
    assert await dial(client, address) == server.get_id().to_base58()


async def test_nobody_listens(client) -> None:
    assert (await refusal(client, f"/ip4/127.0.0.1/tcp/1/p2p/{SOMEBODY}")).code == "refused"


async def test_a_name_that_does_not_exist(client) -> None:
    assert (await refusal(client, f"/dns4/no-such-host.invalid/tcp/1/p2p/{SOMEBODY}")).code == "unreachable"


async def test_another_peer_answers(server, client, eventually) -> None:
    address = host_addresses(server)[0].partition("/p2p/")[0] + f"/p2p/{SOMEBODY}"
    assert (await refusal(client, address)).code == "wrong_peer"
    await eventually(lambda: server.swarm.inbound_connections == 0)
    assert client.get_connected_peers() == []


async def test_a_peer_does_not_dial_itself(server) -> None:
    assert (await refusal(server, host_addresses(server)[0])).code == "self_dial"


async def test_what_listens_is_no_peer(client) -> None:
    async def serve(stream: trio.SocketStream) -> None:
        await stream.send_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
        port = listener.socket.getsockname()[1]
        assert (await refusal(client, f"/ip4/127.0.0.1/tcp/{port}/p2p/{SOMEBODY}")).code == "handshake_failed"
        nursery.cancel_scope.cancel()


async def test_a_listener_that_says_nothing_costs_the_deadline_and_no_socket(client, silent_listener) -> None:
    before = open_sockets()
    error = await refusal(client, f"/ip4/127.0.0.1/tcp/{silent_listener}/p2p/{SOMEBODY}", deadline=0.2)
    assert error.code == "timeout"
    assert open_sockets() == before


async def test_a_cancelled_dial_leaves_no_socket_open(server, client, eventually) -> None:
    before = open_sockets()
    for milliseconds in range(12):
        with trio.move_on_after(milliseconds / 1000):
            await dial(client, host_addresses(server)[0])
        for connection in client.get_network().get_connections():
            await connection.close()
    await eventually(lambda: server.swarm.inbound_connections == 0)
    await eventually(lambda: open_sockets() == before)


async def test_no_two_peers_at_one_time_is_too_many(server) -> None:
    async with (
        open_host(new_identity(), limits=HostLimits(max_connections=1, max_inbound_connections=1)) as host,
        open_host(new_identity(), [LOOPBACK]) as other,
    ):
        await dial(host, host_addresses(server)[0])
        assert (await refusal(host, host_addresses(other)[0])).code == "busy"


async def test_a_peer_that_moved_is_found_at_its_new_address(client, eventually) -> None:
    identity = new_identity()
    async with open_host(identity, [LOOPBACK]) as host:
        old = host_addresses(host)[0]
        await dial(client, old)
    await eventually(lambda: not client.get_connected_peers())
    # The library would now refuse the peer for a minute.
    assert (await refusal(client, old)).code == "refused"
    client.get_peerstore().add_addr(ID.from_string(identity.peer_id), Multiaddr(old.partition("/p2p/")[0]), 1000)
    # Otherwise the peer itself would report its address a moment later.
    client._schedule_identify = lambda peer_id, *, reason: None
    async with open_host(identity, [LOOPBACK]) as host:
        assert host_addresses(host)[0] != old
        assert await dial(client, host_addresses(host)[0]) == identity.peer_id
        async with await open_stream(client, identity.peer_id, [PING]) as stream:
            await stream.send_all(bytes(32))
            assert await stream.receive_some() == bytes(32)
        known = [str(address) for address in client.get_peerstore().addrs(host.get_id())]
        assert known
        assert all(address.startswith(str(host.get_transport_addrs()[0])) for address in known)


async def test_a_dead_connection_is_not_taken_for_a_living_one(eventually) -> None:
    identity = new_identity()
    limits = HostLimits(ping_timeout=0.2)
    async with open_host(identity, [LOOPBACK]) as host, open_host(new_identity(), limits=limits) as visitor:
        await dial(visitor, host_addresses(host)[0])
        (dead,) = visitor.get_network().get_connections()
        (seen_there,) = await connections_of(host, eventually)
        # Identify runs in both directions; after it nothing is sent.
        for end, other in ((visitor, host), (host, visitor)):
            await eventually(lambda end=end, other=other: other.get_id() in end._identified_peers)
        await eventually(lambda: not dead.muxed_conn.streams and not seen_there.muxed_conn.streams)
        # It accepts data and sends nothing back, like a stopped machine.
        dead.muxed_conn.secured_conn.write = swallow
        await dial(visitor, host_addresses(host)[0])
        assert dead.is_closed
        async with await open_stream(visitor, identity.peer_id, [PING]) as stream:
            await stream.send_all(bytes(32))
            assert await stream.receive_some() == bytes(32)


async def connections_of(host, eventually):
    await eventually(host.get_network().get_connections)
    return host.get_network().get_connections()


async def swallow(data: bytes) -> None:
    await trio.lowlevel.checkpoint()


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "bad_address"),
        ("nonsense", "bad_address"),
        ("/ip4/256.0.0.1/tcp/1/p2p/" + SOMEBODY, "bad_address"),
        ("/ip4/127.0.0.1/tcp/70000/p2p/" + SOMEBODY, "bad_address"),
        ("/ip4/127.0.0.1/tcp/1/p2p/nonsense", "bad_address"),
        ("/ip4/127.0.0.1/tcp/4001", "no_peer_id"),
        ("/p2p/" + SOMEBODY, "unsupported_address"),
        ("/ip4/127.0.0.1/udp/4001/quic-v1/p2p/" + SOMEBODY, "unsupported_address"),
        ("/ip4/127.0.0.1/tcp/1/ws/p2p/" + SOMEBODY, "unsupported_address"),
    ],
)
async def test_what_nobody_can_dial_is_refused_at_once(client, text: str, code: str) -> None:
    with pytest.raises(AddressError) as caught:
        await dial(client, text)
    assert caught.value.code == code


# Streams


async def test_the_first_common_protocol_is_chosen(server, client) -> None:
    peer_id = await dial(client, host_addresses(server)[0])
    async with await open_stream(client, peer_id, ["/nobody/knows/me", PING]) as stream:
        assert stream.protocol == PING


async def test_a_stream_error_says_which(server, client, eventually) -> None:
    with pytest.raises(DialError) as caught:
        await open_stream(client, SOMEBODY, [PING])
    assert caught.value.code == "not_connected"
    peer_id = await dial(client, host_addresses(server)[0])
    with pytest.raises(DialError) as caught:
        await open_stream(client, peer_id, ["/nobody/knows/me"])
    assert caught.value.code == "protocol_not_supported"
    (connection,) = client.get_network().get_connections()
    await eventually(lambda: not connection.muxed_conn.streams)


async def test_a_peer_that_never_agrees_costs_the_deadline(server, client) -> None:
    peer_id = await dial(client, host_addresses(server)[0])
    server.get_network().set_stream_handler(hold)
    with pytest.raises(DialError) as caught:
        await open_stream(client, peer_id, [PING], deadline=0.2)
    assert caught.value.code == "timeout"


async def hold(stream) -> None:
    await trio.sleep_forever()


@pytest.mark.parametrize("answer", [b"\x05\xff\xfe\xfd\xfc\n", b"\x80\x80\x80\x80\x80", b"\x02no", b""])
async def test_garbage_instead_of_a_protocol_is_an_error_like_any_other(server, client, answer: bytes) -> None:
    async def answer_garbage(stream) -> None:
        await stream.write(answer)
        await stream.close()

    peer_id = await dial(client, host_addresses(server)[0])
    server.get_network().set_stream_handler(answer_garbage)
    with pytest.raises(DialError) as caught:
        await open_stream(client, peer_id, [PING])
    assert caught.value.code == "stream_failed"


async def open_many(host, peer_id: str) -> None:
    for _ in range(6):
        await open_stream(host, peer_id, ["/hold/1.0.0"])


async def test_streams_to_one_peer_are_bounded(server) -> None:
    async def hold_open(stream, peer_id: str) -> None:
        await trio.sleep_forever()

    limits = HostLimits(max_outbound_streams=5)
    async with (
        attach_protocols(server, {"/hold/1.0.0": hold_open}, stop_timeout=0.1),
        open_host(new_identity(), limits=limits) as host,
    ):
        peer_id = await dial(host, host_addresses(server)[0])
        with pytest.raises(DialError) as caught:
            await open_many(host, peer_id)
        assert caught.value.code == "busy"
