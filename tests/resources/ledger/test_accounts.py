"""Sums of what is outstanding: for a holder, for all, and for each grant to which a lease is charged."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from dms_resources.components import CPU, GPU, RAM, Disk, MachineResources, OnboardedResources, Resources
from dms_resources.demands import Demand
from dms_resources.errors import AmountError, ExpiredError
from dms_resources.ledger import decisions, endings
from dms_resources.ledger.accounts import MOST_ACCOUNTS, NOTHING, Account, Allowance, HolderShare, Outstanding, Sums
from dms_resources.ledger.book import Book, OfferState
from dms_resources.ledger.capacity import Granted
from dms_resources.ledger.charging import outlasting
from dms_resources.ledger.leases import LeaseRequest, LeaseState, ResourceAllocation
from dms_resources.ledger.moment import Moment
from dms_resources.manager import ResourceManager
from dms_resources.refusals import AccountError, ShareError
from dms_resources.units import GIB, Cores

NOW = Moment(wall=1000.0, steady=10.0)
NewDemand = Callable[..., Demand]

ORGANISATION = Account(id="whole", allowance=Allowance(millicores=4000, gpus=1))
HALF = Account(id="half", allowance=Allowance(millicores=2000))
OTHER_HALF = Account(id="other-half", allowance=Allowance(millicores=3000))


@pytest.fixture
def book(machine: MachineResources, new_offer: Callable[..., OnboardedResources]) -> Book:
    return Book(machine, OfferState(onboarded=new_offer(machine)))


def request(lease_id: str, demand: Demand, *accounts: Account, holder: str = "peer", **fields: Any) -> LeaseRequest:
    return LeaseRequest(lease_id=lease_id, holder=holder, demand=demand, accounts=accounts, **{"ttl": 60.0, **fields})


def take(book: Book, *requests: LeaseRequest, now: Moment = NOW) -> None:
    change, _ = decisions.commit(book, requests, now)
    book.apply(change)


def give_back(book: Book, lease_id: str) -> None:
    change, _ = endings.end(book, lease_id, NOW, states=tuple(LeaseState), holder=None, fence=None)
    book.apply(change)


def test_a_grant_is_what_is_outstanding_together(book: Book, new_demand: NewDemand) -> None:
    take(book, request("one", new_demand(3), ORGANISATION))
    with pytest.raises(AccountError) as caught:
        take(book, request("two", new_demand(1.001), ORGANISATION))
    assert caught.value.code == "token_exceeded"
    assert caught.value.problems == ("cores: 4.001 would be outstanding, 4 are allowed",)
    take(book, request("two", new_demand(1), ORGANISATION))
    give_back(book, "one")
    take(book, request("three", new_demand(3), ORGANISATION))


def test_the_halves_of_a_grant_are_together_no_more_than_the_whole(book: Book, new_demand: NewDemand) -> None:
    take(book, request("one", new_demand(2), ORGANISATION, HALF))
    with pytest.raises(AccountError, match="half"):
        take(book, request("two", new_demand(1), ORGANISATION, HALF))
    with pytest.raises(AccountError, match="whole"):
        take(book, request("two", new_demand(3), ORGANISATION, OTHER_HALF))
    take(book, request("two", new_demand(2), ORGANISATION, OTHER_HALF))
    # A holder without a grant is not limited by one.
    take(book, request("three", new_demand(4)))


def test_the_grants_of_a_group_are_charged_together(book: Book, new_demand: NewDemand) -> None:
    with pytest.raises(AccountError):
        take(book, request("one", new_demand(2), ORGANISATION), request("two", new_demand(3), ORGANISATION))
    assert not book.leases
    take(book, request("one", new_demand(2), ORGANISATION), request("two", new_demand(2), ORGANISATION))


@pytest.mark.parametrize(
    ("allowance", "fitting", "beyond"),
    [
        (Allowance(ram=2 * GIB), {"ram": 2}, {"ram": 3}),
        (Allowance(disk=2 * GIB), {"disk": 2}, {"disk": 3}),
        (Allowance(gpus=1), {"gpus": [8]}, {"gpus": [8, 8]}),
        (Allowance(vram=8 * GIB), {"gpus": [8]}, {"gpus": [9]}),
    ],
)
def test_every_dimension_is_bounded_and_one_that_is_not_named_is_not(
    book: Book, new_demand: NewDemand, allowance: Allowance, fitting: dict[str, Any], beyond: dict[str, Any]
) -> None:
    account = Account(id="grant", allowance=allowance)
    with pytest.raises(AccountError):
        take(book, request("one", new_demand(**beyond), account))
    take(book, request("one", new_demand(cores=8, **fitting), account))


def test_the_number_of_leases_is_bounded(book: Book, new_demand: NewDemand) -> None:
    account = Account(id="grant", allowance=Allowance(leases=1))
    take(book, request("one", new_demand(1), account))
    with pytest.raises(AccountError, match="leases: 2 would be outstanding, 1 are allowed"):
        take(book, request("two", new_demand(1), account))


def test_asking_again_is_not_charged_again(book: Book, new_demand: NewDemand) -> None:
    wanted = request("one", new_demand(4), ORGANISATION)
    take(book, wanted)
    change, leases = decisions.commit(book, [wanted], NOW)
    assert change.empty
    assert leases[0].accounts == ("whole",)


def test_a_commitment_in_the_place_of_a_hold_is_charged_when_the_hold_was_not(
    book: Book, new_demand: NewDemand
) -> None:
    change, _ = decisions.hold(book, [request("one", new_demand(3), ttl=20)], NOW)
    book.apply(change)
    take(book, request("two", new_demand(2), ORGANISATION))
    with pytest.raises(AccountError):
        take(book, request("one", new_demand(3), ORGANISATION))
    give_back(book, "two")
    take(book, request("one", new_demand(3), ORGANISATION))
    assert book.sums.by_account["whole"].millicores == 3000


def test_a_hold_that_was_charged_is_not_charged_twice(book: Book, new_demand: NewDemand) -> None:
    change, _ = decisions.hold(book, [request("one", new_demand(3), ORGANISATION, ttl=20)], NOW)
    book.apply(change)
    take(book, request("one", new_demand(3), ORGANISATION))
    assert book.sums.by_account["whole"].millicores == 3000


def test_an_allocation_stays_charged_until_it_ends(book: Book, new_demand: NewDemand) -> None:
    take(book, request("one", new_demand(4), ORGANISATION))
    change, _ = decisions.allocate(book, ResourceAllocation(lease_id="one", holder="peer"), NOW)
    book.apply(change)
    with pytest.raises(AccountError):
        take(book, request("two", new_demand(1), ORGANISATION))
    give_back(book, "one")
    assert not book.sums.by_account


def test_nothing_lasts_beyond_the_end_of_its_grants(book: Book, new_demand: NewDemand) -> None:
    with pytest.raises(AccountError, match="the grant ends in 50 s"):
        take(book, request("one", new_demand(1), ORGANISATION, until=1050.0, ttl=51.0))
    take(book, request("one", new_demand(1), ORGANISATION, until=1050.0, ttl=20.0))
    with pytest.raises(AccountError):
        decisions.renew(book, "one", NOW, ttl=51.0, holder="peer", fence=None)
    change, lease = decisions.renew(book, "one", NOW, ttl=50.0, holder="peer", fence=None)
    assert lease.deadline == 1050.0
    book.apply(change)


def share(*, everybody: Allowance = Allowance(), **holder: Any) -> HolderShare:  # noqa: B008 - immutable
    return HolderShare(holder=Allowance(**holder), everybody=everybody)


def test_a_holder_has_no_more_than_its_share_whatever_it_is_for(book: Book, new_demand: NewDemand) -> None:
    quarter = share(millicores=2000)
    change, _ = decisions.hold(book, [request("held", new_demand(1), share=quarter, ttl=20)], NOW)
    book.apply(change)
    with pytest.raises(ShareError) as caught:
        take(book, request("one", new_demand(1.5), share=quarter))
    assert caught.value.code == "share_exceeded"
    take(book, request("one", new_demand(1.5), share=quarter, holder="other"))
    take(book, request("two", new_demand(1), share=quarter))
    # The hold becomes a commitment, although the owner has lowered the share since, because a bid has to be kept.
    take(book, request("held", new_demand(1), share=share(millicores=1)))
    with pytest.raises(ShareError):
        take(book, request("three", new_demand(0.001), share=quarter))


def test_all_together_have_no_more_than_their_share(book: Book, new_demand: NewDemand) -> None:
    all_but_one = share(everybody=Allowance(leases=2))
    take(book, request("one", new_demand(1), share=all_but_one, holder="one"))
    take(book, request("two", new_demand(1), share=all_but_one, holder="two"))
    with pytest.raises(ShareError, match="all peers together"):
        take(book, request("three", new_demand(1), share=all_but_one, holder="three"))


@pytest.mark.parametrize("bounds", [share(leases=1), share(everybody=Allowance(leases=1))])
def test_a_group_keeps_within_the_share_together(book: Book, new_demand: NewDemand, bounds: HolderShare) -> None:
    with pytest.raises(ShareError):
        take(book, request("one", new_demand(1), share=bounds), request("two", new_demand(1), share=bounds))


def test_what_would_fit_knows_the_grants_and_a_refusal_takes_nothing(book: Book, new_demand: NewDemand) -> None:
    asked = [
        request("one", new_demand(3), ORGANISATION),
        request("two", new_demand(1, gpus=[8, 8]), ORGANISATION, HALF),
        request("three", new_demand(1), ORGANISATION, HALF),
        request("four", new_demand(1), ORGANISATION),
    ]
    answers = decisions.fit(book, asked, NOW)
    assert [type(answer) for answer in answers] == [Granted, AccountError, Granted, AccountError]
    assert not book.sums.by_account


def test_accounts_are_bounded_and_differ(book: Book, new_demand: NewDemand) -> None:
    many = [Account(id=str(number), allowance=Allowance()) for number in range(MOST_ACCOUNTS + 1)]
    for accounts in (many, [ORGANISATION, ORGANISATION], [Account(id="\n", allowance=Allowance())]):
        with pytest.raises(AmountError):
            take(book, request("one", new_demand(1), *accounts))
    take(book, request("one", new_demand(1), *many[:-1]))


def test_amounts_below_zero_are_a_defect_that_is_seen(new_demand: NewDemand, book: Book) -> None:
    take(book, request("one", new_demand(1)))
    resources = book.leases["one"].lease.resources
    with pytest.raises(ValueError, match="gives back more"):
        Sums().count("peer", (), resources, -1)


@given(st.data())
def test_the_sums_are_those_of_the_leases_whatever_happens(data: st.DataObject) -> None:
    """Random changes, some of them undone: the sums that are updated step by step equal those added up from
    the start.
    """
    sums = Sums()
    live: list[tuple[str, tuple[str, ...], Resources]] = []

    def draw(strategy: st.SearchStrategy[Any]) -> Any:
        return data.draw(strategy)

    amounts = st.builds(
        lambda cores, gib: make_resources(cores, gib), st.integers(0, 3000), st.lists(st.integers(1, 9), max_size=2)
    )
    for _ in range(draw(st.integers(0, 12))):
        if live and draw(st.booleans()):
            holder, charged, resources = live.pop(draw(st.integers(0, len(live) - 1)))
            sums.count(holder, charged, resources, -1)
        else:
            accounts = tuple(draw(st.sets(st.sampled_from(["a", "b", "c"]))))
            holder, resources = draw(st.sampled_from(["x", "y"])), draw(amounts)
            live.append((holder, accounts, resources))
            sums.count(holder, accounts, resources, 1)
    assert not list(Sums.of(live).differences(sums))
    for holder, accounts, resources in live:
        sums.count(holder, accounts, resources, -1)
    assert (sums.everything, sums.by_holder, sums.by_account) == (NOTHING, {}, {})


def make_resources(millicores: int, gpus: list[int]) -> Resources:
    return Resources(
        cpu=CPU(cores=Cores(millicores)),
        ram=RAM(size=1),
        disk=Disk(size=0),
        gpus=tuple(GPU(uuid=f"GPU-{number}", vram=size) for number, size in enumerate(gpus)),
    )


# With a ledger

Ledgers = Callable[..., AbstractAsyncContextManager[ResourceManager]]


async def test_grants_are_charged_across_a_restart_and_given_back_at_the_deadline(
    open_ledger: Ledgers, clock: Any, new_demand: NewDemand, autojump_clock: Any
) -> None:
    wall = clock.wall()
    async with open_ledger() as manager:
        (lease,) = await manager.commit_group([request("one", new_demand(4), ORGANISATION, until=wall + 3600)])
    async with open_ledger() as manager:
        assert manager.lease("one") == lease
        assert (lease.accounts, lease.until) == (("whole",), wall + 3600)
        with pytest.raises(AccountError):
            await manager.commit_group([request("two", new_demand(1), ORGANISATION)])
        with pytest.raises(AccountError):
            await manager.renew("one", ttl=7200.0)
        await trio.sleep(61)
        with pytest.raises(ExpiredError):
            await manager.renew("one", ttl=60.0)
        await manager.commit_group([request("two", new_demand(4), ORGANISATION)])


async def test_of_many_at_a_time_no_more_are_granted_than_the_grant_has(
    open_ledger: Ledgers, new_demand: NewDemand, autojump_clock: Any
) -> None:
    async with open_ledger() as manager:
        refused: list[str] = []

        async def commit(name: str) -> None:
            try:
                await manager.commit_group([request(name, new_demand(0.5), ORGANISATION, HALF)])
            except AccountError:
                refused.append(name)

        async with trio.open_nursery() as nursery:
            for number in range(16):
                nursery.start_soon(commit, str(number))
        assert len(refused) == 12
        assert await manager.audit() == []


async def test_an_audit_sees_sums_that_differ_and_a_repair_mends_them(
    open_ledger: Ledgers, new_demand: NewDemand, autojump_clock: Any
) -> None:
    async with open_ledger() as manager:
        await manager.commit_group([request("one", new_demand(4), ORGANISATION)])
        book = manager._ledger.book
        book.sums.by_account["whole"] = Outstanding()
        (finding,) = await manager.audit(repair=True)
        assert finding.code == "totals"
        assert "account whole" in finding.message
        assert await manager.audit() == []
        with pytest.raises(AccountError):
            await manager.commit_group([request("two", new_demand(1), ORGANISATION)])


@pytest.mark.parametrize(("left", "code"), [(-3.0, "token_expired"), (0.0, "token_expired"), (5.0, "token_exceeded")])
def test_a_grant_that_has_ended_is_told_from_one_that_ends_too_soon(left: float, code: str) -> None:
    assert outlasting(60.0, left).code == code
