"""Audits of one ledger: at intervals, or when the owner wants one; and the repair of what the audit may repair."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Sequence
from typing import Final

import trio

from ..components import Resources
from ..errors import LeaseError, StorageError
from . import endings
from .audit import AuditSnapshot, audit_snapshot
from .history import Finding, HistoryEntry
from .leases import EndReason, LeaseState
from .ledger import Ledger
from .moment import Moment
from .storage import StoredLease

__all__ = ["Auditor"]

_log = logging.getLogger("dms_resources.manager")

AUDIT_SECONDS: Final = 600.0


class Auditor:
    """Audits a ledger. `read_usage` returns what the machine uses now, None if nothing watches it. `on_end` is called
    with the id of each lease that a repair ended. `last` is when it last audited (Unix seconds), and its findings.
    """

    def __init__(
        self, ledger: Ledger, read_usage: Callable[[], Resources | None], on_end: Callable[[str], None]
    ) -> None:
        self._ledger = ledger
        self._read_usage = read_usage
        self._on_end = on_end
        self.last: tuple[float, tuple[Finding, ...]] | None = None

    async def run(self) -> None:
        """Audit at intervals until it is cancelled. What it finds goes to the log."""
        while True:
            await trio.sleep(AUDIT_SECONDS)
            try:
                for finding in await self.audit():
                    _log.warning("audit: %s: %s", finding.code, finding.message)
            except StorageError as error:
                _log.warning("the audit waits for the disk: %s", error)

    async def audit(self, *, repair: bool = False) -> list[Finding]:
        """Compare the ledger with itself, with its file and with the operating system. Raises `StorageError`."""
        # Changes on their way to the disk, or made since, would look like differences.
        found = await self._observe(await self._ledger.compare())
        self.last = (self._ledger.clock.wall(), tuple(found))
        if repair:
            await self._repair(found)
        return found

    async def _observe(self, stored: list[StoredLease] | None) -> list[Finding]:
        findings: list[Finding] = []
        usage = self._read_usage()
        # A copy of the records, so that the thread does not read what changes meanwhile.
        snapshot = AuditSnapshot.of(self._ledger.book, stored)
        await self._ledger.work(lambda: findings.extend(audit_snapshot(snapshot, usage)))
        return findings

    async def _repair(self, found: Sequence[Finding]) -> None:
        differing = [finding for finding in found if finding.code in ("totals", "stored")]
        if differing:
            await self._ledger.reload(
                f"audit: {differing[0].message}", lambda now: tuple(_reload_entry(now, one) for one in differing)
            )
        for finding in found:
            record = self._ledger.book.leases.get(finding.lease_id)
            if finding.code == "process_gone" and record is not None and record.lease.job is None:
                await self._end_allocation(finding)

    async def _end_allocation(self, finding: Finding) -> None:
        # Its holder may have released it since the audit found it.
        with contextlib.suppress(LeaseError):
            await self._ledger.change(
                lambda now: endings.end(
                    self._ledger.book,
                    finding.lease_id,
                    now,
                    states=(LeaseState.ALLOCATED,),
                    holder=None,
                    fence=None,
                    actor="audit",
                    reason=EndReason.REPAIRED,
                    why=finding.message,
                )
            )
            self._on_end(finding.lease_id)


def _reload_entry(now: Moment, finding: Finding) -> HistoryEntry:
    return HistoryEntry(
        at=now.wall,
        actor="audit",
        action="reload",
        lease_id=finding.lease_id,
        reason=EndReason.REPAIRED.value,
        detail=finding.message,
    )
