"""Connections through a relay: converts a stream to the relay into a raw connection to a peer.

The connection is secured end to end with the same handshake as a socket, so that the relay cannot read it.

What breaks in the library's relay transport: `host.connect` fails for a `/p2p-circuit` address. A failed or cancelled
dial leaves its stream open. The relayed peer accepts connections from any peer that claims to be a relay, and these
hold no slot and count as no handshake.
Measure: `request_circuit` and `accept_circuit`, on our own streams.
Upstream: no upstream report found (November 2026).
"""

from __future__ import annotations

import trio
from libp2p.connection_types import ConnectionType
from libp2p.io.abc import ReadWriteCloser
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.peer.id import ID
from libp2p.relay.circuit_v2.pb.circuit_pb2 import HopMessage, PeerId, Status, StopMessage
from multiaddr import Multiaddr  # type: ignore[import-untyped]  # it has no types

from ..addresses import PeerAddress
from ..errors import DialError
from ..streams.stream import PeerStream
from .messages import RelayMessageError, read_message, status_name, write_message

__all__ = ["accept_circuit", "circuit_address", "request_circuit"]


class _CircuitStream(ReadWriteCloser):
    """A stream used as a socket."""

    def __init__(self, stream: PeerStream) -> None:
        self._stream = stream

    async def read(self, n: int | None = None) -> bytes:
        """Up to `n` bytes; b"" at the end, and after it was closed here, like a socket of the library."""
        try:
            return await self._stream.receive_some(n)
        except trio.ClosedResourceError:
            return b""
        except trio.BrokenResourceError as error:
            raise ConnectionClosedError("the circuit is gone") from error

    async def write(self, data: bytes) -> None:
        """Send all of `data`."""
        try:
            await self._stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise ConnectionClosedError("the circuit is gone") from error

    async def close(self) -> None:
        """End both directions. Takes a few seconds at most."""
        await self._stream.aclose()

    def get_remote_address(self) -> None:
        """None, because only the relay knows the peer's address."""


def circuit_address(relay_id: str, peer_id: str) -> Multiaddr:
    """The address of a peer behind a relay, without the address of the relay."""
    return Multiaddr(f"/p2p/{relay_id}/p2p-circuit/p2p/{peer_id}")


def _connection(stream: PeerStream, peer_id: str, is_initiator: bool) -> RawConnection:
    address = circuit_address(stream.remote_peer_id, peer_id)
    return RawConnection(_CircuitStream(stream), is_initiator, ConnectionType.RELAYED, [address])


async def request_circuit(stream: PeerStream, target: PeerAddress) -> RawConnection:
    """Request a connection to `target` from the relay at the other end of a HOP stream, which becomes the connection.

    Raises DialError `relay_failed`. The stream is reset if anything is raised.
    """
    try:
        peer = PeerId(id=target.peer_id.to_bytes())
        await write_message(stream, HopMessage(type=HopMessage.CONNECT, peer=peer))
        answer = await read_message(stream, HopMessage)
        if answer.type != HopMessage.STATUS or answer.status != Status.OK:
            raise RelayMessageError(status_name(answer.status))
    except RelayMessageError as error:
        await stream.areset()
        raise DialError(
            f"the relay does not connect to {target.text}: {error}",
            code="relay_failed",
            address=target.text,
            hint="the peer may have no reservation there any more",
        ) from error
    except BaseException:
        await stream.areset()
        raise
    return _connection(stream, target.peer_id.to_base58(), is_initiator=True)


async def accept_circuit(stream: PeerStream) -> RawConnection:
    """Accept the connection that the relay at the other end of a STOP stream offers. Raises RelayMessageError."""
    offer = await read_message(stream, StopMessage)
    if offer.type != StopMessage.CONNECT or not offer.peer.id:
        await write_message(stream, StopMessage(type=StopMessage.STATUS, status=Status.UNEXPECTED_MESSAGE))
        raise RelayMessageError("no offer of a connection")
    await write_message(stream, StopMessage(type=StopMessage.STATUS, status=Status.OK))
    # The handshake proves the peer's id. The relay's claim is used only in the address.
    return _connection(stream, ID(offer.peer.id).to_base58(), is_initiator=False)
