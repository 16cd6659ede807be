"""Records for people: what happened to the resources, and what an audit found."""

from __future__ import annotations

from msgspec import Struct

__all__ = ["Finding", "HistoryEntry"]


class HistoryEntry(Struct, frozen=True, kw_only=True):
    """What happened: `at` (Unix seconds), who did it, the action, the lease, and the reason."""

    at: float
    actor: str
    action: str
    lease_id: str = ""
    reason: str = ""
    detail: str = ""


class Finding(Struct, frozen=True, kw_only=True):
    """One mismatch: a stable code, a sentence for people, and the affected lease, if any."""

    code: str
    message: str
    lease_id: str = ""
