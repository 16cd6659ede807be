"""TLS beside Noise: who gets a session, who gets none, and what a session withstands."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from libp2p import new_host
from libp2p.io.exceptions import IOException
from libp2p.io.trio import TrioTCPStream
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.peer.id import ID
from libp2p.security.exceptions import HandshakeFailure
from libp2p.security.tls.certificate import LIBP2P_CERT_PREFIX, LIBP2P_EXTENSION_OID, encode_signed_key
from libp2p.security.tls.transport import TLSTransport as LibraryTLS
from multiaddr import Multiaddr
from OpenSSL import SSL

from dms_host import HostLimits, attach_protocols, dial, host_addresses, open_host, open_stream
from dms_host.addresses import parse_peer_address
from dms_host.errors import DialError
from dms_host.keys.identity import Identity, new_identity
from dms_host.transport.tls import MAX_HANDSHAKE, TLS, TLSTransport

LOOPBACK = "/ip4/127.0.0.1/tcp/0"
PING = "/ipfs/ping/1.0.0"
# What a dialing side says before TLS begins, and how it goes on to say that it wants Yamux.
CHOOSES_TLS = b"\x13/multistream/1.0.0\n\x0b/tls/1.0.0\n"
CHOOSES_YAMUX = b"\x13/multistream/1.0.0\n\x0d/yamux/1.0.0\n"

NOW = datetime.datetime.now(datetime.UTC)
DAY = datetime.timedelta(days=1)


@pytest.fixture
async def tls_client():
    """A host of ours that secures with TLS alone."""
    async with open_host(new_identity()) as host:
        del host.swarm.upgrader.security_multistream.transports["/noise"]
        yield host


@asynccontextmanager
async def library_host():
    """A host of the library with the library's own TLS, and nothing else."""
    key_pair = new_identity().key_pair()
    host = new_host(key_pair=key_pair, sec_opt={TLS: LibraryTLS(key_pair)})
    async with host.run([Multiaddr(LOOPBACK)]):
        yield host


async def ping(host: Any, peer_id: str) -> None:
    with trio.fail_after(10):
        async with await open_stream(host, peer_id, [PING]) as stream:
            await stream.send_all(bytes(range(32)))
            assert await stream.receive_some() == bytes(range(32))


def security_of(host: Any) -> list[str]:
    return [one.muxed_conn.negotiated_security_protocol for one in host.swarm.get_connections()]


# Sessions


async def test_noise_comes_first_and_tls_is_there_for_who_has_no_noise(server, client, tls_client, eventually) -> None:
    for host, expected in ((client, "/noise"), (tls_client, "/tls/1.0.0")):
        await ping(host, await dial(host, host_addresses(server)[0]))
        assert security_of(host) == [expected]
    await eventually(lambda: sorted(security_of(server)) == ["/noise", "/tls/1.0.0"])
    assert set(map(str, server.get_connected_peers())) == {str(client.get_id()), str(tls_client.get_id())}


async def test_a_host_without_noise_is_reached_over_tls(client) -> None:
    async with library_host() as foreign:
        await ping(client, await dial(client, host_addresses(foreign)[0]))
        assert security_of(client) == ["/tls/1.0.0"]


async def test_a_host_without_noise_reaches_us(server) -> None:
    target = parse_peer_address(host_addresses(server)[0])
    async with library_host() as foreign:
        raw = RawConnection(TrioTCPStream(await trio.open_tcp_stream(target.host, target.port)), True)
        await foreign.upgrade_outbound_connection(raw, target.peer_id)
        await ping(foreign, target.peer_id.to_base58())
        assert server.get_connected_peers() == [foreign.get_id()]
        await foreign.disconnect(target.peer_id)


async def test_large_amounts_in_both_directions(server, tls_client) -> None:
    data = bytes(range(256)) * 8192

    async def echo(stream, peer_id: str) -> None:
        async for piece in stream:
            await stream.send_all(piece)

    async with attach_protocols(server, {"/echo/1.0.0": echo}):
        peer_id = await dial(tls_client, host_addresses(server)[0])
        stream = await open_stream(tls_client, peer_id, ["/echo/1.0.0"])
        received = bytearray()
        with trio.fail_after(20):
            async with stream, trio.open_nursery() as nursery:
                nursery.start_soon(stream.send_all, data)
                while len(received) < len(data):
                    received += await stream.receive_some()
    assert received == data


