"""A network in memory: the real services and clients over streams that are slow, stall and are cut.

A host is whatever answers under one peer id: operations by protocol. Between two peers there is one connection with any
number of streams. The first stream opens it, and it stays until it is cut or one side stops.
"""

from __future__ import annotations

import math
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

from dms_host.errors import DialError
from dms_protocols.errors import BusyError
from dms_protocols.protocol_ids import versions_of
from dms_protocols.rpc.client import Client, open_client
from dms_protocols.rpc.counts import ServiceCounts
from dms_protocols.rpc.limits import ServiceLimits
from dms_protocols.rpc.operations import Caller, Operations
from dms_protocols.rpc.service import refuse_stream, serve_stream
from dms_protocols.rpc.shares import PeerShare, SharesInUse

from .streams import DelayedStream, stream_pair

StreamHandler = Callable[[DelayedStream, Caller], Awaitable[object]]

__all__ = ["GOOD_LINK", "LinkConditions", "SimulatedNetwork", "SimulatedPeerNetwork", "TrafficCount"]


@dataclass(frozen=True, slots=True)
class LinkConditions:
    """How a connection behaves. Times are in seconds; `stall`, `cut` and `late` are probabilities for each write.

    A write takes `latency` and up to `jitter` more. A stalled stream delivers nothing from there on, without an error.
    A cut breaks the whole connection, before or after the write has arrived. A late write takes up to `lateness` more.
    """

    latency: float = 0.02
    jitter: float = 0.01
    stall: float = 0.0
    cut: float = 0.0
    late: float = 0.0
    lateness: float = 20.0


GOOD_LINK = LinkConditions()


@dataclass(slots=True)
class TrafficCount:
    """The traffic of the network: attempted connections, opened streams, and writes."""

    dials: int = 0
    streams: int = 0
    writes: int = 0


@dataclass(slots=True, eq=False)
class _Host:
    """What answers under a peer id. A host that is not `up` is gone; a `silent` one does not even refuse."""

    peer_id: str
    operations: Mapping[str, Operations | StreamHandler]
    limits: ServiceLimits
    conditions: LinkConditions
    counts: ServiceCounts
    shares: SharesInUse | None
    answer: Callable[[DelayedStream], Awaitable[None]] | None
    up: bool = True
    silent: bool = False
    connections: dict[int, _Connection] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class _Connection:
    number: int
    dialer: str
    listener: _Host
    broken: bool = False
    streams: dict[int, tuple[DelayedStream, DelayedStream, trio.CancelScope]] = field(default_factory=dict)

    def cut(self) -> None:
        self.broken = True
        self.listener.connections.pop(self.number, None)
        for ours, theirs, serving in self.streams.values():
            ours.cut()
            theirs.cut()
            serving.cancel()
        self.streams.clear()


