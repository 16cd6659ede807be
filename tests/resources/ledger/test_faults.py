"""The ledger on disks that are full, read-only, failing at any call, or that lose power between two calls.

Rule 2: nothing acknowledged is lost, nothing is half done. Rule 1: nothing is oversold meanwhile. The error is clear,
queries are answered, and commitments are accepted again when the disk works.
"""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import sqlite3
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import trio

import dms_resources
from dms_resources import manager as manager_module
from dms_resources.components import CPU, GPU, RAM, MachineResources, OnboardedResources
from dms_resources.components import Disk as DiskResource
from dms_resources.demands import CPUDemand, Demand
from dms_resources.errors import StorageError
from dms_resources.ledger import storage as storage_module
from dms_resources.ledger.book import Change
from dms_resources.ledger.leases import LeaseState, ResourceAllocation
from dms_resources.ledger.storage import Contents, SQLiteStorage
from dms_resources.manager import ResourceManager, open_manager
from dms_resources.refusals import RequestError
from dms_resources.units import GIB, Cores

SCRIPT = Path(__file__).with_name("faulty_ledger.py")

Standing = frozenset[tuple[str, LeaseState, float]]
COMMITTED, ALLOCATED = LeaseState.COMMITTED, LeaseState.ALLOCATED
# The leases after each step of the script: after none, after one, ...
STANDING: tuple[Standing, ...] = tuple(
    frozenset(leases)
    for leases in (
        [],
        [],
        [("a", COMMITTED, 3600.0)],
        [("a", COMMITTED, 3600.0), ("b", COMMITTED, 3600.0), ("c", COMMITTED, 3600.0)],
        [("a", ALLOCATED, 900.0), ("b", COMMITTED, 3600.0), ("c", COMMITTED, 3600.0)],
        [("a", ALLOCATED, 900.0), ("b", COMMITTED, 7200.0), ("c", COMMITTED, 3600.0)],
        [("a", ALLOCATED, 900.0), ("b", COMMITTED, 7200.0)],
        [("a", ALLOCATED, 900.0), ("b", COMMITTED, 7200.0), ("d", ALLOCATED, 0.0)],
        [("b", COMMITTED, 7200.0), ("d", ALLOCATED, 0.0)],
        [("d", ALLOCATED, 0.0)],
    )
)


@pytest.fixture(scope="session")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if compiler is None or sys.platform != "linux":
        pytest.skip("the failing disk is a shared library for Linux that needs a C compiler")
    library = tmp_path_factory.mktemp("shim") / "faulty_disk.so"
    source = SCRIPT.with_name("faulty_disk.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl", "-lpthread"], check=True)
    return library


