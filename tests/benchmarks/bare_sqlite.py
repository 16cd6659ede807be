"""SQLite alone, for comparison with the ledger: rows of the same sizes in the same tables, without decisions.

It has the ledger's PRAGMAs, group commit and writer thread.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import trio

from dms_resources.components import CPU, GPU, RAM, Disk, MachineResources, OnboardedResources
from dms_resources.demands import CPUDemand, Demand, GPUDemand, PortDemand, RAMDemand
from dms_resources.ledger.ledger_file import connect_ledger, make_ledger
from dms_resources.ledger.schema import ledger_schema
from dms_resources.manager import open_manager
from dms_resources.units import GIB, Cores

MACHINE = MachineResources(
    cpu=CPU(cores=Cores(200_000), architecture="x86_64"),
    ram=RAM(size=4096 * GIB),
    disk=Disk(size=4096 * GIB),
    gpus=tuple(GPU(uuid=f"GPU-{number}", index=number, model="A100", vram=80 * GIB) for number in range(8)),
)
OFFER = OnboardedResources(cpu=MACHINE.cpu, ram=MACHINE.ram, disk=MACHINE.disk, gpus=MACHINE.gpus)
DEMAND = Demand(cpu=CPUDemand(cores=Cores(100)), ram=RAMDemand(size=GIB), gpus=(GPUDemand(vram=GIB),))
PORTS = PortDemand(dynamic=1)

Write = tuple[str, tuple[Any, ...]]
Rows = dict[str, tuple[Any, ...]]
_LEASE = "INSERT OR REPLACE INTO leases VALUES (?, ?, ?, ?, ?)"
_DELETE = "DELETE FROM leases WHERE lease_id = ?"
_ENDED = "INSERT OR REPLACE INTO ended VALUES (?, ?, ?, ?)"
_HISTORY = "INSERT INTO history (at, actor, action, lease_id, reason, detail) VALUES (?, ?, ?, ?, ?, ?)"
_HEAD = "UPDATE ledger SET fence = ?"


class BareSQLite:
    """Group commit only: one transaction and one fsync for all waiting rows."""

    def __init__(self, path: Path) -> None:
        make_ledger(path, ledger_schema())
        self._db = connect_ledger(path, ledger_schema())
        self._waiting: list[Write] = []
        self._done = trio.Event()
        self._wake = trio.Event()
        self._batches = 0

    async def write(self, *writes: Write) -> None:
        """Return when the rows are on the disk."""
        self._waiting += writes
        self._wake.set()
        await self._done.wait()

    async def run(self) -> None:
        """Write batch after batch until cancelled."""
        while True:
            await self._wake.wait()
            self._wake = trio.Event()
            batch, self._waiting = self._waiting, []
            done, self._done = self._done, trio.Event()
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(self._commit, batch)
            done.set()

    def close(self) -> None:
        """Closes the file."""
        self._db.close()

    def _commit(self, batch: list[Write]) -> None:
        by_statement: dict[str, list[tuple[Any, ...]]] = {}
        for statement, row in batch:
            by_statement.setdefault(statement, []).append(row)
        self._batches += 1
        self._db.execute("BEGIN IMMEDIATE")
        for statement, rows in by_statement.items():
            self._db.executemany(statement, rows)
        self._db.execute(_HEAD, (self._batches,))
        self._db.execute("COMMIT")


def sample_rows(path: Path) -> Rows:
    """One row of each kind as the ledger writes it, for the sizes of the bare rows."""

    async def one_cycle() -> tuple[Any, ...]:
        async with open_manager(path, MACHINE) as manager:
            await manager.update_onboarded_resources(OFFER)
            await manager.commit_resources("caller-10-1000", DEMAND, PORTS, holder="caller-10", ttl=60.0)
            db = sqlite3.connect(path)
            row = db.execute("SELECT * FROM leases").fetchone()
            await manager.release("caller-10-1000")
            ended = db.execute("SELECT * FROM ended").fetchone()
            history = db.execute("SELECT at, actor, action, lease_id, reason, detail FROM history WHERE number = 2")
            rows = row, ended, history.fetchone()
            db.close()
            return rows

    lease, ended, history = trio.run(one_cycle)
    return {"lease": lease, "ended": ended, "history": history}


Work = Callable[[BareSQLite, str], Awaitable[None]]


async def bare_rate(path: Path, callers: int, seconds: float, work: Work) -> float:
    """How often a second this many callers complete `work`, which gets a new key each time."""
    done = 0

    async def caller(bare: BareSQLite, name: str) -> None:
        nonlocal done
        number = 0
        while trio.current_time() < end:
            await work(bare, f"{name}-{number}")
            number, done = number + 1, done + 1

    bare = BareSQLite(path)
    async with trio.open_nursery() as writer:
        writer.start_soon(bare.run)
        begin = trio.current_time()
        end = begin + seconds
        async with trio.open_nursery() as nursery:
            for number in range(callers):
                nursery.start_soon(caller, bare, f"caller-{number}")
        rate = done / (trio.current_time() - begin)
        writer.cancel_scope.cancel()
    bare.close()
    return rate


async def bare_cycles(path: Path, callers: int, seconds: float, rows: Rows) -> float:
    """Cycles of commit, allocate, release per second."""

    async def cycle(bare: BareSQLite, key: str) -> None:
        lease, ended, history = keyed(rows, key)
        await bare.write((_LEASE, lease), (_HISTORY, history))
        await bare.write((_LEASE, lease), (_HISTORY, history))
        await bare.write((_DELETE, (key,)), (_ENDED, ended), (_HISTORY, history))

    return await bare_rate(path, callers, seconds, cycle)


async def bare_commits(path: Path, callers: int, seconds: float, rows: Rows) -> float:
    """Commits per second."""

    async def commit(bare: BareSQLite, key: str) -> None:
        lease, _, history = keyed(rows, key)
        await bare.write((_LEASE, lease), (_HISTORY, history))

    return await bare_rate(path, callers, seconds, commit)


def keyed(rows: Rows, key: str) -> tuple[tuple[Any, ...], ...]:
    """The rows of another lease, with this key."""
    lease, ended, history = rows["lease"], rows["ended"], rows["history"]
    return (key, *lease[1:]), (key, *ended[1:]), (*history[:3], key, *history[4:])
