"""Searches of a whole network, as the commands `discover` and `reserve` run them: with the home's key.

A search begins with what the home knows: the peers that answered before, those on the local network, the DHT through
either, and the addresses that the caller gives.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import trio

from dms_host.keys.identity import load_or_create_identity
from dms_resources.ledger.leases import Lease

from ..config.ensemble import EnsembleFile
from ..discovery.open import open_requester
from ..discovery.settings import DiscoverySettings
from ..errors import PeerError
from ..home.home import Home
from ..home.host import open_home_host
from ..owner.requesting import found_row
from ..requesting import AssignmentRules, Requester, Reservation, SearchProgress
from ..requesting.progress import OnProgress
from ..requesting.reports import Found, FoundRow, Reserved, ReservedNode
from .child_process import run_child, stopped_by_signals
from .output import json_line

__all__ = ["hold_ensemble", "search_peers"]


@asynccontextmanager
async def _requester(home: Home, settings: DiscoverySettings, token: bytes | None) -> AsyncIterator[Requester]:
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
    """Finds `count` peers that would take a node (None: all there are), for `timeout` seconds at most.

    `tell` is called with each peer that answers. Raises AddressError and IdentityError. May be cancelled.
    """
    request, able = ensemble.asked(deadline=time.time() + timeout), 0
    async with (
        _requester(home, settings, token) as requester,
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
    """Takes the whole ensemble, runs the command while it is held, gives everything back; the command's exit code.

    Without a command it is held until SIGINT, SIGTERM or SIGHUP. `tell` hears what is held. Raises PeerError
    `command_not_found`, StrategyError, ReservationError, ReservationLostError (the command is ended), AddressError,
    IdentityError, and StoppedError for SIGTERM and SIGHUP while no command runs. For the main thread alone. May be
    cancelled.
    """
    if command and shutil.which(command[0]) is None:
        raise PeerError(
            f"there is no command {command[0]}", code="command_not_found", hint="check its name, or give its path"
        )
    request = ensemble.asked(deadline=time.time() + timeout)
    rules = AssignmentRules(different_peers=ensemble.different_peers, pins=ensemble.pins)
    async with (
        stopped_by_signals(),
        _requester(home, settings, token) as requester,
        requester.reserve(
            request, strategy=strategy, currency=currency, rules=rules, ttl=ttl, wait=wait, on_progress=on_progress
        ) as reservation,
    ):
        if allocate:
            await reservation.allocate()
        reserved = _reserved(request.id, reservation, allocated=allocate)
        tell(reserved)
        return await run_child(command, _environment(reserved))


def _environment(reserved: Reserved) -> dict[str, str]:
    """What the command is told: lists in the order of the nodes, and everything as JSON."""
    return {
        "DMS_ENSEMBLE_ID": reserved.ensemble_id,
        "DMS_NODE_IDS": " ".join(node.node_id for node in reserved.nodes),
        "DMS_LEASE_IDS": " ".join(node.lease_id for node in reserved.nodes),
        "DMS_PEER_IDS": " ".join(node.peer_id for node in reserved.nodes),
        "DMS_RESERVATION": json_line(reserved),
    }


def _reserved(ensemble_id: str, reservation: Reservation, *, allocated: bool) -> Reserved:
    leases, addrs = reservation.leases, reservation.addrs
    return Reserved(
        ensemble_id=ensemble_id,
        allocated=allocated,
        nodes=tuple(
            _node(node_id, peer_id, addrs[node_id], leases[node_id]) for node_id, peer_id in reservation.peers.items()
        ),
        progress=reservation.progress,
    )


def _node(node_id: str, peer_id: str, addrs: tuple[str, ...], lease: Lease) -> ReservedNode:
    return ReservedNode(
        node_id=node_id,
        peer_id=peer_id,
        addrs=addrs,
        lease_id=lease.lease_id,
        fence=lease.fence,
        resources=lease.resources,
        ports=lease.ports,
        price=lease.price,
    )
