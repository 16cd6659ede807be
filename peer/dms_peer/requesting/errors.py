"""Errors of the requester.

PeerError
├── JobRequestError             a provider refused what was requested of a job, or cannot be reached
├── StrategyError               an unknown or unusable strategy: the caller corrects it
└── ReservationError            an ensemble was not taken as a whole, and nothing of it is kept
    └── ReservationLostError    a lease is lost: another requester may have the capacity now
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import PeerError

if TYPE_CHECKING:
    from .reasons import NodeReasons

__all__ = ["JobRequestError", "ReservationError", "ReservationLostError", "StrategyError"]


class JobRequestError(PeerError):
    """A request about a job failed. The code is the provider's own (docs/wire.md), or that of the connection."""


class StrategyError(PeerError):
    """A strategy cannot be used. `name` is the requested name. Codes: `unknown_strategy`, `bad_strategy`."""

    def __init__(self, message: str, *, code: str, name: str, hint: str = "") -> None:
        super().__init__(message, code=code, hint=hint)
        self.name = name


class ReservationError(PeerError):
    """An ensemble was not taken. `reasons` has the answers of the peers for each uncovered node.

    Codes: `no_peers` (no peer to query), `no_bids` (a node without a bid), `no_assignment` (bids on every node that
    cannot be used together), `not_taken` (peers did not keep their bids, until the deadline), `not_allocated`.
    """

    def __init__(self, message: str, *, code: str, hint: str = "", reasons: tuple[NodeReasons, ...] = ()) -> None:
        super().__init__(message, code=code, hint=hint)
        self.reasons = reasons

    def __str__(self) -> str:
        return "; ".join([super().__str__(), *(reason.describe() for reason in self.reasons if reason.peers)])


class ReservationLostError(ReservationError):
    """A commitment ended while it was needed. `node_ids` names the nodes. Code: `reservation_lost`."""

    def __init__(self, message: str, *, hint: str = "", node_ids: tuple[str, ...]) -> None:
        super().__init__(message, code="reservation_lost", hint=hint)
        self.node_ids = node_ids
