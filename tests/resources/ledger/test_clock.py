"""Deadlines follow the steady clock within a boot and the wall clock across one. No jump of a clock moves them."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import trio
import trio.testing
from hypothesis import given

from dms_resources.demands import Demand
from dms_resources.errors import EndedError, ExpiredError
from dms_resources.ledger.clock import SystemClock, remaining_after_restart


class StoppedClock:
    """Shows the time that the test sets."""

    boot_id = "now"

    def __init__(self, steady: float, wall: float) -> None:
        self._steady, self._wall = steady, wall

    def steady(self) -> float:
        return self._steady

    def wall(self) -> float:
        return self._wall


def left(steady: float, wall: float, *, boot_id: str, due: float, deadline: float, ttl: float = 60.0) -> float:
    return remaining_after_restart(StoppedClock(steady, wall), due=due, boot_id=boot_id, deadline=deadline, ttl=ttl)


def test_within_one_boot_the_steady_clock_counts_whatever_the_wall_clock_says() -> None:
    for wall in (0.0, 1000.0, 1e12):
        assert left(500.0, wall, boot_id="now", due=530.0, deadline=1030.0) == 30.0


def test_across_a_reboot_the_wall_clock_counts_within_bounds() -> None:
    assert left(5.0, 1000.0, boot_id="before", due=9e9, deadline=1030.0) == 30.0
    assert left(5.0, 2000.0, boot_id="before", due=9e9, deadline=1030.0) == -970.0
    assert left(5.0, 0.0, boot_id="before", due=9e9, deadline=1030.0) == 60.0


_seconds = st.floats(0, 1e10)


@given(_seconds, _seconds, _seconds, _seconds, st.floats(0.001, 1e6), st.sampled_from(("now", "before")))
def test_nothing_is_held_longer_than_it_lasts(
    steady: float, wall: float, was_due: float, deadline: float, ttl: float, boot_id: str
) -> None:
    assert left(steady, wall, boot_id=boot_id, due=was_due, deadline=deadline, ttl=ttl) <= ttl


async def test_a_commitment_ends_at_its_deadline_and_so_does_the_next(
    open_ledger: Any, new_demand: Callable[..., Demand], autojump_clock: trio.testing.MockClock
) -> None:
    async with open_ledger() as manager:
        for number in range(3):
            lease_id = f"lease-{number}"
            await manager.commit_resources(lease_id, new_demand(8), holder="peer", ttl=60.0)
            await trio.sleep(59.999)
            assert manager.is_committed(lease_id)
            await trio.sleep(0.001)
            assert not manager.is_committed(lease_id)
            with pytest.raises(ExpiredError):
                await manager.renew(lease_id, ttl=60.0)


async def test_the_sweep_needs_nobody_to_ask(
    open_ledger: Any, new_demand: Callable[..., Demand], autojump_clock: trio.testing.MockClock
) -> None:
    async with open_ledger() as manager:
        for number, ttl in enumerate((5.0, 50.0, 500.0, 50.0)):
            await manager.commit_resources(f"lease-{number}", new_demand(1), holder="peer", ttl=ttl)
        await manager.renew("lease-3", ttl=5000.0)
        ends = []
        with trio.move_on_after(10_000):
            while len(ends) < 4:
                await manager._ledger.changed.wait()
                # This reads the book itself, because every call of the manager would end leases.
                ends += [trio.current_time()] * (4 - len(ends) - len(manager._ledger.book.leases))
        assert ends == [pytest.approx(end, abs=0.01) for end in (5.0, 50.0, 500.0, 5000.0)]


@pytest.mark.parametrize("jump", [-1e7, -3600.0, 3600.0, 1e7])
async def test_a_wall_clock_that_jumps_neither_releases_nor_holds(
    open_ledger: Any, clock: Any, new_demand: Callable[..., Demand], autojump_clock: trio.testing.MockClock, jump: float
) -> None:
    async with open_ledger() as manager:
        await manager.commit_resources("lease", new_demand(8), holder="peer", ttl=60.0)
        clock.jump(jump)
        await trio.sleep(30)
        assert manager.is_committed("lease")
    clock.jump(jump)
    async with open_ledger() as manager:
        await trio.sleep(29.9)
        assert manager.is_committed("lease")
        await trio.sleep(0.2)
        assert not manager.is_committed("lease")


async def test_a_suspended_machine_finds_what_ended_meanwhile(
    open_ledger: Any, clock: Any, new_demand: Callable[..., Demand], autojump_clock: trio.testing.MockClock
) -> None:
    async with open_ledger() as manager:
        await manager.commit_resources("lease", new_demand(8), holder="peer", ttl=3600.0)
        clock.suspend(3600.0)
        assert not manager.is_committed("lease")
        await manager.commit_resources("next", new_demand(8), holder="other", ttl=60.0)
        await manager.commit_resources("asleep", new_demand(0), holder="peer", ttl=3600.0)
        clock.suspend(3600.0)
        # Within half a minute, even without any calls.
        await trio.sleep(31)
        assert not manager._ledger.book.leases


async def test_deadlines_survive_a_restart_and_a_reboot(
    open_ledger: Any, clock: Any, new_demand: Callable[..., Demand], autojump_clock: trio.testing.MockClock
) -> None:
    async with open_ledger() as manager:
        for lease_id, ttl in (("soon", 10.0), ("later", 100.0), ("renewed", 10.0)):
            await manager.commit_resources(lease_id, new_demand(1), holder="peer", ttl=ttl)
        await manager.renew("renewed", ttl=100.0)
    await trio.sleep(20)
    async with open_ledger() as manager:
        assert {lease.lease_id for lease in manager.leases()} == {"later", "renewed"}
        assert manager.get_free_resources().cpu.cores.millicores == 6000
    clock.reboot("boot-2", away=30.0)
    async with open_ledger() as manager:
        await trio.sleep(49.9)
        assert manager.is_committed("later")
        await trio.sleep(0.2)
        assert not manager.leases()


async def test_a_broken_clock_and_many_restarts_hold_nothing_for_ever(
    open_ledger: Any, clock: Any, new_demand: Callable[..., Demand], autojump_clock: trio.testing.MockClock
) -> None:
    async with open_ledger() as manager:
        await manager.commit_resources("lease", new_demand(8), holder="peer", ttl=60.0)
    clock.reboot("boot-2")
    clock.jump(-1e9)
    for _ in range(4):
        # The remaining time was computed once, at the first start after the boot.
        async with open_ledger() as manager:
            await trio.sleep(16)
    async with open_ledger() as manager:
        assert not manager.leases()


@pytest.mark.parametrize("reboot", [False, True])
async def test_no_setting_of_the_clock_gives_an_id_out_again(
    open_ledger: Any,
    clock: Any,
    new_demand: Callable[..., Demand],
    autojump_clock: trio.testing.MockClock,
    reboot: bool,
) -> None:
    async with open_ledger() as manager:
        await manager.commit_resources("released", new_demand(1), holder="peer", ttl=60.0)
        await manager.release("released")
    for jump in (1e5, -1e5, 3e9, -3e9, -1e6, 1e6):
        clock.jump(jump)
        if reboot:
            clock.reboot(f"boot after {jump}")
        async with open_ledger() as manager:
            await trio.sleep(2 * 3600)
            clock.jump(-jump)
            # A bid that was valid when it was released may be valid again now.
            with pytest.raises(EndedError):
                await manager.commit_resources("released", new_demand(1), holder="peer", ttl=60.0)
            clock.jump(jump)


def test_the_machines_clocks_are_what_they_say(tmp_path: Path) -> None:
    clock, same = SystemClock(), SystemClock()
    assert clock.boot_id == same.boot_id != ""
    assert abs(clock.wall() - time.time()) < 60
    assert clock.steady() <= clock.steady()
    elsewhere = tmp_path / "nothing"
    assert SystemClock(elsewhere).boot_id != SystemClock(elsewhere).boot_id
