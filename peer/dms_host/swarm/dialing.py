"""Dials a peer at an address, or at the first of several addresses that answers.

What breaks with `host.connect`:
- A peer with a new address is dialled at its old address first; a negative cache then refuses the new one for a minute.
- A silent listener costs two minutes (four attempts of thirty seconds).
- A connection that is dead but not yet noticed is used.
Measure: `dial` opens one socket to the given address within a deadline, and always closes it. An existing connection is
pinged first. `dial_any` races several addresses. Each address has a head start before the next one, so that an address
that swallows packets delays none of the others; addresses behind relays come last.
Upstream: no upstream report found (November 2026).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, cast
from weakref import WeakKeyDictionary

import trio
from libp2p.abc import IHost, INetConn, IRawConnection
from libp2p.network.swarm import Swarm
from libp2p.peer.id import ID
from libp2p.security.noise.exceptions import PeerIDMismatchesPubkey

from ..addresses import PeerAddress, parse_peer_address
from ..errors import DialError
from ..relay.circuits import request_circuit
from ..relay.messages import HOP
from ..streams.outbound import living_connections, open_stream
from ..tasks import shielded
from ..transport.dial import open_socket
from ..transport.pnet import OtherNetworkError
from ..yamux.connection import BoundedYamux
from .connection_gater import ConnectionGater
from .peer_locks import PeerLocks

__all__ = ["dial", "dial_any", "has_living_connection"]

# Seconds for which an address of a peer is remembered.
ADDRESS_TTL = 3600
# Seconds after which relays are tried too if the direct addresses do not answer.
RELAY_PATIENCE = 2.0
# Seconds for closing a connection that is not needed any more.
CLOSE_TIMEOUT = 2.0


class _Upgrades(Protocol):
    """The part of BasicHost that IHost does not name."""

    async def upgrade_outbound_connection(self, raw_conn: IRawConnection, peer_id: ID) -> INetConn: ...


# Two dials of one peer at the same time would make two connections instead of one.
_dials: WeakKeyDictionary[IHost, PeerLocks] = WeakKeyDictionary()


async def dial(host: IHost, address: str, deadline: float = 15.0) -> str:
    """Connect to the peer at `address`, a multiaddr that ends in /p2p/PEER_ID, and return its peer id.

    Takes at most `deadline` seconds. A living connection to that peer is used, whatever its address is. Raises
    AddressError if the address cannot be dialled, DialError if the peer is not reached. May be cancelled.
    """
    target = parse_peer_address(address)
    await dial_any(host, [target], deadline=deadline, attempt_deadline=deadline)
    return target.peer_id.to_base58()


async def dial_any(
    host: IHost,
    targets: Sequence[PeerAddress],
    *,
    deadline: float = 15.0,
    attempt_deadline: float = 8.0,
    head_start: float = 0.25,
) -> PeerAddress | None:
    """Connect to a peer at the first of its addresses that answers, and return that address.

    Returns None if a living connection is used instead. Takes at most `deadline` seconds; each address may take
    `attempt_deadline`. The next address is tried when one has failed or after `head_start` seconds. Relayed addresses
    are tried when all others have failed or after RELAY_PATIENCE. Raises the DialError of the first address. May be
    cancelled.
    """
    first = targets[0]
    if first.peer_id == host.get_id():
        raise DialError(
            f"{first.text} is this peer itself",
            code="self_dial",
            address=first.text,
            hint="give another peer's address",
        )
    _check_gate(host, first)
    with trio.move_on_after(deadline):
        async with _dials.setdefault(host, PeerLocks()).held(first.peer_id.to_base58()):
            if await has_living_connection(host, first.peer_id, deadline):
                return None
            return await _Race(host, attempt_deadline, head_start).run(targets)
    raise _timeout(first, deadline)


def gate_of(host: IHost) -> ConnectionGater:
    """The lists of a host; empty lists for a plain host."""
    gate: ConnectionGater = getattr(host, "gate", ConnectionGater())
    return gate


def _check_gate(host: IHost, target: PeerAddress) -> None:
    peer_id = target.peer_id.to_base58()
    if not gate_of(host).allows_peer(peer_id):
        raise DialError(
            f"the lists of this host do not allow {peer_id}",
            code="denied",
            address=target.text,
            hint="change the lists of allowed and denied peers",
        )


async def has_living_connection(host: IHost, peer_id: ID, deadline: float) -> bool:
    """Whether a connection to the peer answers a ping within `deadline` seconds. Connections that do not are closed."""
    for connection in living_connections(host, peer_id):
        muxed = connection.muxed_conn
        if not isinstance(muxed, BoundedYamux):
            return True
        if await muxed.is_responsive(min(muxed.limits.ping_timeout, deadline / 2)):
            return True
        with shielded(muxed.limits.close_timeout):
            await connection.close()
    return False


class _Race:
    """Dials several addresses of one peer. The first completed handshake wins."""

    def __init__(self, host: IHost, attempt_deadline: float, head_start: float) -> None:
        self._host = host
        self._attempt_deadline = attempt_deadline
        self._head_start = head_start
        self._winner: PeerAddress | None = None
        self._connection: INetConn | None = None
        self._failures: dict[PeerAddress, DialError] = {}

    async def run(self, targets: Sequence[PeerAddress]) -> PeerAddress:
        """The address that won. Raises the DialError of the first address. If cancelled, it leaves no connection
        behind.
        """
        try:
            await self._start(targets)
        except BaseException:
            if self._connection is not None:
                with shielded(CLOSE_TIMEOUT):
                    await self._connection.muxed_conn.close()
            raise
        if self._winner is None:
            raise self._failures[targets[0]]
        return self._winner

    async def _start(self, targets: Sequence[PeerAddress]) -> None:
        async with trio.open_nursery() as nursery:
            direct = await self._launch([target for target in targets if not target.relayed], nursery)
            with trio.move_on_after(RELAY_PATIENCE):
                for over in direct:
                    await over.wait()
            await self._launch([target for target in targets if target.relayed], nursery)

    async def _launch(self, targets: Sequence[PeerAddress], nursery: trio.Nursery) -> list[trio.Event]:
        """Start an attempt at each target. Returns an event for the end of each."""
        ends = []
        for target in targets:
            over = trio.Event()
            nursery.start_soon(self._attempt, target, over, nursery.cancel_scope)
            ends.append(over)
            with trio.move_on_after(self._head_start):
                await over.wait()
        return ends

    async def _attempt(self, target: PeerAddress, over: trio.Event, others: trio.CancelScope) -> None:
        try:
            with trio.move_on_after(self._attempt_deadline) as scope:
                connection = await self._connect(target)
                if self._winner is not None:
                    # Two attempts completed in the same turn, and one connection is enough.
                    await connection.muxed_conn.close()
                    return
                self._winner, self._connection = target, connection
                others.cancel()
            if scope.cancelled_caught:
                self._failures[target] = _timeout(target, self._attempt_deadline)
        except DialError as error:
            self._failures[target] = error
        finally:
            over.set()

    async def _connect(self, target: PeerAddress) -> INetConn:
        raw = await self._open(target)
        try:
            connection = await cast(_Upgrades, self._host).upgrade_outbound_connection(raw, target.peer_id)
        except BaseException as error:
            with trio.CancelScope(shield=True):
                # Closing is immediate; what it awaits is only a checkpoint.
                await raw.close()
            if isinstance(error, Exception):
                raise _handshake_failed(target, error) from error
            raise
        if not target.relayed:
            _remember(self._host, target)
        return connection

    async def _open(self, target: PeerAddress) -> IRawConnection:
        if target.relay_id is None:
            return await open_socket(target, gate_of(self._host))
        await dial_any(
            self._host, [target.relay], deadline=self._attempt_deadline, attempt_deadline=self._attempt_deadline
        )
        stream = await open_stream(self._host, target.relay_id.to_base58(), [HOP], self._attempt_deadline)
        return await request_circuit(stream, target)


def _remember(host: IHost, target: PeerAddress) -> None:
    peerstore = host.get_peerstore()
    # Keep only the address that answered, because the library tries old addresses first.
    peerstore.clear_addrs(target.peer_id)
    peerstore.add_addr(target.peer_id, target.transport, ADDRESS_TTL)
    network = host.get_network()
    if isinstance(network, Swarm):
        network.unblock_peer(target.peer_id)


def _timeout(target: PeerAddress, deadline: float) -> DialError:
    return DialError(
        f"{target.text} did not answer within {deadline:g} seconds",
        code="timeout",
        address=target.text,
        hint="check that the peer runs and that no firewall is in between",
    )


def _handshake_failed(target: PeerAddress, error: BaseException) -> DialError:
    causes = [error]
    while causes[-1].__cause__ is not None:
        causes.append(causes[-1].__cause__)
    if any(isinstance(cause, PeerIDMismatchesPubkey) for cause in causes):
        return DialError(
            f"another peer answers at {target.text}",
            code="wrong_peer",
            address=target.text,
            hint="ask the peer for its current address",
        )
    if any(isinstance(cause, OtherNetworkError) for cause in causes):
        return DialError(
            f"{target.text} is not in this private network",
            code="wrong_network",
            address=target.text,
            hint="give both the same key",
        )
    if "limit reached" in str(error):
        return DialError(
            "this host has all its connections in use", code="busy", address=target.text, hint="try again later"
        )
    reason = type(causes[-1]).__name__
    return DialError(
        f"{target.text} does not shake hands over Noise and Yamux ({reason})",
        code="handshake_failed",
        address=target.text,
        hint="check that a libp2p peer listens there",
    )
