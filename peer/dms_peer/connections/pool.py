"""The network of requesters: real connections to real peers."""

from __future__ import annotations

import logging
import random
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

import trio
from libp2p.abc import IHost, INetConn
from libp2p.network.swarm import Swarm
from libp2p.peer.id import ID

from dms_host import PeerAddress, dial_any, open_stream
from dms_host.errors import DialError
from dms_host.streams.outbound import living_connections
from dms_host.streams.stream import PeerStream
from dms_host.swarm.dialing import has_living_connection
from dms_host.swarm.peer_locks import PeerLocks
from dms_host.tasks import shielded
from dms_protocols.jobs.client import JOB_CLIENT_LIMITS
from dms_protocols.protocol_ids import JOB_PROTOCOL, versions_of
from dms_protocols.rpc.client import Client
from dms_resources.tasks import open_background

from .limits import ConnectionLimits
from .routes import Routes
from .shared_client import SharedClient

__all__ = ["ConnectionPool", "ConnectionStatistics", "KnownAddresses", "open_connections"]

logger = logging.getLogger(__name__)

KnownAddresses = Callable[[str], Sequence[str]]

CLOSE_TIMEOUT = 2.0
# Failures to dial that are caused here and say nothing about the peer.
OUR_CODES = frozenset({"busy", "denied"})
# The limits of one stream, for protocols that need other limits than most.
CLIENT_LIMITS = {JOB_PROTOCOL: JOB_CLIENT_LIMITS}
# Failures to open a stream that a new connection may repair.
LOST_CODES = frozenset({"not_connected", "stream_failed"})


@dataclass(frozen=True, slots=True)
class ConnectionStatistics:
    """The connections of this peer at one moment, and its dials since the start."""

    clients: int
    dialled_connections: int
    dials_running: int
    dials_waiting: int
    backing_off: int
    dials: int
    failed_dials: int


@dataclass(slots=True)
class _Dialled:
    connection: INetConn
    used_at: float


