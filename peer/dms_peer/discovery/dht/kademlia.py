"""Kademlia: finds providers by the capability classes that they announce.

A running peer serves the DHT (server mode); a short-lived requester only queries.

What breaks in the library's: a peer has to be added by hand after it connected.
Measure: a peer that connects, or queries, is added if it serves the DHT itself.
Upstream: no upstream report found (November 2026).
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Final

import trio
import trio.abc
from libp2p.abc import IHost
from libp2p.kad_dht.pb.kademlia_pb2 import Message
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo
from multiaddr import Multiaddr  # type: ignore[import-untyped]  # it has no types

from dms_host import attach_protocols
from dms_protocols.adverts.classes import CapabilityClass, classes_to_look_up
from dms_protocols.logs import LimitedLog
from dms_protocols.messages.bid import EnsembleRequest
from dms_protocols.protocol_ids import KADEMLIA_PROTOCOL
from dms_resources.bounded_dict import BoundedDict
from dms_resources.tasks import open_background

from ...connections import ConnectionPool
from ...requesting.network import Candidate
from .host_view import text_addresses
from .lookup import WIDTH, Walk, closest_to, peers_in
from .member import KademliaMember

__all__ = ["Kademlia", "open_kademlia"]

_log = logging.getLogger(__name__)
_limited_log: Final = LimitedLog(_log)

# Seconds.
_LONGEST_PAUSE: Final = 600.0
_BREATH: Final = 1.0
# This many explorations suffice in a network that is too large to know completely.
_SURVEYS: Final = 4
# A survey needs peers, and each answer names twenty.
_SURVEY_WIDTH: Final = 3
_LOOK_AGAIN: Final = 2.0
# The table has to grow by this factor before it is explored again soon.
_GROWN: Final = 1.25
_STUMBLED: Final = 5.0
# A peer that did not serve the DHT may do so later.
_ASK_AGAIN: Final = 60.0
# Below this number of peers all are known, and are searched again sooner.
_SMALL: Final = 20
_WHOLE_NETWORK: Final = 100
_MOST_ASKED: Final = 1024
_MOST_PROVIDERS: Final = 60
_ANNOUNCED_AT_ONCE: Final = 4
_JOINED_AT_ONCE: Final = 4


class Kademlia(KademliaMember):
    """The DHT as this peer sees it: a CandidateSource. `open_kademlia` makes it."""

    name = "dht"

    def __init__(
        self, host: IHost, connections: ConnectionPool, addrs: Callable[[], Sequence[str]], *, server: bool
    ) -> None:
        super().__init__(host, connections, addrs, server=server)
        self._asked: BoundedDict[ID, float] = BoundedDict(_MOST_ASKED)
        self.announced = 0
        """The number of peers that accepted the last announcement."""
        self._complete, self._surveys = False, 0
        self._joined = trio.Event()
        self._asking, self._settled = 0, trio.lowlevel.ParkingLot()

    async def wait_joined(self) -> None:
        """Return when there are peers to query, as many as could be found at first."""
        await self._joined.wait()

    # Finding

    @asynccontextmanager
    async def candidates(self, request: EnsembleRequest) -> AsyncIterator[AsyncIterator[Candidate]]:
        """Yield the providers of the rarest class that each node needs, as they are found."""
        send, receive = trio.open_memory_channel[Candidate](0)
        with receive:
            async with open_background(partial(self._search, request, send)):
                yield receive

    async def _search(self, request: EnsembleRequest, candidates: trio.MemorySendChannel[Candidate]) -> None:
        told = {*request.peer_exclusion, self._own_id.to_base58()}

        async def found(peer_id: ID, addrs: Sequence[Multiaddr]) -> None:
            name = peer_id.to_base58()
            if name not in told:
                told.add(name)
                await candidates.send(Candidate(name, text_addresses(peer_id, addrs), self.name))

        async with candidates:
            for one in classes_to_look_up(request):
                await self.find(one, found)

    async def find(self, one: CapabilityClass, found: Callable[[ID, Sequence[Multiaddr]], Awaitable[None]]) -> None:
        """Call `found` with the providers of a class and their addresses. The search waits for each call."""

        async def take(answer: Message) -> None:
            for peer_id, addrs in peers_in(answer.providerPeers, _MOST_PROVIDERS):
                await found(peer_id, addrs)

        for provider in self._records.get_providers(one.key):
            await found(provider.peer_id, provider.addrs)
        await self._wait_for_a_peer()
        await self._walk(one.key, self._message(Message.MessageType.GET_PROVIDERS, one.key)).run(take)

    async def _wait_for_a_peer(self) -> None:
        """Return when there is a peer to query, or no peer is left that might become one."""
        if not self.peers:
            await self._join()
        while not self.peers and self._asking:
            # Another task queries the connected peers.
            await self._settled.park()

    # Announcing

    async def announce(self, classes: Iterable[CapabilityClass]) -> int:
        """Announce this peer as a provider of these classes. Returns the number of peers that accepted it.
        Cancellable.
        """
        self._host.refresh()
        own = PeerInfo(self._own_id, self._host.get_addrs())
        holders: dict[ID, list[bytes]] = {}
        for key in [one.key for one in classes]:
            self._records.add_provider(key, own)
            for peer_id in await self._holders(key):
                holders.setdefault(peer_id, []).append(key)
        taken: list[ID] = []
        slots = trio.Semaphore(_ANNOUNCED_AT_ONCE)
        async with trio.open_nursery() as nursery:
            for peer_id, their_keys in holders.items():
                await slots.acquire()
                nursery.start_soon(self._tell, peer_id, their_keys, taken, slots)
        self.announced = len(taken)
        return self.announced

    async def _holders(self, key: bytes) -> list[ID]:
        """The peers that should keep the records of a key."""
        if self._complete:
            return closest_to(key, self._met)
        return (await self._explore(key)).closest

    async def _tell(self, peer_id: ID, keys: Sequence[bytes], taken: list[ID], slots: trio.Semaphore) -> None:
        try:
            messages = [self._message(Message.MessageType.ADD_PROVIDER, key, announce=True) for key in keys]
            # All in one stream, because opening one costs a hundred times as much as a message.
            if await self._hand_over(peer_id, messages):
                taken.append(peer_id)
        finally:
            slots.release()

    # Maintenance

    async def keep_up(self) -> None:
        """Find peers of the DHT among the connected peers, and through them the neighbourhood."""
        explored_at, known, pause = float("-inf"), 0, _LOOK_AGAIN
        while True:
            self._host.refresh()
            await self._join()
            if self.peers and (self.peers >= 2 * known or trio.current_time() >= explored_at + pause):
                # First towards its own id, then towards random keys: in both places others will look for it.
                await self._survey(self._own_id.to_bytes() if not known else secrets.token_bytes(32))
                # In a large network each exploration meets new peers, which is no reason for another exploration.
                grown = self.peers >= _GROWN * known
                explored_at, known = trio.current_time(), max(self.peers, 1)
                pause = _LOOK_AGAIN if grown and not self._complete else min(2 * pause, _LONGEST_PAUSE)
            await trio.sleep(_BREATH)
            if known:
                with trio.move_on_at(explored_at + pause):
                    await self.wait_peers(2 * known)

    async def _survey(self, key: bytes) -> None:
        """Explore, and note whether a small network is known completely: then no walk meets a new peer."""
        met = frozenset(self._met)
        walk = await self._explore(key, _SURVEY_WIDTH)
        self._surveys += 1
        self._complete = bool(met) and walk.living <= met and len(met) < _WHOLE_NETWORK
        if self.peers and (self._complete or self._surveys >= _SURVEYS):
            self._joined.set()

    async def check_suspects(self) -> None:
        """Find out which querying peers serve the DHT themselves."""
        async for peer_id in self._suspected:
            await self._ask_once(peer_id)

    async def _join(self) -> None:
        strangers = [peer_id for peer_id in self._host.get_connected_peers() if self._is_unknown(peer_id)]
        slots = trio.CapacityLimiter(_JOINED_AT_ONCE)

        async def ask(peer_id: ID) -> None:
            async with slots:
                await self._ask_once(peer_id)

        async with trio.open_nursery() as nursery:
            for peer_id in strangers[:_SMALL]:
                nursery.start_soon(ask, peer_id)

    def _is_unknown(self, peer_id: ID) -> bool:
        return (
            peer_id != self._own_id
            and not self._table.peer_in_table(peer_id)
            and self._asked.get(peer_id, float("-inf")) + _ASK_AGAIN < trio.current_time()
        )

    async def _ask_once(self, peer_id: ID) -> None:
        if not self._is_unknown(peer_id):
            return
        self._asked[peer_id] = trio.current_time()
        self._asking += 1
        try:
            await self._find_out(peer_id)
        finally:
            self._asking -= 1
            self._settled.unpark_all()

    async def _find_out(self, peer_id: ID) -> None:
        if await self._host.serves(peer_id) is not None:
            return
        question = self._message(Message.MessageType.FIND_NODE, self._own_id.to_bytes())
        answer = await self._ask(peer_id, question)
        if answer is not None:
            for near, addrs in peers_in(answer.closerPeers, _SMALL):
                self._host.book.add_addrs(near, addrs)

    async def _explore(self, key: bytes, width: int = WIDTH) -> Walk:
        walk = self._walk(key, self._message(Message.MessageType.FIND_NODE, key), width)
        # Everyone who answers during the walk has proved that it serves the DHT.
        await walk.run(_nothing)
        self._met |= walk.living
        if len(self._met) >= _WHOLE_NETWORK:
            # There are too many peers to know them all.
            self._met, self._complete = set(walk.living), False
        return walk

    def _walk(self, key: bytes, question: Message, width: int = WIDTH) -> Walk:
        start = self._table.find_local_closest_peers(key, _SMALL)
        ask = partial(self._ask, question=question)
        return Walk(key, self._own_id, start, ask, self._host.book.add_addrs, width=width)


@asynccontextmanager
async def open_kademlia(
    host: IHost, connections: ConnectionPool, addrs: Callable[[], Sequence[str]] = tuple, *, server: bool
) -> AsyncIterator[Kademlia]:
    """The DHT while the block runs. A `server` answers others, who find it at `addrs` (multiaddrs).

    An error in its tasks is logged, and the tasks start again.
    """
    dht = Kademlia(host, connections, addrs, server=server)
    async with AsyncExitStack() as stack:
        tasks = (dht.keep_up, dht.check_suspects)
        await stack.enter_async_context(open_background(*(partial(_again_and_again, task) for task in tasks)))
        if server:
            await stack.enter_async_context(attach_protocols(host, {KADEMLIA_PROTOCOL: dht.serve}))
        yield dht


async def _nothing(answer: Message) -> None:
    """Ignore the answer: only the walk matters."""


async def _again_and_again(task: Callable[[], Awaitable[None]]) -> None:
    while True:
        try:
            await task()
        except* Exception as group:
            _limited_log.error("the DHT stumbled and goes on: %r", group.exceptions[0])
        await trio.sleep(_STUMBLED)
