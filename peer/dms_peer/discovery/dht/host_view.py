"""The view of our host for py-libp2p's Kademlia: an object that cannot harm the host.

What breaks if Kademlia gets the host itself: it dials by `host.new_stream`, which tries old addresses first, four
times, for two minutes. Any number of addresses that strangers name go into the peer store by which the host itself
dials. Its protocol id is that of the public IPFS network, whatever prefix it gets. A silent stream holds one of its
twelve slots for ever.
Measure: `KademliaHost` dials through our connections, has a bounded address book of its own, and speaks
KADEMLIA_PROTOCOL. `KademliaStream` has deadlines, limits what it reads and sends each message in one piece.
Upstream: no upstream report found (November 2026).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final

import trio
import trio.abc
from libp2p.abc import IHost
from libp2p.crypto.keys import PrivateKey
from libp2p.custom_types import TProtocol
from libp2p.io.abc import Reader
from libp2p.kad_dht.common import PROTOCOL_ID
from libp2p.peer.envelope import Envelope
from libp2p.peer.id import ID
from multiaddr import Multiaddr  # type: ignore[import-untyped]  # it has no types

from dms_host import open_stream
from dms_host.errors import DialError
from dms_host.streams.stream import PeerStream
from dms_protocols.protocol_ids import KADEMLIA_PROTOCOL
from dms_resources.bounded_dict import BoundedDict

from ...connections import ConnectionPool

__all__ = ["DhtAddresses", "KademliaHost", "KademliaStream", "text_addresses"]

_MOST_ADDRESSES: Final = 8
_PLACES_FOR_OTHERS: Final = 2
_MOST_PEERS: Final = 2048
# Bytes of one message. A request has some hundreds, an answer some ten thousand.
_LONGEST_MESSAGE: Final = 256 * 1024
_READ_SIZE: Final = 64 * 1024
_STREAM_DEADLINE: Final = 5.0


class KademliaStream(Reader):
    """A stream as the library's Kademlia uses it: `read(n)`, `write`, `close`.

    Each step may take `deadline` seconds. At least `pace` seconds lie between two messages of the peer. Raises
    trio.TooSlowError, trio.BrokenResourceError, and ValueError if the peer exceeds the size of a message.
    """

    # The library sends events there.
    metric_send_channel = None

    def __init__(
        self, stream: trio.abc.HalfCloseableStream, peer_id: ID, *, deadline: float, pace: float = 0.0
    ) -> None:
        self._stream = stream
        self._deadline = deadline
        self._pace = pace
        self._unread = bytearray()
        self._unsent = bytearray()
        self._read = 0
        self.peer_id = peer_id

    @property
    def muxed_conn(self) -> KademliaStream:
        """The library looks for the peer's id on this object."""
        return self

    async def read(self, n: int | None = None) -> bytes:
        """At most `n` bytes, b"" at the end. Sends first what was written."""
        await self.flush()
        if not self._unread:
            with trio.fail_after(self._deadline):
                received = await self._stream.receive_some(_READ_SIZE)
            self._read += len(received)
            if self._read > _LONGEST_MESSAGE:
                raise ValueError(f"a message of more than {_LONGEST_MESSAGE} bytes")
            self._unread += received
        taken = bytes(self._unread[:n])
        del self._unread[: len(taken)]
        return taken

    async def write(self, data: bytes) -> None:
        """Keep the bytes until the next read or the end, because the library writes a message in two pieces."""
        self._unsent += data

    async def flush(self) -> None:
        """Send what was written."""
        if not self._unsent:
            return
        data, self._unsent = bytes(self._unsent), bytearray()
        with trio.fail_after(self._deadline):
            await self._stream.send_all(data)
        self._read = len(self._unread)
        if self._pace:
            await trio.sleep(self._pace)

    async def finish(self) -> None:
        """Send the end of this direction, and return when the peer has read everything and ended the other
        direction.
        """
        await self.flush()
        with trio.fail_after(self._deadline):
            await self._stream.send_eof()
            while await self._stream.receive_some(_READ_SIZE):
                # Some peers acknowledge each message, others none.
                pass

    async def close(self) -> None:
        """Send what is left and end the stream."""
        try:
            await self.flush()
        finally:
            await self._stream.aclose()

    async def reset(self) -> None:
        """End the stream at once."""
        if isinstance(self._stream, PeerStream):
            await self._stream.areset()
        else:
            await self._stream.aclose()


@dataclass(frozen=True, slots=True)
class _Addresses:
    """The addresses that a peer reports about itself, and those that others report, the newest first."""

    own: tuple[Multiaddr, ...] = ()
    named: tuple[Multiaddr, ...] = ()


