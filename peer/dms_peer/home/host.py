"""The host of a home: with its key, and inside the private network whose key lies there."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import trio

from dms_host import HardenedHost, HostLimits, RelayLimits, open_host
from dms_host.keys.identity import Identity
from dms_host.keys.swarm_key import load_swarm_key

from ..config.network import NetworkSettings
from .home import Home

__all__ = ["NetworkSettings", "open_home_host"]


@asynccontextmanager
async def open_home_host(
    home: Home,
    identity: Identity,
    listen: Sequence[str] = (),
    settings: NetworkSettings | None = None,
    *,
    limits: HostLimits | None = None,
    relay_limits: RelayLimits | None = None,
) -> AsyncIterator[HardenedHost]:
    """A host as `open_host` makes it; where the home has a `swarm.key`, in that private network only.

    Raises IdentityError for a swarm key that cannot be used, PeerError `bad_list`, and what `open_host` raises.
    """
    settings = settings or NetworkSettings()
    key = await trio.to_thread.run_sync(load_swarm_key, home.swarm_key_path) if home.swarm_key_path.exists() else None
    async with open_host(
        identity,
        listen,
        limits,
        gate=settings.gate(),
        psk=key,
        relay=relay_limits or RelayLimits() if settings.relay else None,
        reserve_at=settings.reserve_at,
    ) as host:
        yield host