async def test_no_key_is_ever_in_a_file(server, monkeypatch: pytest.MonkeyPatch, tls_client) -> None:
    monkeypatch.setattr("tempfile.NamedTemporaryFile", lambda *_, **__: pytest.fail("a file"))
    monkeypatch.setattr("os.open", lambda *_, **__: pytest.fail("a file"))
    await dial(tls_client, host_addresses(server)[0])


# Certificates that prove nothing


def certificate(
    holder: Identity,
    *,
    signer: Identity | None = None,
    valid: tuple[int, int] = (-1, 1),
    extension: bool = True,
    broken: bool = False,
    critical: bool = False,
    weak: bool = False,
) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """A certificate for the peer id of `holder`, vouched for by `signer` (the holder itself), and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    public = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    vouched = (signer or holder).key_pair().private_key.sign(LIBP2P_CERT_PREFIX + public)
    name = x509.Name([])
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .serial_number(7)
        .public_key(key.public_key())
        .not_valid_before(NOW + valid[0] * DAY)
        .not_valid_after(NOW + valid[1] * DAY)
    )
    if extension:
        signed_key = encode_signed_key(holder.key_pair().public_key.serialize(), vouched)
        builder = builder.add_extension(x509.UnrecognizedExtension(LIBP2P_EXTENSION_OID, signed_key), critical=False)
    if critical:
        unknown = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"")
        builder = builder.add_extension(unknown, critical=True)
    signing = ec.generate_private_key(ec.SECP256R1()) if broken else key
    return builder.sign(signing, hashes.SHA224() if weak else hashes.SHA256()), key


def context(*certificates: tuple[x509.Certificate, ec.EllipticCurvePrivateKey], alpn: bytes = b"libp2p") -> SSL.Context:
    """What a stranger does TLS with: the first certificate and its key, and the others behind it."""
    made = SSL.Context(SSL.TLS_METHOD)
    made.set_verify(SSL.VERIFY_PEER, lambda *_: True)
    if certificates:
        made.use_certificate(certificates[0][0])
        made.use_privatekey(certificates[0][1])
    for more, _ in certificates[1:]:
        made.add_extra_chain_cert(more)
    if alpn:
        made.set_alpn_protos([alpn])
        made.set_alpn_select_callback(lambda connection, offered: alpn)
    return made


def tls_1_2(made: SSL.Context) -> SSL.Context:
    made.set_max_proto_version(SSL.TLS1_2_VERSION)
    return made


VICTIM = new_identity()
STRANGERS: dict[str, Callable[[Identity], SSL.Context]] = {
    "no certificate": lambda me: context(),
    "another's id": lambda me: context(certificate(VICTIM, signer=me)),
    "no extension": lambda me: context(certificate(me, extension=False)),
    "expired": lambda me: context(certificate(me, valid=(-2, -1))),
    "not valid yet": lambda me: context(certificate(me, valid=(1, 2))),
    "not signed by itself": lambda me: context(certificate(me, broken=True)),
    "an unknown critical extension": lambda me: context(certificate(me, critical=True)),
    "a weak hash": lambda me: context(certificate(me, weak=True)),
    "two certificates": lambda me: context(certificate(me), certificate(me)),
    "another protocol": lambda me: context(certificate(me), alpn=b"h2"),
    "no protocol": lambda me: context(certificate(me), alpn=b""),
    "TLS 1.2": lambda me: tls_1_2(context(certificate(me))),
}


async def converse(stream: trio.SocketStream, tls: SSL.Connection, say: bytes) -> bytes:
    """Shakes hands, says something, and gives what is answered until there is an answer or the end."""
    said, heard = False, b""
    while True:
        try:
            if not said:
                tls.do_handshake()
                tls.send(say)
                said = True
            heard += tls.recv(1 << 16)
            if heard.endswith(b"/yamux/1.0.0\n"):
                return heard
        except SSL.WantReadError:
            pass
        except SSL.Error:
            return heard
        with suppress(SSL.WantReadError):
            while True:
                await stream.send_all(tls.bio_read(1 << 16))
        data = await stream.receive_some()
        if not data:
            return heard
        tls.bio_write(data)


async def knock(server: Any, made: SSL.Context) -> bytes:
    """What a stranger who dials hears when it asks for a multiplexer."""
    target = parse_peer_address(host_addresses(server)[0])
    async with await trio.open_tcp_stream(target.host, target.port) as stream:
        await stream.send_all(CHOOSES_TLS)
        answer = b""
        while len(answer) < len(CHOOSES_TLS):
            answer += await stream.receive_some(len(CHOOSES_TLS) - len(answer))
        assert answer == CHOOSES_TLS
        tls = SSL.Connection(made, None)
        tls.set_connect_state()
        with trio.fail_after(5), suppress(trio.BrokenResourceError):
            return await converse(stream, tls, CHOOSES_YAMUX)
        return b""


async def test_a_stranger_that_proves_itself_gets_a_session(server) -> None:
    assert await knock(server, context(certificate(new_identity()))) == CHOOSES_YAMUX


@pytest.mark.parametrize("kind", STRANGERS)
async def test_a_stranger_that_proves_nothing_gets_no_session(server, client, eventually, kind: str) -> None:
    assert await knock(server, STRANGERS[kind](new_identity())) == b""
    await eventually(lambda: server.swarm.inbound_connections == 0)
    assert server.get_connected_peers() == []
    await ping(client, await dial(client, host_addresses(server)[0]))


@asynccontextmanager
async def listening(made: SSL.Context):
    """Somebody who listens and takes nothing but TLS: the address without its peer id."""

    async def serve(stream: trio.SocketStream) -> None:
        # Whoever dials says "multistream, Noise, TLS" in turn.
        with suppress(trio.BrokenResourceError):
            await stream.send_all(b"\x13/multistream/1.0.0\n")
            heard = b""
            while not heard.endswith(b"/noise\n"):
                heard += await stream.receive_some()
            await stream.send_all(b"\x03na\n")
            while not heard.endswith(b"/tls/1.0.0\n"):
                heard += await stream.receive_some()
            await stream.send_all(b"\x0b/tls/1.0.0\n")
            tls = SSL.Connection(made, None)
            tls.set_accept_state()
            await converse(stream, tls, CHOOSES_YAMUX)

    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, serve, [listener])
        yield f"/ip4/127.0.0.1/tcp/{listener.socket.getsockname()[1]}"
        nursery.cancel_scope.cancel()


# A server may leave ALPN out or show certificates of any kind; what it cannot do is listen without one.
@pytest.mark.parametrize("kind", [kind for kind in STRANGERS if kind != "another's id"])
async def test_who_listens_and_proves_nothing_is_not_believed(client, kind: str) -> None:
    identity = new_identity()
    async with listening(STRANGERS[kind](identity)) as address:
        with pytest.raises(DialError) as caught:
            await dial(client, f"{address}/p2p/{identity.peer_id}", deadline=5)
    assert caught.value.code == "handshake_failed"
    assert client.get_connected_peers() == []


async def test_who_listens_in_the_place_of_another_is_not_believed(client) -> None:
    me = new_identity()
    async with listening(context(certificate(me))) as address:
        with pytest.raises(DialError) as caught:
            await dial(client, f"{address}/p2p/{VICTIM.peer_id}", deadline=5)
        assert caught.value.code == "wrong_peer"
    async with listening(context(certificate(VICTIM, signer=me))) as address:
        with pytest.raises(DialError) as caught:
            await dial(client, f"{address}/p2p/{VICTIM.peer_id}", deadline=5)
        assert caught.value.code == "handshake_failed"
    assert client.get_connected_peers() == []


# Bytes that are no TLS


@pytest.mark.parametrize("garbage", [bytes(2000), b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\xff\xff" + bytes(70_000)])
async def test_garbage_instead_of_a_handshake(server, client, eventually, garbage: bytes) -> None:
    target = parse_peer_address(host_addresses(server)[0])
    async with await trio.open_tcp_stream(target.host, target.port) as stream:
        with suppress(trio.BrokenResourceError), trio.fail_after(5):
            await stream.send_all(CHOOSES_TLS + garbage)
            async for _ in stream:
                pass
    await eventually(lambda: server.swarm.inbound_connections == 0)
    await ping(client, await dial(client, host_addresses(server)[0]))


class Endless:
    """A connection whose other side sends parts of one message and never the last."""

    def __init__(self) -> None:
        self.sent = 0

    async def read(self, n: int) -> bytes:
        await trio.lowlevel.checkpoint()
        self.sent += n
        # Records of a handshake whose first message claims as much as OpenSSL would wait for.
        begin = b"\x01\x01\x86\xa0" if self.sent == n else bytes(4)
        return b"\x16\x03\x01\x40\x00" + begin + bytes(16380)

    async def write(self, data: bytes) -> None:
        await trio.lowlevel.checkpoint()


async def test_a_handshake_has_a_bound() -> None:
    endless = Endless()
    with pytest.raises(HandshakeFailure, match=f"more than {MAX_HANDSHAKE} bytes"):
        await TLSTransport(new_identity().key_pair()).secure_inbound(endless)


async def test_a_stranger_that_begins_tls_and_says_nothing_is_shown_out(eventually) -> None:
    async with open_host(new_identity(), [LOOPBACK], HostLimits(handshake_timeout=0.2)) as host:
        target = parse_peer_address(host_addresses(host)[0])
        async with await trio.open_tcp_stream(target.host, target.port) as stream:
            await stream.send_all(CHOOSES_TLS)
            with trio.fail_after(5):
                async for _ in stream:
                    pass
        await eventually(lambda: host.swarm.inbound_connections == 0)


# After the handshake


class Pipe:
    """One end of a connection in memory."""

    def __init__(self, stream: trio.StapledStream) -> None:
        self.stream = stream

    async def read(self, n: int | None = None) -> bytes:
        return bytes(await self.stream.receive_some(n))

    async def write(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def close(self) -> None:
        await self.stream.aclose()


@pytest.fixture
async def sessions():
    """Both ends of a session in memory, and the pipes below them."""
    ours, theirs = map(Pipe, trio.testing.memory_stream_pair())
    dialing, listening_identity = new_identity(), new_identity()
    secured = {}

    async def secure(name: str, work: Callable[..., Any], *arguments: Any) -> None:
        secured[name] = await work(*arguments)

    async with trio.open_nursery() as nursery:
        out = TLSTransport(dialing.key_pair()).secure_outbound
        nursery.start_soon(secure, "out", out, ours, ID.from_string(listening_identity.peer_id))
        nursery.start_soon(secure, "in", TLSTransport(listening_identity.key_pair()).secure_inbound, theirs)
    assert secured["in"].get_remote_peer().to_base58() == dialing.peer_id
    assert secured["out"].get_remote_peer().to_base58() == listening_identity.peer_id
    return secured["out"], secured["in"], ours, theirs


async def test_the_extension_that_counts_is_the_only_one(sessions) -> None:
    _, theirs, *_ = sessions
    shown = theirs.conn._connection.get_peer_certificate(as_cryptography=True)
    # js-libp2p looks at the first one alone.
    assert [extension.oid for extension in shown.extensions] == [LIBP2P_EXTENSION_OID]


async def test_a_cancelled_read_has_taken_nothing(sessions) -> None:
    ours, theirs, *_ = sessions
    for _ in range(3):
        with trio.move_on_after(0.001) as scope:
            await theirs.read(5)
        assert scope.cancelled_caught
    await ours.write(b"hello")
    assert await theirs.read(5) == b"hello"


async def test_changed_bytes_end_the_connection(sessions) -> None:
    ours, theirs, pipe, _ = sessions
    await ours.write(b"hello")
    await pipe.write(b"\x17\x03\x03\x00\x20" + bytes(32))
    assert await theirs.read(5) == b"hello"
    with pytest.raises(IOException):
        await theirs.read(5)


async def test_the_end_of_the_socket_is_the_end(sessions) -> None:
    ours, theirs, *_ = sessions
    await ours.close()
    with pytest.raises(IOException):
        await theirs.read(5)
