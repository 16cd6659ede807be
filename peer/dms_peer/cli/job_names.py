"""How people name jobs: by the lease, by the deployment, or by both names, as in DEPLOYMENT/NODE."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from ..errors import PeerError
from ..home.home import Home
from ..home.lease_journal import HeldLease, LeaseJournal
from .peer_names import NamedPeer, find_lease

__all__ = ["NamedJob", "all_jobs", "find_jobs"]


class NamedJob(Struct, frozen=True, kw_only=True):
    """A job by its lease, with the name under which it is shown."""

    name: str
    held: HeldLease
    peer: NamedPeer


def all_jobs(home: Home) -> list[NamedJob]:
    """All leases of the journal, which may have jobs, the newest first. Blocks."""
    journal = LeaseJournal(home.path)
    return _named(journal, journal.leases())


def find_jobs(home: Home, texts: Sequence[str]) -> list[NamedJob]:
    """The leases that these texts name, each once. Raises PeerError `unknown_lease` or `ambiguous_lease`. Blocks."""
    journal = LeaseJournal(home.path)
    leases = journal.leases()
    found: dict[str, HeldLease] = {}
    for text in texts:
        matches = [one for one in leases if text and text in (one.lease.ensemble_id, _both_names(one))]
        if not matches:
            lease = find_lease(home, text)
            if lease is None:
                raise PeerError(
                    f"this home has no deployment {text[:64]}, and holds no lease whose id begins with that",
                    code="unknown_lease",
                    hint="see `dms-peer deployments`",
                )
            matches = [lease]
        # In the order in which they were taken.
        found |= {one.lease.lease_id: one for one in reversed(matches)}
    return _named(journal, list(found.values()))


def _both_names(held: HeldLease) -> str:
    return f"{held.lease.ensemble_id}/{held.lease.node_id}" if held.lease.node_id else ""


def _named(journal: LeaseJournal, leases: Sequence[HeldLease]) -> list[NamedJob]:
    addrs = {one.peer_id: one.addrs for one in journal.providers()}
    nodes = [one.lease.node_id for one in leases]
    return [
        NamedJob(
            # A node's name, where it is the only one of that name.
            name=node if node and nodes.count(node) == 1 else one.lease.lease_id[:8],
            held=one,
            peer=NamedPeer(peer_id=one.peer_id, addrs=addrs.get(one.peer_id, ())),
        )
        for one, node in zip(leases, nodes, strict=True)
    ]
