"""What is written down for people: what happened to the resources, and what an audit found."""

from __future__ import annotations

from msgspec import Struct

__all__ = ["Finding", "HistoryEntry"]


class HistoryEntry(Struct, frozen=True, kw_only=True):
    """What happened: `at` Unix seconds, who did it, what, to which lease, and why."""

    at: float
    actor: str
    action: str
    lease_id: str = ""
    reason: str = ""
    detail: str = ""


class Finding(Struct, frozen=True, kw_only=True):
    """One thing that does not match: a stable code, a sentence for people, and the lease concerned, if one."""

    code: str
    message: str
    lease_id: str = ""
