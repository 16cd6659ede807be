"""A host that a command opens for itself if no peer of its home runs, and requests over it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import trio
from msgspec import Struct

from dms_host.keys.identity import load_or_create_identity

from ..connections import open_connections
from ..connections.ping import ping_peer
from ..home.home import Home
from ..home.host import open_home_host
from ..owner.remote_messages import PeerRequest
from ..owner.requesting import RemoteRequests
from ..signing import EnvelopeChecker

__all__ = ["open_requests", "perform"]


@asynccontextmanager
async def open_requests(home: Home) -> AsyncIterator[RemoteRequests]:
    """Requests with the home's key while the block runs. Raises IdentityError and what `open_home_host` raises."""
    identity = await trio.to_thread.run_sync(load_or_create_identity, home.key_path)
    async with open_home_host(home, identity) as host, open_connections(host) as pool:
        yield RemoteRequests(pool, EnvelopeChecker(), partial(ping_peer, host, pool))


async def perform(home: Home, request: PeerRequest) -> Struct:
    """The answer to one request. Raises what `RemoteRequests.perform` raises. May be cancelled."""
    async with open_requests(home) as requests:
        return await requests.perform(request)
