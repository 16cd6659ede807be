"""The ledger's counters of its own work."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from dms_resources.errors import StorageError
from dms_resources.ledger.metrics import WRITE_BUCKETS, LedgerMetrics
from dms_resources.ledger.storage import SQLiteStorage


def test_a_write_is_counted_in_the_first_bucket_that_holds_it() -> None:
    metrics = LedgerMetrics()
    for seconds in (0.0005, 0.001, 0.0011, 6.0):
        metrics.written((), seconds)
    assert metrics.writes == [2, 1, *[0] * (len(WRITE_BUCKETS) - 2), 1]
    assert metrics.write_seconds == pytest.approx(6.0026)


async def test_what_became_durable_is_counted_and_what_failed_is_not(
    open_ledger: Any, new_demand: Any, autojump_clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_ledger() as manager:
        manager.metrics.changes.clear()
        writes = sum(manager.metrics.writes)
        await manager.commit_resources("kept", new_demand(1), holder="peer", ttl=5)
        await manager.commit_resources("given back", new_demand(1), holder="peer", ttl=60)
        await manager.release("given back")
        await trio.sleep(6)
        await manager.commit_resources("flushed", new_demand(1), holder="peer", ttl=60)
        assert manager.metrics.changes == {"commit": 3, "released": 1, "expired": 1}
        assert sum(manager.metrics.writes) - writes in (4, 5)

        def fail(self: SQLiteStorage, changes: object) -> None:
            raise StorageError("the disk is gone")

        monkeypatch.setattr(SQLiteStorage, "write", fail)
        with pytest.raises(StorageError):
            await manager.commit_resources("lost", new_demand(1), holder="peer", ttl=60)
        assert manager.metrics.changes["commit"] == 3
        assert manager.metrics.failed_writes == 1
