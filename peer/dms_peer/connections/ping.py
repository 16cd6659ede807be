"""Round trips of libp2p's ping protocol (`/ipfs/ping/1.0.0`): 32 random bytes that the peer echoes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Final

import trio
from libp2p.abc import IHost
from libp2p.connection_types import ConnectionType
from libp2p.peer.id import ID

from dms_host import open_stream
from dms_host.errors import DialError
from dms_host.streams.outbound import living_connections

from .pool import ConnectionPool

__all__ = ["ping_peer"]

_PROTOCOL: Final = "/ipfs/ping/1.0.0"
_SIZE: Final = 32
_DEADLINE: Final = 10.0


async def ping_peer(host: IHost, pool: ConnectionPool, peer_id: str, addrs: Sequence[str] = ()) -> tuple[float, bool]:
    """One round trip to the peer in seconds, and whether its connection goes through a relay.

    If there is no connection, it connects first; that time does not count. Raises DialError; may be cancelled.
    """
    await pool.connect(peer_id, addrs)
    stream = await open_stream(host, peer_id, [_PROTOCOL])
    try:
        with trio.move_on_after(_DEADLINE):
            sent, started = os.urandom(_SIZE), trio.current_time()
            await stream.send_all(sent)
            echo = b""
            while len(echo) < _SIZE and (more := bytes(await stream.receive_some(_SIZE - len(echo)))):
                echo += more
            round_trip = trio.current_time() - started
            if echo != sent:
                raise DialError(
                    f"{peer_id} does not echo what it was sent", code="bad_answer", address=peer_id, hint="try again"
                )
            return round_trip, _relayed(host, peer_id)
    except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
        raise DialError(
            f"the connection to {peer_id} is lost", code="stream_failed", address=peer_id, hint="try again"
        ) from error
    finally:
        await trio.aclose_forcefully(stream)
    raise DialError(
        f"{peer_id} did not answer within {_DEADLINE:g} s", code="timeout", address=peer_id, hint="try again"
    )


def _relayed(host: IHost, peer_id: str) -> bool:
    connections = living_connections(host, ID.from_string(peer_id))
    return bool(connections) and connections[0].get_connection_type() is ConnectionType.RELAYED
