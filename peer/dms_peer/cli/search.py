"""Searches of a whole network, as the commands `discover` and `reserve` run them: with the home's key.

A search begins with what the home knows: the peers that answered before, those on the local network, the DHT through
either, and the addresses that the caller passes.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import trio

from dms_host.keys.identity import load_or_create_identity

from ..config.ensemble import EnsembleFile
from ..discovery.open import open_requester
from ..discovery.settings import DiscoverySettings
from ..home.home import Home
from ..home.host import open_home_host
from ..owner.requesting import found_row
from ..owner.reserving import reserved_report
from ..requesting import AssignmentRules, Requester, SearchProgress
from ..requesting.progress import OnProgress
from ..requesting.reports import Found, FoundRow, Reserved
from .child_process import check_command, run_child, stopped_by_signals
from .peer_reservation import command_environment

__all__ = ["hold_ensemble", "open_home_requester", "search_peers"]


@asynccontextmanager
async def open_home_requester(home: Home, settings: DiscoverySettings, token: bytes | None) -> AsyncIterator[Requester]:
    """A requester with the home's key while the block runs. Raises AddressError and IdentityError."""
    home.prepare()
    identity = await trio.to_thread.run_sync(load_or_create_identity, home.key_path)
    async with (
        open_home_host(home, identity) as host,
        open_requester(host, settings, identity=identity, home=home, token=token) as requester,
    ):
        yield requester


async def search_peers(
    home: Home,
    settings: DiscoverySettings,
    ensemble: EnsembleFile,
    *,
    count: int | None,
    timeout: float,  # noqa: ASYNC109  # part of the request
    tell: Callable[[FoundRow, SearchProgress], None],
    on_progress: OnProgress | None = None,
    token: bytes | None = None,
) -> Found:
    """Find `count` peers that would take a node (None: all peers), for at most `timeout` seconds.

    `tell` is called with each peer that answers. Raises AddressError and IdentityError. May be cancelled.
    """
    request, able = ensemble.asked(deadline=time.time() + timeout), 0
    async with (
        open_home_requester(home, settings, token) as requester,
        requester.discover(request, count=count, on_progress=on_progress) as peers,
    ):
        async for peer in peers:
            able += peer.able
            tell(found_row(peer), peers.progress)
        return Found(able=able, progress=peers.progress)


async def hold_ensemble(
    home: Home,
    settings: DiscoverySettings,
    ensemble: EnsembleFile,
    command: Sequence[str],
    *,
    strategy: str,
    currency: str,
    ttl: float,
    timeout: float,  # noqa: ASYNC109  # a part of the question, not of how it is asked
    wait: bool,
    allocate: bool,
    tell: Callable[[Reserved], None],
    on_progress: OnProgress | None = None,
    token: bytes | None = None,
) -> int:
    """Take the whole ensemble, run the command while it is held, and release everything. Returns the command's exit
    code.

    Without a command it is held until SIGINT, SIGTERM or SIGHUP. `tell` is called with what is held. Raises PeerError
    `command_not_found`, StrategyError, ReservationError, ReservationLostError (the command is ended), AddressError,
    IdentityError, and StoppedError for SIGTERM and SIGHUP while no command runs. Only for the main thread. May be
    cancelled.
    """
    check_command(command)
    request = ensemble.asked(deadline=time.time() + timeout)
    rules = AssignmentRules(different_peers=ensemble.different_peers, pins=ensemble.pins)
    async with (
        open_home_requester(home, settings, token) as requester,
        # Within the host: what is held is released over its connections.
        stopped_by_signals(),
        requester.reserve(
            request, strategy=strategy, currency=currency, rules=rules, ttl=ttl, wait=wait, on_progress=on_progress
        ) as reservation,
    ):
        if allocate:
            await reservation.allocate()
        reserved = reserved_report(request.id, reservation, allocated=allocate)
        tell(reserved)
        return await run_child(command, command_environment(reserved))
