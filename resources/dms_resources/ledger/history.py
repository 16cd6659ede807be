"""Records for people: what happened to the resources, and what an audit found."""

from __future__ import annotations

from msgspec import Struct

from .leases import Lease

__all__ = ["Finding", "HistoryEntry", "history_entry"]


class HistoryEntry(Struct, frozen=True, kw_only=True):
    """What happened: `at` (Unix seconds), who did it, the action, the lease, and the reason.

    `holder` and `fence` are those of the lease. Entries that were written before version 4 of the file lack them.
    """

    at: float
    actor: str
    action: str
    lease_id: str = ""
    reason: str = ""
    detail: str = ""
    holder: str = ""
    fence: int = 0


def history_entry(
    lease: Lease, at: float, actor: str, action: str, *, reason: str = "", detail: str = ""
) -> HistoryEntry:
    """An entry about this lease."""
    return HistoryEntry(
        at=at,
        actor=actor,
        action=action,
        lease_id=lease.lease_id,
        reason=reason,
        detail=detail,
        holder=lease.holder,
        fence=lease.fence,
    )


class Finding(Struct, frozen=True, kw_only=True):
    """One mismatch: a stable code, a sentence for people, and the affected lease, if any.

    `repairable` is true if the audit can repair it without the owner.
    """

    code: str
    message: str
    lease_id: str = ""
    repairable: bool = False
