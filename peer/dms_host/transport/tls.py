"""TLS 1.3 as libp2p has it (libp2p/specs, tls/tls.md), in place of the library's own.

What breaks in py-libp2p's `TLSTransport` (0.8.1):
- every handshake writes the key of its certificate, which is good for a hundred years, into a file in /tmp;
- so that the server side may see a certificate that nobody signed, it writes through a pointer that it finds in the
  memory of Python's `SSLContext` with whatever libssl is installed: where Python has a libssl of its own (as the
  interpreters have that come without an operating system's package), that is another library's memory;
- ALPN is offered and not looked at, an unknown critical extension is passed over, weak hashes are accepted;
- an alert, or an error of the socket, is taken for the end of the stream;
- js-libp2p refuses its certificate, of whose extensions the one that counts is not the first.
Measure: `TLSTransport` here keeps keys in memory, lets pyOpenSSL (which brings its own libssl) do TLS, and looks at the
certificate itself, with the library's check of the signatures.
Upstream: no upstream report found (November 2026).

Rules:
1. A connection exists only when the other side has proved that it has the key of its peer id, also the dialing side.
2. A stranger is read from until MAX_HANDSHAKE bytes; how long that may take is the upgrader's to say.
3. A cancelled read has taken nothing. Nothing is written while reading.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NoReturn

from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.oid import NameOID
from libp2p.abc import IRawConnection, ISecureConn, ISecureTransport
from libp2p.crypto.keys import KeyPair, PublicKey
from libp2p.custom_types import TProtocol
from libp2p.io.abc import EncryptedMsgReadWriter
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.peer.id import ID
from libp2p.security.noise.exceptions import PeerIDMismatchesPubkey
from libp2p.security.secure_session import SecureSession
from libp2p.security.tls.certificate import (
    LIBP2P_EXTENSION_OID,
    generate_certificate,
    verify_certificate_chain,
)
from libp2p.security.tls.exceptions import TLSHandshakeFailure
from OpenSSL import SSL

__all__ = ["TLS", "TLSTransport"]

TLS: Final = TProtocol("/tls/1.0.0")
ALPN: Final = b"libp2p"
# Bytes. What a peer sends until it has proved who it is: some thousands.
MAX_HANDSHAKE: Final = 64 * 1024
READ_SIZE: Final = 64 * 1024
# The certificate is made anew at every start, and is good for whatever a peer may run.
VALIDITY: Final = timedelta(days=36_500)
CLOCKS_DIFFER: Final = timedelta(hours=1)
# Critical extensions that say nothing against a certificate for this use.
UNDERSTOOD: Final = {
    LIBP2P_EXTENSION_OID,
    x509.OID_BASIC_CONSTRAINTS,
    x509.OID_KEY_USAGE,
    x509.OID_EXTENDED_KEY_USAGE,
}
# Bytes of a digest: shorter ones are not allowed in certificates.
SHORTEST_HASH: Final = 32


class TLSTransport(ISecureTransport):
    """Secures connections with TLS 1.3 and a certificate that the peer's key vouches for."""

    def __init__(self, key_pair: KeyPair) -> None:
        self._private_key = key_pair.private_key
        self._peer_id = ID.from_pubkey(key_pair.public_key)
        self._context = _context(key_pair)

    async def secure_inbound(self, conn: IRawConnection) -> ISecureConn:
        """Shake hands as the listening side. Raises TLSHandshakeFailure. Cancelled, the connection is to be closed."""
        connection = SSL.Connection(self._context, None)
        connection.set_accept_state()
        await _shake_hands(connection, conn)
        return self._session(connection, conn, _proven_key(connection, leaf_in_chain=False), is_initiator=False)

    async def secure_outbound(self, conn: IRawConnection, peer_id: ID) -> ISecureConn:
        """The same as the dialing side; raises PeerIDMismatchesPubkey where another peer answers."""
        connection = SSL.Connection(self._context, None)
        connection.set_connect_state()
        await _shake_hands(connection, conn)
        key = _proven_key(connection, leaf_in_chain=True)
        if ID.from_pubkey(key) != peer_id:
            raise PeerIDMismatchesPubkey(f"{ID.from_pubkey(key)} answers in the place of {peer_id}")
        return self._session(connection, conn, key, is_initiator=True)

    def _session(
        self, connection: SSL.Connection, conn: IRawConnection, key: PublicKey, *, is_initiator: bool
    ) -> ISecureConn:
        return SecureSession(
            local_peer=self._peer_id,
            local_private_key=self._private_key,
            remote_peer=ID.from_pubkey(key),
            remote_permanent_pubkey=key,
            is_initiator=is_initiator,
            conn=_Channel(connection, conn),
        )


