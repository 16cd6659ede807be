"""A provider that lies in one field of one answer: the requester names the field, and uses another provider."""

from __future__ import annotations

import pytest
import trio
from msgspec.structs import replace

from dms_peer.owner.remote_messages import (
    RemoteAllocateRequest,
    RemoteBidRequest,
    RemoteCommitRequest,
    RemoteListRequest,
    RemoteReleaseRequest,
    RemoteRenewRequest,
)
from dms_peer.owner.requesting import RemoteRequests
from dms_peer.requesting import AssignmentRules
from dms_peer.requesting.errors import ReservationError
from dms_peer.requesting.peers import CallError, PeerCalls, PeerRef
from dms_protocols.bidding.signing import open_bid, seal_bid
from dms_protocols.errors import ProtocolError
from dms_protocols.messages.bid import Place
from dms_protocols.protocol_ids import (
    ALLOCATION_PROTOCOL,
    ALLOCATION_PROTOCOL_1_1,
    BID_PROTOCOL,
    BID_PROTOCOL_1_1,
)
from dms_resources.components import CPU, RAM, Disk, Resources
from dms_resources.demands import CPUDemand, Demand, PortDemand
from dms_resources.ledger.leases import LeaseState, Price
from dms_resources.units import GIB, Cores
from dms_simulation.network import LinkConditions
from dms_simulation.providers import provider_operations, simulated_machine
from dms_simulation.signing import SimulatedOpener, SimulatedSigner

LESS = Resources(cpu=CPU(cores=Cores.of(0.5)), ram=RAM(size=8 * GIB), disk=Disk(size=GIB), gpus=())
MORE = Demand(cpu=CPUDemand(cores=Cores.of(7)))

LIES_OF_LEASES = {
    "lease_id": "f" * 32,
    "holder": "somebody",
    "state": LeaseState.HELD,
    "asked_ports": PortDemand(dynamic=3),
    "resources": LESS,
    "deadline": 0.0,
    "price": Price(micros_per_hour=10**15, currency="EUR"),
}
LIES_OF_BIDS = {
    "ensemble_id": "another",
    "nonce": 7,
    "node_id": "another",
    "requester": "somebody",
    "provider": "somebody",
    "demand": MORE,
    "public_ports": PortDemand(dynamic=3),
    "resources": LESS,
    "valid_until": 1e18,
}


class Liar:
    """The operations of one protocol of a provider, with changed answers of one operation."""

    def __init__(self, operations, name, change):
        self.known, self.name, self.change, self.told = operations, name, change, 0

    def __getitem__(self, name):
        operation = self.known[name]
        if name != self.name:
            return operation

        async def handler(request, caller):
            answer = operation.handler(request, caller)
            answer = await answer if hasattr(answer, "__await__") else answer
            changed = self.change(request, answer)
            self.told += changed is not answer
            return changed

        return type(operation)(operation.name, "slow", operation.request_type, handler)

    def get(self, name, default=None):
        return self[name] if name in self.known else default


def lies(market, peer_id, protocols, name, change):
    """Makes a provider lie. Returns the liar of each version."""
    operations = provider_operations(market.manager(peer_id), peer_id, clock=market.clock)
    liars = {protocol: Liar(operations[protocol], name, change) for protocol in protocols}
    market.network.add_host(peer_id, {**operations, **liars})
    return liars


def told(liars):
    return sum(liar.told for liar in liars.values())


@pytest.fixture
async def two(market):
    """Two providers; p0 is the nearest."""
    for number in range(2):
        conditions = LinkConditions(latency=0.01 + number / 50, jitter=0.0)
        await market.start(f"p{number}", simulated_machine(cores=4), conditions=conditions)
    return market


ALLOCATIONS = (ALLOCATION_PROTOCOL, ALLOCATION_PROTOCOL_1_1)
BIDS = (BID_PROTOCOL, BID_PROTOCOL_1_1)


