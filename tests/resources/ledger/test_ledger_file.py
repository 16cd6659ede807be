"""Rule 9: a ledger's file that is damaged, foreign, newer, in use or not writable is reported and not changed; an older
one is upgraded, with a copy of the original.
"""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

import dms_resources
from dms_resources.components import CPU, GPU, RAM, Disk, OnboardedResources, Resources
from dms_resources.demands import CPUDemand, Demand
from dms_resources.errors import LedgerDamagedError, LedgerInUseError, LedgerVersionError, StorageError
from dms_resources.ledger.book import Change, OfferState, Record
from dms_resources.ledger.history import HistoryEntry
from dms_resources.ledger.leases import EndedLease, EndReason, Lease, LeaseState
from dms_resources.ledger.schema import Schema, ledger_schema
from dms_resources.ledger.storage import Contents, SQLiteStorage
from dms_resources.units import GIB, Cores

ONBOARDED = OnboardedResources(
    cpu=CPU(cores=Cores(64_000)), ram=RAM(size=64 * GIB), disk=Disk(size=GIB), gpus=(GPU(uuid="GPU-0", vram=GIB),)
)
PAGE = 4096


def _lease(number: int) -> Lease:
    return Lease(
        lease_id=f"job-{number:03}",
        holder="peer",
        state=LeaseState.COMMITTED,
        demand=Demand(cpu=CPUDemand(cores=Cores(100))),
        resources=Resources(cpu=CPU(cores=Cores(100)), ram=RAM(size=GIB), disk=Disk(size=0), gpus=()),
        ports=(20_000 + number,),
        fence=number + 1,
        created=1_800_000_000.0,
        ttl=60.0,
        deadline=1_800_000_060.0,
    )


def _change(number: int) -> Change:
    ended = EndedLease(
        lease_id=f"gone-{number}",
        holder="peer",
        state=LeaseState.ALLOCATED,
        fence=number,
        reason=EndReason.RELEASED,
        ended=1_800_000_000.0,
    )
    return Change(
        leases=((None, Record(_lease(number), due=100)),),
        ended=(ended,),
        entries=(HistoryEntry(at=1_800_000_000.0, actor="peer", action="commit", lease_id=f"job-{number:03}"),),
        fence=number + 1,
    )


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    """A ledger with a hundred leases, as many ended ones, and their history."""
    path = tmp_path / "home" / "ledger.db"
    with SQLiteStorage(path, boot_id="boot") as storage:
        storage.load()
        storage.write([Change(offer=(OfferState(), OfferState(onboarded=ONBOARDED))), *map(_change, range(100))])
    return path


def _load(path: Path, schema: Schema | None = None) -> Contents:
    with SQLiteStorage(path, boot_id="boot", schema=schema) as storage:
        return storage.load()


def _files(path: Path) -> dict[str, bytes]:
    # Reading a database with a log creates an index of it, and an empty log if there is none.
    names = [name for name in path.parent.iterdir() if not name.name.endswith((".lock", "-shm"))]
    return {name.name: name.read_bytes() for name in names if name == path or name.stat().st_size}


def _refused(path: Path, error: type[StorageError]) -> StorageError:
    """Open a bad file: it has to be refused, with a hint, and not a byte may change."""
    before = _files(path)
    with pytest.raises(error) as caught:
        _load(path)
    assert _files(path) == before
    assert path.name in caught.value.message
    assert caught.value.hint
    return caught.value


def test_a_new_ledger_is_readable_by_its_owner_only(ledger: Path) -> None:
    assert {name.name: name.stat().st_mode & 0o777 for name in ledger.parent.iterdir()} == {
        "ledger.db": 0o600,
        "ledger.db.lock": 0o600,
    }


@pytest.mark.parametrize("seed", range(3))
def test_every_damaged_page_is_seen_and_the_file_is_left_as_it_is(ledger: Path, seed: int) -> None:
    whole, chance = ledger.read_bytes(), random.Random(seed)
    for page in range(len(whole) // PAGE):
        ledger.write_bytes(whole[: page * PAGE] + chance.randbytes(PAGE) + whole[(page + 1) * PAGE :])
        _refused(ledger, StorageError)
    ledger.write_bytes(whole)
    assert len(_load(ledger).leases) == 100


def test_a_flipped_bit_is_seen_or_has_changed_nothing(ledger: Path) -> None:
    whole, chance, seen = ledger.read_bytes(), random.Random(1), 0
    expected = _load(ledger)
    for _ in range(400):
        bit = chance.randrange(len(whole) * 8)
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        ledger.write_bytes(flipped)
        try:
            # The history, unused space and SQLite's own counters affect no decision.
            assert _load(ledger) == expected
        except StorageError:
            seen += 1
    assert seen > 100


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.5, 0.99])
def test_a_truncated_file_is_damaged_and_not_a_new_ledger(ledger: Path, share: float) -> None:
    whole = ledger.read_bytes()
    ledger.write_bytes(whole[: int(len(whole) * share)])
    error = _refused(ledger, LedgerDamagedError)
    assert "restore" in error.hint


def test_a_log_without_its_database_is_not_a_new_ledger(ledger: Path) -> None:
    ledger.unlink()
    log = ledger.with_name("ledger.db-wal")
    log.write_bytes(b"what was acknowledged last")
    error = _refused(ledger, LedgerDamagedError)
    assert "missing" in error.message
    log.unlink()
    assert not _load(ledger).leases


def test_a_file_that_is_no_database_is_left_as_it_is(ledger: Path) -> None:
    ledger.write_text("These are the accounts of a bakery.\n" * 1000)
    _refused(ledger, LedgerDamagedError)


