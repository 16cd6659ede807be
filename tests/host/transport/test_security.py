"""What a stranger may try before, during and after the handshake, over real sockets."""

import random

import pytest
import trio
from libp2p.io.exceptions import IOException
from libp2p.io.trio import TrioTCPStream
from libp2p.io.utils import read_exactly
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.peer.peerinfo import info_from_p2p_addr
from libp2p.security.insecure.transport import PLAINTEXT_PROTOCOL_ID, InsecureTransport
from libp2p.transport.exceptions import SecurityUpgradeFailure
from libp2p.transport.upgrader import TransportUpgrader
from multiaddr import Multiaddr

from dms_host import HostLimits, attach_protocols, host_addresses, open_host
from dms_host.addresses import parse_peer_address
from dms_host.keys.identity import new_identity
from dms_host.limits import STREAM_WINDOW


async def answer_to(connection, protocol: bytes) -> bytes:
    """The answer of multistream-select to a proposal; b"" if the other side closes the connection."""
    for line in (b"/multistream/1.0.0\n", protocol + b"\n"):
        await connection.write(bytes([len(line)]) + line)
    for _ in range(2):
        (length,) = await read_exactly(connection, 1)
        answer = await read_exactly(connection, length)
    return answer.rstrip(b"\n")


@pytest.mark.parametrize("security", [b"/plaintext/2.0.0", b"/secio/1.0.0", b"/tls/1.0.0"])
async def test_only_noise_secures_a_connection(server, still_serves, security: bytes) -> None:
    target = parse_peer_address(host_addresses(server)[0])
    async with await trio.open_tcp_stream(target.host, target.port) as stream:
        stranger = TrioTCPStream(stream)
        assert await answer_to(stranger, security) == b"na"
        # According to libp2p/specs plaintext/README.md: "I am this key", which needs no answer.
        await stranger.write(b"\x04\x0a\x02me")
        assert server.get_connected_peers() == []
    await still_serves(server)


async def test_an_impostor_without_noise_gets_no_session(server) -> None:
    """The attack itself: another peer's public key, announced over plaintext by the library's own client."""
    victim = new_identity()
    target = parse_peer_address(host_addresses(server)[0])
    raw = RawConnection(TrioTCPStream(await trio.open_tcp_stream(target.host, target.port)), True)
    try:
        impostor = TransportUpgrader({PLAINTEXT_PROTOCOL_ID: InsecureTransport(victim.key_pair())}, {})
        with pytest.raises(SecurityUpgradeFailure):
            await impostor.upgrade_security(raw, True, target.peer_id)
    finally:
        await raw.close()
    assert server.get_connected_peers() == []


async def test_mplex_gets_no_session(server, noise_attacker, still_serves) -> None:
    async with noise_attacker(host_addresses(server)[0]) as secured:
        assert await answer_to(secured, b"/mplex/6.7.0") == b"na"
        assert server.get_connected_peers() == []
    await still_serves(server)


async def test_a_plain_libp2p_host_gets_a_session(server, foreign) -> None:
    await foreign.connect(info_from_p2p_addr(Multiaddr(host_addresses(server)[0])))
    assert server.get_connected_peers() == [foreign.get_id()]
    # The library does not close the sockets that it dialled when its host ends.
    await foreign.disconnect(server.get_id())


async def test_nothing_else_is_offered(server) -> None:
    upgrader = server.get_network().upgrader
    assert list(upgrader.security_multistream.transports) == ["/noise"]
    assert list(upgrader.muxer_multistream.transports) == ["/yamux/1.0.0"]


async def test_random_bytes_on_the_socket(server, still_serves, eventually) -> None:
    target = parse_peer_address(host_addresses(server)[0])
    for seed in range(20):
        stream = await trio.open_tcp_stream(target.host, target.port)
        await stream.send_all(random.Random(seed).randbytes(2000))
        with trio.move_on_after(0.05):
            await stream.receive_some()
        await stream.aclose()
    await eventually(lambda: server.swarm.inbound_connections == 0)
    await still_serves(server)


async def test_random_bytes_in_place_of_the_noise_handshake(server, still_serves, eventually) -> None:
    target = parse_peer_address(host_addresses(server)[0])
    for seed in range(20):
        stream = await trio.open_tcp_stream(target.host, target.port)
        await stream.send_all(b"\x13/multistream/1.0.0\n\x07/noise\n" + random.Random(seed).randbytes(2000))
        await stream.send_eof()
        async for _ in stream:
            pass
        await stream.aclose()
    await eventually(lambda: server.swarm.inbound_connections == 0)
    await still_serves(server)


async def test_random_bytes_after_noise(server, noise_attacker, still_serves, eventually) -> None:
    for seed in range(10):
        async with noise_attacker(host_addresses(server)[0]) as secured:
            await secured.write(random.Random(seed).randbytes(2000))
    await eventually(lambda: server.swarm.inbound_connections == 0)
    await still_serves(server)


