"""One peer's part in the DHT: the peers that it knows, its queries and its answers.

The routing table, the messages and the answering side are py-libp2p's. The modules beside this one replace the rest,
and each says what breaks.

What breaks: the library's handler accepts values of a megabyte, fifty thousand of them, from any peer. It accepts only
ten announcements of one peer in ten seconds.
Measure: no values at all; enough announcements for every class at once.
Upstream: no upstream report found (November 2026).
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, Final, cast

import trio
import trio.abc
from libp2p.abc import IHost, INetStream
from libp2p.kad_dht.common import PROTOCOL_ID
from libp2p.kad_dht.kad_dht import DHTMode, KadDHT
from libp2p.kad_dht.pb.kademlia_pb2 import Message
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo
from libp2p.peer.peerstore import env_to_send_in_RPC
from libp2p.records.validator import NamespacedValidator
from libp2p.utils.varint import encode_varint_prefixed, read_varint_prefixed_bytes_limited

from dms_protocols.adverts.classes import CLASSES

from ...connections import ConnectionPool
from .host_view import KademliaHost, KademliaStream
from .tables import ProvenTable, ProviderRecords

__all__ = ["KademliaMember"]

_log = logging.getLogger(__name__)

# Seconds.
_ASK_DEADLINE: Final = 6.0
_IDLE: Final = 20.0
_PACE: Final = 0.01
# Bytes of an answer.
_LONGEST_ANSWER: Final = 256 * 1024
_MOST_STREAMS: Final = 128
_MOST_STREAMS_OF_ONE: Final = 4
_MOST_SUSPECTS: Final = 64
# Of one peer in ten seconds: all classes at once, and again after a change.
_MOST_ANNOUNCED: Final = 4 * len(CLASSES)

Read = Callable[[KademliaStream], Awaitable[Message]]


class KademliaMember:
    """The role of a peer in the DHT: a `server` answers others, a client only queries."""

    def __init__(
        self, host: IHost, connections: ConnectionPool, addrs: Callable[[], Sequence[str]], *, server: bool
    ) -> None:
        self._host = KademliaHost(host, connections, addrs if server else tuple, self._proven)
        self._own_id = host.get_id()
        self._server = server
        self._dht = _library_dht(self._host, server=server)
        self._table = ProvenTable(self._host)
        self._records = ProviderRecords(self._host, self._dht.peer_routing)
        self._dht.routing_table = self._table
        self._dht.provider_store = self._records
        self._suspects: trio.MemorySendChannel[ID]
        self._suspects, self._suspected = trio.open_memory_channel[ID](_MOST_SUSPECTS)
        self._streams: Counter[str] = Counter()
        self._met: set[ID] = set()
        self._grown = trio.Event()

    @property
    def peers(self) -> int:
        """The number of peers in the routing table."""
        return self._table.size()

    @property
    def records(self) -> int:
        """The number of provider records that this peer keeps for others."""
        return self._records.size()

    async def wait_peers(self, number: int) -> None:
        """Return when there are this many peers in the routing table."""
        while self.peers < number:
            await self._grown.wait()

    # Queries

    def _message(self, kind: Any, key: bytes, *, announce: bool = False) -> Message:
        message = Message(type=kind, key=key)
        if self._server:
            message.senderRecord, _ = env_to_send_in_RPC(cast(IHost, self._host))
        if announce:
            provider = message.providerPeers.add()
            provider.id = self._own_id.to_bytes()
            provider.addrs.extend(address.to_bytes() for address in self._host.get_addrs())
        return message

    async def _ask(self, peer_id: ID, question: Message) -> Message | None:
        answer = await self._converse(peer_id, [question], _read_answer)
        if answer is None:
            self._table.remove_peer(peer_id)
            self._met.discard(peer_id)
        return answer

    async def _hand_over(self, peer_id: ID, messages: Sequence[Message]) -> bool:
        """Send messages that have no answer. Returns whether the peer accepted them."""
        return await self._converse(peer_id, messages, _read_end) is not None

    async def _converse(self, peer_id: ID, messages: Sequence[Message], read: Read) -> Message | None:
        """Send the messages in one stream and read the answer; None if there is none in time."""
        with trio.move_on_after(_ASK_DEADLINE):
            try:
                stream = await self._host.new_stream(peer_id, [PROTOCOL_ID])
                try:
                    for message in messages:
                        await stream.write(encode_varint_prefixed(message.SerializeToString()))
                    return await read(stream)
                finally:
                    await stream.close()
            except Exception as error:
                # A stranger can fail in any layer, and all failures mean the same.
                _log.debug("%s did not answer in the DHT: %r", peer_id, error)
        return None

    async def _proven(self, peer_id: ID) -> None:
        before = self.peers
        addrs = self._host.book.addrs(peer_id)
        if addrs and await self._table.admit(PeerInfo(peer_id, addrs)) and self.peers > before:
            self._met.add(peer_id)
            self._grown.set()
            self._grown = trio.Event()

    # Answers

    async def serve(self, stream: trio.abc.HalfCloseableStream, peer_id: str) -> None:
        """Answer one stream of a peer, with the library's handler. If there are too many, it is reset."""
        asking = KademliaStream(stream, ID.from_string(peer_id), deadline=_IDLE, pace=_PACE)
        if self._streams.total() >= _MOST_STREAMS or self._streams[peer_id] >= _MOST_STREAMS_OF_ONE:
            await asking.reset()
            return
        with suppress(trio.WouldBlock):
            # It may serve the DHT itself. It is queried when it has reported its addresses.
            self._suspects.send_nowait(asking.peer_id)
        self._streams[peer_id] += 1
        try:
            await self._dht._do_handle_stream(cast(INetStream, asking))
        finally:
            self._streams[peer_id] -= 1
            if not self._streams[peer_id]:
                del self._streams[peer_id]


def _library_dht(host: KademliaHost, *, server: bool) -> KadDHT:
    dht = KadDHT(
        cast(IHost, host),
        DHTMode.SERVER if server else DHTMode.CLIENT,
        # An empty validator rejects every record.
        validator=NamespacedValidator({}, strict_validation=True),
        validator_changed=True,
        strict_validation=True,
    )
    dht._provider_rate_max = _MOST_ANNOUNCED
    return dht


async def _read_answer(stream: KademliaStream) -> Message:
    answer = Message()
    answer.ParseFromString(await read_varint_prefixed_bytes_limited(stream, _LONGEST_ANSWER))
    return answer


async def _read_end(stream: KademliaStream) -> Message:
    await stream.finish()
    return Message()
