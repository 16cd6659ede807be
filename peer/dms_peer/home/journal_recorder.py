"""Writes what a requester holds to the journal of its home, in worker threads."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import trio

from dms_resources.ledger.leases import Lease

from .lease_journal import LeaseJournal

__all__ = ["JournalRecorder"]


class JournalRecorder:
    """Records in the journal of the home at `home`. A write that has begun is finished, even if it is cancelled.

    Each method raises OSError.
    """

    def __init__(self, home: Path) -> None:
        self._journal = LeaseJournal(home)

    async def note_provider(self, peer_id: str, addrs: Sequence[str]) -> None:
        """Write down that a commitment is about to be requested from this peer."""
        await trio.to_thread.run_sync(self._journal.note_provider, peer_id, addrs)

    async def note(self, peer_id: str, leases: Sequence[Lease]) -> None:
        """Write down leases as their provider answered."""
        await trio.to_thread.run_sync(self._journal.note, peer_id, leases)

    async def forget(self, peer_id: str, lease_ids: Collection[str]) -> None:
        """Remove leases that have ended."""
        await trio.to_thread.run_sync(self._journal.forget, peer_id, lease_ids)