async def test_random_bytes_that_noise_cannot_decrypt(server, frame_attacker, still_serves, eventually) -> None:
    async with frame_attacker(host_addresses(server)[0]) as frames:
        await frames.connection.conn.read_writer.write_msg(bytes(100))
        await frames.wait_dropped()
    await eventually(lambda: server.swarm.inbound_connections == 0)
    await still_serves(server)


@pytest.mark.parametrize(
    "garbage",
    [
        bytes(range(256)),
        b"\xff" * 100,
        # The beginning of a line of a gigabyte.
        b"\x80\x80\x80\x80\x04" + bytes(100_000),
        # A line that is not UTF-8, and one without its end.
        b"\x13/multistream/1.0.0\n\x05\xff\xfe\xfd\xfc\n",
        b"\x13/multistream/1.0.0\n\x05abcde",
        b"\x13/multistream/1.0.0\n\x01\n",
        b"\x13/multistream/1.0.0\n" + b"\x06/nope\n" * 1000,
        b"",
    ],
    ids=["all bytes", "endless varint", "a gigabyte", "no UTF-8", "no end", "no protocol", "a thousand", "nothing"],
)
async def test_garbage_where_a_protocol_is_negotiated(server, frame_attacker, still_serves, garbage) -> None:
    async with frame_attacker(host_addresses(server)[0]) as frames:
        await frames.send(frames.WINDOW_UPDATE, frames.SYN, 1)
        await frames.send_data(1, garbage, flags=frames.FIN)
        # The stream ends in one of the two ways, but its connection and its host do not.
        kinds = (frames.RST, frames.FIN)
        with trio.fail_after(5):
            while not ((frame := await frames.receive())[2] == 1 and frame[1] in kinds):
                pass
        await frames.send(frames.PING, frames.SYN, 0, 7)
        await frames.receive_until(frames.PING, frames.ACK, 0)
    await still_serves(server)


async def test_a_negotiation_line_is_refused_by_its_length(server, frame_attacker) -> None:
    async with frame_attacker(host_addresses(server)[0]) as frames:
        await frames.send(frames.WINDOW_UPDATE, frames.SYN, 1)
        # The announced line exceeds the limit, so its rest is not waited for.
        await frames.send_data(1, b"\x80\x80\x80\x80\x04")
        with trio.fail_after(5):
            await frames.receive_until(frames.WINDOW_UPDATE, frames.RST, 1)


async def test_a_negotiation_does_not_go_on_for_ever(server, frame_attacker) -> None:
    async with frame_attacker(host_addresses(server)[0]) as frames:
        await frames.send(frames.WINDOW_UPDATE, frames.SYN, 1)
        await frames.send_data(1, b"\x13/multistream/1.0.0\n" + 100 * b"\x06/nope\n")
        with trio.fail_after(5):
            await frames.receive_until(frames.WINDOW_UPDATE, frames.RST, 1)


async def test_a_stranger_that_says_nothing_is_shown_out(client, eventually) -> None:
    limits = HostLimits(handshake_timeout=0.2)
    async with open_host(new_identity(), ["/ip4/127.0.0.1/tcp/0"], limits) as host:
        target = parse_peer_address(host_addresses(host)[0])
        async with await trio.open_tcp_stream(target.host, target.port) as stream:
            with trio.fail_after(5):
                async for _ in stream:
                    pass
        await eventually(lambda: host.swarm.inbound_connections == 0)


async def test_unread_bytes_of_a_real_peer_are_bounded(server, frame_attacker, still_serves, eventually) -> None:
    reached = trio.Event()

    async def never_read(stream, peer_id: str) -> None:
        reached.set()
        await trio.sleep_forever()

    async with attach_protocols(server, {"/deaf/1.0.0": never_read}, stop_timeout=0):
        async with frame_attacker(host_addresses(server)[0]) as frames:
            await frames.send(frames.WINDOW_UPDATE, frames.SYN, 1)
            await frames.send_data(1, b"\x13/multistream/1.0.0\n\x0c/deaf/1.0.0\n")
            await reached.wait()
            (connection,) = server.get_network().get_connections()
            with pytest.raises(IOException):
                await flood(frames)
        await eventually(lambda: not server.get_connected_peers())
        assert connection.muxed_conn.unread_bytes <= STREAM_WINDOW
        await still_serves(server)


async def flood(frames) -> None:
    # Well-formed frames that continue beyond the end of the window.
    for _ in range(1000):
        await frames.send_data(1, bytes(64 * 1024))


async def test_many_open_streams_of_a_real_peer_are_bounded(server, frame_attacker, still_serves, eventually) -> None:
    async with frame_attacker(host_addresses(server)[0]) as frames:
        for stream_id in range(1, 1001, 2):
            await frames.send(frames.WINDOW_UPDATE, frames.SYN, stream_id)
        await frames.receive_until(frames.WINDOW_UPDATE, frames.RST, 999)
        (connection,) = server.get_network().get_connections()
        inbound = [stream for stream in connection.muxed_conn.streams.values() if not stream.is_initiator]
        assert len(inbound) <= server.limits.max_inbound_streams
        # One more of our own: identify.
        assert len(connection.get_streams()) <= server.limits.max_inbound_streams + 1
        await still_serves(server)
