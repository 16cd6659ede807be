"""A running peer performs the requests of the owner's commands over its own connections."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import trio
from libp2p.abc import IHost

from dms_protocols.rpc.operations import Caller, Operations
from dms_protocols.rpc.service import serve_stream
from dms_resources.manager import ResourceManager

from ..connections.ping import ping_peer
from ..discovery.open import Discovery
from ..requesting.own_peer import OwnPeer
from ..requesting.requester import Requester
from ..signing import EnvelopeChecker
from .requesting import RemoteRequests, discover_operations, remote_operations
from .reserving import reserve_operations

__all__ = ["requesting_operations"]


def requesting_operations(
    host: IHost, discovery: Discovery, manager: ResourceManager, served: Mapping[str, Operations]
) -> Operations:
    """The operations for the owner's socket. `served` are the operations that the peer itself serves, by
    protocol id.
    """
    pool = discovery.network
    caller = Caller(pool.peer_id, local=True)

    async def serve(protocol: str, stream: trio.abc.HalfCloseableStream) -> None:
        await serve_stream(stream, served[protocol], caller)

    own = OwnPeer(pool, serve, lambda: manager.get_onboarded_resources() is not None)

    def requester(token: bytes | None) -> Requester:
        return replace(discovery, sources=(own, *discovery.sources)).requester(token=token, network=own)

    requests = RemoteRequests(own, EnvelopeChecker(), partial(ping_peer, host, pool), discovery.known)
    return remote_operations(requests) | discover_operations(requester) | reserve_operations(requester)