class SimulatedNetwork:
    """Peers in memory that reach each other. `rng` decides every delay and fault. Runs within `nursery`."""

    def __init__(self, nursery: trio.Nursery, rng: random.Random, *, dial_timeout: float = 5.0) -> None:
        self.traffic = TrafficCount()
        self._nursery = nursery
        self._rng = rng
        self._dial_timeout = dial_timeout
        self._hosts: dict[str, _Host] = {}
        self._connections: dict[tuple[str, str], _Connection] = {}
        self._numbers = 0
        self._dead: set[str] = set()

    def add_host(
        self,
        peer_id: str,
        operations: Mapping[str, Operations | StreamHandler],
        *,
        conditions: LinkConditions = GOOD_LINK,
        limits: ServiceLimits | None = None,
        counts: ServiceCounts | None = None,
        shares: SharesInUse | None = None,
        answer: Callable[[DelayedStream], Awaitable[None]] | None = None,
    ) -> None:
        """From now on this peer answers these protocols for every dialling peer; `answer` gets the streams instead."""
        self._hosts[peer_id] = _Host(
            peer_id, operations, limits or ServiceLimits(), conditions, counts or ServiceCounts(), shares, answer
        )
        self._dead.discard(peer_id)

    def stop_host(self, peer_id: str, *, silent: bool = False) -> None:
        """Remove a peer from the network with all its connections. With `silent`, peers that dial it wait."""
        host = self._hosts[peer_id]
        host.up, host.silent = False, silent
        for connection in list(host.connections.values()):
            connection.cut()

    def set_conditions(self, peer_id: str, conditions: LinkConditions) -> None:
        """Change how the connections of a host behave from now on."""
        self._hosts[peer_id].conditions = conditions

    def kill_peer(self, peer_id: str) -> None:
        """Cut off a requester at once: its connections are gone and it reaches no peer any more."""
        self._dead.add(peer_id)
        for (dialer, _), connection in list(self._connections.items()):
            if dialer == peer_id:
                connection.cut()

    def cut(self, dialer: str, listener: str) -> None:
        """Cut the connection between two peers, if there is one."""
        connection = self._connections.get((dialer, listener))
        if connection is not None:
            connection.cut()

    def peer(self, peer_id: str) -> SimulatedPeerNetwork:
        """The network as one peer sees it, for a requester."""
        return SimulatedPeerNetwork(self, peer_id)

    async def connect(self, dialer: str, listener: str) -> _Connection:
        """The connection between two peers. Raises DialError `timeout`, `refused` or `unreachable`."""
        known = self._connections.get((dialer, listener))
        if known is not None and not known.broken:
            return known
        self.traffic.dials += 1
        host = self._hosts.get(listener)
        if dialer in self._dead or host is None or (not host.up and host.silent):
            await trio.sleep(self._dial_timeout)
            raise DialError("no answer", code="timeout", address=listener, hint="")
        # TCP and the handshake of the security protocol: two round trips.
        await trio.sleep(4 * self._delay(self._conditions(dialer, host)))
        if not host.up or dialer in self._dead or self._hosts.get(listener) is not host:
            raise DialError("nobody listens there", code="refused", address=listener, hint="")
        known = self._connections.get((dialer, listener))
        if known is not None and not known.broken:
            return known
        self._numbers += 1
        connection = _Connection(self._numbers, dialer, host)
        self._connections[dialer, listener] = host.connections[connection.number] = connection
        return connection

    def open_stream(self, connection: _Connection, protocol: str) -> DelayedStream:
        """A stream of the newest version of a protocol that both know. Raises DialError `protocol_not_supported`."""
        host = connection.listener
        version = next((one for one in versions_of(protocol) if one in host.operations), None)
        if version is None:
            raise DialError(f"does not speak {protocol}", code="protocol_not_supported", address=host.peer_id, hint="")
        self.traffic.streams += 1
        self._numbers += 1
        number = self._numbers

        ours, theirs = stream_pair(lambda: self._due(connection), lambda: self._due(connection, back=True))
        ours.protocol = version
        operations = host.operations[version]
        scope = trio.CancelScope()
        connection.streams[number] = (ours, theirs, scope)
        self._nursery.start_soon(self._serve, connection, number, theirs, operations, scope)
        return ours

    async def _serve(
        self,
        connection: _Connection,
        number: int,
        stream: DelayedStream,
        operations: Operations | StreamHandler,
        scope: trio.CancelScope,
    ) -> None:
        with scope:
            await self._answer(connection.listener, stream, operations, Caller(connection.dialer))
        connection.streams.pop(number, None)

    async def _answer(
        self, host: _Host, stream: DelayedStream, operations: Operations | StreamHandler, caller: Caller
    ) -> None:
        if host.answer is not None:
            await host.answer(stream)
        elif callable(operations):
            await operations(stream, caller)
        elif host.shares is None:
            await serve_stream(stream, operations, caller, host.limits, host.counts, _share())
        else:
            try:
                with host.shares.stream(caller.peer_id) as share:
                    await serve_stream(stream, operations, caller, host.limits, host.counts, share)
            except BusyError as error:
                await refuse_stream(stream, error, host.limits)

    def _due(self, connection: _Connection, *, back: bool = False) -> float:
        conditions, rng = self._conditions(connection.dialer, connection.listener), self._rng
        self.traffic.writes += 1
        due = trio.current_time() + self._delay(conditions)
        if conditions.stall and rng.random() < conditions.stall:
            return math.inf
        if conditions.late and rng.random() < conditions.late:
            due += rng.uniform(0.0, conditions.lateness)
        if conditions.cut and rng.random() < conditions.cut:
            if rng.random() < 0.5:
                connection.cut()
            else:
                self._nursery.start_soon(self._cut_at, connection, due + 0.001)
        return due

    async def _cut_at(self, connection: _Connection, when: float) -> None:
        await trio.sleep_until(when)
        connection.cut()

    def _conditions(self, dialer: str, listener: _Host) -> LinkConditions:
        return listener.conditions

    def _delay(self, conditions: LinkConditions) -> float:
        return conditions.latency + self._rng.random() * conditions.jitter


def _share() -> PeerShare:
    """A separate share for each stream, with a clock on which no work takes any time."""
    return SharesInUse(timer=trio.current_time).alone()


class SimulatedPeerNetwork:
    """One peer's access to the others: the `PeerNetwork` of simulations."""

    def __init__(self, network: SimulatedNetwork, peer_id: str) -> None:
        self._network = network
        self._peer_id = peer_id

    @property
    def peer_id(self) -> str:
        """The requester."""
        return self._peer_id

    async def stream(self, peer_id: str, protocol: str) -> DelayedStream:
        """A bare stream to that peer, for a caller that violates the protocol. Raises DialError."""
        return self._network.open_stream(await self._network.connect(self._peer_id, peer_id), protocol)

    @asynccontextmanager
    async def open_stream(self, peer_id: str, protocol: str, addrs: Sequence[str] = ()) -> AsyncIterator[DelayedStream]:
        """A new stream of the connection to that peer, closed when the block ends. Raises DialError."""
        stream = await self.stream(peer_id, protocol)
        try:
            yield stream
        finally:
            stream.close()

    @asynccontextmanager
    async def client(self, peer_id: str, protocol: str, addrs: Sequence[str] = ()) -> AsyncIterator[Client]:
        """A client on a new stream of the connection to that peer. Raises DialError."""
        connection = await self._network.connect(self._peer_id, peer_id)
        stream = self._network.open_stream(connection, protocol)
        try:
            async with open_client(stream) as client:
                yield client
        finally:
            # What a cancelled client left is closed, so that the service on the other side ends too.
            stream.close()
