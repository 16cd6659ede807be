"""The facts that a peer knows, and the operations that disclose each of them.

Access rules are about facts. If the owner closes a fact, no way discloses it: no operation, advert, provider record of
the DHT, or shortage in a refusal (docs/access.md has the whole table).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

__all__ = ["CLOSED_TO_STRANGERS", "FACTS", "FACT_OF"]

FACTS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "free": ("free", "watch"),
        "onboarded": ("onboarded",),
        "allocated": ("allocated",),
        "machine": ("machine",),
        "usage": ("usage",),
        "terms": ("bid_request",),
        "leases": ("list",),
        "jobs": ("job_start", "job_status", "job_watch", "job_logs", "job_stop", "tunnel"),
    }
)
"""The facts, each with the operations that disclose it. The first operation is the name of the rule in the access file.
"""

FACT_OF: Final[Mapping[str, str]] = MappingProxyType(
    {operation: operations[0] for operations in FACTS.values() for operation in operations}
)
"""The operation whose rule applies to an operation that has no rule of its own."""

CLOSED_TO_STRANGERS: Final = frozenset({"machine"})
"""Operations that `others: anyone` does not open. A requester does not need serial numbers and PCI addresses."""