async def reserved_at(market, name):
    """Where a reservation is placed, and the codes of the failures before it."""
    async with market.requester().reserve(
        market.ensemble("a", cores=1, seconds=20), strategy=name, want=2, ttl=300
    ) as reservation:
        return reservation.peers["a"], reservation.progress.failed


@pytest.mark.parametrize("field", LIES_OF_LEASES)
async def test_a_commitment_with_a_wrong_field_is_refused_and_another_provider_taken(two, autojump_clock, field):
    def change(request, answer):
        return replace(answer, leases=tuple(replace(one, **{field: LIES_OF_LEASES[field]}) for one in answer.leases))

    liars = lies(two, "p0", ALLOCATIONS, "commit", change)
    assert await reserved_at(two, "nearest") == ("p1", {"bad_answer": 1})
    assert told(liars) == 1
    with pytest.raises(ReservationError) as caught:
        async with two.requester().reserve(
            two.ensemble("a", cores=1, seconds=3), rules=AssignmentRules(pins={"a": "p0"}), ttl=300
        ):
            pass
    assert any(field in peer.message for reason in caught.value.reasons for peer in reason.peers)


async def test_no_lease_and_one_too_many_are_refused(two, autojump_clock):
    for change in (
        lambda request, answer: replace(answer, leases=()),
        lambda request, answer: replace(answer, leases=answer.leases * 2),
    ):
        lies(two, "p0", ALLOCATIONS, "commit", change)
        assert await reserved_at(two, "nearest") == ("p1", {"bad_answer": 1})


@pytest.mark.parametrize("field", LIES_OF_BIDS)
async def test_a_bid_with_a_wrong_field_is_refused_and_another_provider_taken(two, autojump_clock, field):
    def change(request, answer):
        bids = [replace(open_bid(raw, SimulatedOpener()), **{field: LIES_OF_BIDS[field]}) for raw in answer.bids]
        return replace(answer, bids=tuple(seal_bid(bid, SimulatedSigner("p0")) for bid in bids))

    liars = lies(two, "p0", BIDS, "bid_request", change)
    peer, failed = await reserved_at(two, "nearest")
    assert peer == "p1"
    assert told(liars) >= 1
    assert sum(failed.values()) >= 1
    assert set(failed) <= {"bad_answer", "bad_bid", "not_my_bid", "not_your_bid"}


@pytest.mark.parametrize(
    ("name", "lie"),
    [
        *(("renew", {field: value}) for field, value in LIES_OF_LEASES.items() if field not in ("deadline",)),
        ("renew", {"fence": 99}),
        ("renew", {"demand": MORE}),
        *(("allocate", {field: LIES_OF_LEASES[field]}) for field in ("lease_id", "holder", "resources", "price")),
        ("allocate", {"fence": 99}),
        ("allocate", {"state": LeaseState.COMMITTED}),
        ("allocate", {"ttl": 1e-9}),
        ("allocate", {"ttl": -1.0}),
        ("release", {"lease_id": "f" * 32}),
        ("release", {"holder": "somebody"}),
        ("release", {"fence": 99}),
    ],
    ids=str,
)
async def test_an_answer_with_a_wrong_field_about_a_lease_is_refused(two, autojump_clock, name, lie):
    calls = PeerCalls(two.network.peer("requester"), SimulatedOpener(), clock=two.clock.wall)
    liars = lies(
        two, "p0", ALLOCATIONS, name, lambda request, answer: replace(answer, lease=replace(answer.lease, **lie))
    )
    peer = PeerRef("p0")
    bids, _ = await calls.bids(peer, two.ensemble("a", cores=1), hold=0, ttl=60, budget=5)
    (lease,) = await calls.commit(peer, bids.bids, ttl=60, budget=5)
    asking = {
        "renew": lambda: calls.renew(peer, lease.lease_id, ttl=60, fence=lease.fence, budget=5, before=lease),
        "allocate": lambda: calls.allocate(peer, lease.lease_id, fence=lease.fence, budget=5, before=lease),
        "release": lambda: calls.release(peer, lease.lease_id, fence=lease.fence, budget=5),
    }[name]
    with pytest.raises(CallError) as caught:
        await asking()
    assert (caught.value.code, caught.value.uncertain, told(liars)) == ("bad_answer", True, 1)
    field = next(iter(lie))
    assert field in caught.value.message or field == "ttl"