def test_a_database_of_another_program_is_left_as_it_is(ledger: Path) -> None:
    ledger.unlink()
    with closing(sqlite3.connect(ledger)) as db:
        db.executescript("CREATE TABLE bread (name TEXT); INSERT INTO bread VALUES ('rye'); PRAGMA user_version = 1;")
    _refused(ledger, LedgerVersionError)


def test_a_newer_version_is_left_as_it_is(ledger: Path) -> None:
    with closing(sqlite3.connect(ledger)) as db:
        db.execute(f"PRAGMA user_version = {ledger_schema().version + 1}")
    error = _refused(ledger, LedgerVersionError)
    assert "newer dms-peer" in error.hint


def test_a_half_made_file_of_a_killed_process_is_made_anew(tmp_path: Path) -> None:
    for name in ("ledger.db.new", "ledger.db.new-wal"):
        (tmp_path / name).write_bytes(b"half")
    assert not _load(tmp_path / "ledger.db").leases
    assert sorted(name.name for name in tmp_path.iterdir()) == ["ledger.db", "ledger.db.lock"]


@pytest.fixture
def without_rights() -> Iterator[None]:
    """Root may write everywhere, so these tests run as another user meanwhile."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_folder_that_may_not_be_written_is_a_clear_error(without_rights: None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        home.chmod(0o500)
        with pytest.raises(StorageError, match="Permission denied") as caught:
            _load(home / "ledger.db")
        assert not list(home.iterdir())
        home.chmod(0o700)
    assert "writable" in caught.value.hint


def test_a_path_through_a_file_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="ledger"):
        _load(tmp_path / "file" / "ledger.db")


HOLDER = """
import sys, time
from pathlib import Path
from dms_resources.ledger.storage import SQLiteStorage
storage = SQLiteStorage(Path(sys.argv[1]), boot_id="boot")
print("open", flush=True)
sys.stdin.read()
"""


def test_a_second_process_is_told_who_has_the_ledger_until_that_one_is_dead(ledger: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(dms_resources.__file__).parents[2])}
    command = [sys.executable, "-c", HOLDER, str(ledger)]
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"open\n"
        error = _refused(ledger, LedgerInUseError)
        assert f"process {holder.pid}" in error.message
        holder.send_signal(signal.SIGKILL)
    assert len(_load(ledger).leases) == 100


# Versions that are not the product's, to show that the upgrade from one to the next works.
SECOND = """
CREATE TABLE notes (lease_id TEXT PRIMARY KEY, note TEXT NOT NULL) STRICT;
INSERT INTO notes SELECT lease_id, 'from before' FROM leases;
"""
THIRD = "CREATE INDEX notes_note ON notes (note);\n"


def _schema(*steps: str) -> Schema:
    newest = ledger_schema()
    return Schema(sql=newest.sql + "".join(steps), migrations=(*newest.migrations, *steps))


def _dump(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as db:
        pragmas = [f"{name} = {db.execute(f'PRAGMA {name}').fetchone()}" for name in ("application_id", "user_version")]
        return [*pragmas, *db.iterdump()]


@pytest.mark.parametrize("written_by", [(), (SECOND,)])
def test_an_upgraded_ledger_is_the_same_as_a_fresh_one(tmp_path: Path, written_by: tuple[str, ...]) -> None:
    old, new = tmp_path / "old.db", tmp_path / "new.db"
    newest = _schema(SECOND, THIRD)
    _load(old, _schema(*written_by))
    before = _dump(old)
    _load(old, newest)
    _load(new, newest)
    assert _dump(old) == _dump(new)
    # The original is beside it, whole and in one file.
    copy = tmp_path / f"old.db.version-{ledger_schema().version + len(written_by)}"
    assert _dump(copy) == before
    assert copy.stat().st_mode & 0o777 == 0o600
    assert not list(tmp_path.glob("*.new*"))


def test_an_upgrade_keeps_everything_and_is_done_once(ledger: Path) -> None:
    before = _load(ledger)
    assert _load(ledger, _schema(SECOND)) == before
    copy = ledger.with_name(f"ledger.db.version-{ledger_schema().version}")
    copy.unlink()
    assert _load(ledger, _schema(SECOND)) == before
    assert not copy.exists()
    with closing(sqlite3.connect(ledger)) as db:
        assert db.execute("SELECT count(*) FROM notes WHERE note = 'from before'").fetchone() == (100,)


def test_an_upgrade_that_fails_leaves_the_older_version(ledger: Path) -> None:
    before = _dump(ledger)
    with pytest.raises(StorageError, match="no such table"):
        _load(ledger, _schema(SECOND, "INSERT INTO nowhere VALUES (1);"))
    assert _dump(ledger) == before
    assert len(_load(ledger).leases) == 100


def test_every_version_that_was_published_upgrades_to_the_same_as_a_fresh_ledger(tmp_path: Path) -> None:
    newest = ledger_schema()
    # schemas/N.sql is version N as it was published: a change of the schema needs a migration and a file.
    published = sorted(Path(__file__).parent.glob("schemas/*.sql"), key=lambda name: int(name.stem))
    assert [int(name.stem) for name in published] == list(range(1, newest.version + 1))
    _load(tmp_path / "fresh.db")
    for number, name in enumerate(published):
        path = tmp_path / f"{name.stem}.db"
        _load(path, Schema(sql=name.read_text(), migrations=newest.migrations[:number]))
        _load(path)
        assert _dump(path) == _dump(tmp_path / "fresh.db")
