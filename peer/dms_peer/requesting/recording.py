"""What a requester writes down of its leases, so that another process of its home finds them.

Rules:

1. A provider is written down before a commitment is requested from it: a lease whose answer was lost is then found by
   the wire's `list` at that provider.
2. A lease is written down when it was committed and allocated, and while it is renewed. It is removed when the provider
   says that it has ended.
3. A failure to write is logged and changes nothing else: what is held does not depend on it.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Collection, Sequence
from typing import Protocol

from dms_resources.ledger.leases import Lease

from .peers import PeerRef

__all__ = ["LeaseRecorder", "Recording"]

_log = logging.getLogger(__name__)


class LeaseRecorder(Protocol):
    """Keeps what a requester holds beyond the end of its process. Each method raises OSError, and may be cancelled."""

    async def note_provider(self, peer_id: str, addrs: Sequence[str]) -> None:
        """Write down that a commitment is about to be requested from this peer."""

    async def note(self, peer_id: str, leases: Sequence[Lease]) -> None:
        """Write down leases as their provider answered."""

    async def forget(self, peer_id: str, lease_ids: Collection[str]) -> None:
        """Remove leases that have ended."""


class Recording:
    """Passes what happens to a recorder, if there is one."""

    def __init__(self, recorder: LeaseRecorder | None) -> None:
        self._recorder = recorder

    async def asked(self, peer: PeerRef) -> None:
        """A commitment is about to be requested from the peer."""
        if self._recorder is not None:
            await _try(self._recorder.note_provider(peer.peer_id, peer.addrs))

    async def held(self, peer: PeerRef, *leases: Lease | None) -> None:
        """The peer answered with these leases."""
        known = [lease for lease in leases if lease is not None]
        if self._recorder is not None and known:
            await _try(self._recorder.note(peer.peer_id, known))

    async def gone(self, peer: PeerRef, lease_id: str) -> None:
        """The lease has ended."""
        if self._recorder is not None:
            await _try(self._recorder.forget(peer.peer_id, [lease_id]))


async def _try(writing: Awaitable[None]) -> None:
    try:
        await writing
    except OSError as error:
        _log.warning("the journal of leases cannot be written: %s", error)