class DhtAddresses:
    """The addresses of peers of the DHT, as reported by themselves or others: bounded, and separate from those by which
    the host dials.

    A peer's own addresses come first, except for one or two places, because it may have moved.
    """

    def __init__(self) -> None:
        self._addrs: BoundedDict[ID, _Addresses] = BoundedDict(_MOST_PEERS)
        self._own_record: Envelope | None = None

    def addrs(self, peer_id: ID) -> list[Multiaddr]:
        """The addresses of a peer; none if nothing is known."""
        known = self._addrs.get(peer_id, _Addresses())
        others = [address for address in known.named if address not in known.own]
        return [*known.own[: _MOST_ADDRESSES - min(_PLACES_FOR_OTHERS, len(others))], *others][:_MOST_ADDRESSES]

    def has_own(self, peer_id: ID) -> bool:
        """Whether a peer has reported its own addresses, or answered there."""
        return bool(self._addrs.get(peer_id, _Addresses()).own)

    def add_addrs(self, peer_id: ID, addrs: Sequence[Multiaddr], ttl: int = 0) -> None:
        """Note what others report. The newest reports are kept, and the peer that was reported longest ago
        is dropped.
        """
        known = self._addrs.get(peer_id, _Addresses())
        named = tuple(dict.fromkeys((*addrs, *known.named)))[:_MOST_ADDRESSES]
        self._note(peer_id, replace(known, named=named))

    def add_own(self, peer_id: ID, addrs: Sequence[Multiaddr]) -> None:
        """Note what a peer reports about itself. It replaces everything else."""
        self._note(peer_id, _Addresses(own=tuple(addrs)[:_MOST_ADDRESSES]))

    def _note(self, peer_id: ID, addresses: _Addresses) -> None:
        self._addrs[peer_id] = addresses

    def get_peer_record(self, peer_id: ID) -> None:
        """None, because records of others are not passed on; their addresses are."""
        return

    def consume_peer_record(self, envelope: Envelope, ttl: int) -> bool:
        """Note what a peer reports about itself. False if another peer signed it. Raises if it is no peer record."""
        record = envelope.record()
        if ID.from_pubkey(envelope.public_key) != record.peer_id:
            return False
        self.add_own(record.peer_id, record.addrs)
        return True

    def get_local_record(self) -> Envelope | None:
        """This peer's own record."""
        return self._own_record

    def set_local_record(self, envelope: Envelope) -> None:
        """Keep this peer's own record."""
        self._own_record = envelope


class KademliaHost:
    """The part of a libp2p host that the library's Kademlia uses. `addrs` returns this host's addresses, none in client
    mode.

    `proven` is called with each peer that agreed to speak KADEMLIA_PROTOCOL.
    """

    def __init__(
        self,
        host: IHost,
        connections: ConnectionPool,
        addrs: Callable[[], Sequence[str]],
        proven: Callable[[ID], Awaitable[None]],
    ) -> None:
        self._host = host
        self._connections = connections
        self._addrs = addrs
        self._own_addrs: list[Multiaddr] = []
        self.refresh()
        self._proven = proven
        self.book = DhtAddresses()

    def refresh(self) -> None:
        """Read this peer's addresses again, because it may have found a relay or moved."""
        self._own_addrs = [_without_peer(Multiaddr(address)) for address in self._addrs()]

    def get_id(self) -> ID:
        """The id of this peer."""
        return self._host.get_id()

    def get_addrs(self) -> list[Multiaddr]:
        """The addresses of this peer."""
        return self._own_addrs

    def get_private_key(self) -> PrivateKey:
        """The key that signs the peer's record of its addresses."""
        return self._host.get_private_key()

    def get_peerstore(self) -> DhtAddresses:
        """The address book."""
        return self.book

    def get_connected_peers(self) -> list[ID]:
        """The connected peers."""
        return self._host.get_connected_peers()

    def set_stream_handler(self, protocol_id: TProtocol, stream_handler: object) -> None:
        """No effect: `open_kademlia` serves the protocol, under its own name."""

    async def new_stream(self, peer_id: ID, protocol_ids: Sequence[TProtocol]) -> KademliaStream:
        """A stream to a peer, which is dialled if necessary. Raises DialError."""
        name = peer_id.to_base58()
        wanted = [KADEMLIA_PROTOCOL if protocol == PROTOCOL_ID else str(protocol) for protocol in protocol_ids]
        stream = await self._open(name, peer_id, wanted)
        if stream.protocol == KADEMLIA_PROTOCOL:
            self._learn(peer_id)
            await self._proven(peer_id)
        return KademliaStream(stream, peer_id, deadline=_STREAM_DEADLINE)

    async def _open(self, name: str, peer_id: ID, protocols: Sequence[str]) -> PeerStream:
        try:
            return await open_stream(self._host, name, protocols, _STREAM_DEADLINE)
        except DialError as error:
            if error.code != "not_connected":
                raise
        await self._connections.connect(name, text_addresses(peer_id, self.book.addrs(peer_id)))
        return await open_stream(self._host, name, protocols, _STREAM_DEADLINE)

    def _learn(self, peer_id: ID) -> None:
        """Learn the addresses at which the peer answered or reported to listen, for answers to other peers."""
        if self.book.has_own(peer_id):
            return
        try:
            self.book.add_own(peer_id, self._host.get_peerstore().addrs(peer_id))
        except Exception:
            # The library's peer store raises its own error for a missing entry.
            return

    async def serves(self, peer_id: ID) -> bool | None:
        """Whether a connected peer reports that it serves the DHT; None while it has not reported anything."""
        try:
            protocols = self._host.get_peerstore().get_protocols(peer_id)
        except Exception:
            # As above.
            return None
        if not protocols:
            return None
        if KADEMLIA_PROTOCOL not in protocols:
            return False
        self._learn(peer_id)
        await self._proven(peer_id)
        return True


def text_addresses(peer_id: ID, addrs: Sequence[Multiaddr]) -> tuple[str, ...]:
    """The addresses as text that ends in /p2p/PEER_ID."""
    suffix = f"/p2p/{peer_id.to_base58()}"
    texts = (_text(address.to_bytes()) for address in addrs[:_MOST_ADDRESSES])
    return tuple(text if text.endswith(suffix) else text + suffix for text in texts)


# Encoding an address takes longer than everything else that is done with it.
@lru_cache(maxsize=4096)
def _text(raw: bytes) -> str:
    return str(Multiaddr(raw))


def _without_peer(address: Multiaddr) -> Multiaddr:
    return Multiaddr(str(address).rpartition("/p2p/")[0] or str(address))
