"""What a search, a commitment and a release may cost the requester. Times in seconds."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["RequesterLimits"]


@dataclass(frozen=True, slots=True)
class RequesterLimits:
    """The limits of one requester; each search and each reservation has them for itself."""

    peers_in_flight: int = 16
    """Peers that are asked at the same time."""
    peers_asked: int = 256
    """Peers that one search asks; then only the broadcast is left."""
    slack: int = 1
    """How many more peers are asked at first than bids are missing."""
    hedge_delay: float = 0.5
    """A peer that has not answered after this time is no longer counted on, and another one is asked beside it."""
    peer_budget: float = 5.0
    """The longest that asking one peer may take, with the connection to it."""
    source_patience: float = 5.0
    """A source that names no peer for this time is left, and the next source is queried."""
    hint_age: float = 5.0
    """A peer whose known free capacity is younger than this and too little is not asked."""
    settle: float = 0.5
    """How long a reservation waits for better bids once those that are there suffice."""
    commit_budget: float = 5.0
    """The longest that committing at one peer may take, with the connection to it."""
    call_budget: float = 5.0
    """The longest that one renewal, allocation or release may take; each is tried again while that makes sense."""
    keep: float = 3.0
    """How long what was committed is kept while other peers are sought for the rest."""
    release_deadline: float = 10.0
    """The longest that giving everything back may hold up the end of a reservation; deadlines free what is left."""
    retry_delay: float = 0.2
    """The first pause before something is tried again; it doubles up to `retry_delay_most`."""
    retry_delay_most: float = 5.0
    """The longest such pause."""
    assignment_steps: int = 200
    """Assignments that are tried where the bids of a peer do not go together."""
