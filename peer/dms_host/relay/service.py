"""A relay: connects peers that cannot reach each other, within bounds.

What breaks in the library's relay:
- A reservation is made for the peer that the message names, so that any peer can fill the table with others' names.
- An idle circuit outlives its duration: the time is checked only after a read.
- Circuits are counted only for the target peer, and two circuits of one peer end each other.
- When one direction ends, so does the other. A write that stalls is cancelled in the middle of a frame.
Measure: `RelayService`, which uses the library's messages and our own streams.
Upstream: no upstream report found (November 2026).
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import trio
from libp2p.abc import IHost
from libp2p.peer.id import ID
from libp2p.relay.circuit_v2.pb.circuit_pb2 import HopMessage, Limit, PeerId, Reservation, Status, StopMessage
from multiaddr import Multiaddr  # type: ignore[import-untyped]  # it has no types

from ..addresses import announced_addresses, host_addresses
from ..errors import DialError
from ..limits import RelayLimits
from ..streams.outbound import living_connections, open_stream
from ..streams.stream import PeerStream
from ..swarm.connection_gater import address_group
from ..swarm.swarm import remote_ip
from .messages import STOP, RelayMessageError, read_message, write_hop_status, write_message

__all__ = ["RelayService"]

logger = logging.getLogger(__name__)

# Bytes that one direction of a circuit holds at once.
PIECE = 64 * 1024
# Seconds to reach the other end.
CONNECT_TIMEOUT = 10.0


@dataclass(frozen=True, slots=True)
class _Place:
    expires: float
    group: str


class RelayService:
    """Answers HOP streams: keeps reservations of peers, and connects others to them."""

    def __init__(self, host: IHost, limits: RelayLimits) -> None:
        self._host = host
        self._limits = limits
        self._places: dict[str, _Place] = {}
        # By the peers at both ends, and by the machine of the requesting peer.
        self._circuits: Counter[str] = Counter()
        self._circuits_from: Counter[str] = Counter()
        self.circuits = 0

    @property
    def reservations(self) -> int:
        """The number of peers that have a reservation."""
        return len(self._places)

    async def answer(self, stream: PeerStream, peer_id: str) -> None:
        """Answer one message of a peer, and carry its circuit until it ends. Raises RelayMessageError."""
        if stream.relayed:
            # A circuit over a circuit would bypass the limits of both relays.
            await write_hop_status(stream, Status.PERMISSION_DENIED)
            return
        message = await read_message(stream, HopMessage)
        match message.type:
            case HopMessage.RESERVE:
                await self._reserve(stream, peer_id)
            case HopMessage.CONNECT:
                await self._connect(stream, peer_id, message.peer.id)
            case _:
                await write_hop_status(stream, Status.UNEXPECTED_MESSAGE)

    # Reservations

    async def _reserve(self, stream: PeerStream, peer_id: str) -> None:
        group = self._group(peer_id)
        if not self._has_place(peer_id, group):
            await write_hop_status(stream, Status.RESERVATION_REFUSED)
            return
        # It is made for the peer whose handshake proved its id, whatever peer the message names.
        self._places[peer_id] = _Place(trio.current_time() + self._limits.reservation_ttl, group)
        announced: tuple[str, ...] = getattr(self._host, "announced", ())
        addresses = [Multiaddr(text).to_bytes() for text in announced_addresses(host_addresses(self._host), announced)]
        reservation = Reservation(expire=int(time.time() + self._limits.reservation_ttl), addrs=addresses)
        await write_message(
            stream,
            HopMessage(type=HopMessage.STATUS, status=Status.OK, reservation=reservation, limit=self._limit()),
        )

    def _has_place(self, peer_id: str, group: str) -> bool:
        if peer_id in self._places:
            return True
        self._forget_those_gone()
        same = sum(place.group == group for place in self._places.values())
        return len(self._places) < self._limits.max_reservations and same < self._limits.max_reservations_per_address

    def _forget_those_gone(self) -> None:
        # A reservation lasts as long as the connection of its peer.
        for peer_id in [peer_id for peer_id in self._places if not self._holds(peer_id)]:
            del self._places[peer_id]

    def _holds(self, peer_id: str) -> bool:
        place = self._places.get(peer_id)
        return place is not None and place.expires > trio.current_time() and bool(self._connections(peer_id))

    def _connections(self, peer_id: str) -> list[str]:
        return [
            remote_ip(connection.muxed_conn) for connection in living_connections(self._host, ID.from_string(peer_id))
        ]

    def _group(self, peer_id: str) -> str:
        addresses = self._connections(peer_id)
        return address_group(addresses[0]) if addresses else ""

    # Circuits

    async def _connect(self, stream: PeerStream, source: str, target_bytes: bytes) -> None:
        target = ID(target_bytes).to_base58()
        if not self._holds(target):
            await write_hop_status(stream, Status.NO_RESERVATION)
            return
        group = self._group(source)
        if not self._has_turn(source, target, group):
            await write_hop_status(stream, Status.RESOURCE_LIMIT_EXCEEDED)
            return
        with self._turn(source, target, group):
            try:
                other = await self._reach(source, target)
            except (DialError, RelayMessageError) as error:
                logger.debug("a circuit from %s to %s failed: %s", source, target, error)
                await write_hop_status(stream, Status.CONNECTION_FAILED)
                return
            async with other:
                await write_message(stream, HopMessage(type=HopMessage.STATUS, status=Status.OK, limit=self._limit()))
                await self._carry(stream, other)

    def _has_turn(self, source: str, target: str, group: str) -> bool:
        limits = self._limits
        return (
            self.circuits < limits.max_circuits
            and max(self._circuits.get(one, 0) for one in (source, target)) < limits.max_circuits_per_peer
            and self._circuits_from.get(group, 0) < limits.max_circuits_per_address
        )

    @contextmanager
    def _turn(self, source: str, target: str, group: str) -> Iterator[None]:
        self.circuits += 1
        self._circuits.update((source, target))
        self._circuits_from[group] += 1
        try:
            yield
        finally:
            self.circuits -= 1
            # Subtraction drops zeros. Otherwise a Counter would keep one for each peer that ever connected.
            self._circuits -= Counter((source, target))
            self._circuits_from -= Counter((group,))

    async def _reach(self, source: str, target: str) -> PeerStream:
        stream = await open_stream(self._host, target, [STOP], CONNECT_TIMEOUT)
        try:
            peer = PeerId(id=ID.from_string(source).to_bytes())
            await write_message(stream, StopMessage(type=StopMessage.CONNECT, peer=peer, limit=self._limit()))
            answer = await read_message(stream, StopMessage)
            if answer.type != StopMessage.STATUS or answer.status != Status.OK:
                raise RelayMessageError(f"it refuses with status {answer.status}")
        except BaseException:
            await stream.areset()
            raise
        return stream

    def _limit(self) -> Limit:
        return Limit(duration=int(self._limits.circuit_duration), data=self._limits.circuit_bytes)

    async def _carry(self, left: PeerStream, right: PeerStream) -> None:
        ended: list[PeerStream] = []
        with trio.move_on_after(self._limits.circuit_duration):
            async with trio.open_nursery() as nursery:
                for source, target in ((left, right), (right, left)):
                    nursery.start_soon(self._copy, source, target, ended, nursery.cancel_scope)
        if len(ended) < 2:
            # Both ends must see that the circuit was cut.
            await left.areset()
            await right.areset()

    async def _copy(
        self, source: PeerStream, target: PeerStream, ended: list[PeerStream], circuit: trio.CancelScope
    ) -> None:
        left = self._limits.circuit_bytes
        try:
            while data := await source.receive_some(PIECE):
                left -= len(data)
                if left < 0:
                    circuit.cancel()
                    return
                await target.send_all(data)
            await target.send_eof()
            ended.append(source)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            circuit.cancel()
