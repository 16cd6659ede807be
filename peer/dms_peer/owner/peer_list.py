"""The list of known peers, for the owner."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from dms_protocols.adverts.adverts import AdvertTable
from dms_protocols.rpc.operations import Caller, Operations
from dms_protocols.wire.conversion import to_bytes

from ..discovery.peers_file import KnownPeer
from .messages import PeerRow, PeersAnswer, PeersRequest

if TYPE_CHECKING:
    from ..discovery.open import Discovery

__all__ = ["PeerNotes", "advert_rows", "known_row", "list_peers", "peer_notes", "peers_operations"]

# Bytes; less than the limit of an answer.
_MOST_BYTES: Final = 512 * 1024
_MOST_ADVERTS: Final = 4096

PeerNotes = Mapping[str, PeerRow]
"""What one source knows, by peer id."""


def known_row(peer: KnownPeer, now: float) -> PeerRow:
    """A known peer as a row; ages are at `now` (Unix seconds)."""
    return PeerRow(
        peer_id=peer.peer_id,
        addrs=peer.addrs,
        sources=("known",),
        seen_age=max(0.0, now - peer.last_seen),
        free=peer.free,
        free_age=None if peer.free_at is None else max(0.0, now - peer.free_at),
        failures=peer.failures,
    )


def advert_rows(table: AdvertTable, now: float) -> dict[str, PeerRow]:
    """The rows for the adverts; ages are at `now` (Unix seconds)."""
    held, _ = table.page("", limit=_MOST_ADVERTS, examine=_MOST_ADVERTS)
    return {
        one.advert.peer_id: PeerRow(
            peer_id=one.advert.peer_id,
            addrs=one.advert.addrs,
            sources=("adverts",),
            free=one.advert.free,
            free_age=one.age(now),
        )
        for one in held
    }


def peer_notes(discovery: Discovery, now: float) -> list[PeerNotes]:
    """What each source of a running peer knows; ages are at `now` (Unix seconds)."""
    known = {peer.peer_id: known_row(peer, now) for peer in discovery.known.recent(len(discovery.known))}
    heard = discovery.mdns.peers() if discovery.mdns else {}
    return [
        known,
        advert_rows(discovery.adverts.table, now),
        {peer_id: PeerRow(peer_id=peer_id, addrs=addrs, sources=("mdns",)) for peer_id, addrs in heard.items()},
    ]


def list_peers(notes: Iterable[PeerNotes], connected: Sequence[str], *, limit: int, running: bool) -> PeersAnswer:
    """The peers of all sources, each peer once, as many as fit into an answer."""
    rows: dict[str, PeerRow] = {}
    here = frozenset(connected)
    for source in notes:
        for peer_id, row in source.items():
            rows[peer_id] = _merged(rows[peer_id], row) if peer_id in rows else row
    for peer_id in here - rows.keys():
        rows[peer_id] = PeerRow(peer_id=peer_id, addrs=())
    ordered = sorted(
        (_with_connection(row, row.peer_id in here) for row in rows.values()),
        key=lambda row: (not row.connected, _age(row.seen_age), _age(row.free_age), row.peer_id),
    )
    return PeersAnswer(peers=tuple(_as_many_as_fit(ordered[:limit])), peer_count=len(ordered), running=running)


def _age(seconds: float | None) -> float:
    return float("inf") if seconds is None else seconds


def _merged(one: PeerRow, other: PeerRow) -> PeerRow:
    fresher = one if _age(one.free_age) <= _age(other.free_age) else other
    return PeerRow(
        peer_id=one.peer_id,
        addrs=tuple(dict.fromkeys((*one.addrs, *other.addrs))),
        sources=tuple(dict.fromkeys((*one.sources, *other.sources))),
        seen_age=one.seen_age if one.seen_age is not None else other.seen_age,
        free=fresher.free,
        free_age=fresher.free_age,
        failures=one.failures or other.failures,
    )


def _with_connection(row: PeerRow, connected: bool) -> PeerRow:
    return replace(row, connected=connected)


def _as_many_as_fit(rows: Iterable[PeerRow]) -> Iterable[PeerRow]:
    size = 0
    for row in rows:
        size += len(to_bytes(row))
        if size > _MOST_BYTES:
            return
        yield row


def peers_operations(
    notes: Callable[[float], Sequence[PeerNotes]], connected: Callable[[], Sequence[str]]
) -> Operations:
    """The operation `peers`, for the owner's socket. `notes` returns what each source knows at a time (Unix
    seconds).
    """

    async def peers(request: PeersRequest, caller: Caller) -> PeersAnswer:
        return list_peers(notes(time.time()), connected(), limit=request.limit, running=True)

    operations = Operations()
    operations.slow(PeersRequest, peers)
    return operations
