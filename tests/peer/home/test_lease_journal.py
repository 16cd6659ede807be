"""The journal of what a home holds: it survives crashes and other writers, and never prevents a command."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest

from dms_peer.home.lease_journal import LeaseJournal
from dms_resources.components import CPU, RAM, Disk, Resources
from dms_resources.demands import Demand
from dms_resources.ledger.leases import Lease, LeaseState
from dms_resources.units import Cores

HAS = Resources(cpu=CPU(cores=Cores.of(1)), ram=RAM(size=1), disk=Disk(size=1), gpus=())


def lease(lease_id: str, deadline: float | None = 1000.0, created: float = 1.0) -> Lease:
    state = LeaseState.ALLOCATED if deadline is None else LeaseState.COMMITTED
    return Lease(
        lease_id=lease_id, holder="me", state=state, demand=Demand(), resources=HAS, fence=1, created=created,
        deadline=deadline,
    )  # fmt: skip


def ids(journal: LeaseJournal) -> list[str]:
    return [held.lease.lease_id for held in journal.leases()]


def test_leases_are_noted_replaced_and_forgotten(tmp_path: Path) -> None:
    journal = LeaseJournal(tmp_path, clock=lambda: 500.0)
    assert (journal.leases(), journal.providers()) == ([], [])
    journal.note("p", [lease("a", created=1.0), lease("b", created=2.0)])
    journal.note("q", [lease("a", created=3.0)])
    assert ids(journal) == ["a", "b", "a"]
    journal.note("p", [lease("a", None)])
    assert {held.lease.state for held in journal.leases() if held.peer_id == "p"} == {
        LeaseState.ALLOCATED,
        LeaseState.COMMITTED,
    }
    journal.forget("p", ["a"])
    assert [(held.peer_id, held.lease.lease_id) for held in journal.leases()] == [("q", "a"), ("p", "b")]
    journal.replace_all("p", [lease("c")])
    assert {(held.peer_id, held.lease.lease_id) for held in journal.leases()} == {("q", "a"), ("p", "c")}
    assert stat.S_IMODE((tmp_path / "leases.json").stat().st_mode) == 0o600


def test_what_has_ended_leaves_a_day_later_and_a_provider_after_a_month(tmp_path: Path) -> None:
    now = [0.0]
    journal = LeaseJournal(tmp_path, clock=lambda: now[0])
    journal.note_provider("p", ["/ip4/192.0.2.7/tcp/1"])
    journal.note_provider("q", [])
    journal.note("p", [lease("ends", 1000.0), lease("lasts", None)])
    now[0] = 1000.0 + 86399
    assert set(ids(journal)) == {"ends", "lasts"}
    now[0] += 2
    assert ids(journal) == ["lasts"]
    now[0] = 31 * 86400.0
    # The provider of a lease that may still exist is kept.
    assert [provider.peer_id for provider in journal.providers()] == ["p"]
    assert journal.providers()[0].addrs == ("/ip4/192.0.2.7/tcp/1",)


def test_many_writers_lose_nothing(tmp_path: Path) -> None:
    def write(number: int) -> None:
        for turn in range(5):
            LeaseJournal(tmp_path, clock=lambda: 0.0).note(f"p{number}", [lease(f"{number}-{turn}")])

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ids(LeaseJournal(tmp_path, clock=lambda: 0.0))) == 20


@pytest.mark.parametrize("damage", ["half", "version", "link", "folder", "fifo"])
def test_a_damaged_journal_is_set_aside(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "leases.json"
    match damage:
        case "half":
            path.write_text('{"version": 1, "leas')
        case "version":
            path.write_text('{"version": 99}')
        case "link":
            path.symlink_to(tmp_path / "elsewhere.json")
            (tmp_path / "elsewhere.json").write_text("{}")
        case "folder":
            path.mkdir()
        case _:
            os.mkfifo(path)
    journal = LeaseJournal(tmp_path, clock=lambda: 0.0)
    assert journal.leases() == []
    journal.note("p", [lease("a")])
    assert ids(journal) == ["a"]
    assert [name for name in os.listdir(tmp_path) if name.startswith("leases.json.damaged-")]
    assert "leases.json" in caplog.text
