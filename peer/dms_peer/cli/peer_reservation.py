"""A reservation that the running peer of a home holds for a command, which loads no libp2p."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from typing import Final

import trio

from dms_protocols.errors import ConnectionLostError, ProtocolError, RemoteError
from dms_protocols.rpc.client import open_client

from ..config.ensemble import EnsembleFile
from ..errors import PeerError
from ..home.home import Home
from ..owner.remote_messages import ReservationFailure, ReserveEvent, ReserveRequest
from ..owner.socket_file import connect
from ..requesting.errors import ReservationError, ReservationLostError
from ..requesting.progress import OnProgress
from ..requesting.reports import Reserved
from .child_process import run_child, stopped_by_signals
from .output import json_line

__all__ = ["command_environment", "hold_in_peer"]

# Seconds, in addition to the time of the search, in which the running peer has to answer.
_SPARE: Final = 15.0
# The codes of ReservationError. Other codes belong to an unusable strategy.
_REFUSED: Final = frozenset({"no_peers", "no_bids", "no_assignment", "not_taken", "not_allocated"})
# Seconds in which the running peer has to release everything at the end.
_RELEASE: Final = 15.0


async def hold_in_peer(
    home: Home,
    ensemble: EnsembleFile,
    command: Sequence[str],
    *,
    strategy: str,
    currency: str,
    ttl: float,
    timeout: float,  # noqa: ASYNC109  # part of the request
    wait: bool,
    allocate: bool,
    tell: Callable[[Reserved], None],
    on_progress: OnProgress | None = None,
    token: bytes | None = None,
) -> int | None:
    """Run the command while the running peer of the home holds the ensemble. Returns the command's exit code.

    Returns None if no peer runs, or one that cannot reserve; then nothing was done. Raises what `hold_ensemble` raises,
    and ConnectionLostError if the peer ends. Only for the main thread. May be cancelled.
    """
    connection = connect(home.socket_path)
    if connection is None:
        return None
    request = ReserveRequest(
        ensemble=ensemble.asked(deadline=time.time() + timeout),
        strategy=strategy,
        currency=currency,
        different_peers=ensemble.different_peers,
        pins=ensemble.pins,
        ttl=ttl,
        wait=wait,
        allocate=allocate,
        token=token,
    )
    stream = trio.SocketStream(trio.socket.from_stdlib_socket(connection))
    async with (
        stopped_by_signals(),
        open_client(stream) as client,
        client.watch(request, ReserveEvent, timeout=timeout + _SPARE) as events,
    ):
        try:
            reserved = await _reserved(events, on_progress)
        except RemoteError as error:
            if error.code == "unknown_operation":
                return None
            raise
        try:
            tell(reserved)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_watch_loss, events)
                code = await run_child(command, command_environment(reserved))
                nursery.cancel_scope.cancel()
        finally:
            await _released(stream, events)
    return code


async def _reserved(events: AsyncIterator[ReserveEvent], on_progress: OnProgress | None) -> Reserved:
    async for event in events:
        if event.failure is not None:
            raise _error(event.failure)
        if event.reserved is not None:
            return event.reserved
        if event.progress is not None and on_progress is not None:
            on_progress(event.progress)
    raise ConnectionLostError("the running peer ended the reservation")


async def _watch_loss(events: AsyncIterator[ReserveEvent]) -> None:
    async for event in events:
        if event.failure is not None:
            raise _error(event.failure)
    raise ConnectionLostError("the running peer ended the reservation")


async def _released(stream: trio.SocketStream, events: AsyncIterator[ReserveEvent]) -> None:
    """Let the peer release everything, and wait until it has. Not cancellable."""
    with (
        trio.CancelScope(deadline=trio.current_time() + _RELEASE, shield=True),
        suppress(trio.BrokenResourceError, trio.ClosedResourceError, ProtocolError),
    ):
        await stream.send_eof()
        async for _ in events:
            pass


def _error(failure: ReservationFailure) -> PeerError:
    if failure.node_ids:
        return ReservationLostError(failure.message, hint=failure.hint, node_ids=failure.node_ids)
    if failure.code not in _REFUSED:
        return PeerError(failure.message, code=failure.code, hint=failure.hint)
    return ReservationError(failure.message, code=failure.code, hint=failure.hint, reasons=failure.reasons)


def command_environment(reserved: Reserved) -> dict[str, str]:
    """The environment variables of the command: lists in the order of the nodes, and everything as JSON."""
    return {
        "DMS_ENSEMBLE_ID": reserved.ensemble_id,
        "DMS_NODE_IDS": " ".join(node.node_id for node in reserved.nodes),
        "DMS_LEASE_IDS": " ".join(node.lease_id for node in reserved.nodes),
        "DMS_PEER_IDS": " ".join(node.peer_id for node in reserved.nodes),
        "DMS_RESERVATION": json_line(reserved),
    }
