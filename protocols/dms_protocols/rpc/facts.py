"""What a peer knows, and by which operations each fact leaves it.

Access rules are by fact. A fact that the owner closes is closed at every door: at each operation that tells it, in
adverts, in provider records of the DHT, and in the shortages of refusals (docs/access.md has the whole table).
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
    }
)
"""The facts, each with the operations that tell it. The first of them is the name of the rule in the access file."""

FACT_OF: Final[Mapping[str, str]] = MappingProxyType(
    {operation: operations[0] for operations in FACTS.values() for operation in operations}
)
"""The operation whose rule an operation takes where it has none of its own."""

CLOSED_TO_STRANGERS: Final = frozenset({"machine"})
"""Operations that `others: anyone` does not open: serial numbers and PCI addresses are of no use to a requester."""
