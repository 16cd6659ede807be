"""Reaching a peer at an address, and opening streams to it.

What breaks with `host.connect`: a peer that moved is looked for at its old address first, and a negative cache then
refuses the new one for a minute; a listener that says nothing costs two minutes (four attempts of thirty seconds); a
cancelled dial leaves its socket open; a connection that is dead but not yet noticed is taken for a living one.
Measure: `dial` opens the socket itself, to the address it was given, once, within a deadline, and closes it whatever
happens; a connection that exists is asked for a sign of life first.
Upstream: no upstream report found (November 2026).
"""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Protocol, cast
from weakref import WeakKeyDictionary

import trio
from libp2p.abc import IHost, INetConn, INetStream, IRawConnection
from libp2p.custom_types import TProtocol
from libp2p.io.trio import TrioTCPStream
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.network.swarm import Swarm
from libp2p.peer.id import ID
from libp2p.protocol_muxer.exceptions import MultiselectClientError, ProtocolNotSupportedError
from libp2p.protocol_muxer.multiselect_client import MultiselectClient
from libp2p.security.noise.exceptions import PeerIDMismatchesPubkey

from ..errors import AddressError, DialError
from ..shields import shielded
from ..streams import PeerStream, reset_stream
from .addresses import PeerAddress, parse_peer_address
from .limits import HostLimits
from .multistream import BoundedCommunicator
from .yamux import BoundedYamux

__all__ = ["dial", "open_stream"]

# Seconds that an address of a peer is remembered for.
ADDRESS_TTL = 3600
# Of a name, as many addresses are tried, one after the other.
MAX_RESOLVED = 4
FAMILIES = {"dns": socket.AF_UNSPEC, "dns4": socket.AF_INET, "dns6": socket.AF_INET6}


class _Upgrades(Protocol):
    """The part of BasicHost that IHost does not name."""

    async def upgrade_outbound_connection(self, raw_conn: IRawConnection, peer_id: ID) -> INetConn: ...


# Per host and peer, the lock of the dial under way and how many hold or wait for it.
_dials: WeakKeyDictionary[IHost, dict[ID, tuple[trio.Lock, int]]] = WeakKeyDictionary()


async def dial(host: IHost, address: str, deadline: float = 15.0) -> str:
    """Connect to the peer at `address`, a multiaddr that ends in /p2p/PEER_ID, and return its peer id.

    Takes `deadline` seconds at most. A living connection to that peer is used as it is, wherever it leads. Raises
    AddressError for an address that nobody could dial, DialError when the peer is not reached. May be cancelled.
    """
    target = parse_peer_address(address)
    if target.peer_id == host.get_id():
        raise DialError("self_dial", address, f"{address} is this peer itself", "give the address of another peer")
    with trio.move_on_after(deadline):
        async with _one_dial(host, target.peer_id):
            if not await _has_living_connection(host, target.peer_id, deadline):
                await _connect(host, target)
            return target.peer_id.to_base58()
    raise DialError(
        "timeout",
        address,
        f"{address} did not answer within {deadline:g} seconds",
        "check that the peer runs and that no firewall is in between",
    )


@asynccontextmanager
async def _one_dial(host: IHost, peer_id: ID) -> AsyncIterator[None]:
    # Two at once would make two connections where one is wanted.
    locks = _dials.setdefault(host, {})
    lock, users = locks.get(peer_id, (trio.Lock(), 0))
    locks[peer_id] = (lock, users + 1)
    try:
        async with lock:
            yield
    finally:
        lock, users = locks[peer_id]
        if users == 1:
            del locks[peer_id]
        else:
            locks[peer_id] = (lock, users - 1)


def _open_connections(host: IHost, peer_id: ID) -> list[INetConn]:
    # The newest first: it is the one that the peer itself believes in.
    return [conn for conn in reversed(host.get_network().get_connections(peer_id)) if not conn.is_closed]


async def _has_living_connection(host: IHost, peer_id: ID, deadline: float) -> bool:
    for connection in _open_connections(host, peer_id):
        muxed = connection.muxed_conn
        if not isinstance(muxed, BoundedYamux):
            return True
        if await muxed.is_responsive(min(muxed.limits.ping_timeout, deadline / 2)):
            return True
        with shielded(muxed.limits.close_timeout):
            await connection.close()
    return False


async def _connect(host: IHost, target: PeerAddress) -> None:
    raw = await _open_socket(target)
    try:
        await cast(_Upgrades, host).upgrade_outbound_connection(raw, target.peer_id)
    except BaseException as error:
        with trio.CancelScope(shield=True):
            # Closing is immediate; what it awaits is only a checkpoint.
            await raw.close()
        if isinstance(error, Exception):
            raise _handshake_failed(target, error) from error
        raise
    _remember(host, target)


