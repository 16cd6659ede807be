"""The view of our host that py-libp2p's Kademlia gets: a host object that can do no harm to ours.

What breaks when it is given the host itself: its dials are those of `host.new_stream`, which try old addresses first,
four times, for two minutes; each address that a stranger tells goes into the peer store that the host itself dials by,
in any number; its protocol id is that of the public IPFS network, whatever prefix it is given; a stream on which
nothing comes holds one of its twelve places for ever.
Measure: `KademliaHost` dials through our connections, keeps an address book of its own, bounded, and speaks
KADEMLIA_PROTOCOL; `KademliaStream` has deadlines, bounds what it reads and sends each message in one piece.
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
# Bytes of one message; a request has hundreds, an answer some ten thousand.
_LONGEST_MESSAGE: Final = 256 * 1024
_READ_SIZE: Final = 64 * 1024
_STREAM_DEADLINE: Final = 5.0


class KademliaStream(Reader):
    """A stream as the library's Kademlia uses it: `read(n)`, `write`, `close`.

    Each step has `deadline` seconds. Between two messages of the peer lie `pace` seconds at least. Raises
    trio.TooSlowError, trio.BrokenResourceError, and ValueError when the peer sends more than a message may have.
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
        """Where the library looks for the peer's id: it is here."""
        return self

    async def read(self, n: int | None = None) -> bytes:
        """At most `n` bytes, b"" at the end; what was written goes out first."""
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
        """Keeps the bytes until the next read or the end: the library writes a message in two pieces."""
        self._unsent += data

    async def flush(self) -> None:
        """Sends what was written."""
        if not self._unsent:
            return
        data, self._unsent = bytes(self._unsent), bytearray()
        with trio.fail_after(self._deadline):
            await self._stream.send_all(data)
        self._read = len(self._unread)
        if self._pace:
            await trio.sleep(self._pace)

    async def finish(self) -> None:
        """Says that nothing more is coming, and returns when the peer has taken everything in and says so too."""
        await self.flush()
        with trio.fail_after(self._deadline):
            await self._stream.send_eof()
            while await self._stream.receive_some(_READ_SIZE):
                # Some acknowledge each message, some none.
                pass

    async def close(self) -> None:
        """Sends what is left and ends the stream."""
        try:
            await self.flush()
        finally:
            await self._stream.aclose()

    async def reset(self) -> None:
        """Ends the stream at once."""
        if isinstance(self._stream, PeerStream):
            await self._stream.areset()
        else:
            await self._stream.aclose()


@dataclass(frozen=True, slots=True)
class _Addresses:
    """The addresses that a peer tells of itself, and those that others tell, the newest first."""

    own: tuple[Multiaddr, ...] = ()
    named: tuple[Multiaddr, ...] = ()


class DhtAddresses:
    """Where peers of the DHT are, as they or others say: bounded, apart from what the host itself dials by.

    A peer's own addresses come first, except for one or two places: it may have moved.
    """

    def __init__(self) -> None:
        self._addrs: BoundedDict[ID, _Addresses] = BoundedDict(_MOST_PEERS)
        self._own_record: Envelope | None = None

    def addrs(self, peer_id: ID) -> list[Multiaddr]:
        """The addresses of a peer; none where nothing is known."""
        known = self._addrs.get(peer_id, _Addresses())
        others = [address for address in known.named if address not in known.own]
        return [*known.own[: _MOST_ADDRESSES - min(_PLACES_FOR_OTHERS, len(others))], *others][:_MOST_ADDRESSES]

    def has_own(self, peer_id: ID) -> bool:
        """Whether a peer has said itself where it is, or answered there."""
        return bool(self._addrs.get(peer_id, _Addresses()).own)

    def add_addrs(self, peer_id: ID, addrs: Sequence[Multiaddr], ttl: int = 0) -> None:
        """Notes what others say; the newest count, and the peer that was spoken of longest ago is forgotten."""
        known = self._addrs.get(peer_id, _Addresses())
        named = tuple(dict.fromkeys((*addrs, *known.named)))[:_MOST_ADDRESSES]
        self._note(peer_id, replace(known, named=named))

    def add_own(self, peer_id: ID, addrs: Sequence[Multiaddr]) -> None:
        """Notes what a peer says of itself, which takes the place of all that was known."""
        self._note(peer_id, _Addresses(own=tuple(addrs)[:_MOST_ADDRESSES]))

    def _note(self, peer_id: ID, addresses: _Addresses) -> None:
        self._addrs[peer_id] = addresses

    def get_peer_record(self, peer_id: ID) -> None:
        """None: records of others are not passed on, their addresses are."""
        return

    def consume_peer_record(self, envelope: Envelope, ttl: int) -> bool:
        """Notes what a peer says of itself; False when it was signed by another. Raises when it is no peer record."""
        record = envelope.record()
        if ID.from_pubkey(envelope.public_key) != record.peer_id:
            return False
        self.add_own(record.peer_id, record.addrs)
        return True

    def get_local_record(self) -> Envelope | None:
        """This peer's own record."""
        return self._own_record

    def set_local_record(self, envelope: Envelope) -> None:
        """Keeps this peer's own record."""
        self._own_record = envelope


class KademliaHost:
    """The part of a libp2p host that the library's Kademlia uses. `addrs` names this peer's, none in client mode.

    `proven` gets each peer that agreed to speak KADEMLIA_PROTOCOL.
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
        """Looks again where this peer is: it may have found a relay, or moved."""
        self._own_addrs = [_without_peer(Multiaddr(address)) for address in self._addrs()]

    def get_id(self) -> ID:
        """The id of this peer."""
        return self._host.get_id()

    def get_addrs(self) -> list[Multiaddr]:
        """Where this peer can be reached."""
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
        """Nothing: `open_kademlia` serves the protocol, under its own name."""

    async def new_stream(self, peer_id: ID, protocol_ids: Sequence[TProtocol]) -> KademliaStream:
        """A stream to a peer, which is dialled where need be. Raises DialError."""
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
        """The addresses at which the peer answered or told the host that it listens, for answers to other peers."""
        if self.book.has_own(peer_id):
            return
        try:
            self.book.add_own(peer_id, self._host.get_peerstore().addrs(peer_id))
        except Exception:
            # "None" is an error of its own kind in the library's peer store.
            return

    async def serves(self, peer_id: ID) -> bool | None:
        """Whether a connected peer says of itself that it serves the DHT, and where; None while it has not said."""
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


# Encoding an address takes longer than all else that is done with it.
@lru_cache(maxsize=4096)
def _text(raw: bytes) -> str:
    return str(Multiaddr(raw))


def _without_peer(address: Multiaddr) -> Multiaddr:
    return Multiaddr(str(address).rpartition("/p2p/")[0] or str(address))
