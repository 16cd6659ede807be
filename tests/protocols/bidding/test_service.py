from __future__ import annotations

import hashlib
import math
from datetime import datetime
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dms_protocols.bidding.prices import PricesPerHour
from dms_protocols.bidding.service import BidTerms
from dms_protocols.bidding.signing import open_bid, seal_bid
from dms_protocols.errors import BidError, EnvelopeError, RemoteError
from dms_protocols.messages.bid import (
    BidAnswer,
    BidRequest,
    GeneralRequirements,
    Location,
    Place,
    Price,
    Refusal,
    bid_lease_id,
    request_digest,
)
from dms_protocols.wire.cbor import encode_deterministic
from dms_protocols.wire.conversion import to_map
from dms_resources.components import HoldLimits
from dms_resources.demands import CPUShortage, Demand, GPUDemand, GPUShortage, PortDemand, PortShortage, RAMShortage
from dms_resources.ledger.leases import LeaseState
from dms_resources.units import Cores

GIB = 2**30


async def ask_for_bids(provider: Any, peer: Any, ensemble: Any, **options: Any) -> Any:
    async with provider.connect(peer.peer_id) as client:
        return await provider.bidder(client, peer.peer_id).request_bids(ensemble, **options)


async def test_a_bid_says_what_it_offers_to_whom_and_until_when(
    provider: Any, requester: Any, ask: Any, node: Any
) -> None:
    ensemble = ask(node(cores=1.5, gpus=(8,)))
    answer = await ask_for_bids(provider, requester, ensemble)
    (signed,) = answer.bids
    bid = signed.bid
    assert answer.refusals == ()
    assert bid.request_digest == request_digest(to_map(ensemble))
    assert (bid.ensemble_id, bid.nonce, bid.node_id) == ("e1", 1, "n1")
    assert (bid.requester, bid.provider) == (requester.peer_id, provider.signer.peer_id)
    assert bid.valid_until == provider.clock.now + 300
    assert bid.resources.cpu.cores == Cores.of("1.5")
    # The smaller of the two cards, so that large ones stay whole.
    assert [(gpu.uuid, gpu.vram) for gpu in bid.resources.gpus] == [("GPU-0", 8 * GIB)]
    assert not bid.held


async def test_asking_changes_nothing_and_the_same_question_has_the_same_lease_id(
    provider: Any, requester: Any, stranger: Any, ask: Any
) -> None:
    version = provider.manager.version
    ids = []
    for peer, nonce in ((requester, 1), (requester, 1), (requester, 2), (stranger, 1)):
        answer = await ask_for_bids(provider, peer, ask(nonce=nonce))
        ids.append(answer.bids[0].bid.lease_id)
    assert ids[0] == ids[1]
    assert len(set(ids)) == 3
    assert provider.manager.version == version
    assert provider.manager.leases() == ()


async def test_bids_on_as_many_nodes_as_could_be_had_together(
    provider: Any, requester: Any, ask: Any, node: Any
) -> None:
    answer = await ask_for_bids(provider, requester, ask(*(node(f"n{i}", cores=3) for i in range(3))))
    assert [signed.bid.node_id for signed in answer.bids] == ["n0", "n1"]
    (refusal,) = answer.refusals
    assert (refusal.node_id, refusal.code) == ("n2", "resources")
    (shortage,) = refusal.shortages
    assert isinstance(shortage, CPUShortage)
    assert (shortage.asked.cores, shortage.free.cores, shortage.total.cores) == (
        Cores.of(3),
        Cores.of(2),
        Cores.of(8),
    )


async def test_a_refusal_names_every_short_dimension_and_when_to_ask_again(
    provider: Any, requester: Any, ask: Any, node: Any
) -> None:
    await provider.manager.commit_resources("a", node(cores=2).resources, holder="x", ttl=50)
    answer = await ask_for_bids(provider, requester, ask(node(cores=7, ram=33, gpus=(81,))))
    (refusal,) = answer.refusals
    assert {type(shortage) for shortage in refusal.shortages} == {CPUShortage, RAMShortage, GPUShortage}
    assert refusal.retry_after == pytest.approx(50)