async def _open_socket(target: PeerAddress) -> IRawConnection:
    try:
        for ip in (addresses := await _resolve(target)):
            try:
                stream = await trio.open_tcp_stream(ip, target.port)
                return RawConnection(TrioTCPStream(stream), True)
            except OSError:
                if ip == addresses[-1]:
                    raise
    except OSError as error:
        raise _unreachable(target, error) from error
    raise AddressError("bad_address", target.text, f"{target.host} has no address", "check the name")


async def _resolve(target: PeerAddress) -> list[str]:
    if target.kind not in FAMILIES:
        return [target.host]
    found = await trio.socket.getaddrinfo(
        target.host, target.port, family=FAMILIES[target.kind], type=socket.SOCK_STREAM
    )
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))[:MAX_RESOLVED]


def _remember(host: IHost, target: PeerAddress) -> None:
    peerstore = host.get_peerstore()
    # Only where it answered: the library tries old addresses first.
    peerstore.clear_addrs(target.peer_id)
    peerstore.add_addr(target.peer_id, target.transport, ADDRESS_TTL)
    network = host.get_network()
    if isinstance(network, Swarm):
        network.unblock_peer(target.peer_id)


def _unreachable(target: PeerAddress, error: OSError) -> DialError:
    cause: BaseException = error
    while isinstance(cause.__cause__, BaseExceptionGroup | OSError):
        cause = cause.__cause__
    if isinstance(cause, BaseExceptionGroup):
        cause = cause.exceptions[0]
    if isinstance(cause, ConnectionRefusedError):
        return DialError(
            "refused",
            target.text,
            f"nobody listens at {target.text}",
            "check that the peer runs, and that the address and port are its own",
        )
    reason = getattr(cause, "strerror", None) or str(cause)
    return DialError(
        "unreachable", target.text, f"cannot reach {target.text}: {reason}", "check the address and the network"
    )


def _handshake_failed(target: PeerAddress, error: BaseException) -> DialError:
    causes = [error]
    while causes[-1].__cause__ is not None:
        causes.append(causes[-1].__cause__)
    if any(isinstance(cause, PeerIDMismatchesPubkey) for cause in causes):
        return DialError(
            "wrong_peer",
            target.text,
            f"another peer answers at {target.text}",
            "ask the peer for its current address",
        )
    if "limit reached" in str(error):
        return DialError("busy", target.text, "this host has all its connections in use", "try again later")
    reason = type(causes[-1]).__name__
    return DialError(
        "handshake_failed",
        target.text,
        f"{target.text} does not shake hands over Noise and Yamux ({reason})",
        "check that a libp2p peer listens there",
    )


async def open_stream(host: IHost, peer_id: str, protocols: Sequence[str], deadline: float = 10.0) -> PeerStream:
    """Open a stream on the existing connection to `peer_id`, with the first of `protocols` that the peer speaks.

    Takes `deadline` seconds at most (and what a frame already on its way takes). Raises DialError: `not_connected`,
    `protocol_not_supported`, `busy`, `timeout`, `stream_failed`. Cancelled, it leaves no stream behind.
    """
    connections = _open_connections(host, ID.from_string(peer_id))
    if not connections:
        raise DialError("not_connected", peer_id, f"there is no connection to {peer_id}", "dial its address first")
    with trio.move_on_after(deadline):
        stream = await _open_raw_stream(connections[0], peer_id, deadline)
        try:
            await _negotiate(stream, protocols, peer_id, getattr(host, "limits", HostLimits()))
        except BaseException:
            await reset_stream(stream, deadline)
            raise
        return PeerStream(stream)
    raise DialError(
        "timeout", peer_id, f"{peer_id} agreed on no protocol within {deadline:g} seconds", "try again later"
    )


async def _open_raw_stream(connection: INetConn, peer_id: str, deadline: float) -> INetStream:
    try:
        # Shielded: between opening the stream and owning it, the library has checkpoints that would lose it.
        with shielded(deadline):
            return await connection.new_stream()
    except Exception as error:
        code = "busy" if "are open" in str(error) else "stream_failed"
        raise DialError(code, peer_id, f"cannot open a stream to {peer_id}: {error}", "try again later") from error
    raise DialError("timeout", peer_id, f"{peer_id} takes no new stream", "try again later")


async def _negotiate(stream: INetStream, protocols: Sequence[str], peer_id: str, limits: HostLimits) -> None:
    client, communicator = MultiselectClient(), BoundedCommunicator(stream, limits)
    try:
        await client.handshake(communicator)
        for protocol in map(TProtocol, protocols):
            try:
                stream.set_protocol(await client.try_select(communicator, protocol))
                return
            except ProtocolNotSupportedError:
                continue
    except MultiselectClientError as error:
        raise DialError("stream_failed", peer_id, f"{peer_id} ended the stream at once", "try again later") from error
    raise DialError(
        "protocol_not_supported",
        peer_id,
        f"{peer_id} speaks none of {', '.join(protocols)}",
        "it may be another kind of peer, or an older version",
    )