class ConnectionPool:
    """Reaches peers for a requester: the real `PeerNetwork`. `open_connections` makes it.

    All callers share one connection to each peer, and on it one stream for each protocol. Both are opened when they are
    needed. They are closed when they are idle, if this host dialled.
    """

    def __init__(self, host: IHost, addresses: KnownAddresses, limits: ConnectionLimits, nursery: trio.Nursery) -> None:
        self._host = host
        self._addresses = addresses
        self._limits = limits
        self._nursery = nursery
        self._routes = Routes(limits, random.Random())
        self._locks = PeerLocks()
        self._turns = trio.CapacityLimiter(limits.dials)
        self._clients: OrderedDict[tuple[str, str], SharedClient] = OrderedDict()
        self._dialled: dict[str, _Dialled] = {}
        self._dials = self._failed_dials = 0
        self._closed = False

    @property
    def peer_id(self) -> str:
        """The peer id of this host."""
        return self._host.get_id().to_base58()

    @property
    def statistics(self) -> ConnectionStatistics:
        """The current counts. It walks over the tables, which are bounded."""
        turns = self._turns.statistics()
        return ConnectionStatistics(
            clients=len(self._clients),
            dialled_connections=len(self._dialled),
            dials_running=turns.borrowed_tokens,
            dials_waiting=turns.tasks_waiting,
            backing_off=self._routes.backing_off,
            dials=self._dials,
            failed_dials=self._failed_dials,
        )

    @asynccontextmanager
    async def client(self, peer_id: str, protocol: str, addrs: Sequence[str] = ()) -> AsyncIterator[Client]:
        """A client of one protocol of a peer, in the newest version that both have, on a stream that all callers share.

        If there is no connection, it dials `addrs`, then the addresses in the address book. During the back-off of a
        peer (`backing_off`) it dials only addresses that were not tried before. Raises DialError. Cancelling one caller
        does not affect the others. The peer may answer requests of other callers first.
        """
        while True:
            shared, ours = self._shared(peer_id, protocol, addrs)
            with shared.used():
                try:
                    client = await shared.opened()
                except DialError:
                    # The other caller's attempt did not have all addresses.
                    if ours or not self._routes.has_new(peer_id, addrs):
                        raise
                    continue
                yield client
                return

    @asynccontextmanager
    async def open_stream(self, peer_id: str, protocol: str, addrs: Sequence[str] = ()) -> AsyncIterator[PeerStream]:
        """A stream of one protocol to a peer, for this caller alone; closed when the block ends.

        Connects as `client` does. Raises DialError.
        """
        if self._closed:
            raise _closed(peer_id)
        stream = await self._open_stream(peer_id, protocol, addrs)
        try:
            yield stream
        finally:
            # Costs nothing if it is closed already.
            await stream.aclose()

    async def connect(self, peer_id: str, addrs: Sequence[str] = ()) -> None:
        """Make sure that there is a living connection to the peer. Raises DialError; may be cancelled."""
        remote = self._remote(peer_id)
        async with self._locks.held(peer_id):
            if not await has_living_connection(self._host, remote, self._limits.dial_deadline):
                await self._dial(peer_id, remote, self._routes.order(peer_id, [*addrs, *self._addresses(peer_id)]))

    def forget(self, peer_id: str) -> None:
        """Close all connections to a peer, for example one that lied. Never blocks."""
        for shared in [shared for (peer, _), shared in self._clients.items() if peer == peer_id]:
            shared.close()
        if (dialled := self._dialled.pop(peer_id, None)) is not None:
            self._nursery.start_soon(_close, dialled.connection)

    # Clients

    def _shared(self, peer_id: str, protocol: str, addrs: Sequence[str]) -> tuple[SharedClient, bool]:
        """The client to join, and whether it was opened for this caller."""
        key = (peer_id, protocol)
        shared = self._clients.get(key)
        if shared is not None and shared.usable:
            self._clients.move_to_end(key)
            return shared, False
        if self._closed:
            raise _closed(peer_id)
        self._free_a_slot(peer_id)
        self._clients[key] = shared = SharedClient(self._limits.stream_idle, CLIENT_LIMITS.get(protocol))
        self._clients.move_to_end(key)
        self._nursery.start_soon(self._run, key, shared, tuple(addrs))
        return shared, True

    def _free_a_slot(self, peer_id: str) -> None:
        if len(self._clients) < self._limits.clients:
            return
        oldest = next((key for key, shared in self._clients.items() if shared.unused), None)
        if oldest is None:
            raise DialError(
                f"all {self._limits.clients} clients are in use", code="busy", address=peer_id, hint="try again later"
            )
        self._clients.pop(oldest).close()

    async def _run(self, key: tuple[str, str], shared: SharedClient, addrs: Sequence[str]) -> None:
        try:
            await shared.run(partial(self._open_stream, *key, addrs))
        finally:
            if self._clients.get(key) is shared:
                del self._clients[key]

    async def _open_stream(self, peer_id: str, protocol: str, addrs: Sequence[str]) -> PeerStream:
        await self.connect(peer_id, addrs)
        try:
            return await open_stream(self._host, peer_id, versions_of(protocol), self._limits.stream_deadline)
        except DialError as error:
            if error.code not in LOST_CODES:
                raise
        # The connection ended after its last sign of life.
        await self.connect(peer_id, addrs)
        return await open_stream(self._host, peer_id, versions_of(protocol), self._limits.stream_deadline)

    # Dialling

    def _remote(self, peer_id: str) -> ID:
        if peer_id == self.peer_id:
            raise DialError(
                f"{peer_id} is this peer itself", code="self_dial", address=peer_id, hint="ask another peer"
            )
        try:
            return ID.from_string(peer_id)
        except ValueError:
            raise DialError(
                f"{peer_id!r} is not a peer id", code="no_address", address=peer_id, hint="one looks like 12D3KooW..."
            ) from None

    async def _dial(self, peer_id: str, remote: ID, targets: Sequence[PeerAddress]) -> None:
        relays = {target.relay_id for target in targets if target.relay_id is not None}
        new_relays = {relay for relay in relays if not living_connections(self._host, relay)}
        async with self._turns:
            self._dials += 1
            try:
                reached = await self._dial_any(targets)
            except DialError as error:
                self._failed_dials += 1
                if error.code not in OUR_CODES:
                    self._routes.failed(peer_id, targets, error)
                raise
            finally:
                for relay in new_relays:
                    self._track(relay)
        self._routes.reached(peer_id, reached)
        if reached is not None:
            self._track(remote)

    async def _dial_any(self, targets: Sequence[PeerAddress]) -> PeerAddress | None:
        return await dial_any(
            self._host,
            targets,
            deadline=self._limits.dial_deadline,
            attempt_deadline=self._limits.attempt_deadline,
            head_start=self._limits.head_start,
        )

    def _track(self, remote: ID) -> None:
        """Note that this host made the connection, so that it also closes it."""
        if connections := living_connections(self._host, remote):
            self._dialled[remote.to_base58()] = _Dialled(connections[0], trio.current_time())

    # Closing

    def stop(self) -> None:
        """Lose all clients and open no more. Never blocks."""
        self._closed = True
        self._nursery.cancel_scope.cancel()

    async def close_idle(self) -> None:
        """Close the idle connections that this host dialled, until cancelled. `open_connections` runs it."""
        while True:
            await trio.sleep(self._limits.connection_idle / 4)
            idle_since = trio.current_time() - self._limits.connection_idle
            for peer_id, dialled in list(self._dialled.items()):
                if dialled.connection.is_closed:
                    del self._dialled[peer_id]
                elif self._in_use(peer_id, dialled.connection):
                    dialled.used_at = trio.current_time()
                elif dialled.used_at <= idle_since:
                    del self._dialled[peer_id]
                    self._nursery.start_soon(_close, dialled.connection)

    def _in_use(self, peer_id: str, connection: INetConn) -> bool:
        # Streams of others count too: the peer's own to us, identify, gossip. Streams that we have finished do not.
        streams = getattr(connection.muxed_conn, "streams", {})
        open_ = any(getattr(stream, "abandoned_at", None) is None for stream in streams.values())
        return open_ or self._protected(peer_id)

    def _protected(self, peer_id: str) -> bool:
        # Users of a connection without a stream protect it in the library's own way.
        network = self._host.get_network()
        return isinstance(network, Swarm) and network.is_protected(ID.from_string(peer_id))

    async def close(self) -> None:
        """Close what was dialled, unless its peer is protected. Not cancellable, bounded by CLOSE_TIMEOUT."""
        with shielded(CLOSE_TIMEOUT):
            async with trio.open_nursery() as nursery:
                for peer_id, dialled in self._dialled.items():
                    if not self._protected(peer_id):
                        nursery.start_soon(_close, dialled.connection)
        self._dialled.clear()


