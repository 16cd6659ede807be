"""Opens streams to a connected peer.

What breaks: opening a stream waits for ever on a peer that acknowledges nothing, and leaks a half-open stream when it
is cancelled. Negotiating a protocol takes two round trips.
Measure: `open_stream` has a deadline, uses a living connection, leaves no stream behind and takes one round trip.
Upstream: no upstream report found (November 2026).
"""

from __future__ import annotations

from collections.abc import Sequence

import trio
from libp2p.abc import IHost, INetConn, INetStream
from libp2p.custom_types import TProtocol
from libp2p.peer.id import ID
from libp2p.protocol_muxer.exceptions import MultiselectClientError, ProtocolNotSupportedError

from ..errors import DialError
from ..limits import HostLimits
from ..tasks import shielded
from ..transport.multistream import BoundedClient, BoundedCommunicator
from .locks import use_quick_lock
from .stream import PeerStream, reset_stream

__all__ = ["living_connections", "open_stream"]


def living_connections(host: IHost, peer_id: ID) -> list[INetConn]:
    """The connections to a peer that are not known to have ended, the newest first: the peer itself uses that one."""
    return [conn for conn in reversed(host.get_network().get_connections(peer_id)) if not conn.is_closed]


async def open_stream(host: IHost, peer_id: str, protocols: Sequence[str], deadline: float = 10.0) -> PeerStream:
    """Open a stream on the existing connection to `peer_id`, with the first of `protocols` that the peer speaks.

    It takes at most `deadline` seconds, plus the time of a frame that is already being sent. Raises DialError:
    `not_connected`, `protocol_not_supported`, `busy`, `timeout`, `stream_failed`. If cancelled, it leaves no stream
    behind.
    """
    connections = living_connections(host, ID.from_string(peer_id))
    if not connections:
        raise DialError(
            f"there is no connection to {peer_id}", code="not_connected", address=peer_id, hint="dial its address first"
        )
    with trio.move_on_after(deadline):
        stream = await _open_raw_stream(connections[0], peer_id, deadline)
        use_quick_lock(stream)
        try:
            await _negotiate(stream, protocols, peer_id, getattr(host, "limits", HostLimits()))
        except BaseException:
            await reset_stream(stream, deadline)
            raise
        return PeerStream(stream)
    raise DialError(
        f"{peer_id} agreed on no protocol within {deadline:g} seconds",
        code="timeout",
        address=peer_id,
        hint="try again later",
    )


async def _open_raw_stream(connection: INetConn, peer_id: str, deadline: float) -> INetStream:
    try:
        # Shielded: between opening the stream and returning it, the library has checkpoints where a cancellation would
        # lose it.
        with shielded(deadline):
            return await connection.new_stream()
    except Exception as error:
        code = "busy" if "are open" in str(error) else "stream_failed"
        raise DialError(
            f"cannot open a stream to {peer_id}: {error}", code=code, address=peer_id, hint="try again later"
        ) from error
    raise DialError(f"{peer_id} takes no new stream", code="timeout", address=peer_id, hint="try again later")


async def _negotiate(stream: INetStream, protocols: Sequence[str], peer_id: str, limits: HostLimits) -> None:
    communicator = BoundedCommunicator(stream, limits)
    try:
        stream.set_protocol(await BoundedClient(limits).select([TProtocol(name) for name in protocols], communicator))
    except ProtocolNotSupportedError as error:
        raise DialError(
            f"{peer_id} speaks none of {', '.join(protocols)}",
            code="protocol_not_supported",
            address=peer_id,
            hint="it may be another kind of peer, or an older version",
        ) from error
    except MultiselectClientError as error:
        raise DialError(
            f"{peer_id} ended the stream at once", code="stream_failed", address=peer_id, hint="try again later"
        ) from error
