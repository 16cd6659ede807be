"""The host of a home: with its key, and inside the private network whose key lies there."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio

from dms_host import ConnectionGater, HardenedHost, HostLimits, RelayLimits, open_host
from dms_host.keys.identity import Identity
from dms_host.keys.swarm_key import load_swarm_key

from ..errors import PeerError
from .home import Home

__all__ = ["NetworkSettings", "open_home_host"]


@dataclass(frozen=True, slots=True)
class NetworkSettings:
    """Who may connect (peer ids and address ranges; nothing allowed means everybody), and through whom.

    With `relay` the peer carries the connections of peers that cannot be reached in person; `reserve_at` are the
    addresses of relays through which it wants to be reached itself.
    """

    allow_peers: tuple[str, ...] = ()
    deny_peers: tuple[str, ...] = ()
    allow_addresses: tuple[str, ...] = ()
    deny_addresses: tuple[str, ...] = ()
    relay: bool = False
    reserve_at: tuple[str, ...] = ()

    def gate(self) -> ConnectionGater:
        """The lists. Raises PeerError `bad_list` for what is no peer id or address range."""
        try:
            return ConnectionGater(
                allow_peers=frozenset(self.allow_peers),
                deny_peers=frozenset(self.deny_peers),
                allow_addresses=self.allow_addresses,
                deny_addresses=self.deny_addresses,
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
