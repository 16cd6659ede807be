"""A swarm that keeps accepting connections, within limits.

What breaks in py-libp2p's `Swarm`:
- Each inbound connection holds its slot and its task until the swarm ends: after 250 connections it accepts no more.
- A peer may have any number of new connections, and so may a machine with many keys.
- Only a part of an outbound handshake has a deadline.
- Some state of every peer that ever connected is kept.
- Closing takes a fifth of a second for each connection in turn. If cancelled, it closes none.
- A refused listen address is only logged.
- A connection that ends while it is being registered stays in the list for ever.
Measure: this class.
Upstream: no upstream report found (November 2026).
"""

from __future__ import annotations

import errno
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import trio
from libp2p.abc import IMuxedConn, INetConn, IRawConnection
from libp2p.connection_types import ConnectionType
from libp2p.crypto.keys import KeyPair
from libp2p.io.abc import ReadWriteCloser
from libp2p.network.auto_connector import AutoConnector
from libp2p.network.config import ConnectionConfig, RetryConfig
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.network.exceptions import SwarmException
from libp2p.network.swarm import Swarm
from libp2p.peer.id import ID
from multiaddr import Multiaddr  # type: ignore[import-untyped]  # it has no types

from ..errors import ListenError
from ..identify.identify import BoundedPeerStore, bound_identify
from ..limits import HostLimits
from ..logs import RateLimiter, log_limited
from ..tasks import shielded
from ..transport.pnet import ProtectedConnection
from ..transport.tcp import ExclusiveTCP
from ..transport.upgrader import hardened_upgrader
from ..yamux.accounts import Accounts
from .connection_gater import ConnectionGater, address_group, end_site
from .handshakes import Handshakes

if TYPE_CHECKING:
    from libp2p.network.connection.swarm_connection import SwarmConn

    from ..yamux.connection import BoundedYamux

__all__ = ["HardenedSwarm"]

bound_identify()

logger = logging.getLogger(__name__)
limiter = RateLimiter()

STREAM_EVENTS = frozenset(("opened_stream", "closed_stream"))
# Two peers that dial each other at the same moment get two connections.
CONNECTIONS_PER_PEER = 2


class _NoAutoConnector(AutoConnector):
    """Dials no peer. The original dials every peer that it knows until half of max_connections are in use."""

    async def maybe_connect(self) -> None:
        """Do nothing."""

    async def run_background_task(self, nursery: trio.Nursery) -> None:
        """Start nothing."""