async def test_what_a_refusal_says_is_free_would_be_granted(provider: Any, requester: Any, ask: Any, node: Any) -> None:
    await provider.manager.commit_resources("a", node(cores=2.5).resources, holder="x", ttl=50)
    refused = await ask_for_bids(provider, requester, ask(node(cores=7)))
    free = refused.refusals[0].shortages[0].free
    granted = await ask_for_bids(provider, requester, ask(node(cores=str(free.cores)), nonce=2))
    assert len(granted.bids) == 1


@pytest.mark.parametrize(
    ("terms", "fields", "code"),
    [
        (BidTerms(), {"location": Location(accept=(Place(country="DE"),))}, "location"),
        (BidTerms(location=Place(country="FR")), {"location": Location(accept=(Place(country="DE"),))}, "location"),
        (BidTerms(location=Place(country="DE")), {"location": Location(reject=(Place(country="DE"),))}, "location"),
        (BidTerms(), {"executors": ("docker",)}, "executor"),
        (BidTerms(executors=frozenset({"docker"})), {"executors": ("docker", "firecracker")}, "executor"),
        (BidTerms(), {"general_requirements": GeneralRequirements(privileged_docker=True)}, "executor"),
        (BidTerms(), {"public_ports": PortDemand(static=(80,))}, "ports"),
    ],
)
async def test_refusals_of_a_node(
    provider: Any, requester: Any, ask: Any, node: Any, terms: BidTerms, fields: dict[str, Any], code: str
) -> None:
    provider.terms = terms
    answer = await ask_for_bids(provider, requester, ask(node("no", **fields), node("yes")))
    assert [(refusal.node_id, refusal.code) for refusal in answer.refusals] == [("no", code)]
    assert [signed.bid.node_id for signed in answer.bids] == ["yes"]


async def test_a_refusal_names_everything_that_stands_against_a_node_with_a_remedy_for_each(
    provider: Any, requester: Any, ask: Any, node: Any
) -> None:
    onboarded = provider.manager.get_onboarded_resources()
    closing = datetime.fromtimestamp(provider.clock.now + 600)
    await provider.manager.update_onboarded_resources(
        msgspec.structs.replace(onboarded, windows=(f"until {closing:%Y-%m-%dT%H:%M}",))
    )
    await provider.manager.set_draining(True)
    wish = node(
        cores=9,
        executors=("docker",),
        location=Location(accept=(Place(country="DE"),)),
        public_ports=PortDemand(static=(80,)),
    )
    (refused,) = (await ask_for_bids(provider, requester, ask(wish), ttl=40 * 86400)).refusals
    codes = ["location", "executor", "policy", "draining", "window", "resources", "ports"]
    assert [reason.code for reason in refused.reasons] == codes
    assert all(reason.hint for reason in refused.reasons)
    assert refused.code == "location"
    for reason in refused.reasons:
        assert reason.message in refused.message
    shortages = {reason.code: [type(one) for one in reason.shortages] for reason in refused.reasons if reason.shortages}
    assert shortages == {"resources": [CPUShortage], "ports": [PortShortage]}


async def test_reasons_of_a_provider_that_sends_none_are_the_one_that_it_names() -> None:
    old = Refusal(node_id="n", code="draining", message="it drains", retry_after=3.0)
    assert [(one.code, one.message, one.retry_after) for one in old.all_reasons] == [("draining", "it drains", 3.0)]


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"location": {"accept": [{"isp": "Example"}]}}, "isp"),
        ({"location": {"accept": [{"country": "DE", "asn": 64500}]}}, "asn"),
        ({"location": {"reject": [{"isp": "Example"}]}}, "isp"),
        ({"location": {"prefer": [{"country": "DE"}]}}, "prefer"),
        ({"general_requirements": {"confidential": True}}, "confidential"),
    ],
)
async def test_a_requirement_that_is_not_known_here_is_refused_and_not_passed_over(
    provider: Any, requester: Any, node: Any, fields: dict[str, Any], named: str
) -> None:
    provider.terms = BidTerms(location=Place(country="DE"))
    nodes = [{**to_map(node("strange")), **fields}, to_map(node("plain"))]
    ensemble = {"id": "e", "nonce": 1, "deadline": provider.clock.now + 9, "request": nodes}
    async with provider.connect(requester.peer_id) as client:
        answer = await client.call(BidRequest(ensemble=ensemble), BidAnswer, timeout=10)
    assert len(answer.bids) == 1
    assert [(one.node_id, one.code) for one in answer.refusals] == [("strange", "location")]
    assert named in answer.refusals[0].message