def _live(shim: Path, folder: Path, **fault: int | bool) -> list[dict[str, Any]]:
    usual = {"error": 0, "lasting": False, "partial": False, "die": False, "made": False, "every": 1, "trace": False}
    environment = {
        **os.environ,
        "LD_PRELOAD": str(shim),
        "PYTHONPATH": str(Path(dms_resources.__file__).parents[2]),
    }
    done = subprocess.run(
        [sys.executable, SCRIPT, shim, folder, json.dumps({**usual, **fault})],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    names = sorted(folder.glob("*.json"), key=lambda name: int(name.stem))
    return [{"folder": name.with_suffix(""), **json.loads(name.read_text())} for name in names]


def _contents(folder: Path) -> Contents:
    with SQLiteStorage(folder / "ledger.db", boot_id="any") as storage:
        return storage.load()


def _standing(contents: Contents) -> Standing:
    return frozenset((one.lease.lease_id, one.lease.state, one.lease.ttl) for one in contents.leases)


@pytest.mark.parametrize(
    ("error", "lasting", "partial", "made", "every"),
    # A read-only disk refuses the same calls as a full one, so fewer moments are enough.
    [(errno.EIO, False, False, False, 1), (errno.ENOSPC, True, True, True, 1), (errno.EROFS, True, False, True, 5)],
    ids=["fails-once", "is-full", "is-read-only"],
)
def test_every_call_of_the_disk_may_fail_and_the_ledger_recovers(
    shim: Path, tmp_path: Path, error: int, lasting: bool, partial: bool, made: bool, every: int
) -> None:
    lives = _live(shim, tmp_path, error=error, lasting=lasting, partial=partial, made=made, every=every)
    assert len(lives) > 100 // every
    for life in lives:
        assert len(life["acknowledged"]) == len(STANDING) - 1
        contents = _contents(life["folder"])
        assert _standing(contents) == STANDING[-1]
        assert sorted(one["lease_id"] for one in life["leases"]) == ["d"]
        for step, code, message in life["failed"]:
            assert code == "storage", (step, message)
            assert "ledger.db" in message
            assert not message.endswith(" / ")
    # The last life has no faults. In most of the others a commitment was refused and queries were answered.
    assert not lives[-1]["failed"]
    assert sum(bool(life["failed"]) for life in lives) > len(lives) / 2
    assert any(life["refused_meanwhile"] for life in lives)
    if lasting:
        assert all(len(life["failed"]) != 1 for life in lives)


def test_a_process_that_dies_of_any_failed_call_has_lost_nothing(shim: Path, tmp_path: Path) -> None:
    lives = _live(shim, tmp_path, error=errno.EIO, lasting=True, partial=True, die=True)
    assert len(lives) > 100
    for life in lives:
        done = len(life["acknowledged"])
        contents = _contents(life["folder"])
        # The failed step took place or did not; no other state is possible.
        assert _standing(contents) in STANDING[done : done + 2]
        assert done == 0 or contents.offer.onboarded is not None


@dataclass
class Disk:
    """The files of a traced life: what was written, and what of it a loss of power would leave."""

    chance: random.Random
    files: dict[str, bytearray] = field(default_factory=dict)
    synced: dict[str, bytes] = field(default_factory=dict)
    pending: dict[str, list[tuple[int, bytes]]] = field(default_factory=dict)

    def play(self, kind: str, name: str, offset: int, data: bytes) -> None:
        """One recorded call. The file system journals names and sizes; contents need a sync."""
        if kind == "C":
            self.files.setdefault(name, bytearray())
        elif kind == "W":
            file = self.files[name]
            file.extend(bytes(max(0, offset + len(data) - len(file))))
            file[offset : offset + len(data)] = data
            self.pending.setdefault(name, []).append((offset, data))
        elif kind == "T":
            file = self.files[name]
            del file[offset:]
            file.extend(bytes(offset - len(file)))
            self.synced[name] = self.synced.get(name, b"")[:offset]
            self.pending[name] = [(at, part[: offset - at]) for at, part in self.pending.get(name, []) if at < offset]
        elif kind == "S" and name in self.files:
            self.synced[name] = bytes(self.files[name])
            self.pending[name] = []
        elif kind == "U":
            for table in (self.files, self.synced, self.pending):
                table.pop(name, None)
        elif kind == "R":
            for table in (self.files, self.synced, self.pending):
                if name in table:
                    table[data.decode()] = table.pop(name)  # type: ignore[index,assignment]

    def lose_power(self, folder: Path, kept: float) -> None:
        """Leave in `folder` what was synced and, with the probability `kept`, each write that was not."""
        folder.mkdir()
        for name in self.files:
            left = bytearray(self.synced.get(name, b""))
            for offset, data in self.pending.get(name, []):
                if self.chance.random() < kept:
                    left.extend(bytes(max(0, offset + len(data) - len(left))))
                    left[offset : offset + len(data)] = data
            # The index of the log is shared memory, which no process trusts after a crash.
            if not name.endswith("-shm"):
                (folder / Path(name).name).write_bytes(left)


def _trace(path: Path) -> Iterator[tuple[str, str, int, bytes]]:
    record = path.read_bytes()
    at = 0
    while at < len(record):
        kind, length, offset, size = struct.unpack_from("<cHQI", record, at)
        name = record[at + 15 : at + 15 + length].decode()
        at += 15 + length + size
        yield kind.decode(), name, offset, record[at - size : at]


@pytest.mark.parametrize("kept", [0.0, 0.5])
def test_power_may_be_lost_between_any_two_calls_of_the_disk(shim: Path, tmp_path: Path, kept: float) -> None:
    (life,) = _live(shim, tmp_path, trace=True)
    home = str(life["folder"])
    disk = Disk(random.Random(1))
    acknowledged = 0
    for number, (kind, name, offset, data) in enumerate(_trace(tmp_path / "trace")):
        if name == f"{home}/acknowledged":
            acknowledged += kind == "W"
            continue
        disk.play(kind, name, offset, data)
        left = tmp_path / f"left{number}"
        disk.lose_power(left, kept)
        contents = _contents(left)
        # The pending step took place as a whole or not at all.
        assert _standing(contents) in STANDING[acknowledged : acknowledged + 2]
        assert acknowledged == 0 or contents.offer.onboarded is not None
        shutil.rmtree(left)
    assert acknowledged == len(STANDING) - 1


MACHINE = MachineResources(
    cpu=CPU(cores=Cores(4000)), ram=RAM(size=GIB), disk=DiskResource(size=GIB), gpus=(GPU(uuid="GPU-0", vram=GIB),)
)
ONBOARDED = OnboardedResources(cpu=MACHINE.cpu, ram=MACHINE.ram, disk=MACHINE.disk, gpus=MACHINE.gpus)
CORE = Demand(cpu=CPUDemand(cores=Cores(1000)))


async def test_a_full_database_refuses_promises_and_serves_queries_until_there_is_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connections: list[sqlite3.Connection] = []
    connect = storage_module.connect_ledger

    def noted(*arguments: Any) -> sqlite3.Connection:
        connections.append(connect(*arguments))
        return connections[-1]

    monkeypatch.setattr(storage_module, "connect_ledger", noted)
    async with open_manager(tmp_path / "ledger.db", MACHINE) as manager:
        await manager.update_onboarded_resources(ONBOARDED)
        connections[-1].execute("PRAGMA max_page_count = 20")
        done = -1

        async def commit_on() -> None:
            nonlocal done
            while True:
                done += 1
                await manager.commit_resources(f"job-{done}", Demand(), holder="peer", ttl=60.0)

        with pytest.raises(StorageError, match="full") as caught:
            await commit_on()
        assert caught.value.code == "storage"
        assert "free space" in caught.value.hint
        assert manager.storage_error is not None
        assert len(manager.leases()) == done > 10
        assert not isinstance(manager.would_fit(CORE), Exception)
        assert len(await manager.history(limit=1000)) == done + 1
        # The limit belongs to the connection: the one that is opened for the recovery has space again.
        await manager.commit_resources(f"job-{done}", Demand(), holder="peer", ttl=60.0)
        assert manager.storage_error is None
        assert len(connections) == 2
        assert {lease.lease_id for lease in manager.leases()} == {f"job-{number}" for number in range(done + 1)}


class FailingStorage(SQLiteStorage):
    """Raises instead of writing the n-th batch."""

    left = 0
    error: Exception = StorageError("the disk is on strike", hint="wait")

    def write(self, changes: Sequence[Change]) -> None:
        FailingStorage.left -= 1
        if not self.left:
            raise self.error
        super().write(changes)


@pytest.mark.parametrize("error", [StorageError("the disk is on strike", hint="wait"), MemoryError("no memory")])
@pytest.mark.parametrize("nth", range(1, 7))
async def test_whatever_a_write_raises_nobody_is_told_that_it_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, nth: int
) -> None:
    monkeypatch.setattr(manager_module, "SQLiteStorage", FailingStorage)
    outcomes: dict[str, str] = {}
    errors: list[str] = []

    async def client(manager: ResourceManager, name: str) -> None:
        try:
            await manager.commit_resources(name, CORE, holder=name, ttl=60.0)
            outcomes[name] = "done"
            await manager.allocate_resources(ResourceAllocation(lease_id=name, holder=name))
            await manager.release(name, holder=name)
            outcomes[name] = "released"
        except RequestError as refusal:
            outcomes[name] = refusal.code
        except StorageError as failure:
            errors.append(f"{failure.code}: {failure}")
            outcomes.setdefault(name, "storage")

    async with open_manager(tmp_path / "ledger.db", MACHINE) as manager:
        await manager.update_onboarded_resources(ONBOARDED)
        monkeypatch.setattr(FailingStorage, "error", error)
        monkeypatch.setattr(FailingStorage, "left", nth)
        # Eight tasks request the four cores at a time, and again when the disk works again.
        for crowd in range(6):
            async with trio.open_nursery() as nursery:
                for number in range(8):
                    nursery.start_soon(client, manager, f"job-{crowd}-{number}")
        standing = {lease.lease_id for lease in manager.leases()}
        assert standing == {name for name, outcome in outcomes.items() if outcome == "done"}
        assert len(standing) <= 4
    assert errors
    assert all(one.startswith("storage: ") and str(error) in one for one in errors)
    assert "released" in outcomes.values() or len(standing) == 4
    with SQLiteStorage(tmp_path / "ledger.db", boot_id="any") as storage:
        assert {one.lease.lease_id for one in storage.load().leases} == standing


async def test_who_asks_a_closed_ledger_is_told_so(tmp_path: Path) -> None:
    async with open_manager(tmp_path / "ledger.db", MACHINE) as manager:
        await manager.update_onboarded_resources(ONBOARDED)
    with trio.fail_after(5), pytest.raises(StorageError, match="closed"):
        await manager.commit_resources("job", CORE, holder="peer", ttl=60.0)
    assert manager.get_free_resources().cpu.cores == MACHINE.cpu.cores