async def _close(connection: INetConn) -> None:
    with shielded(CLOSE_TIMEOUT):
        try:
            # The connection around it follows. Closing that one instead would wait a tenth of a second without need.
            await connection.muxed_conn.close()
        except Exception as error:
            logger.debug("closing a connection failed: %r", error)


def _closed(peer_id: str) -> DialError:
    return DialError("the connections of this peer were closed", code="closed", address=peer_id, hint="start it again")


def _no_addresses(peer_id: str) -> Sequence[str]:
    return ()


@asynccontextmanager
async def open_connections(
    host: IHost, *, addresses: KnownAddresses = _no_addresses, limits: ConnectionLimits | None = None
) -> AsyncIterator[ConnectionPool]:
    """Connections of `host` while the block runs. `addresses` returns the known addresses (multiaddrs) of a peer, and
    never blocks.

    At the end all clients are lost and the connections that were dialled here are closed, within a few seconds, even if
    cancelled. An error of the block is raised as it is.
    """
    connections: ConnectionPool | None = None
    try:
        async with open_background() as nursery:
            connections = ConnectionPool(host, addresses, limits or ConnectionLimits(), nursery)
            nursery.start_soon(connections.close_idle)
            try:
                yield connections
            finally:
                connections.stop()
    finally:
        if connections is not None:
            await connections.close()
