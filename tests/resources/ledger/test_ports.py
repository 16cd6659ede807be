"""Public ports: unique, returned with their lease, and in use by nobody else."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from dms_resources.components import PortRange
from dms_resources.demands import PortDemand, PortShortage
from dms_resources.ledger.ports import PortPool

FIRST, LAST = 100, 107


def pool(*taken: int) -> PortPool:
    return PortPool(PortRange(first=FIRST, last=LAST), taken)


def test_static_ports_and_the_lowest_free_ones() -> None:
    ports = pool(100, 102)
    demand = PortDemand(static=(101, 107), dynamic=2)
    assert ports.shortage(demand) is None
    assert ports.choose(demand) == (101, 107, 103, 104)
    assert ports.free == 6


def test_choosing_takes_nothing() -> None:
    ports = pool()
    assert ports.choose(PortDemand(dynamic=3)) == ports.choose(PortDemand(dynamic=3)) == (100, 101, 102)


def test_a_shortage_says_what_is_free() -> None:
    ports = pool(100, 101, 102)
    assert ports.shortage(PortDemand(static=(101, 105), dynamic=9)) == PortShortage(
        asked=PortDemand(static=(101, 105), dynamic=9),
        free=PortDemand(static=(105,), dynamic=4),
        total=PortDemand(dynamic=8),
    )
    assert ports.shortage(PortDemand(static=(105,), dynamic=4)) is None


@pytest.mark.parametrize("static", [(99,), (108,), (65_535,), (100, 100)])
def test_a_port_outside_of_the_range_or_named_twice_is_short(static: tuple[int, ...]) -> None:
    assert pool().shortage(PortDemand(static=static)) is not None


def test_what_is_spoken_for_is_not_given_again() -> None:
    ports = pool()
    assert ports.shortage(PortDemand(static=(101,)), {101}) is not None
    assert ports.shortage(PortDemand(dynamic=8), {101}) is not None
    assert ports.choose(PortDemand(dynamic=2), {100, 102}) == (101, 103)


def test_nothing_is_clamped() -> None:
    ports = pool(100)
    with pytest.raises(ValueError, match="port 100 is taken twice"):
        ports.take([100])
    with pytest.raises(KeyError):
        ports.give_back([101])


def test_ports_of_a_range_that_moved_stay_taken_and_come_back_nowhere() -> None:
    ports = PortPool(PortRange(first=105, last=110), pool(100, 106).taken)
    assert ports.free == 5
    ports.give_back([100])
    assert ports.free == 5
    assert ports.choose(PortDemand(dynamic=5)) == (105, 107, 108, 109, 110)
    assert not ports.is_free(100)


class PoolMachine(RuleBasedStateMachine):
    """A pool compared with a set."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = pool()
        self.owned: list[tuple[int, ...]] = []

    def free(self) -> set[int]:
        taken = {port for ports in self.owned for port in ports}
        return set(range(FIRST, LAST + 1)) - taken

    @rule(static=st.lists(st.integers(FIRST - 1, LAST + 1), max_size=2, unique=True), dynamic=st.integers(0, 4))
    def take(self, static: list[int], dynamic: int) -> None:
        demand, free = PortDemand(static=tuple(static), dynamic=dynamic), self.free()
        fits = set(static) <= free and len(static) + dynamic <= len(free)
        shortage = self.pool.shortage(demand)
        assert (shortage is None) == fits
        if shortage is not None:
            assert self.pool.shortage(shortage.free) is None
            return
        chosen = self.pool.choose(demand)
        assert chosen == (*static, *sorted(free - set(static))[:dynamic])
        self.pool.take(chosen)
        self.owned.append(chosen)

    @precondition(lambda self: self.owned)
    @rule(which=st.integers(0, 20))
    def give_back(self, which: int) -> None:
        self.pool.give_back(self.owned.pop(which % len(self.owned)))

    @invariant()
    def same(self) -> None:
        assert self.pool.free == len(self.free())
        assert self.pool.taken == {port for ports in self.owned for port in ports}


TestPool = PoolMachine.TestCase
TestPool.settings = settings(max_examples=60, stateful_step_count=15, deadline=None, database=None)


def test_a_port_that_a_program_uses_is_not_granted() -> None:
    ports = pool(100)
    assert ports.set_in_use([100, 101, 103, 9])
    # Port 100 is taken: its job may use it.
    assert ports.free == 5
    assert ports.choose(PortDemand(dynamic=3)) == (102, 104, 105)
    assert ports.shortage(PortDemand(static=(103, 104))) == PortShortage(
        asked=PortDemand(static=(103, 104)), free=PortDemand(static=(104,)), total=PortDemand(dynamic=8)
    )
    assert ports.shortage(PortDemand(dynamic=6)) is not None
    assert not ports.set_in_use([101, 103])
    assert ports.set_in_use([])
    assert ports.free == 7


def test_a_job_that_still_listens_after_its_lease_keeps_the_port_from_others() -> None:
    ports = pool(100)
    ports.set_in_use([100])
    assert ports.free == 7
    ports.give_back([100])
    assert (ports.free, ports.is_free(100)) == (7, False)
    ports.take([100])
    assert ports.free == 7


def test_a_moved_range_knows_what_programs_use() -> None:
    ports = PortPool(PortRange(first=1, last=3), (), (2, 7))
    assert ports.choose(PortDemand(dynamic=2)) == (1, 3)
