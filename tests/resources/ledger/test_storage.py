"""The ledger's file: its schema, versions, damage, its lock, pruning, and what is read back."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import trio

from dms_resources.components import CPU, GPU, RAM, Disk, MachineResources, OnboardedResources, Resources
from dms_resources.demands import Demand, PortDemand
from dms_resources.errors import LedgerDamagedError, LedgerInUseError, LedgerVersionError, StorageError
from dms_resources.ledger.book import Change, OfferState, Record
from dms_resources.ledger.history import HistoryEntry
from dms_resources.ledger.leases import EndedLease, EndReason, Lease, LeaseState
from dms_resources.ledger.ledger_file import make_ledger
from dms_resources.ledger.schema import Schema, ledger_schema
from dms_resources.ledger.storage import SQLiteStorage, StoredLease
from dms_resources.units import Cores

DEMAND = Demand()


def opened(path: Path, **options: Any) -> SQLiteStorage:
    return SQLiteStorage(path, boot_id="boot", **options)


def make_lease(lease_id: str, *, fence: int = 1, demand: Demand = DEMAND, **options: Any) -> Lease:
    return Lease(
        lease_id=lease_id,
        holder="peer",
        state=LeaseState.COMMITTED,
        demand=demand,
        asked_ports=PortDemand(static=(20_000,), dynamic=1),
        resources=Resources(
            cpu=CPU(cores=Cores(1234)),
            ram=RAM(size=2**62),
            disk=Disk(size=1),
            gpus=(GPU(uuid="gpu-a", vram=7, exclusive=True),),
        ),
        ports=(20_000, 20_001),
        fence=fence,
        created=1.5,
        ttl=60.0,
        deadline=61.5,
        **options,
    )


def made(lease: Lease, due: float | None = 70.0) -> Change:
    entry = HistoryEntry(at=1.0, actor="peer", action="commit", lease_id=lease.lease_id, reason="", detail="x")
    return Change(leases=((None, Record(lease, due)),), entries=(entry,), fence=lease.fence)


def gone(lease: Lease, at: float = 5.0) -> Change:
    ended = EndedLease(
        lease_id=lease.lease_id,
        holder=lease.holder,
        state=lease.state,
        fence=lease.fence,
        reason=EndReason.RELEASED,
        ended=at,
    )
    return Change(leases=((Record(lease, 70.0), None),), ended=(ended,))


def test_all_that_was_written_is_read_back(
    ledger_path: Path, machine: MachineResources, new_offer: Callable[..., OnboardedResources]
) -> None:
    offer = OfferState(onboarded=new_offer(machine, windows=["22:00-06:00"]), draining=True)
    lease = make_lease("lease ünïcode", processes=((7, 0.1),), group="group")
    with opened(ledger_path) as storage:
        storage.write([Change(offer=(OfferState(), offer)), made(lease), made(make_lease("gone", fence=9))])
        storage.write([gone(make_lease("gone", fence=9))])
    with opened(ledger_path) as storage:
        contents = storage.load()
    assert contents.offer == offer
    assert contents.fence == 9
    assert contents.leases == [StoredLease(lease, 70.0, "boot")]
    assert [(end.lease_id, end.fence) for end in contents.ended] == [("gone", 9)]


def test_a_change_is_written_whole_or_not_at_all(ledger_path: Path) -> None:
    with opened(ledger_path) as storage:
        storage.write([made(make_lease("first"))])
        broken = Change(entries=(HistoryEntry(at=None, actor="", action=""),))  # type: ignore[arg-type]
        with pytest.raises(StorageError):
            storage.write([made(make_lease("second")), gone(make_lease("first")), broken])
        assert [one.lease.lease_id for one in storage.load().leases] == ["first"]
        storage.write([made(make_lease("third"))])
        assert [one.lease.lease_id for one in storage.reopen().leases] == ["first", "third"]


def test_the_last_of_several_changes_of_a_lease_is_kept(ledger_path: Path) -> None:
    lease, again = make_lease("lease"), make_lease("lease", fence=3)
    with opened(ledger_path) as storage:
        storage.write([made(lease), gone(lease)])
        assert not storage.load().leases
        storage.write([made(lease), gone(lease), made(again, 80.0)])
        assert storage.load().leases == [StoredLease(again, 80.0, "boot")]
        # The fencing number never goes back.
        storage.write([made(make_lease("old", fence=2))])
        assert storage.load().fence == 3


def test_the_disk_is_asked_to_keep_what_is_acknowledged(ledger_path: Path) -> None:
    with opened(ledger_path) as storage:
        assert storage._db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert storage._db.execute("PRAGMA synchronous").fetchone() == (2,)
        storage.reopen()
        assert storage._db.execute("PRAGMA synchronous").fetchone() == (2,)


def test_the_file_is_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "new" / "home" / "ledger.db"
    with opened(path) as storage:
        storage.write([made(make_lease("lease"))])
        modes = {one.name: one.stat().st_mode & 0o077 for one in path.parent.iterdir()}
    assert {name: mode for name, mode in modes.items() if mode} == {}
    assert path.parent.stat().st_mode & 0o077 == 0


def test_a_second_opening_is_refused_and_changes_nothing(ledger_path: Path) -> None:
    with opened(ledger_path) as storage:
        with pytest.raises(LedgerInUseError, match="is in use by process"):
            opened(ledger_path)
        storage.write([made(make_lease("lease"))])
    with opened(ledger_path) as storage:
        assert len(storage.load().leases) == 1


def test_a_second_process_is_refused_and_gets_the_ledger_afterwards(ledger_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from dms_resources.ledger.storage import SQLiteStorage\n"
        "with SQLiteStorage(Path(sys.argv[1]), boot_id='boot'): print('mine', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", program, str(ledger_path)]
    environment = {"PYTHONPATH": ":".join(sys.path)}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "mine\n"
        with pytest.raises(LedgerInUseError, match=f"by process {other.pid}"):
            opened(ledger_path)
        other.kill()
        other.wait()
    # The lock of a killed process blocks nobody.
    opened(ledger_path).close()


def _change_file(path: Path, statement: str) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.execute(statement)
        db.commit()


@pytest.mark.parametrize("statement", ["PRAGMA user_version = 999", "PRAGMA user_version = 0"])
def test_another_version_is_refused_and_left_alone(ledger_path: Path, statement: str) -> None:
    opened(ledger_path).close()
    _change_file(ledger_path, statement)
    before = ledger_path.read_bytes()
    with pytest.raises(LedgerVersionError, match="is not a ledger that this version can read"):
        opened(ledger_path)
    assert ledger_path.read_bytes() == before


def test_a_database_of_another_program_is_refused_and_left_alone(ledger_path: Path) -> None:
    _change_file(ledger_path, "CREATE TABLE theirs (x)")
    before = ledger_path.read_bytes()
    with pytest.raises(LedgerVersionError):
        opened(ledger_path)
    assert ledger_path.read_bytes() == before


def test_an_older_version_is_upgraded_like_a_fresh_one_with_a_copy_kept(ledger_path: Path) -> None:
    old = ledger_schema()
    added = "CREATE TABLE extra (x INTEGER) STRICT;"
    new = Schema(sql=old.sql + added, migrations=(*old.migrations, added))
    with opened(ledger_path) as storage:
        storage.write([made(make_lease("lease"))])
    with opened(ledger_path, schema=new) as storage:
        assert len(storage.load().leases) == 1
    fresh = ledger_path.with_name("fresh.db")
    make_ledger(fresh, new)

    def dump(path: Path, name: str = "sqlite_schema") -> list[Any]:
        with closing(sqlite3.connect(path)) as db:
            return [*sorted(db.execute(f"SELECT name, sql FROM {name}")), db.execute("PRAGMA user_version").fetchone()]

    assert dump(ledger_path) == dump(fresh)
    with opened(ledger_path.with_name(f"ledger.db.version-{old.version}")) as copy:
        assert len(copy.load().leases) == 1
    with pytest.raises(LedgerVersionError):
        opened(ledger_path)


def test_an_upgrade_that_fails_leaves_the_old_version(ledger_path: Path) -> None:
    opened(ledger_path).close()
    newest, step = ledger_schema(), "CREATE TABLE half (x); CREATE TABLE half (x);"
    broken = Schema(sql=newest.sql, migrations=(*newest.migrations, step))
    with pytest.raises(StorageError):
        opened(ledger_path, schema=broken)
    with opened(ledger_path) as storage:
        assert "half" not in str(storage._db.execute("SELECT name FROM sqlite_schema").fetchall())


@pytest.mark.parametrize("how", ["emptied", "cut", "garbage", "header", "page", "history"])
def test_a_damaged_file_is_reported_with_what_to_do_and_left_alone(ledger_path: Path, how: str) -> None:
    with opened(ledger_path) as storage:
        storage.write([made(make_lease(f"lease-{number}")) for number in range(300)])
    data = ledger_path.read_bytes()
    damaged = {
        "emptied": b"",
        "cut": data[: len(data) // 2],
        "garbage": b"\x07" * 8192,
        "header": b"\0" * 100 + data[100:],
        "page": data[:4096] + b"\xff" * 4096 + data[8192:],
        # Nothing of this page is read at the start.
        "history": data[:-4096] + b"\xff" * 4096,
    }[how]
    ledger_path.write_bytes(damaged)
    with pytest.raises(LedgerDamagedError) as caught, opened(ledger_path) as storage:
        storage.load()
    assert "restore ledger.db from a copy" in caught.value.hint
    assert ledger_path.read_bytes() == damaged


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE leases SET body = '{}'",
        "UPDATE leases SET body = replace(body, 'peer', 'thief')",
        "UPDATE leases SET due = due + 1",
        "UPDATE leases SET lease_id = 'other'",
        "UPDATE ledger SET fence = 0",
        "UPDATE ledger SET offer = '{}'",
        "DELETE FROM ledger",
        "UPDATE ended SET body = 'no JSON'",
    ],
)
def test_a_row_that_is_not_as_it_was_written_is_damage(
    ledger_path: Path, machine: MachineResources, new_offer: Callable[..., OnboardedResources], statement: str
) -> None:
    with opened(ledger_path) as storage:
        offer = OfferState(onboarded=new_offer(machine))
        storage.write([Change(offer=(OfferState(), offer)), made(make_lease("lease")), gone(make_lease("gone"))])
    _change_file(ledger_path, statement)
    with pytest.raises(LedgerDamagedError), opened(ledger_path) as storage:
        storage.load()


async def test_two_leases_on_one_port_are_damage_and_not_a_crash(open_ledger: Any, ledger_path: Path) -> None:
    with opened(ledger_path) as storage:
        storage.write([made(make_lease("one")), made(make_lease("two", fence=2))])
    with pytest.raises(LedgerDamagedError, match="taken twice"):
        async with open_ledger():
            pass


def _history(storage: SQLiteStorage) -> list[float]:
    return [entry.at for _, entry in storage.history(limit=999)]


def _entries(*at: float) -> Change:
    return Change(entries=tuple(HistoryEntry(at=float(one), actor="peer", action="commit") for one in at))


def test_old_history_is_forgotten_in_steps(ledger_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dms_resources.ledger.storage._PRUNE_STEP", 4)
    with opened(ledger_path) as storage:
        storage.write([_entries(*range(10))])
        assert storage.prune(history_before=7.0)
        assert not storage.prune(history_before=7.0)
        assert _history(storage) == [9.0, 8.0, 7.0]


def test_the_history_grows_to_a_number_of_entries_and_no_more(
    ledger_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dms_resources.ledger.storage.MOST_HISTORY", 5)
    with opened(ledger_path) as storage:
        for at in range(20):
            storage.write([_entries(at)])
            assert _history(storage) == [float(one) for one in range(at, max(-1, at - 5), -1)]
        # A batch that is longer than everything that is kept.
        storage.write([_entries(*range(100, 120))])
        assert _history(storage)[:5] == [119.0, 118.0, 117.0, 116.0, 115.0]
        assert len(_history(storage)) == 5


def test_what_an_older_version_kept_beyond_the_bounds_is_forgotten_in_steps(
    ledger_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(ledger_path) as storage:
        storage.write([_entries(*range(50)), *(gone(make_lease(f"lease-{at:02}"), float(at)) for at in range(50))])
    for name, most in (("MOST_HISTORY", 5), ("MOST_ENDED", 5), ("_PRUNE_STEP", 10)):
        monkeypatch.setattr(f"dms_resources.ledger.storage.{name}", most)
    with opened(ledger_path) as storage:
        # One change does not pay for all of it.
        storage.write([_entries(50)])
        assert len(_history(storage)) == 49
        steps = 1
        while storage.prune(history_before=0.0):
            steps += 1
        assert steps == 5
        assert _history(storage) == [50.0, 49.0, 48.0, 47.0, 46.0]
        assert _ended_rows(storage) == ["lease-45", "lease-46", "lease-47", "lease-48", "lease-49"]


def _ended_rows(storage: SQLiteStorage) -> list[str]:
    return [key for (key,) in storage._db.execute("SELECT lease_id FROM ended ORDER BY ended")]


def test_the_last_that_ended_are_remembered_whatever_the_clock_says(
    ledger_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dms_resources.ledger.storage.MOST_ENDED", 3)
    # The wall clock is set forward, then back, and then stands still.
    times = (10.0, 11.0, 9e9, 5.0, 6.0, 6.0, 6.0)
    ended = []
    for number, at in enumerate(times):
        # Each of them after a new start, because the file has to keep the order.
        with opened(ledger_path) as storage:
            storage.write([gone(make_lease(f"lease-{9 - number}"), at)])
            ended = [*ended, f"lease-{9 - number}"][-3:]
            assert _ended_rows(storage) == ended
        with opened(ledger_path) as storage:
            assert [(end.lease_id, end.ended) for end in storage.load().ended][-1] == (f"lease-{9 - number}", at)
    with opened(ledger_path) as storage:
        storage.write([gone(make_lease(f"many-{number}"), 1.0) for number in range(7)])
        assert [end.lease_id for end in storage.load().ended] == ["many-4", "many-5", "many-6"]
        # One that ends again is the newest.
        storage.write([gone(make_lease("many-4"), 1.0), gone(make_lease("next"), 1.0)])
        assert [end.lease_id for end in storage.load().ended] == ["many-6", "many-4", "next"]


def test_a_write_that_fails_forgets_nothing_of_what_ended(ledger_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dms_resources.ledger.storage.MOST_ENDED", 2)
    broken = Change(entries=(HistoryEntry(at=None, actor="", action=""),))  # type: ignore[arg-type]
    with opened(ledger_path) as storage:
        storage.write([gone(make_lease("one")), gone(make_lease("two"))])
        with pytest.raises(StorageError):
            storage.write([gone(make_lease("three")), broken])
        storage.write([gone(make_lease("four"))])
        assert [end.lease_id for end in storage.load().ended] == ["two", "four"]


async def test_a_ledger_prunes_every_hour_and_not_by_the_clock_of_its_start(
    open_ledger: Any, clock: Any, new_demand: Callable[..., Demand], autojump_clock: Any
) -> None:
    async with open_ledger() as manager:
        await manager.commit_resources("old", new_demand(1), holder="peer", ttl=60)
        await manager.release("old")
        clock.suspend(91 * 86400.0)
        await manager.commit_resources("new", new_demand(1), holder="peer", ttl=60)
        await trio.sleep(3601)
        assert [entry.action for _, entry in await manager.history()] == ["end", "commit"]
    # The machine starts with a clock that is years ahead, and learns the time half an hour later.
    clock.jump(1e8)
    async with open_ledger() as manager:
        await trio.sleep(1800)
        clock.jump(-1e8)
        await trio.sleep(3600)
        assert [entry.action for _, entry in await manager.history()] == ["end", "commit"]


def test_history_comes_newest_first_and_in_pages(ledger_path: Path) -> None:
    entries = tuple(HistoryEntry(at=float(at), actor="peer", action="commit") for at in range(10))
    with opened(ledger_path) as storage:
        storage.write([Change(entries=entries)])
        first = storage.history(limit=4)
        second = storage.history(limit=4, before=first[-1][0])
    assert [entry.at for _, entry in first + second] == [9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0]


def test_no_more_endings_are_read_than_are_remembered(ledger_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dms_resources.ledger.storage.MOST_ENDED", 3)
    with opened(ledger_path) as storage:
        storage.write([gone(make_lease(f"lease-{at}"), float(at)) for at in range(10)])
        assert [end.ended for end in storage.load().ended] == [7.0, 8.0, 9.0]


def test_a_file_that_is_missing_beside_its_log_is_damage(ledger_path: Path) -> None:
    storage = opened(ledger_path)
    storage.write([made(make_lease("lease"))])
    log = ledger_path.with_name("ledger.db-wal").read_bytes()
    storage.close()
    ledger_path.unlink()
    ledger_path.with_name("ledger.db-wal").write_bytes(log)
    with pytest.raises(LedgerDamagedError, match="it is missing"):
        opened(ledger_path)


@pytest.mark.parametrize("link", ["symbolic", "hard", "folder"])
def test_one_ledger_has_one_owner_by_whatever_name(tmp_path: Path, link: str) -> None:
    home, other = tmp_path / "home", tmp_path / "other"
    with opened(home / "ledger.db") as storage:
        if link == "folder":
            other.symlink_to(home)
        else:
            other.mkdir()
            (other / "ledger.db").symlink_to(home / "ledger.db")
        if link == "hard":
            (other / "ledger.db").unlink()
            (other / "ledger.db").hardlink_to(home / "ledger.db")
        program = "import sys; from pathlib import Path; from dms_resources.ledger.storage import SQLiteStorage\n"
        program += "SQLiteStorage(Path(sys.argv[1]), boot_id='boot')"
        command = [sys.executable, "-c", program, str(other / "ledger.db")]
        environment = {"PYTHONPATH": ":".join(sys.path)}
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert "LedgerInUseError" in ended.stderr
        storage.write([made(make_lease("lease"))])
    if link != "hard":
        with opened(other / "ledger.db") as storage:
            assert len(storage.load().leases) == 1


@pytest.mark.parametrize("how", ["gone", "replaced"])
def test_a_file_that_was_taken_away_is_not_written_and_not_made_anew(ledger_path: Path, how: str) -> None:
    with opened(ledger_path) as storage:
        storage.write([made(make_lease("lease"))])
        away = ledger_path.rename(ledger_path.with_name("away.db"))
        if how == "replaced":
            with opened(ledger_path.with_name("backup.db")):
                pass
            ledger_path.with_name("backup.db").rename(ledger_path)
        for ask in (lambda: storage.write([made(make_lease("second"))]), storage.load_leases, storage.reopen):
            with pytest.raises(StorageError, match="gone" if how == "gone" else "another file"):
                ask()
        assert ledger_path.exists() == (how == "replaced")
        away.rename(ledger_path)
        assert [one.lease.lease_id for one in storage.reopen().leases] == ["lease"]
        storage.write([made(make_lease("third"))])
    with opened(ledger_path) as storage:
        assert [one.lease.lease_id for one in storage.load().leases] == ["lease", "third"]


def test_the_log_gives_back_what_a_long_reader_made_it_take(ledger_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dms_resources.ledger.ledger_file._LOG_BYTES", 100_000)
    log = ledger_path.with_name("ledger.db-wal")

    def write(storage: SQLiteStorage) -> None:
        for _ in range(30):
            storage.write([_entries(*range(100))])

    with opened(ledger_path) as storage:
        with closing(sqlite3.connect(ledger_path, isolation_level=None)) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM history").fetchone()
            while log.stat().st_size < 8_000_000:
                write(storage)
        for _ in range(3):
            write(storage)
        assert log.stat().st_size < 5_000_000
        assert len(_history(storage)) == 999


def test_a_closed_storage_is_not_opened_again(ledger_path: Path) -> None:
    storage = opened(ledger_path)
    storage.close()
    storage.close()
    with pytest.raises(StorageError):
        storage.reopen()
    with pytest.raises(StorageError):
        storage.write([made(make_lease("lease"))])


def test_a_home_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot open"):
        opened(tmp_path / "file" / "ledger.db")