class HardenedSwarm(Swarm):
    """A swarm of TCP, Noise and Yamux within HostLimits."""

    def __init__(
        self, key_pair: KeyPair, limits: HostLimits, gate: ConnectionGater | None = None, psk: bytes | None = None
    ) -> None:
        peer_id = ID.from_pubkey(key_pair.public_key)
        # It holds the addresses and protocols that peers report about themselves.
        peerstore = BoundedPeerStore(max_records=2 * limits.max_connections, max_peers=2 * limits.max_connections)
        peerstore.add_key_pair(peer_id, key_pair)
        limits_hit: Counter[str] = Counter()
        self._accounts = Accounts(limits)
        super().__init__(
            peer_id,
            peerstore,
            hardened_upgrader(key_pair, limits, self._allows_peer, limits_hit, self._accounts),
            transports=[ExclusiveTCP(self._allows_address)],
            # The caller decides about retries.
            retry_config=RetryConfig(max_retries=0),
            connection_config=_connection_config(limits),
        )
        self.auto_connector = _NoAutoConnector(self)
        self.limits = limits
        self.gate = gate or ConnectionGater()
        self.inbound_connections = 0
        self._handshakes = Handshakes(limits.max_inbound_handshakes)
        self.inbound_by_address: Counter[str] = Counter()
        self.limits_hit = limits_hit
        self._psk = psk

    @property
    def inbound_handshakes(self) -> int:
        """The number of inbound handshakes in progress."""
        return len(self._handshakes)

    # Listening

    async def listen(self, *multiaddrs: Multiaddr) -> bool:
        """Listen on every address. Raises ListenError for the first address that is refused."""
        await self.event_background_nursery_created.wait()
        for address in multiaddrs:
            await self._listen_on(address)
        return True

    async def _listen_on(self, address: Multiaddr) -> None:
        async def handle(stream: ReadWriteCloser) -> None:
            await self._handle_inbound_connection(stream, address)

        listener = self.transport_manager.get_transports()[0].create_listener(handle)
        listener.background_nursery = self.background_nursery  # type: ignore[attr-defined]  # as Swarm.listen does
        try:
            await listener.listen(address)
        except OSError as error:
            raise _refused(str(address), error) from error
        self.listeners[str(address)] = listener
        await self.notify_listen(address)

    # Gating

    def _allows_peer(self, peer_id: ID) -> bool:
        return self.gate.allows_peer(peer_id.to_base58())

    def _allows_address(self, address: str) -> bool:
        return self.gate.allows_address(address)

    def _allows(self, connection: IMuxedConn) -> bool:
        if not self._allows_peer(connection.peer_id):
            return False
        # Behind a relay there is no address, and the relay's own was checked when it connected.
        relayed = connection.get_connection_type() is ConnectionType.RELAYED
        return relayed or self._allows_address(remote_ip(connection))

    async def change_gater(self, gate: ConnectionGater) -> int:
        """Use these lists from now on, and close the connections that they do not allow. Returns how many were closed.

        Not cancellable; bounded by close_timeout.
        """
        self.gate = gate
        unwanted = [connection for connection in self.get_connections() if not self._allows(connection.muxed_conn)]
        with shielded(self.limits.close_timeout):
            async with trio.open_nursery() as nursery:
                for connection in unwanted:
                    nursery.start_soon(self._close_connection_async, connection)
        return len(unwanted)

    # Accepting

    async def _handle_inbound_connection(self, read_write_closer: ReadWriteCloser, maddr: Multiaddr) -> None:
        """Hold a slot until the connection ends. The listener closes the socket afterwards."""
        address = (read_write_closer.get_remote_address() or ("", 0))[0]
        if not self._allows_address(address):
            self.limits_hit["denied_addresses"] += 1
            logger.debug("turned a connection away: %s is not allowed", address)
            return
        raw = RawConnection(read_write_closer, False)
        await self.accept(raw, maddr, address_group(address), end_site(address))

    async def accept(self, raw: IRawConnection, maddr: Multiaddr, group: str, site: str = "") -> None:
        """Perform the handshake of an inbound connection and hold a slot until it ends.

        `group` is the group that counts as one machine, `site` (may be empty) the customer of a network. The caller
        closes `raw` afterwards.
        """
        if self.inbound_connections >= self.limits.max_inbound_connections:
            self._turn_away("inbound_connections", f"{self.inbound_connections} are open")
            return
        if not self._accounts.of(group).admits_connection():
            self._turn_away("inbound_probation", f"{group} has sent frames that carry nothing")
            return
        if self.inbound_by_address[group] >= self.limits.max_inbound_per_address:
            self._turn_away("inbound_per_address", f"{self.inbound_by_address[group]} are open from {group}")
            return
        if site and self.inbound_by_address[site] >= self.limits.max_inbound_per_site:
            self._turn_away("inbound_per_site", f"{self.inbound_by_address[site]} are open from {site}")
            return
        with self._slot(group, site):
            connection = await self._shake_hands(raw, maddr, group)
            if connection is not None:
                # The lists may have changed during the handshake.
                if not self._allows(connection):
                    await connection.close()
                await connection.event_closed.wait()

    @contextmanager
    def _slot(self, *origins: str) -> Iterator[None]:
        counts = self.inbound_by_address
        self.inbound_connections += 1
        counts.update(filter(None, origins))
        try:
            yield
        finally:
            self.inbound_connections -= 1
            for origin in filter(None, origins):
                counts[origin] -= 1
                if not counts[origin]:
                    del counts[origin]

    def _turn_away(self, limit: str, why: str) -> None:
        self.limits_hit[limit] += 1
        log_limited(logger, limiter, logging.WARNING, "turned a connection away: %s", why)

    async def _shake_hands(self, raw: IRawConnection, maddr: Multiaddr, group: str) -> BoundedYamux | None:
        scope = self._handshakes.begin(group)
        if scope is None:
            self._turn_away("inbound_handshakes", "too many handshakes at once")
            return None
        try:
            with scope:
                # The upgrade has a deadline of its own, inbound_upgrade_timeout.
                connection: BoundedYamux = await self.upgrade_inbound_raw_conn(raw, maddr)  # type: ignore[assignment]  # ours
                return connection
        except Exception as error:
            # A stranger can make each layer of the handshake fail in a different way.
            logger.debug("an inbound handshake failed: %r", error)
            return None
        finally:
            self._handshakes.end(group, scope)
        self._turn_away("inbound_handshakes", f"{group} had most of those who shook hands")
        return None

    async def upgrade_inbound_raw_conn(self, raw_conn: IRawConnection, maddr: Multiaddr) -> IMuxedConn:
        """Like the original, but inside the private network if there is one."""
        return await super().upgrade_inbound_raw_conn(self._protected(raw_conn), maddr)

    async def upgrade_outbound_raw_conn(
        self, raw_conn: IRawConnection, peer_id: ID, pre_scope: Any = None
    ) -> SwarmConn:
        """Like the original, but inside the private network if there is one, and within handshake_timeout.

        Raises SwarmException also for a peer that is not allowed.
        """
        if not self._allows_peer(peer_id):
            raise SwarmException(f"{peer_id} is not allowed")
        try:
            with trio.fail_after(self.limits.handshake_timeout):
                connection = await super().upgrade_outbound_raw_conn(self._protected(raw_conn), peer_id, pre_scope)
        except trio.TooSlowError as error:
            raise SwarmException(f"no handshake within {self.limits.handshake_timeout:g} seconds") from error
        # The lists may have changed during the handshake.
        if not self._allows(connection.muxed_conn):
            await connection.close()
            raise SwarmException(f"{peer_id} is not allowed")
        return connection

    def _protected(self, raw: IRawConnection) -> IRawConnection:
        # Below everything else, so that a peer outside the network gets none of our bytes.
        return raw if self._psk is None else ProtectedConnection(raw, self._psk)

    # Keeping

    async def add_conn(self, muxed_conn: IMuxedConn, direction: str = "unknown") -> SwarmConn:
        """As the original, but a connection that has ended meanwhile is not kept."""
        connection = await super().add_conn(muxed_conn, direction)
        if connection.event_closed.is_set():
            # It took itself off the list before the original put it there.
            self.remove_conn(connection)
        return connection

    def _trim_connections(self, peer_id: ID) -> None:
        """Close the oldest connections of a peer that has too many. The peer itself uses the newest."""
        connections = self.connections[peer_id]
        excess, self.connections[peer_id] = (
            connections[:-CONNECTIONS_PER_PEER],
            connections[-CONNECTIONS_PER_PEER:],
        )
        for connection in excess:
            self.manager.run_task(self._close_connection_async, connection)

    async def notify_disconnected(self, conn: INetConn) -> None:
        """Notify, and forget a peer that has neither connections nor known addresses."""
        await self._notify("disconnected", conn)
        peer_id = conn.muxed_conn.peer_id
        if peer_id in self.connections:
            return
        if self.peerstore.has_peer(peer_id) and not self._known_addresses(peer_id):
            self.peerstore.clear_peerdata(peer_id)

    async def _notify(self, method: str, *args: Any) -> None:
        """Notify of a stream in this task. The original makes a task for each notifee, which costs more."""
        if method not in STREAM_EVENTS:
            await super()._notify(method, *args)
            return
        for notifee in tuple(self.notifees):
            try:
                await getattr(notifee, method)(self, *args)
            except Exception as error:
                log_limited(logger, limiter, logging.ERROR, "%s of %r failed: %r", method, notifee, error)

    def _known_addresses(self, peer_id: ID) -> Sequence[Multiaddr]:
        try:
            return self.peerstore.addrs(peer_id)
        except Exception:
            # Each of the library's peer stores raises its own error for an unknown peer.
            return ()

    # Closing

    async def close(self) -> None:
        """Close everything at once, within close_timeout. What is left then is cut off."""
        if self._closing:
            return
        self._closing = True
        with shielded(self.limits.close_timeout):
            async with trio.open_nursery() as nursery:
                for listener in self.listeners.values():
                    nursery.start_soon(listener.close)
                for connection in self.get_connections():
                    nursery.start_soon(self._close_connection_async, connection)
        self.listeners.clear()
        with suppress(Exception):
            await self.manager.stop()


