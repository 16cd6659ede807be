"""Opens the libp2p host of a home: with its key, and in the private network of its `swarm.key`, if there is one."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final

import trio

from dms_host import (
    ConnectionGater,
    HardenedHost,
    HostLimits,
    ListenError,
    RelayLimits,
    open_host,
    parse_listen_address,
)
from dms_host.addresses import is_loopback
from dms_host.keys.identity import Identity
from dms_host.keys.swarm_key import load_swarm_key

from .. import __version__
from ..errors import PeerError
from .home import Home
from .network import NetworkSettings

__all__ = ["connection_gate", "open_home_host", "open_listening_host"]

_log = logging.getLogger(__name__)

_ANY_PORT: Final = "/ip4/0.0.0.0/tcp/0"


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
    announce: Sequence[str] = (),
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
        announce=announce,
    ) as host:
        yield host


@asynccontextmanager
async def open_listening_host(
    home: Home,
    identity: Identity,
    listen: Sequence[str],
    settings: NetworkSettings | None,
    *,
    limits: HostLimits,
    relay_limits: RelayLimits,
    announce: Sequence[str],
) -> AsyncIterator[HardenedHost]:
    """Open the host of a running peer: on `listen` or, if it is empty, on the addresses of the last run.

    The first time it listens on a free port of all IPv4 and IPv6 addresses that the machine has, and remembers it.
    Raises what `open_home_host` raises.
    """

    async def open_on(addresses: Sequence[str]) -> HardenedHost:
        opened = open_home_host(
            home, identity, addresses, settings, limits=limits, relay_limits=relay_limits, announce=announce
        )
        return await stack.enter_async_context(opened)

    async with AsyncExitStack() as stack:
        host: HardenedHost | None = None
        if listen:
            host = await open_on(listen)
        elif remembered := home.listen_addresses(parse_listen_address):
            with contextlib.suppress(ListenError):
                host = await open_on(remembered)
        if host is None:
            host = await open_on([_ANY_PORT])
            await _listen_on_ipv6(host)
            home.remember_listen_addresses([str(address) for address in host.get_transport_addrs()])
        _warn_if_unreachable(host)
        yield host


async def _listen_on_ipv6(host: HardenedHost) -> None:
    """Listen on the same port of all IPv6 addresses. If there is no IPv6, or the port is taken, IPv4 is enough."""
    port = host.get_transport_addrs()[0].value_for_protocol("tcp")
    with contextlib.suppress(ListenError):
        await host.swarm.listen(parse_listen_address(f"/ip6/::/tcp/{port}"))


def _warn_if_unreachable(host: HardenedHost) -> None:
    everywhere = [address for address in host.get_transport_addrs() if not is_loopback(str(address))]
    if everywhere and all(map(is_loopback, host.announced_addresses)):
        _log.warning("no other machine can reach this peer: this machine has no address but loopback")
