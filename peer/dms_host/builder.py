"""Builds a host, starts it, and closes it in the right order."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial

import trio
from libp2p.tools.anyio_service import background_trio_service

from .addresses import PeerAddress, parse_announced_address, parse_listen_address, parse_peer_address
from .errors import AddressError
from .host import HardenedHost
from .identify.push import announcing
from .keys.identity import Identity
from .limits import HostLimits, RelayLimits
from .logs import route_library_logs
from .relay.messages import HOP, STOP
from .relay.reservations import Reservations
from .relay.service import RelayService
from .streams.protocols import attach_protocols
from .swarm.connection_gater import ConnectionGater
from .swarm.swarm import HardenedSwarm
from .tasks import open_background
from .transport.pnet import KEY_SIZE

__all__ = ["open_host"]


@asynccontextmanager
async def open_host(
    identity_key: Identity,
    listen_addrs: Sequence[str] = (),
    limits: HostLimits | None = None,
    *,
    gate: ConnectionGater | None = None,
    psk: bytes | None = None,
    relay: RelayLimits | None = None,
    reserve_at: Sequence[str] = (),
    agent: str = "",
    announce: Sequence[str] = (),
) -> AsyncIterator[HardenedHost]:
    """Yield a started host with this identity that listens on `listen_addrs` (multiaddrs). Close it after the block.

    `gate` decides which peers may connect (default: all). `psk` is the 32-byte key of a private network; the host then
    connects only to its members. `relay` makes the host a relay for others within these limits. The host keeps a
    reservation at each relay in `reserve_at` (multiaddrs with peer ids), so that peers reach it through that relay.
    `agent` is the agent version in identify, such as `name/1.0`; if empty, that of the library. `announce` are
    addresses (multiaddrs) under which others reach the host, such as that of a published port; others are told them
    before those that the machine has. Raises ValueError if the key has another length, AddressError or ListenError if
    an address cannot be used. Closing takes at most
    HostLimits.close_timeout and a second, even if cancelled. An exception of the block is raised as it is, not in a
    group.
    """
    if psk is not None and len(psk) != KEY_SIZE:
        raise ValueError(f"the key of a private network has {KEY_SIZE} bytes, not {len(psk)}")
    route_library_logs()
    announced = tuple(parse_announced_address(address, identity_key.peer_id) for address in announce)
    addresses = [parse_listen_address(address) for address in listen_addrs]
    relays = [_parse_relay(address) for address in reserve_at]
    host = HardenedHost(identity_key, limits or HostLimits(), gate, psk, agent, announced)
    failure: Exception | None = None
    running, closed = trio.Event(), trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_run_swarm, host.swarm, running, closed)
        try:
            await running.wait()
            await host.swarm.listen(*addresses)
            # No last push is needed: peers see their connections end.
            async with (
                announcing(host, goodbye=False) as announcements,
                _relaying(host, relay),
                _relayed(host, relays),
                open_background(*([partial(host.address_watch.keep, announcements.changed)] if addresses else ())),
            ):
                yield host
        except Exception as error:
            failure = error
        finally:
            try:
                # The library awaits before it closes the swarm; the swarm bounds its own closing.
                with trio.CancelScope(shield=True):
                    await host.close()
            finally:
                closed.set()
    if failure is not None:
        raise failure


async def _run_swarm(swarm: HardenedSwarm, running: trio.Event, closed: trio.Event) -> None:
    """Run the swarm until `closed` is set, even if cancelled: the users of the host have to end first."""
    with trio.CancelScope(shield=True):
        async with background_trio_service(swarm):
            running.set()
            await closed.wait()


def _parse_relay(address: str) -> PeerAddress:
    relay = parse_peer_address(address)
    if relay.relayed:
        raise AddressError(
            f"{address} leads through another relay", code="unsupported_address", address=address, hint="name a relay"
        )
    return relay


@asynccontextmanager
async def _relaying(host: HardenedHost, limits: RelayLimits | None) -> AsyncIterator[None]:
    if limits is None:
        yield
        return
    host.relay = RelayService(host, limits)
    async with attach_protocols(host, {HOP: host.relay.answer}, stop_timeout=0):
        yield


@asynccontextmanager
async def _relayed(host: HardenedHost, relays: Sequence[PeerAddress]) -> AsyncIterator[None]:
    if not relays:
        yield
        return
    host.reservations = reservations = Reservations(host, host.swarm, relays)
    async with (
        attach_protocols(host, {STOP: reservations.answer}, stop_timeout=0),
        open_background(reservations.keep),
    ):
        yield