def remote_ip(connection: IMuxedConn) -> str:
    """The IP address at the other end of a connection; empty if there is none, as behind a relay."""
    address: tuple[str, int] | None = getattr(connection, "get_remote_address", lambda: None)()
    return "" if address is None else address[0]


def _connection_config(limits: HostLimits) -> ConnectionConfig:
    return ConnectionConfig(
        max_connections=limits.max_connections,
        high_watermark=limits.max_connections,
        min_connections=0,
        low_watermark=0,
        # With more than one the library waits 250 ms before it reports that a dial has succeeded.
        max_connections_per_peer=1,
        inbound_upgrade_timeout=limits.handshake_timeout,
        outbound_upgrade_timeout=limits.handshake_timeout,
        # The library reads whole seconds; BoundedMultiselect applies the exact value.
        outbound_stream_protocol_negotiation_timeout=max(1.0, limits.negotiation_timeout),
        inbound_stream_protocol_negotiation_timeout=max(1.0, limits.negotiation_timeout),
    )


def _refused(address: str, error: OSError) -> ListenError:
    match error.errno:
        case errno.EADDRINUSE:
            return ListenError(
                f"cannot listen on {address}: another program does",
                code="address_in_use",
                address=address,
                hint="stop it, or choose another port; port 0 takes any free one",
            )
        case errno.EACCES | errno.EPERM:
            return ListenError(
                f"cannot listen on {address}: permission denied",
                code="address_forbidden",
                address=address,
                hint="choose a port above 1023",
            )
        case _:
            return ListenError(
                f"cannot listen on {address}: {error.strerror or error}",
                code="address_unavailable",
                address=address,
                hint="choose an address that this machine has",
            )
