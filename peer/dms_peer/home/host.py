"""Opens the libp2p host of a home: with its key, and in the private network of its `swarm.key`, if there is one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import trio

from dms_host import ConnectionGater, HardenedHost, HostLimits, RelayLimits, open_host
from dms_host.keys.identity import Identity
from dms_host.keys.swarm_key import load_swarm_key

from .. import __version__
from ..errors import PeerError
from .home import Home
from .network import NetworkSettings

__all__ = ["connection_gate", "open_home_host"]


def connection_gate(settings: NetworkSettings) -> ConnectionGater:
    """The lists in the form that the host needs. Raises PeerError `bad_list` for an invalid id or range."""
    try:
        return ConnectionGater(
            allow_peers=frozenset(settings.allow_peers),
            deny_peers=frozenset(settings.deny_peers),
            allow_addresses=settings.allow_addresses,
            deny_addresses=settings.deny_addresses,
        )
    except ValueError as error:
        raise PeerError(
            str(error), code="bad_list", hint="write peer ids, and addresses such as 192.0.2.0/24"
        ) from None


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
    """Open a host. If the home has a `swarm.key`, it connects only to peers of that private network.

    Raises IdentityError for an invalid swarm key, PeerError `bad_list`, and what `open_host` raises.
    """
    settings = settings or NetworkSettings()
    key = await trio.to_thread.run_sync(load_swarm_key, home.swarm_key_path) if home.swarm_key_path.exists() else None
    async with open_host(
        identity,
        listen,
        limits,
        gate=connection_gate(settings),
        psk=key,
        relay=relay_limits or RelayLimits() if settings.relay else None,
        reserve_at=settings.reserve_at,
        agent=f"dms-peer/{__version__}",
    ) as host:
        yield host