@pytest.mark.parametrize("ttl", [30 * 86400 + 1, 31 * 86400, 1e300])
async def test_a_time_that_could_not_be_committed_gets_no_bid(
    provider: Any, requester: Any, ask: Any, ttl: float
) -> None:
    answer = await ask_for_bids(provider, requester, ask(), ttl=ttl)
    assert [one.code for one in answer.refusals] == ["policy"]
    assert len((await ask_for_bids(provider, requester, ask(nonce=2), ttl=30 * 86400)).bids) == 1


@pytest.mark.parametrize(("asked", "fits"), [("amd64", True), ("x86-64", True), ("aarch64", False)])
async def test_architectures_are_compared_by_what_they_mean(
    provider: Any, requester: Any, ask: Any, node: Any, asked: str, fits: bool
) -> None:
    wish = node()
    cpu_wish = msgspec.structs.replace(wish.resources.cpu, architecture=asked)
    wish = msgspec.structs.replace(wish, resources=msgspec.structs.replace(wish.resources, cpu=cpu_wish))
    assert len((await ask_for_bids(provider, requester, ask(wish))).bids) == fits


async def test_refusals_of_the_whole_machine(provider: Any, requester: Any, ask: Any) -> None:
    async def code(**fields: Any) -> str:
        answer = await ask_for_bids(provider, requester, ask(**fields))
        assert answer.bids == ()
        return str(answer.refusals[0].code)

    assert await code(peer_exclusion=(provider.signer.peer_id,)) == "excluded"
    await provider.manager.set_draining(True)
    assert await code() == "draining"
    await provider.manager.offboard()
    assert await code() == "not_onboarded"


async def test_a_window_refuses_what_would_outlive_it(provider: Any, requester: Any, ask: Any) -> None:
    onboarded = provider.manager.get_onboarded_resources()
    closing = datetime.fromtimestamp(provider.clock.now + 600)
    await provider.manager.update_onboarded_resources(
        msgspec.structs.replace(onboarded, windows=(f"until {closing:%Y-%m-%dT%H:%M}",))
    )
    assert len((await ask_for_bids(provider, requester, ask(), ttl=60)).bids) == 1
    assert (await ask_for_bids(provider, requester, ask(), ttl=3600)).refusals[0].code == "window"


async def test_a_dry_run_gives_the_same_answer_unsigned_and_without_a_hold(
    provider: Any, requester: Any, ask: Any, node: Any
) -> None:
    ensemble = ask(node("a", cores=5), node("b", cores=5))
    real = await ask_for_bids(provider, requester, ensemble)
    async with provider.connect(requester.peer_id) as client:
        dry = await provider.bidder(client, requester.peer_id).dry_run(ensemble, hold=10)
    assert dry.offers == tuple(signed.bid for signed in real.bids)
    assert dry.refusals == real.refusals
    assert provider.manager.leases() == ()


async def test_a_price_and_a_place(provider: Any, requester: Any, ask: Any, node: Any) -> None:
    prices = PricesPerHour(currency="EUR", core=50_000)
    provider.terms = BidTerms(policies=(prices,), location=Place(continent="Europe", country="DE"))
    (signed,) = (await ask_for_bids(provider, requester, ask(node(cores=2)))).bids
    assert signed.bid.price == Price(micros_per_hour=100_000, currency="EUR")
    assert signed.bid.location == Place(continent="Europe", country="DE")


@pytest.mark.parametrize(
    "ports",
    [(PortDemand(dynamic=1025),), (PortDemand(dynamic=10**15),), (PortDemand(static=(20000,), dynamic=512),) * 2],
    ids=["one too many", "a great many", "together"],
)
@pytest.mark.parametrize("dry_run", [False, True], ids=["bid", "dry run"])
async def test_more_ports_than_one_request_may_have_are_refused_before_they_are_looked_for(
    provider: Any, requester: Any, node: Any, ports: tuple[PortDemand, ...], dry_run: bool
) -> None:
    # As maps, because our client checks what it sends.
    nodes = [{**to_map(node(str(number))), "public_ports": to_map(one)} for number, one in enumerate(ports)]
    ensemble = {"id": "e", "nonce": 1, "deadline": provider.clock.now + 9, "request": nodes}
    async with provider.connect(requester.peer_id) as client:
        with pytest.raises(RemoteError, match="1024 ports") as refused:
            await client.call(BidRequest(ensemble=ensemble, dry_run=dry_run), BidAnswer, timeout=10)
    assert refused.value.code == "bad_message"


