"""Policies in bids: their input, their decisions, and that a price once given stays."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import pytest
import trio
import trio.testing

from dms_protocols.bidding.policies import Decision, Decisions, PeerList, Policy, PolicyRequest
from dms_protocols.bidding.prices import PricesPerHour
from dms_protocols.bidding.service import BidTerms
from dms_protocols.bidding.signing import open_bid
from dms_protocols.clients import AllocationClient
from dms_protocols.messages.bid import BidAnswer, BidRequest
from dms_protocols.rpc.operations import Caller
from dms_protocols.wire.conversion import to_map
from dms_resources.components import CPU, GPU, RAM, Disk, HoldLimits, Resources
from dms_resources.demands import GPUDemand
from dms_resources.ledger.leases import LeaseState, Price
from dms_resources.units import GIB, Cores

CHEAP, DEAR = (PricesPerHour(currency="EUR", core=micros) for micros in (1_000_000, 9_000_000))


def euros(amount: int) -> Price:
    return Price(micros_per_hour=amount * 1_000_000, currency="EUR")


async def ask_for_bids(provider: Any, peer: Any, ensemble: Any, **options: Any) -> Any:
    async with provider.connect(peer.peer_id) as client:
        return await provider.bidder(client, peer.peer_id).request_bids(ensemble, **options)


class Recorded:
    """Decides by a function of each offer, and records its questions."""

    def __init__(self, decide: Callable[[Any], Decision]) -> None:
        self.requests: list[PolicyRequest] = []
        self._decide = decide

    def decide(self, request: PolicyRequest) -> Sequence[Decision]:
        self.requests.append(request)
        return [self._decide(offer) for offer in request.nodes]


class InItsOwnTime(Recorded):
    """The same, after `wait`."""

    def __init__(self, decide: Callable[[Any], Decision], wait: Callable[[], Any] = trio.lowlevel.checkpoint) -> None:
        super().__init__(decide)
        self._wait = wait

    async def decide(self, request: PolicyRequest) -> Decisions:  # type: ignore[override]
        await self._wait()
        return Decisions(decisions=tuple(super().decide(request)))


def accept(offer: Any) -> Decision:
    return Decision(accept=True)


@pytest.mark.parametrize("quick", [True, False])
async def test_a_policy_sees_what_would_be_given_to_whom_and_decides_about_each_node(
    provider: Any, requester: Any, ask: Any, node: Any, quick: bool
) -> None:
    def decide(offer: Any) -> Decision:
        if offer.node.node_id == "no":
            return Decision(accept=False, message="not at night", retry_after=60.0)
        return Decision(accept=True, price=euros(7) if offer.node.node_id == "dear" else None)

    policy: Any = Recorded(decide) if quick else InItsOwnTime(decide)
    key = "policies" if quick else "async_policies"
    provider.terms = BidTerms(**{"policies": (CHEAP,), **({key: (CHEAP, policy)} if quick else {key: (policy,)})})
    ensemble = ask(node("no"), node("dear", gpus=(8,)), node("as-before", cores=2), node("too-much", cores=100))
    answer = await ask_for_bids(provider, requester, ensemble, ttl=33)
    assert {signed.bid.node_id: signed.bid.price for signed in answer.bids} == {
        "dear": euros(7),
        "as-before": euros(2),
    }
    refused = {refusal.node_id: (refusal.code, refusal.message, refusal.retry_after) for refusal in answer.refusals}
    assert refused["no"] == ("policy", "not at night", 60.0)
    assert refused["too-much"][0] == "resources"
    (request,) = policy.requests
    assert (request.requester, request.ensemble_id, request.ttl, request.hold) == (requester.peer_id, "e1", 33.0, 0.0)
    assert [offer.node for offer in request.nodes] == list(ensemble.request[:3])
    assert [offer.price for offer in request.nodes] == [euros(1), euros(1), euros(2)]
    assert [gpu.uuid for gpu in request.nodes[1].resources.gpus] == ["GPU-0"]


@pytest.mark.parametrize("quick", [True, False])
async def test_a_dry_run_asks_the_policy_the_same_and_gets_the_same(
    provider: Any, requester: Any, ask: Any, node: Any, quick: bool
) -> None:
    def decide(offer: Any) -> Decision:
        return Decision(accept=offer.node.node_id == "a", price=euros(3))

    policy: Any = Recorded(decide) if quick else InItsOwnTime(decide)
    provider.terms = BidTerms(policies=(policy,)) if quick else BidTerms(async_policies=(policy,))
    ensemble = ask(node("a"), node("b"))
    real = await ask_for_bids(provider, requester, ensemble)
    async with provider.connect(requester.peer_id) as client:
        dry = await provider.bidder(client, requester.peer_id).dry_run(ensemble)
    assert policy.requests[0] == policy.requests[1]
    assert dry.offers == tuple(signed.bid for signed in real.bids)
    assert dry.refusals == real.refusals
    assert [refusal.code for refusal in dry.refusals] == ["policy"]


def answer_of(provider: Any, requester: Any, ensemble: Any, **options: Any) -> Any:
    request = BidRequest(ensemble=to_map(ensemble), **options)
    return provider.operations["bid_request"].handler(request, Caller(requester.peer_id))


async def test_policies_that_do_not_wait_are_answered_in_place(provider: Any, requester: Any, ask: Any) -> None:
    provider.terms = BidTerms(policies=(CHEAP, PeerList(deny=frozenset({"somebody"})), Recorded(accept)))
    assert isinstance(answer_of(provider, requester, ask()), BidAnswer)
    provider.terms = BidTerms(
        policies=(PeerList(allow=frozenset({"somebody"})),), async_policies=(InItsOwnTime(accept),)
    )
    # There is no node left for the slow policy.
    answer = answer_of(provider, requester, ask())
    assert isinstance(answer, BidAnswer)
    assert [refusal.code for refusal in answer.refusals] == ["policy"]
    provider.terms = BidTerms(async_policies=(InItsOwnTime(accept),))
    answer = answer_of(provider, requester, ask())
    assert inspect.iscoroutine(answer)
    # An overloaded service closes it before it has begun: there must be no warning.
    answer.close()


@pytest.mark.parametrize(
    ("peers", "accepted"),
    [
        (PeerList(), True),
        (PeerList(allow=frozenset({"me", "you"})), True),
        (PeerList(allow=frozenset({"you"})), False),
        (PeerList(deny=frozenset({"you"})), True),
        (PeerList(deny=frozenset({"me"})), False),
        (PeerList(allow=frozenset({"me"}), deny=frozenset({"me"})), False),
    ],
)
def test_allow_and_deny_lists(peers: PeerList, accepted: bool) -> None:
    offer: Any = object()
    request = PolicyRequest(requester="me", ensemble_id="e", nonce=1, hold=0.0, ttl=0.0, nodes=(offer, offer))
    assert [decision.accept for decision in peers.decide(request)] == [accepted] * 2


class Failing:
    def decide(self, request: PolicyRequest) -> Any:
        raise ZeroDivisionError("by design")


class Nonsense:
    def decide(self, request: PolicyRequest) -> Any:
        return [Decision(accept=True)] * (len(request.nodes) + 1)


class Slowly:
    def __init__(self, policy: Any) -> None:
        self._policy = policy

    async def decide(self, request: PolicyRequest) -> Decisions:
        return Decisions(decisions=tuple(self._policy.decide(request)))


@pytest.mark.parametrize("policy", [Failing(), Nonsense()])
async def test_a_policy_that_fails_has_refused_and_does_not_say_why(
    provider: Any, requester: Any, ask: Any, policy: Any
) -> None:
    for terms in (BidTerms(policies=(policy,)), BidTerms(async_policies=(Slowly(policy),))):
        provider.terms = terms
        answer = await ask_for_bids(provider, requester, ask())
        assert [(one.code, one.message) for one in answer.refusals] == [("policy", "the owner's policy did not answer")]
        assert answer.bids == ()


async def test_the_first_refusal_stands_and_later_policies_are_not_asked(
    provider: Any, requester: Any, ask: Any, node: Any
) -> None:
    first = InItsOwnTime(lambda offer: Decision(accept=False, message="first"))
    second = InItsOwnTime(accept)
    provider.terms = BidTerms(async_policies=(first, second))
    answer = await ask_for_bids(provider, requester, ask(node("a"), node("b")))
    assert [refusal.message for refusal in answer.refusals] == ["first", "first"]
    assert second.requests == []


# A price stands


async def commit(provider: Any, requester: Any, *signed: Any) -> Any:
    async with provider.connect(requester.peer_id) as client:
        return await AllocationClient(client).commit([one.envelope for one in signed], ttl=60)


async def test_the_price_of_a_bid_counts_when_it_is_taken_later(provider: Any, requester: Any, ask: Any) -> None:
    provider.terms = BidTerms(policies=(CHEAP,))
    (signed,) = (await ask_for_bids(provider, requester, ask())).bids
    provider.terms = BidTerms(policies=(DEAR,))
    (lease,) = await commit(provider, requester, signed)
    assert signed.bid.price == lease.price == euros(1)
    # If requested again, what was committed is answered at its original price.
    (again,) = (await ask_for_bids(provider, requester, ask())).bids
    assert again.bid.price == euros(1)


@pytest.mark.parametrize("hold", [0, 20])
async def test_a_lease_says_for_which_node_of_which_ensemble_it_is(
    provider: Any, requester: Any, ask: Any, hold: float
) -> None:
    (signed,) = (await ask_for_bids(provider, requester, ask(), hold=hold)).bids
    held = provider.manager.lease(signed.bid.lease_id)
    (lease,) = await commit(provider, requester, signed)
    names = (signed.bid.ensemble_id, signed.bid.node_id)
    assert all(names)
    assert (lease.ensemble_id, lease.node_id) == names
    assert held is None or (held.ensemble_id, held.node_id) == names


async def test_the_price_of_a_hold_stands_when_it_is_asked_for_again(
    provider: Any, requester: Any, ask: Any, node: Any
) -> None:
    provider.terms = BidTerms(executors=frozenset({"docker"}), policies=(CHEAP,))
    ensemble = ask(node(executors=("docker",)))
    (first,) = (await ask_for_bids(provider, requester, ensemble, hold=20)).bids
    assert provider.manager.lease(first.bid.lease_id).price == euros(1)
    refusing: Policy = Recorded(lambda offer: Decision(accept=False))
    elsewhere = BidTerms(executors=frozenset(), location=None, policies=(DEAR,))
    for terms in (BidTerms(policies=(DEAR,)), BidTerms(policies=(refusing,)), elsewhere):
        provider.terms = terms
        (again,) = (await ask_for_bids(provider, requester, ensemble, hold=20)).bids
        assert again.bid == first.bid
    (lease,) = await commit(provider, requester, first)
    assert (lease.state, lease.price) == (LeaseState.COMMITTED, euros(1))


async def test_of_two_bids_on_one_question_the_one_that_is_taken_counts(
    provider: Any, requester: Any, ask: Any
) -> None:
    provider.terms = BidTerms(policies=(CHEAP,))
    (cheap,) = (await ask_for_bids(provider, requester, ask())).bids
    provider.terms = BidTerms(policies=(DEAR,))
    (dear,) = (await ask_for_bids(provider, requester, ask(), hold=20)).bids
    assert (cheap.bid.price, dear.bid.price) == (euros(1), euros(9))
    (lease,) = await commit(provider, requester, cheap)
    assert lease.price == euros(1)


async def test_a_hold_is_of_the_devices_that_were_priced(provider: Any, requester: Any, ask: Any, node: Any) -> None:
    taken = trio.Event()

    async def take_the_small_one() -> None:
        # While the policy decides, another requester takes the device that was priced.
        demand = msgspec.structs.replace(node().resources, gpus=(GPUDemand(vram=40 * GIB, uuid="GPU-0"),))
        await provider.manager.commit_resources("other", demand, holder="other", ttl=60)
        taken.set()

    waits = iter([take_the_small_one, trio.lowlevel.checkpoint])
    policy = InItsOwnTime(
        lambda offer: Decision(accept=True, price=euros(offer.resources.gpus[0].vram // GIB)), lambda: next(waits)()
    )
    provider.terms = BidTerms(async_policies=(policy,))
    whole = node()
    exclusive = msgspec.structs.replace(whole.resources, gpus=(GPUDemand(vram=8 * GIB, exclusive=True),))
    ensemble = ask(msgspec.structs.replace(whole, resources=exclusive))
    (signed,) = (await ask_for_bids(provider, requester, ensemble, hold=20)).bids
    assert taken.is_set()
    # The larger device, at its own price and not at that of the smaller one.
    assert [(gpu.uuid, gpu.vram) for gpu in signed.bid.resources.gpus] == [("GPU-1", 80 * GIB)]
    assert signed.bid.price == euros(80)
    assert not signed.bid.held
    (lease,) = await commit(provider, requester, signed)
    assert (lease.price, lease.resources.gpus[0].uuid) == (euros(80), "GPU-1")


async def test_a_request_that_is_repeated_while_its_policy_decides_is_held_once_and_at_one_price(
    provider: Any, requester: Any, ask: Any
) -> None:
    prices = iter([euros(1), euros(2)])
    both = trio.Event()
    waiting = []

    async def wait_for_both() -> None:
        waiting.append(1)
        if len(waiting) == 2:
            both.set()
        await both.wait()

    policy = InItsOwnTime(lambda offer: Decision(accept=True, price=next(prices)), wait_for_both)
    provider.terms = BidTerms(async_policies=(policy,))
    answers: list[Any] = []

    async def ask_once() -> None:
        answers.append(await ask_for_bids(provider, requester, ask(), hold=20))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask_once)
        nursery.start_soon(ask_once)
    (lease,) = provider.manager.leases()
    assert [answer.bids[0].bid.price for answer in answers] == [lease.price, lease.price]
    assert answers[0].bids[0].bid == answers[1].bids[0].bid


async def test_a_request_that_was_held_with_another_device_meanwhile_is_answered_with_that(
    provider: Any, requester: Any, ask: Any, node: Any
) -> None:
    small = msgspec.structs.replace(node().resources, gpus=(GPUDemand(vram=40 * GIB, uuid="GPU-0"),))
    await provider.manager.commit_resources("other", small, holder="other", ttl=60)
    ensemble = ask(node(gpus=(8,)))
    gates = [trio.Event(), trio.Event()]
    waiting = iter(gates)

    async def wait() -> None:
        await next(waiting).wait()

    policy = InItsOwnTime(accept, wait)
    provider.terms = BidTerms(async_policies=(policy,))
    answers: dict[int, Any] = {}

    async def ask_once(number: int) -> None:
        answers[number] = await ask_for_bids(provider, requester, ensemble, hold=20)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask_once, 0)
        await trio.testing.wait_all_tasks_blocked()
        await provider.manager.release("other")
        nursery.start_soon(ask_once, 1)
        await trio.testing.wait_all_tasks_blocked()
        gates[0].set()
        await trio.testing.wait_all_tasks_blocked()
        gates[1].set()
    # The first was drafted with the larger device, the second with the smaller one.
    assert [answer.bids[0].bid.resources.gpus[0].uuid for answer in answers.values()] == ["GPU-1", "GPU-1"]
    assert answers[0].bids[0].bid == answers[1].bids[0].bid


async def test_a_hold_that_is_not_allowed_leaves_a_bid_at_its_price(provider: Any, requester: Any, ask: Any) -> None:
    onboarded = provider.manager.get_onboarded_resources()
    await provider.manager.update_onboarded_resources(msgspec.structs.replace(onboarded, holds=HoldLimits()))
    provider.terms = BidTerms(async_policies=(InItsOwnTime(lambda offer: Decision(accept=True, price=euros(5))),))
    (signed,) = (await ask_for_bids(provider, requester, ask(), hold=20)).bids
    assert (signed.bid.held, signed.bid.price) == (False, euros(5))
    assert open_bid(signed.envelope, provider.opener) == signed.bid


# Prices per hour


def resources(cores: str = "0", ram: int = 0, disk: int = 0, vram: Sequence[int] = ()) -> Resources:
    return Resources(
        cpu=CPU(cores=Cores.of(cores)),
        ram=RAM(size=ram),
        disk=Disk(size=disk),
        gpus=tuple(GPU(uuid=f"GPU-{index}", vram=size) for index, size in enumerate(vram)),
    )


PRICES = PricesPerHour(currency="EUR", core=10, ram_gib=100, disk_gib=1000, gpu=10_000, vram_gib=100_000, bid=1_000_000)


@pytest.mark.parametrize(
    ("given", "micros"),
    [
        (resources(), 1_000_000),
        (resources("2"), 1_000_020),
        (resources(ram=3 * GIB), 1_000_300),
        (resources(disk=3 * GIB), 1_003_000),
        (resources(vram=[GIB, 2 * GIB]), 1_320_000),
        (resources("0.1"), 1_000_001),
        # Each alone would be rounded up to one; together they are one as well.
        (resources("0.05", ram=GIB // 1000, disk=GIB // 10_000), 1_000_001),
        (resources("0.101"), 1_000_002),
        (resources(ram=1), 1_000_001),
    ],
)
def test_a_price_is_exact_and_rounded_up_once(given: Resources, micros: int) -> None:
    assert PRICES.price(given) == Price(micros_per_hour=micros, currency="EUR")


def test_a_price_beyond_every_message_is_an_error() -> None:
    with pytest.raises(OverflowError):
        PricesPerHour(currency="EUR", ram_gib=10**15).price(resources(ram=2**62))
