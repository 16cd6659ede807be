"""The operation `reserve` of a running peer: it holds an ensemble for a command of the owner while the command is
connected.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Final

import trio

from dms_protocols.rpc.operations import Caller, Operations
from dms_resources.ledger.leases import Lease
from dms_resources.tasks import open_background

from ..errors import PeerError
from ..requesting.assignment import AssignmentRules
from ..requesting.errors import ReservationError, ReservationLostError
from ..requesting.reports import Reserved, ReservedNode, SearchProgress
from ..requesting.requester import Requester
from ..requesting.reservations import Reservation
from .remote_messages import ReservationFailure, ReserveEvent, ReserveRequest

__all__ = ["reserve_operations", "reserved_report"]

# Events that wait for a slow command. Further progress is left out.
_EVENTS: Final = 16


def reserve_operations(requester: Callable[[bytes | None], Requester]) -> Operations:
    """The operation `reserve` for the owner's socket. `requester` makes a requester that sends this token.

    The end of the watch releases everything, also if the command has died.
    """

    @asynccontextmanager
    async def reserve(request: ReserveRequest, caller: Caller) -> AsyncIterator[AsyncIterator[ReserveEvent]]:
        send, receive = trio.open_memory_channel[ReserveEvent](_EVENTS)

        def tell(progress: SearchProgress) -> None:
            with suppress(trio.WouldBlock):
                send.send_nowait(ReserveEvent(progress=progress))

        async def hold() -> None:
            with send:
                try:
                    await _hold(requester(request.token), request, send, tell)
                except PeerError as error:
                    await send.send(ReserveEvent(failure=_failure(error)))

        async with open_background(hold):
            yield receive

    operations = Operations()
    operations.watch(ReserveRequest, reserve)
    return operations


async def _hold(
    requester: Requester,
    request: ReserveRequest,
    send: trio.MemorySendChannel[ReserveEvent],
    tell: Callable[[SearchProgress], None],
) -> None:
    rules = AssignmentRules(different_peers=request.different_peers, pins=request.pins)
    async with requester.reserve(
        request.ensemble,
        strategy=request.strategy,
        currency=request.currency,
        rules=rules,
        ttl=request.ttl,
        wait=request.wait,
        on_progress=tell,
    ) as reservation:
        if request.allocate:
            await reservation.allocate()
        report = reserved_report(request.ensemble.id, reservation, allocated=request.allocate)
        await send.send(ReserveEvent(reserved=report))
        await trio.sleep_forever()


def _failure(error: PeerError) -> ReservationFailure:
    return ReservationFailure(
        code=error.code,
        message=error.message,
        hint=error.hint,
        reasons=error.reasons if isinstance(error, ReservationError) else (),
        node_ids=error.node_ids if isinstance(error, ReservationLostError) else (),
    )


def reserved_report(ensemble_id: str, reservation: Reservation, *, allocated: bool) -> Reserved:
    """A report of what is held, and at which peers."""
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