# Holds


async def test_a_hold_is_in_the_ledger_before_the_bid_leaves(
    provider: Any, requester: Any, ask: Any, node: Any
) -> None:
    (signed,) = (await ask_for_bids(provider, requester, ask(node(gpus=(8,))), hold=20)).bids
    lease = provider.manager.lease(signed.bid.lease_id)
    assert (lease.state, lease.holder) == (LeaseState.HELD, requester.peer_id)
    assert signed.bid.held
    assert signed.bid.valid_until == provider.clock.now + 20 == lease.deadline
    assert signed.bid.resources == lease.resources


async def test_asking_again_for_a_held_bid_gives_it_again(provider: Any, requester: Any, ask: Any, node: Any) -> None:
    ensemble = ask(node(cores=5))
    (first,) = (await ask_for_bids(provider, requester, ensemble, hold=20)).bids
    provider.clock.now += 5
    (second,) = (await ask_for_bids(provider, requester, ensemble, hold=20)).bids
    assert second.bid == first.bid
    assert len(provider.manager.leases()) == 1


async def test_a_lease_of_somebody_else_is_not_shown_as_a_bid(
    provider: Any, requester: Any, ask: Any, node: Any
) -> None:
    ensemble = ask(node(cores=5))
    (first,) = (await ask_for_bids(provider, requester, ensemble)).bids
    await provider.manager.commit_resources(first.bid.lease_id, node(cores=5).resources, holder="other", ttl=60)
    answer = await ask_for_bids(provider, requester, ensemble)
    assert [refusal.code for refusal in answer.refusals] == ["resources"]


async def test_a_hold_that_the_owner_does_not_allow_leaves_a_bid_that_holds_nothing(
    provider: Any, requester: Any, ask: Any
) -> None:
    onboarded = provider.manager.get_onboarded_resources()
    await provider.manager.update_onboarded_resources(msgspec.structs.replace(onboarded, holds=HoldLimits()))
    (signed,) = (await ask_for_bids(provider, requester, ask(), hold=20)).bids
    assert not signed.bid.held
    assert provider.manager.leases() == ()


# Bad requests


def with_ensemble(ensemble: Any, **changes: Any) -> BidRequest:
    return BidRequest(ensemble={**to_map(ensemble), **changes})


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"request": []}, "ensemble.request"),
        ({"request": [{"node_id": ""}]}, "ensemble.request[0].node_id"),
        ({"request": [{"node_id": "a"}, {"node_id": "a"}]}, "ensemble"),
        ({"request": [{"node_id": "a", "resources": {"gpus": [{}] * 65}}]}, "ensemble.request[0]"),
        ({"request": [{"node_id": "a", "resources": {"gpus": [{"model": "x" * 200}]}}]}, "ensemble.request[0]"),
        (
            {"request": [{"node_id": "a", "resources": {"cpu": {"cores": -1}}}]},
            "ensemble.request[0].resources.cpu.cores",
        ),
        (
            {"request": [{"node_id": "a", "public_ports": {"static": [70000]}}]},
            "ensemble.request[0].public_ports.static[0]",
        ),
        ({"nonce": -1}, "ensemble.nonce"),
        ({"deadline": 0.0}, "ensemble.deadline"),
    ],
)
async def test_a_bad_request_names_the_field(
    provider: Any, requester: Any, ask: Any, changes: dict[str, Any], path: str
) -> None:
    async with provider.connect(requester.peer_id) as client:
        with pytest.raises(RemoteError) as caught:
            await client.call(with_ensemble(ask(), **changes), BidAnswer, timeout=5)
    assert (caught.value.code, caught.value.details["path"]) == ("bad_message", path)


async def test_the_digest_covers_what_a_later_version_adds(provider: Any, requester: Any, ask: Any) -> None:
    request = with_ensemble(ask(), new_in_1_1={"x": 1})
    async with provider.connect(requester.peer_id) as client:
        answer = await client.call(request, BidAnswer, timeout=5)
    assert open_bid(answer.bids[0], provider.opener).request_digest == request_digest(request.ensemble)


