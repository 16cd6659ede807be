"""The limits of a search, a commitment and a release. Times are in seconds."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["RequesterLimits"]


@dataclass(frozen=True, slots=True)
class RequesterLimits:
    """The limits of one requester. They apply to each search and each reservation separately."""

    peers_in_flight: int = 16
    """Peers that are queried at the same time."""
    peers_asked: int = 256
    """Peers that one search queries. After that only the broadcast is left."""
    slack: int = 1
    """How many more peers are queried at first than bids are missing."""
    hedge_delay: float = 0.5
    """A peer that has not answered after this time is no longer counted on, and another one is queried too."""
    peer_budget: float = 5.0
    """The longest time for querying one peer, including the connection to it."""
    source_patience: float = 5.0
    """A source that names no peer for this time is abandoned, and the next source is queried."""
    hint_age: float = 5.0
    """A peer is not queried if its known free capacity is younger than this and too little."""
    settle: float = 0.5
    """How long a reservation waits for better bids when the bids so far suffice."""
    commit_budget: float = 5.0
    """The longest time for committing at one peer, including the connection to it."""
    call_budget: float = 5.0
    """The longest time for one renewal, allocation or release. Each is repeated while that makes sense."""
    start_budget: float = 30.0
    """The longest that one attempt to start a job may take, with its files."""
    tunnel_budget: float = 20.0
    """The longest that opening a tunnel may take, with the connection to the provider."""
    job_patience: float = 120.0
    """How long a provider that has a job may be out of reach before a call about the job fails."""
    keep: float = 3.0
    """How long existing commitments are kept while other peers are searched for the rest."""
    release_deadline: float = 10.0
    """The longest time that releasing everything may delay the end of a reservation. Deadlines free what is left."""
    retry_delay: float = 0.2
    """The first pause before something is tried again. It doubles up to `retry_delay_most`."""
    retry_delay_most: float = 5.0
    """The longest such pause."""
    assignment_steps: int = 200
    """Assignments that are tried if the bids of a peer cannot be used together."""
