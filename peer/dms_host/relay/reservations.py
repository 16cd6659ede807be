"""Being reachable through relays: keeps reservations, and accepts the connections that arrive through them."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Sequence

import trio
from libp2p.abc import IHost
from libp2p.peer.id import ID
from libp2p.relay.circuit_v2.pb.circuit_pb2 import HopMessage, Status, StopMessage
from multiaddr import Multiaddr  # type: ignore[import-untyped]  # it has no types

from ..addresses import PeerAddress, parse_peer_address
from ..errors import AddressError, DialError
from ..streams.outbound import living_connections, open_stream
from ..streams.stream import PeerStream
from ..swarm.dialing import dial
from ..swarm.swarm import HardenedSwarm
from ..yamux.connection import BoundedYamux
from .circuits import accept_circuit, circuit_address
from .messages import HOP, RelayMessageError, read_message, status_name, write_message

__all__ = ["Reservations"]

logger = logging.getLogger(__name__)

# Seconds. A reservation is renewed when three quarters of its time have passed, but not before this time.
EARLIEST_RENEWAL = 5.0
LATEST_RENEWAL = 3600.0
# Seconds between two attempts at a relay that does not answer. The pause doubles up to the longest.
FIRST_RETRY = 1.0
LATEST_RETRY = 300.0
# The most addresses of one relay that are announced.
MAX_ADDRESSES = 4
# The connection pool does not close connections with this tag.
PROTECTION = "relay"


class Reservations:
    """Keeps a reservation at each of some relays, and accepts the connections that they forward."""

    def __init__(self, host: IHost, swarm: HardenedSwarm, relays: Sequence[PeerAddress]) -> None:
        self._host = host
        self._swarm = swarm
        self._relays = relays
        self._held: dict[str, tuple[str, ...]] = {}
        self._chance = random.Random()

    @property
    def addresses(self) -> tuple[str, ...]:
        """The addresses of this host behind the relays where it now has a reservation."""
        return tuple(address for addresses in self._held.values() for address in addresses)

    async def keep(self) -> None:
        """Reserve, renew, and reserve again after a relay was lost, until cancelled."""
        async with trio.open_nursery() as nursery:
            for relay in self._relays:
                nursery.start_soon(self._keep, relay)

    async def answer(self, stream: PeerStream, peer_id: str) -> None:
        """Answer a STOP stream, and keep its connection until it ends. Raises RelayMessageError."""
        if peer_id not in self._held:
            # Any other peer can connect directly.
            await write_message(stream, StopMessage(type=StopMessage.STATUS, status=Status.PERMISSION_DENIED))
            return
        raw = await accept_circuit(stream)
        # All connections through one relay count as one machine.
        await self._swarm.accept(raw, circuit_address(peer_id, self._host.get_id().to_base58()), f"relay {peer_id}")

    async def _keep(self, relay: PeerAddress) -> None:
        relay_id, failures = relay.peer_id.to_base58(), 0
        try:
            while True:
                try:
                    renewal = await self._reserve(relay, relay_id)
                    failures = 0
                    await self._wait_lost(relay_id, renewal)
                    continue
                except (DialError, AddressError, RelayMessageError) as error:
                    logger.info("no reservation at %s: %s", relay.text, error)
                failures += 1
                self._held.pop(relay_id, None)
                pause = min(LATEST_RETRY, FIRST_RETRY * 2 ** min(failures - 1, 20))
                await trio.sleep(pause * self._chance.uniform(0.5, 1.0))
        finally:
            self._held.pop(relay_id, None)
            self._swarm.unprotect(relay.peer_id, PROTECTION)

    async def _reserve(self, relay: PeerAddress, relay_id: str) -> float:
        """Make or renew the reservation. Returns the seconds until the next renewal."""
        await dial(self._host, relay.text)
        # The reservation lasts as long as this connection.
        self._swarm.protect(relay.peer_id, PROTECTION)
        async with await open_stream(self._host, relay_id, [HOP]) as stream:
            await write_message(stream, HopMessage(type=HopMessage.RESERVE))
            answer = await read_message(stream, HopMessage)
        if answer.type != HopMessage.STATUS or answer.status != Status.OK:
            raise RelayMessageError(status_name(answer.status))
        self._held[relay_id] = self._addresses(relay, answer.reservation.addrs)
        renewal = (answer.reservation.expire - time.time()) * 0.75
        return max(EARLIEST_RENEWAL, min(LATEST_RENEWAL, renewal))

    async def _wait_lost(self, relay_id: str, renewal: float) -> None:
        """Wait until it is time to renew. Raises DialError if the connection ends before."""
        connections = living_connections(self._host, ID.from_string(relay_id))
        with trio.move_on_after(renewal):
            for muxed in (connection.muxed_conn for connection in connections[:1]):
                if isinstance(muxed, BoundedYamux):
                    await muxed.event_closed.wait()
            raise DialError(
                f"the connection to {relay_id} is gone", code="not_connected", address=relay_id, hint="it is made again"
            )

    def _addresses(self, relay: PeerAddress, named: Sequence[bytes]) -> tuple[str, ...]:
        """Our addresses behind the relay, from the address that we dialled and the addresses that the relay named."""
        peer_id = self._host.get_id().to_base58()
        texts = [relay.text, *_readable(named, relay.peer_id)]
        return tuple(f"{text}/p2p-circuit/p2p/{peer_id}" for text in dict.fromkeys(texts))[:MAX_ADDRESSES]


def _readable(named: Sequence[bytes], relay_id: ID) -> list[str]:
    found = []
    for address in named[: 4 * MAX_ADDRESSES]:
        try:
            target = parse_peer_address(str(Multiaddr(address)))
        except Exception:
            # Each codec of the library raises an error of its own.
            continue
        if target.peer_id == relay_id and not target.relayed:
            found.append(target.text)
    return found