async def test_a_dms_resource_map_is_understood(provider: Any, requester: Any, ask: Any) -> None:
    resources = {
        "cpu": {"cores": 1, "clock_speed": 0, "architecture": "", "vendor": "", "threads": 2},
        "ram": {"size": GIB, "clock_speed": 0, "type": ""},
        "disk": {"size": GIB},
        "gpus": [{"index": 0, "vendor": "NVIDIA", "pci_address": "", "model": "A100", "vram": 50 * GIB, "uuid": ""}],
    }
    async with provider.connect(requester.peer_id) as client:
        request = with_ensemble(ask(), request=[{"node_id": "n", "resources": resources}])
        answer = await client.call(request, BidAnswer, timeout=5)
    assert [gpu.uuid for gpu in open_bid(answer.bids[0], provider.opener).resources.gpus] == ["GPU-1"]


# What a requester believes


async def test_a_forged_or_foreign_bid_is_not_believed(provider: Any, requester: Any, stranger: Any, ask: Any) -> None:
    ensemble = ask()
    (signed,) = (await ask_for_bids(provider, requester, ensemble)).bids

    async def ask_again(envelope: bytes, asked: Any) -> Any:
        class Answering:
            protocol = ""

            async def call(self, request: Any, answer_type: Any, **options: Any) -> BidAnswer:
                return BidAnswer(bids=(envelope,), refusals=())

        return await provider.bidder(Answering(), requester.peer_id).request_bids(asked)

    async def believe(envelope: bytes, *, asked: Any = ensemble) -> str:
        with pytest.raises((BidError, EnvelopeError)) as caught:
            await ask_again(envelope, asked)
        return str(caught.value.code)

    def changed(**fields: Any) -> bytes:
        return seal_bid(msgspec.structs.replace(signed.bid, **fields), provider.signer)

    assert await believe(b"nonsense") == "bad_envelope"
    assert await believe(bytes([*signed.envelope[:-1], signed.envelope[-1] ^ 1])) == "bad_signature"
    assert await believe(provider.signer.sign("dms-bid", b"/other", b"")) == "bad_envelope"
    assert await believe(provider.signer.sign("other", b"/dms/bid/1.0.0", b"\xa0")) == "bad_signature"
    assert await believe(provider.signer.sign("dms-bid", b"/dms/bid/1.0.0", b"\xa0")) == "bad_envelope"
    assert await believe(seal_bid(signed.bid, stranger)) == "bad_bid"
    assert await believe(seal_bid(msgspec.structs.replace(signed.bid, provider=stranger.peer_id), stranger)) == (
        "not_my_bid"
    )
    assert await believe(changed(requester=stranger.peer_id)) == "not_your_bid"
    assert await believe(signed.envelope, asked=ask(nonce=2)) == "bad_bid"
    assert await believe(changed(request_digest=bytes(32))) == "bad_bid"
    assert await believe(changed(node_id="n2")) == "bad_bid"
    assert await believe(changed(lease_id="0" * 32)) == "bad_bid"
    assert await believe(changed(demand=Demand(gpus=(GPUDemand(vram=1),)))) == "bad_bid"
    assert await believe(changed(valid_until=provider.clock.now - 1)) == "bid_expired"
    # A bid is valid up to the moment that it names.
    assert (await ask_again(changed(valid_until=provider.clock.now), ensemble)).bids
    # It could not be decided when these have passed.
    for never in (math.nan, math.inf, -math.inf):
        assert await believe(changed(valid_until=never)) == "bad_envelope"


def test_the_lease_id_of_the_specification() -> None:
    # The deterministic encoding by hand: shorter keys first.
    encoded = (
        b"\xa4" + b"\x67node_id" + b"\x61n" + b"\x68provider" + b"\x61b" + b"\x69requester" + b"\x61a"
        + b"\x6erequest_digest" + b"\x58\x20" + bytes(32)
    )  # fmt: skip
    lease_id = bid_lease_id(requester="a", digest=bytes(32), node_id="n", provider="b")
    assert lease_id == hashlib.sha256(encoded).hexdigest()[:32]


@given(requester=st.text(max_size=60), digest=st.binary(max_size=32), node_id=st.text(), provider=st.text(max_size=60))
def test_a_lease_id_is_of_the_deterministic_encoding(**named: Any) -> None:
    encoded = encode_deterministic({{"digest": "request_digest"}.get(name, name): one for name, one in named.items()})
    assert bid_lease_id(**named) == hashlib.sha256(encoded).hexdigest()[:32]
