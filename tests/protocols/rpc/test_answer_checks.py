"""What a requester compares of every answer: a field that differs is named, and each limit holds to its last value."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from dms_protocols.messages.allocation import ListAnswer
from dms_protocols.messages.bid import Bid, EnsembleRequest, NodeRequest, OfferAnswer, Refusal
from dms_protocols.rpc.answer_checks import (
    AnswerError,
    check_allocated,
    check_bid,
    check_ended,
    check_leases,
    check_offers,
    check_own_leases,
    check_renewed,
    covers,
)
from dms_resources.components import CPU, GPU, RAM, Disk, Resources
from dms_resources.demands import CPUDemand, Demand, DiskDemand, GPUDemand, PortDemand, RAMDemand
from dms_resources.ledger.leases import EndedLease, EndReason, Lease, LeaseState, Price
from dms_resources.units import GIB, Cores

NOW = 1_800_000_000.0
HOUR, DAY = 3600.0, 86400.0
DEMAND = Demand(
    cpu=CPUDemand(cores=Cores.of(1)), ram=RAMDemand(size=GIB), disk=DiskDemand(size=GIB), gpus=(GPUDemand(vram=GIB),)
)
RESOURCES = Resources(
    cpu=CPU(cores=Cores.of(1)), ram=RAM(size=GIB), disk=Disk(size=GIB), gpus=(GPU(uuid="GPU-a", vram=GIB),)
)
PORTS = PortDemand(static=(8080,), dynamic=1)
ENSEMBLE = EnsembleRequest(
    id="e", nonce=7, deadline=NOW, request=(NodeRequest(node_id="n", resources=DEMAND, public_ports=PORTS),)
)
BID = Bid(
    request_digest=bytes(32), ensemble_id="e", nonce=7, node_id="n", lease_id="l", requester="me", provider="you",
    demand=DEMAND, public_ports=PORTS, resources=RESOURCES, valid_until=NOW + 300,
)  # fmt: skip
COMMITTED = Lease(
    lease_id="l", holder="me", state=LeaseState.COMMITTED, demand=DEMAND, asked_ports=PORTS, resources=RESOURCES,
    ports=(8080, 16384), fence=3, created=NOW, ttl=60.0, deadline=NOW + 60,
)  # fmt: skip
ALLOCATED = msgspec.structs.replace(COMMITTED, state=LeaseState.ALLOCATED, ttl=900.0, deadline=NOW + 900)
ENDED = EndedLease(
    lease_id="l", holder="me", state=LeaseState.ALLOCATED, fence=3, reason=EndReason.RELEASED, ended=NOW
)  # fmt: skip


def changed(struct: Any, **fields: Any) -> Any:
    return msgspec.structs.replace(struct, **fields)


def less(**fields: Any) -> Resources:
    return changed(RESOURCES, **fields)


LESS = [
    less(cpu=CPU(cores=Cores(999))),
    less(ram=RAM(size=GIB - 1)),
    less(disk=Disk(size=GIB - 1)),
    less(gpus=()),
    less(gpus=(GPU(uuid="GPU-a", vram=GIB - 1),)),
]


def test_resources_cover_what_they_are() -> None:
    assert covers(RESOURCES, DEMAND)
    assert not any(covers(one, DEMAND) for one in LESS)


def bid(**fields: Any) -> None:
    check_bid(changed(BID, **fields), ENSEMBLE, requester="me", provider="you", now=NOW)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("node_id", "m"), ("provider", "another"), ("requester", "another"), ("nonce", 8), ("ensemble_id", "f"),
        ("demand", Demand()), ("public_ports", PortDemand()), *(("resources", one) for one in LESS),
        ("valid_until", NOW - HOUR - 1), ("valid_until", NOW + DAY + HOUR + 1),
    ],
)  # fmt: skip
def test_a_bid_repeats_what_was_asked(field: str, value: Any) -> None:
    bid()
    with pytest.raises(AnswerError, match=field.replace("node_id", "node")):
        bid(**{field: value})


@pytest.mark.parametrize("until", [NOW - HOUR, NOW + DAY + HOUR])
def test_clocks_may_differ_by_an_hour(until: float) -> None:
    bid(valid_until=until)


def test_offers_and_refusals_name_each_node_once() -> None:
    refusal = Refusal(node_id="n", code="policy", message="no")

    def offers(*bids: Bid, refusals: tuple[Refusal, ...] = ()) -> None:
        answer = OfferAnswer(offers=bids, refusals=refusals)
        check_offers(answer, ENSEMBLE, requester="me", provider="you", now=NOW)

    offers(BID)
    offers(refusals=(refusal,))
    offers()
    for wrong in ((BID, BID), (changed(BID, nonce=8),)):
        with pytest.raises(AnswerError):
            offers(*wrong)
    for refusals in ((refusal, refusal), (changed(refusal, node_id="m"),)):
        with pytest.raises(AnswerError):
            offers(refusals=refusals)
    with pytest.raises(AnswerError):
        offers(BID, refusals=(refusal,))


def leases(*found: Lease, ttl: float = 60.0) -> None:
    check_leases(found, [BID], ttl=ttl, asked_at=NOW)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("lease_id", "m"), ("holder", "another"), ("price", Price(micros_per_hour=1, currency="EUR")),
        ("asked_ports", PortDemand()), *(("resources", one) for one in LESS), ("ports", (8080,)),
        ("ports", (8081, 16384)), ("state", LeaseState.HELD), ("deadline", None), ("deadline", NOW - HOUR - 1),
        ("deadline", NOW + 60 + HOUR + 1),
    ],
)  # fmt: skip
def test_a_commitment_is_what_the_bid_said(field: str, value: Any) -> None:
    leases(COMMITTED)
    with pytest.raises(AnswerError, match=field.replace("asked_", "")):
        leases(changed(COMMITTED, **{field: value}))


@pytest.mark.parametrize("deadline", [NOW - HOUR, NOW + 60 + HOUR])
def test_the_deadline_of_a_commitment_may_be_off_by_an_hour(deadline: float) -> None:
    leases(changed(COMMITTED, deadline=deadline))


def test_there_is_one_lease_for_each_bid() -> None:
    for wrong in ((), (COMMITTED, COMMITTED)):
        with pytest.raises(AnswerError, match=f"{len(wrong)} leases for 1 bids"):
            leases(*wrong)
    # One that is allocated meanwhile has a deadline of its own.
    leases(changed(ALLOCATED, deadline=None))


CHECKS: dict[str, Callable[[Lease], None]] = {
    "renewed": lambda lease: check_renewed(lease, "l", holder="me", fence=3, before=COMMITTED),
    "allocated": lambda lease: check_allocated(lease, "l", holder="me", fence=3, before=COMMITTED),
}


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("lease_id", "m"), ("holder", "another"), ("fence", 4), ("demand", Demand()), ("asked_ports", PortDemand()),
        *(("resources", one) for one in LESS), ("ports", (1, 2)), ("price", Price(micros_per_hour=1, currency="EUR")),
        ("state", LeaseState.HELD), ("resources", changed(RESOURCES, ram=RAM(size=2 * GIB))),
    ],
)  # fmt: skip
def test_a_lease_stays_what_it_was(check: Callable[[Lease], None], field: str, value: Any) -> None:
    check(ALLOCATED)
    with pytest.raises(AnswerError, match=field):
        check(changed(ALLOCATED, **{field: value}))


def test_what_nobody_knows_is_not_compared() -> None:
    check_renewed(changed(ALLOCATED, fence=9, ports=(1,)), "l", holder="me", fence=None)
    check_ended(changed(ENDED, fence=9), "l", holder="me", fence=None)


@pytest.mark.parametrize("ttl", [0.099, float("inf")])
def test_a_keep_alive_is_one_that_can_be_kept(ttl: float) -> None:
    for possible in (0.0, 0.1, 900.0):
        check_allocated(changed(ALLOCATED, ttl=possible), "l", holder="me", fence=3)
    with pytest.raises(AnswerError, match="renewed every"):
        check_allocated(changed(ALLOCATED, ttl=ttl), "l", holder="me", fence=3)
    with pytest.raises(AnswerError, match="not allocated"):
        check_allocated(COMMITTED, "l", holder="me", fence=3)


@pytest.mark.parametrize(("field", "value"), [("lease_id", "m"), ("holder", "another"), ("fence", 4)])
def test_a_release_ends_the_lease_that_was_named(field: str, value: Any) -> None:
    check_ended(ENDED, "l", holder="me", fence=3)
    with pytest.raises(AnswerError, match=field):
        check_ended(changed(ENDED, **{field: value}), "l", holder="me", fence=3)


def test_a_page_of_leases_is_the_holders_and_in_order() -> None:
    def page(*ids: str, more: bool = False, **fields: Any) -> None:
        answer = ListAnswer(leases=tuple(changed(COMMITTED, lease_id=one, **fields) for one in ids), more=more)
        check_own_leases(answer, holder="me", after="a", limit=2)

    page()
    page("b", "c", more=True)
    for wrong in (("b", "c", "d"), ("c", "b"), ("b", "b"), ("a", "b")):
        with pytest.raises(AnswerError, match="order"):
            page(*wrong)
    with pytest.raises(AnswerError, match="promises more"):
        page(more=True)
    with pytest.raises(AnswerError, match="holder"):
        page("b", holder="another")