def _context(key_pair: KeyPair) -> SSL.Context:
    certificate, key = generate_certificate(key_pair.private_key, _template())
    context = SSL.Context(SSL.TLS_METHOD)
    context.set_min_proto_version(SSL.TLS1_3_VERSION)
    context.use_certificate(x509.load_pem_x509_certificate(certificate.encode()))
    private_key: Any = load_pem_private_key(key.encode(), password=None)
    context.use_privatekey(private_key)
    # A session that is resumed shows no certificate.
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    context.set_options(SSL.OP_NO_TICKET)
    # Both sides have to show one; what it is worth is found out once the handshake has shown that its key is theirs.
    context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, lambda *_: True)
    context.set_alpn_protos([ALPN])
    context.set_alpn_select_callback(_choose_protocol)
    return context


def _template() -> x509.CertificateBuilder:
    # Without the library's other extensions: js-libp2p looks at the first one alone.
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "libp2p")])
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCKS_DIFFER)
        .not_valid_after(now + VALIDITY)
    )


def _choose_protocol(connection: SSL.Connection, offered: Sequence[bytes]) -> Any:
    return ALPN if ALPN in offered else SSL.NO_OVERLAPPING_PROTOCOLS


# The handshake


async def _shake_hands(connection: SSL.Connection, conn: IRawConnection) -> None:
    received = 0
    while True:
        try:
            connection.do_handshake()
        except SSL.WantReadError:
            await _flush(connection, conn)
            data = await conn.read(READ_SIZE)
            received += len(data)
            if not data or received > MAX_HANDSHAKE:
                _fail("the other side hung up" if not data else f"more than {MAX_HANDSHAKE} bytes")
            connection.bio_write(data)
        except SSL.Error as error:
            # Says to the other side what is wrong, if it still listens.
            with suppress(Exception):
                await _flush(connection, conn)
            _fail(_reason(error))
        else:
            await _flush(connection, conn)
            return


def _proven_key(connection: SSL.Connection, *, leaf_in_chain: bool) -> PublicKey:
    if connection.get_alpn_proto_negotiated() != ALPN:
        _fail("no ALPN")
    certificate = connection.get_peer_certificate(as_cryptography=True)
    chain = connection.get_peer_cert_chain(as_cryptography=True) or []
    if certificate is None or len(chain) != leaf_in_chain:
        _fail(f"{len(chain) + (not leaf_in_chain)} certificates instead of one")
    try:
        _check_form(certificate)
        return verify_certificate_chain([certificate])
    except Exception as error:
        # What is wrong with a stranger's certificate has as many types of error as libraries that look at it.
        raise TLSHandshakeFailure(f"a certificate that proves nothing: {error!r}") from error


def _check_form(certificate: x509.Certificate) -> None:
    unknown = [one.oid for one in certificate.extensions if one.critical and one.oid not in UNDERSTOOD]
    if unknown:
        raise ValueError(f"an unknown critical extension: {unknown[0].dotted_string}")
    algorithm = certificate.signature_hash_algorithm
    if algorithm is not None and algorithm.digest_size < SHORTEST_HASH:
        raise ValueError(f"signed over {algorithm.name}")


def _fail(reason: str) -> NoReturn:
    raise TLSHandshakeFailure(f"no TLS: {reason}")


def _reason(error: SSL.Error) -> str:
    # A list of (library, function, reason) tuples where OpenSSL says anything.
    return str(error)[:200] or type(error).__name__


# After it


async def _flush(connection: SSL.Connection, conn: IRawConnection) -> None:
    parts = []
    with suppress(SSL.WantReadError):
        while True:
            parts.append(connection.bio_read(READ_SIZE))
    if parts:
        await conn.write(b"".join(parts))


class _Channel(EncryptedMsgReadWriter):
    """What a secured connection reads and writes through; a message is any piece of the stream."""

    def __init__(self, connection: SSL.Connection, conn: IRawConnection) -> None:
        super().__init__(conn)
        self._connection = connection
        self._raw = conn

    async def write_msg(self, msg: bytes) -> None:
        """Send all of `msg`. Cancelled, it leaves the connection unusable. Raises ConnectionClosedError."""
        left = memoryview(msg)
        try:
            while left:
                left = left[self._connection.send(left) :]
        except SSL.Error as error:
            raise ConnectionClosedError(f"TLS: {_reason(error)}", transport="tcp") from error
        await _flush(self._connection, self._raw)

    async def read_msg(self) -> bytes:
        """What has arrived, none of it at the end. Cancelled, it has taken nothing. Raises ConnectionClosedError."""
        while True:
            try:
                return self._connection.recv(READ_SIZE)
            except SSL.WantReadError:
                pass
            except SSL.ZeroReturnError:
                return b""
            except SSL.Error as error:
                raise ConnectionClosedError(f"TLS: {_reason(error)}", transport="tcp") from error
            data = await self._raw.read(READ_SIZE)
            if not data:
                return b""
            self._connection.bio_write(data)

    async def close(self) -> None:
        """Close the socket."""
        await self._raw.close()

    def encrypt(self, data: bytes) -> bytes:
        """Not a thing of its own in TLS."""
        raise NotImplementedError

    def decrypt(self, data: bytes) -> bytes:
        """Not a thing of its own in TLS."""
        raise NotImplementedError