@pytest.mark.parametrize("field", LIES_OF_BIDS)
async def test_a_dry_run_with_a_wrong_field_is_refused(two, autojump_clock, field):
    def change(request, answer):
        return replace(answer, offers=tuple(replace(one, **{field: LIES_OF_BIDS[field]}) for one in answer.offers))

    liars = lies(two, "p0", BIDS, "bid_request", change)
    found = []
    async with two.requester().discover(two.ensemble("a", cores=1)) as peers:
        async for peer in peers:
            found.append(peer.peer_id)
    assert found == ["p1"]
    assert peers.progress.failed == {"bad_answer": 1}
    assert told(liars) == 1


async def test_what_only_the_provider_knows_is_believed(two, autojump_clock):
    def change(request, answer):
        return replace(answer, offers=tuple(replace(one, location=Place(city="Atlantis")) for one in answer.offers))

    lies(two, "p0", BIDS, "bid_request", change)
    async with two.requester().discover(two.ensemble("a", cores=1)) as peers:
        assert {peer.peer_id async for peer in peers} == {"p0", "p1"}
    await trio.lowlevel.checkpoint()


async def no_ping(peer_id, addrs):
    raise AssertionError("nobody is pinged")


@pytest.mark.parametrize(
    ("name", "lie"),
    [
        *(("bid_request", {field: value}) for field, value in LIES_OF_BIDS.items()),
        *(("commit", {field: value}) for field, value in LIES_OF_LEASES.items()),
        ("renew", {"holder": "somebody"}),
        ("allocate", {"state": LeaseState.COMMITTED}),
        ("release", {"lease_id": "f" * 32}),
        ("list", {"holder": "somebody"}),
    ],
    ids=str,
)
async def test_a_command_refuses_an_answer_with_a_wrong_field(two, autojump_clock, monkeypatch, name, lie):
    def change(request, answer):
        if name == "bid_request":
            bids = [replace(open_bid(raw, SimulatedOpener()), **lie) for raw in answer.bids]
            return replace(answer, bids=tuple(seal_bid(bid, SimulatedSigner("p0")) for bid in bids))
        if name in ("commit", "list"):
            return replace(answer, leases=tuple(replace(one, **lie) for one in answer.leases))
        return replace(answer, lease=replace(answer.lease, **lie))

    # The commands use the clock of the machine, which here is that of the market.
    monkeypatch.setattr("time.time", two.clock.wall)
    liars = lies(two, "p0", BIDS if name == "bid_request" else ALLOCATIONS, name, change)
    requests = RemoteRequests(two.network.peer("requester"), SimulatedOpener(), no_ping)
    asked = RemoteBidRequest(peer_id="p0", ensemble=two.ensemble("a", cores=1))
    if name != "bid_request":
        bids = await requests.perform(asked)
        envelopes = tuple(one.envelope for one in bids.bids)
    lease_id = "unused"
    if name not in ("bid_request", "commit"):
        taken = await requests.perform(RemoteCommitRequest(peer_id="p0", bids=envelopes, ttl=60))
        lease_id = taken.leases[0].lease_id
    with pytest.raises(ProtocolError) as caught:
        await requests.perform(
            {
                "bid_request": lambda: asked,
                "commit": lambda: RemoteCommitRequest(peer_id="p0", bids=envelopes, ttl=60),
                "renew": lambda: RemoteRenewRequest(peer_id="p0", lease_id=lease_id, ttl=60),
                "allocate": lambda: RemoteAllocateRequest(peer_id="p0", lease_id=lease_id),
                "release": lambda: RemoteReleaseRequest(peer_id="p0", lease_id=lease_id),
                "list": lambda: RemoteListRequest(peer_id="p0"),
            }[name]()
        )
    assert told(liars) == 1
    assert caught.value.code in ("bad_answer", "bad_bid", "not_my_bid", "not_your_bid")
