"""Two versions of a protocol side by side, and unknown fields."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
import trio
import trio.testing

from dms_protocols.allocations import allocation_operations
from dms_protocols.bidding.service import bid_operations
from dms_protocols.bidding.signing import open_bid
from dms_protocols.bidding.versions import BID_1_0, BID_1_1, BID_VERSIONS, BidVersion
from dms_protocols.clients import AllocationClient
from dms_protocols.errors import BidError, RemoteError
from dms_protocols.messages.bid import BID_DOMAIN, BID_PAYLOAD_TYPE, BidAnswer, BidRequest
from dms_protocols.protocol_ids import ALLOCATION_PROTOCOL, ALLOCATION_PROTOCOL_1_1
from dms_protocols.rpc.client import Client, open_client
from dms_protocols.rpc.operations import Caller, Operations
from dms_protocols.rpc.service import serve_stream
from dms_protocols.wire.cbor import decode_map, encode_deterministic, encode_fast, whole_numbers_as_integers
from dms_protocols.wire.conversion import to_map
from dms_protocols.wire.frames import encode_frame
from dms_resources.ledger.leases import Lease


@asynccontextmanager
async def speaking(operations: Operations, protocol: str, caller: str) -> AsyncIterator[Client]:
    """A client on a stream with this negotiated protocol, served by these operations."""
    ours, theirs = trio.testing.memory_stream_pair()
    ours.protocol = protocol
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_stream, theirs, operations, Caller(caller))
        async with open_client(ours) as client:
            yield client


def bids_of(provider: Any, version: BidVersion) -> Operations:
    return bid_operations(provider.manager, provider.signer, clock=provider.clock.wall, version=version)


# Bids in two versions


@pytest.mark.parametrize("version", BID_VERSIONS, ids=lambda version: version.protocol)
async def test_a_bid_is_believed_and_taken_in_every_version(
    provider: Any, requester: Any, ask: Any, version: BidVersion
) -> None:
    ensemble = ask(deadline=60.0)
    assert to_map(ensemble)["deadline"].is_integer(), "the versions say different things of it"
    async with speaking(bids_of(provider, version), version.protocol, requester.peer_id) as client:
        (signed,) = (await provider.bidder(client, requester.peer_id).request_bids(ensemble)).bids
    assert signed.bid.request_digest == version.digest(to_map(ensemble))
    # Whatever version was used for the request: the provider knows its own bid.
    async with provider.connect(requester.peer_id) as client:
        (lease,) = await AllocationClient(client).commit([signed.envelope], ttl=60)
    assert lease.lease_id == signed.bid.lease_id


@pytest.mark.parametrize(("ours", "theirs"), [(BID_1_0, BID_1_1), (BID_1_1, BID_1_0)])
async def test_a_bid_in_another_version_than_the_agreed_one_is_no_bid_on_what_was_asked(
    provider: Any, requester: Any, ask: Any, ours: BidVersion, theirs: BidVersion
) -> None:
    async with speaking(bids_of(provider, theirs), ours.protocol, requester.peer_id) as client:
        with pytest.raises(BidError, match="answers another request"):
            await provider.bidder(client, requester.peer_id).request_bids(ask(deadline=60.0))


def test_in_the_newer_version_a_number_is_what_it_is_worth() -> None:
    whole = {"a": 2.0, "b": [-0.0, {"c": 3.0}], "d": True, "e": 1.5, "f": None, "g": "2.0", "h": b"2"}
    plain = {"a": 2, "b": [0, {"c": 3}], "d": True, "e": 1.5, "f": None, "g": "2.0", "h": b"2"}
    assert BID_1_1.digest(whole) == BID_1_1.digest(plain) == BID_1_0.digest(plain)
    assert BID_1_0.digest(whole) != BID_1_0.digest(plain)
    assert BID_1_1.digest({**plain, "a": 2.5}) != BID_1_1.digest(plain)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (2.0**53 - 1, 2**53 - 1),
        (-(2.0**53) + 1, -(2**53) + 1),
        # From here on not every integer is a float, so they stay different.
        (2.0**53, 2.0**53),
        (1e300, 1e300),
        (2**60, 2**60),
        (0.1, 0.1),
    ],
)
def test_what_becomes_an_integer(value: float, expected: float) -> None:
    found = whole_numbers_as_integers((value,))
    assert (found, type(found[0])) == ([expected], type(expected))


# Allocations in two versions


def allocations_of(provider: Any, protocol: str) -> Operations:
    return allocation_operations(
        provider.manager, provider.signer.peer_id, provider.opener, clock=provider.clock.wall, protocol=protocol
    )


@asynccontextmanager
async def allocating(provider: Any, requester: Any, protocol: str) -> AsyncIterator[AllocationClient]:
    async with speaking(allocations_of(provider, protocol), protocol, requester.peer_id) as client:
        yield AllocationClient(client)


async def allocated(provider: Any, requester: Any, ask: Any, client: AllocationClient, nonce: int = 1) -> Lease:
    async with provider.connect(requester.peer_id) as bidding:
        (signed,) = (await provider.bidder(bidding, requester.peer_id).request_bids(ask(nonce=nonce))).bids
    (lease,) = await client.commit([signed.envelope], ttl=60)
    return await client.allocate(lease.lease_id, fence=lease.fence)


async def test_an_allocation_is_renewed_in_1_1(provider: Any, requester: Any, ask: Any) -> None:
    async with allocating(provider, requester, ALLOCATION_PROTOCOL_1_1) as client:
        lease = await allocated(provider, requester, ask, client)
        assert (lease.ttl, lease.deadline) == (900.0, provider.clock.wall() + 900)
        provider.clock.now += 800
        renewed = await client.renew(lease.lease_id, ttl=60, fence=lease.fence)
        assert renewed.deadline == provider.clock.wall() + 900
        provider.clock.now += 901
        with pytest.raises(RemoteError, match="its holder did not renew it for 900 s") as caught:
            await client.renew(lease.lease_id, ttl=60)
        assert caught.value.code == "expired"


async def test_an_allocation_of_1_0_lasts_a_bounded_time(provider: Any, requester: Any, ask: Any) -> None:
    async with (
        allocating(provider, requester, ALLOCATION_PROTOCOL) as old,
        allocating(provider, requester, ALLOCATION_PROTOCOL_1_1) as new,
    ):
        lease = await allocated(provider, requester, ask, old)
        assert (lease.ttl, lease.deadline) == (0.0, provider.clock.wall() + 86400)
        with pytest.raises(RemoteError) as caught:
            await old.renew(lease.lease_id, ttl=60)
        assert caught.value.code == "not_committed", "as ever in 1.0.0"
        # A newer client cannot do more with it.
        assert (await new.renew(lease.lease_id, ttl=60)).deadline == lease.deadline
        provider.clock.now += 86399
        assert (await old.list()).leases == (lease,)
        provider.clock.now += 2
        assert (await old.list()).leases == ()


@pytest.mark.parametrize(("protocol", "code"), [(ALLOCATION_PROTOCOL, "ended"), (ALLOCATION_PROTOCOL_1_1, "evicted")])
async def test_what_a_holder_is_told_of_an_eviction(
    provider: Any, requester: Any, stranger: Any, ask: Any, protocol: str, code: str
) -> None:
    async with allocating(provider, requester, protocol) as client:
        lease = await allocated(provider, requester, ask, client)
        await provider.manager.evict([lease.lease_id], reason="a game tonight")
        for attempt in (
            client.renew(lease.lease_id, ttl=60),
            client.allocate(lease.lease_id),
            client.release(lease.lease_id),
        ):
            with pytest.raises(RemoteError, match=r"evicted .*: a game tonight") as caught:
                await attempt
            assert caught.value.code == code
        evicted = (await client.list()).evicted
        assert [(one.lease_id, one.detail) for one in evicted] == (
            [(lease.lease_id, "a game tonight")] if code == "evicted" else []
        )
        assert (await client.list(after="x")).evicted == ()
    async with allocating(provider, stranger, protocol) as other:
        assert (await other.list()).evicted == ()
        with pytest.raises(RemoteError) as caught:
            await other.renew(lease.lease_id, ttl=60)
        assert caught.value.code == "not_holder"


# An operation and a field that only the newer version has


class GreetRequest(msgspec.Struct, frozen=True, tag_field="op", tag="greet"):
    """Of both versions."""

    name: str


class LoudGreetRequest(GreetRequest, frozen=True, omit_defaults=True, tag_field="op", tag="greet"):
    """Of 1.1: with one more field."""

    loud: bool = False


class Greeting(msgspec.Struct, frozen=True):
    """Of both versions."""

    text: str


class CountedGreeting(Greeting, frozen=True, omit_defaults=True):
    """Of 1.1: with one more field."""

    count: int | None = None


class ForgetRequest(msgspec.Struct, frozen=True, tag_field="op", tag="forget"):
    """Only in 1.1."""


def versions() -> dict[str, Operations]:
    """The served versions of one operation."""
    greeted: list[str] = []

    def greet(request: GreetRequest, caller: Caller) -> Greeting:
        greeted.append(request.name)
        return Greeting(f"hello {request.name}")

    def greet_1_1(request: LoudGreetRequest, caller: Caller) -> CountedGreeting:
        text = greet(request, caller).text
        return CountedGreeting(text.upper() if request.loud else text, len(greeted))

    def forget(request: ForgetRequest, caller: Caller) -> Greeting:
        greeted.clear()
        return Greeting("who?")

    first, second = Operations(), Operations()
    first.quick(GreetRequest, greet)
    second.quick(LoudGreetRequest, greet_1_1)
    second.quick(ForgetRequest, forget)
    return {"/greet/1.0.0": first, "/greet/1.1.0": second}


async def test_each_version_has_its_own_operations_and_fields() -> None:
    served = versions()
    async with (
        speaking(served["/greet/1.0.0"], "/greet/1.0.0", "old") as old,
        speaking(served["/greet/1.1.0"], "/greet/1.1.0", "new") as new,
    ):
        assert (old.protocol, new.protocol) == ("/greet/1.0.0", "/greet/1.1.0")
        request = LoudGreetRequest("you", loud=True)
        # 1.0 ignores what it does not know. What it does not send is missing.
        assert await old.call(request, CountedGreeting, timeout=5) == CountedGreeting("hello you")
        assert await new.call(request, CountedGreeting, timeout=5) == CountedGreeting("HELLO YOU", 2)
        # A client of 1.0 with 1.1: it ignores what it does not know.
        assert await new.call(GreetRequest("me"), Greeting, timeout=5) == Greeting("hello me")
        with pytest.raises(RemoteError) as caught:
            await old.call(ForgetRequest(), Greeting, timeout=5)
        assert caught.value.code == "unknown_operation"
        assert await new.call(ForgetRequest(), Greeting, timeout=5) == Greeting("who?")


# Unknown fields


def with_more(value: Any) -> Any:
    """The same with one more key in every map."""
    if isinstance(value, dict):
        return {**{key: with_more(item) for key, item in value.items()}, "of a later version": {"x": [1.0, b"\x00"]}}
    return [with_more(item) for item in value] if isinstance(value, list | tuple) else value


@pytest.mark.parametrize("version", BID_VERSIONS, ids=lambda version: version.protocol)
async def test_a_request_with_unknown_fields_is_answered_and_digested_as_it_came(
    provider: Any, requester: Any, ask: Any, version: BidVersion
) -> None:
    asked = with_more(to_map(ask()))
    async with speaking(bids_of(provider, version), version.protocol, requester.peer_id) as client:
        answer = await client.call(BidRequest(ensemble=asked), BidAnswer, timeout=5)
    bid = open_bid(answer.bids[0], provider.opener)
    assert bid.request_digest == version.digest(asked)
    assert bid.request_digest != version.digest(to_map(ask()))


async def test_every_request_may_have_more_fields(provider: Any, serving: Any, ask: Any) -> None:
    # The service's raw peer is "peer-1".
    async with provider.connect("peer-1") as client:
        (signed,) = (await provider.bidder(client, "peer-1").request_bids(ask())).bids
    requests: list[dict[str, Any]] = [
        {"op": "free"},
        {"op": "commit", "bids": [signed.envelope], "ttl": 60},
        {"op": "renew", "lease_id": signed.bid.lease_id, "ttl": 60},
        {"op": "list"},
        {"op": "allocate", "lease_id": signed.bid.lease_id},
        {"op": "release", "lease_id": signed.bid.lease_id},
    ]
    async with serving(operations=provider.operations) as peer:
        for number, request in enumerate(requests):
            await peer.stream.send_all(encode_frame(encode_fast({"id": number, **with_more(request)})))
            answer = await peer.receive()
            assert "ok" in answer, answer


async def test_a_bid_with_more_fields_is_believed_and_committed_as_it_came(
    provider: Any, requester: Any, ask: Any
) -> None:
    """A provider of a later version: its bids, answers and refusals have more fields than we know."""

    async def bid_more(request: BidRequest, caller: Caller) -> bytes:
        answer = bids_of(provider, BID_1_0)["bid_request"].handler(request, caller)
        sealed = []
        for raw in answer.bids:
            more = encode_deterministic(with_more(to_map(open_bid(raw, provider.opener))))
            sealed.append(provider.signer.sign(BID_DOMAIN, BID_PAYLOAD_TYPE, more))
        return encode_fast({**with_more({"refusals": list(map(to_map, answer.refusals))}), "bids": sealed})

    later = Operations()
    later.slow(BidRequest, bid_more)
    taken = []

    class Recording:
        """The provider's opener of envelopes, which records what it gets."""

        def open(self, raw: bytes, domain: str, payload_type: bytes) -> tuple[str, bytes]:
            taken.append(raw)
            opened: tuple[str, bytes] = provider.opener.open(raw, domain, payload_type)
            return opened

    allocations = allocation_operations(
        provider.manager, provider.signer.peer_id, Recording(), clock=provider.clock.wall
    )
    async with (
        speaking(later, BID_1_0.protocol, requester.peer_id) as bidding,
        speaking(allocations, "", requester.peer_id) as committing,
    ):
        (signed,) = (await provider.bidder(bidding, requester.peer_id).request_bids(ask())).bids
        assert "of a later version" in decode_map(
            provider.opener.open(signed.envelope, BID_DOMAIN, BID_PAYLOAD_TYPE)[1]
        )
        (lease,) = await AllocationClient(committing).commit([signed.envelope], ttl=60)
    assert taken == [signed.envelope]
    assert lease.lease_id == signed.bid.lease_id
