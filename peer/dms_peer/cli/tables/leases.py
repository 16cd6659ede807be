"""What this home holds at other peers, and measurements of them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final, TextIO

from dms_resources.units import format_duration

from ...requesting.reports import HomeLeases, PeerUsage, Pong, ReleasedLeases, UnansweredPeer
from ..output import say
from .common import peer_and_purpose, short_ids, short_peer_id, show_resources
from .layout import Column, show_table

__all__ = ["show_home_leases", "show_pong", "show_released", "show_usage"]

_COLUMNS: Final = (
    Column("lease"),
    Column("peer", sentences=True),
    Column("state", 4),
    Column("ends in", 3),
    Column("resources", 2, sentences=True),
    Column("price", 1),
    Column("as of", 0),
)


def show_home_leases(report: HomeLeases, *, full: bool = False, out: TextIO | None = None) -> None:
    """Print the leases of this home, and the providers that did not answer. `full` shows ids in full."""
    now, ids = time.time(), [one.lease.lease_id for one in report.leases]
    rows = [
        [
            shown,
            peer_and_purpose(one.peer_id, one.lease, full=full),
            one.lease.state.value,
            "-" if one.lease.deadline is None else format_duration(max(0.0, one.lease.deadline - now)),
            one.lease.demand.describe(),
            one.lease.price.describe() if one.lease.price else "-",
            "now" if one.age < 1 else f"{format_duration(one.age)} ago",
        ]
        for one, shown in zip(report.leases, ids if full else short_ids(ids), strict=True)
    ]
    if rows:
        count = "1 lease" if len(rows) == 1 else f"{len(rows)} leases"
        show_table(f"{count} of this home", _COLUMNS, rows, out)
        say("next: dms-peer release LEASE, or dms-peer renew LEASE", out)
    else:
        say("this home holds no lease", out)
    _show_unanswered(report.unanswered, out)


def show_released(report: ReleasedLeases) -> None:
    """Print what was released, and what was not."""
    ids = short_ids([ended.lease_id for ended in report.released])
    for ended, shown in zip(report.released, ids, strict=True):
        say(f"released {shown} at {short_peer_id(ended.peer_id)} (was {ended.state.value})")
    if not report.released and not report.failed:
        say("this home holds no lease")
    _show_unanswered(report.failed, None)


def _show_unanswered(peers: Sequence[UnansweredPeer], out: TextIO | None) -> None:
    for peer in peers:
        what = f"lease {peer.lease_id} was not released: " if peer.lease_id else ""
        say(f"no answer from {short_peer_id(peer.peer_id)}: {what}{peer.message} ({peer.code})", out)


def show_pong(pong: Pong) -> None:
    """Print one round trip."""
    how = "this peer itself" if pong.relayed is None else "through a relay" if pong.relayed else "direct"
    say(f"{short_peer_id(pong.peer_id)}: {pong.round_trip * 1000:.1f} ms, {how}")


def show_usage(usage: PeerUsage) -> None:
    """Print what the machine of a peer uses now."""
    show_resources(f"in use at {usage.peer_id}", {"in use": usage})
