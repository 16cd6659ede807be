from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from msgspec.structs import replace

from dms_peer.home.lease_journal import LeaseJournal
from dms_peer.owner.keeping import keep_deployments
from dms_peer.requesting.peers import CallError
from dms_protocols.errors import RemoteError
from dms_resources.components import CPU, RAM, Disk, Resources
from dms_resources.demands import Demand
from dms_resources.ledger.leases import Lease, LeaseState
from dms_resources.units import Cores

LEASE = Lease(
    lease_id="lease-1", holder="requester", state=LeaseState.ALLOCATED, demand=Demand(),
    resources=Resources(cpu=CPU(cores=Cores(0)), ram=RAM(size=0), disk=Disk(size=0), gpus=()),
    fence=4, created=1000.0, ttl=900.0, ensemble_id="nightly", node_id="web",
)  # fmt: skip


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Calls:
    """Renewals, and what their provider answers."""

    def __init__(self) -> None:
        self.renewed: list[tuple[str, float, int]] = []
        self.error: CallError | None = None
        self.called = trio.Event()

    async def renew(self, peer: Any, lease_id: str, *, ttl: float, fence: int, budget: float, before: Lease) -> Lease:
        await trio.lowlevel.checkpoint()
        self.renewed.append((peer.peer_id, ttl, fence))
        self.called.set()
        self.called = trio.Event()
        if self.error is not None:
            raise self.error
        return replace(before, deadline=5000.0)


def refusal(code: str) -> CallError:
    return CallError(code, code, reached=True, uncertain=False, remote=RemoteError(code, code=code, details={}))


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def journal(tmp_path: Path, clock: Clock) -> LeaseJournal:
    found = LeaseJournal(tmp_path, clock)
    found.note_provider("p0", ["/memory/p0"])
    found.note("p0", [LEASE], kept=True)
    return found


async def rounds(journal: LeaseJournal, calls: Calls, clock: Clock, count: int = 1) -> None:
    """Lets the keeper look at the journal so many times; each time something has to be due."""
    with trio.fail_after(10):
        for _ in range(count):
            async with trio.open_nursery() as nursery:
                called = calls.called
                nursery.start_soon(partial(keep_deployments, journal, calls, clock=clock))  # type: ignore[arg-type]
                await called.wait()
                await trio.testing.wait_all_tasks_blocked(0.05)
                nursery.cancel_scope.cancel()


async def test_a_kept_lease_is_renewed_at_a_third_of_its_keep_alive(journal: LeaseJournal, clock: Clock) -> None:
    calls = Calls()
    clock.now += 299
    with trio.move_on_after(0.3):
        await keep_deployments(journal, calls, clock=clock)  # type: ignore[arg-type]
    assert calls.renewed == []
    clock.now += 1
    await rounds(journal, calls, clock)
    assert calls.renewed == [("p0", 900.0, 4)]
    (held,) = journal.leases()
    assert (held.kept, held.seen, held.lease.deadline) == (True, clock.now, 5000.0)


@pytest.mark.parametrize("change", [{"ttl": 0.0}, {"state": LeaseState.COMMITTED}])
async def test_what_needs_no_renewal_is_left_alone(journal: LeaseJournal, clock: Clock, change: dict[str, Any]) -> None:
    calls = Calls()
    journal.note("p0", [replace(LEASE, **change)])
    clock.now += 10_000
    with trio.move_on_after(0.3):
        await keep_deployments(journal, calls, clock=clock)  # type: ignore[arg-type]
    assert calls.renewed == []


async def test_a_lease_that_a_person_took_is_not_renewed(tmp_path: Path, clock: Clock) -> None:
    calls, journal = Calls(), LeaseJournal(tmp_path, clock)
    journal.note("p0", [LEASE])
    clock.now += 600
    with trio.move_on_after(0.3):
        await keep_deployments(journal, calls, clock=clock)  # type: ignore[arg-type]
    assert calls.renewed == []


def test_what_is_kept_stays_so_when_its_provider_lists_it(journal: LeaseJournal) -> None:
    journal.replace_all("p0", [replace(LEASE, deadline=2000.0), replace(LEASE, lease_id="another")])
    assert {held.lease.lease_id: held.kept for held in journal.leases()} == {"lease-1": True, "another": False}


async def test_a_lease_that_has_ended_is_forgotten_and_a_silent_provider_is_not(
    journal: LeaseJournal, clock: Clock
) -> None:
    calls = Calls()
    clock.now += 400
    calls.error = CallError("timeout", "no answer", reached=False, uncertain=False)
    await rounds(journal, calls, clock, 2)
    assert len(journal.leases()) == 1
    calls.error = refusal("busy")
    await rounds(journal, calls, clock)
    assert len(journal.leases()) == 1
    calls.error = refusal("evicted")
    await rounds(journal, calls, clock)
    assert journal.leases() == []
