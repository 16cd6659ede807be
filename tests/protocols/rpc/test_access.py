"""Which peers may do what, and what is outstanding under a grant: on a provider's three protocols on
streams in memory.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
import trio
import trio.testing
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dms_protocols.clients import AllocationClient, BidClient, ResourcesClient
from dms_protocols.errors import RemoteError
from dms_protocols.rpc.access import Access, AccessRule, AccessRules
from dms_protocols.rpc.limits import Share, Shares
from dms_protocols.rpc.operations import Caller
from dms_protocols.rpc.service import serve_stream
from dms_protocols.tokens.biscuits import attenuate_token, create_token, open_token
from dms_protocols.tokens.checks import TokenChecker
from dms_protocols.tokens.grants import GrantTerms
from dms_resources.ledger.accounts import Allowance
from dms_resources.ledger.leases import Lease, LeaseState

TOKEN = AccessRule(token=True)
# The provider's own key, as conftest makes it.
SEED = bytes([1]) * 32
KEY = Ed25519PrivateKey.from_private_bytes(SEED).public_key().public_bytes_raw()


class Market:
    """A provider with rules, and its requesters."""

    def __init__(self, provider: Any, ask: Any, node: Any) -> None:
        self.provider = provider
        self.revoked: set[str] = set()
        self._ask = ask
        self._node = node
        self._asked = 0

    @property
    def peer_id(self) -> str:
        name: str = self.provider.signer.peer_id
        return name

    def rule(self, others: AccessRule | None = None, **operations: AccessRule) -> None:
        """Sets the rules for streams that are opened from now on."""
        rules = AccessRules(operations=operations, others=others or AccessRule(anyone=True))
        self.provider.tokens = TokenChecker(self.peer_id, {self.peer_id: KEY}, self.revoked, self.provider.clock.wall)
        self.provider.access = Access(rules, self.provider.tokens)

    def grant(self, **terms: Any) -> bytes:
        """A token of the provider: how much, in thousandths of cores."""
        allowance = Allowance(**{name: terms.pop(name) for name in Allowance.__struct_fields__ if name in terms})
        return create_token(SEED, self.peer_id, GrantTerms(allowance=allowance, **terms))

    def cut(self, token: bytes, **terms: Any) -> bytes:
        allowance = Allowance(**{name: terms.pop(name) for name in Allowance.__struct_fields__ if name in terms})
        return attenuate_token(token, KEY, GrantTerms(allowance=allowance, **terms))

    @asynccontextmanager
    async def visit(self, peer: Any, token: bytes | None = None) -> AsyncIterator[tuple[BidClient, AllocationClient]]:
        async with self.provider.connect(peer.peer_id) as client:
            yield self.provider.bidder(client, peer.peer_id, token), AllocationClient(client, token=token)

    async def bid(self, bids: BidClient, cores: float = 1, hold: float = 0, **fields: Any) -> bytes:
        self._asked += 1
        request = self._ask(self._node(cores=cores), nonce=self._asked)
        answer = await bids.request_bids(request, hold=hold, **fields)
        return answer.bids[0].envelope

    async def take(
        self, peer: Any, token: bytes | None, cores: float = 1, *, ttl: float = 60, hold: float = 0
    ) -> Lease:
        async with self.visit(peer, token) as (bids, allocations):
            return (await allocations.commit([await self.bid(bids, cores, hold)], ttl=ttl))[0]

    async def refused(self, peer: Any, token: bytes | None, cores: float = 1, **options: Any) -> str:
        with pytest.raises(RemoteError) as caught:
            await self.take(peer, token, cores, **options)
        return caught.value.code


@pytest.fixture
def market(provider: Any, ask: Any, node: Any) -> Market:
    return Market(provider, ask, node)


async def code_of(call: Any) -> str:
    with pytest.raises(RemoteError) as caught:
        await call
    return caught.value.code


# Rules


async def test_without_rules_anyone_may_ask_and_a_token_is_not_looked_at(market: Market, requester: Any) -> None:
    assert (await market.take(requester, None)).accounts == ()
    market.rule()
    assert (await market.take(requester, b"no token at all")).accounts == ()


async def test_an_operation_for_nobody_for_some_and_for_all(market: Market, requester: Any, stranger: Any) -> None:
    market.rule(
        free=AccessRule(), machine=AccessRule(peers=frozenset({requester.peer_id})), onboarded=AccessRule(anyone=True)
    )
    async with market.provider.connect(requester.peer_id) as client:
        resources = ResourcesClient(client, token=market.grant())
        await resources.machine()
        await resources.onboarded()
        assert await code_of(resources.free()) == "forbidden"
    async with market.provider.connect(stranger.peer_id) as client:
        resources = ResourcesClient(client, token=market.grant())
        await resources.onboarded()
        assert await code_of(resources.machine()) == "forbidden"


async def test_what_is_not_named_follows_the_rule_for_others(market: Market, requester: Any) -> None:
    market.rule(others=AccessRule(), free=AccessRule(anyone=True))
    async with market.provider.connect(requester.peer_id) as client:
        resources = ResourcesClient(client)
        await resources.free()
        assert await code_of(resources.machine()) == "forbidden"


async def test_a_watch_is_an_operation_like_the_others(market: Market, requester: Any) -> None:
    market.rule(watch=TOKEN)
    async with market.provider.connect(requester.peer_id) as client:
        async with ResourcesClient(client, token=market.grant()).watch() as events:
            await anext(events)
        with pytest.raises(RemoteError) as caught:
            async with ResourcesClient(client).watch() as events:
                await anext(events)
        assert caught.value.code == "token_required"


async def test_the_owner_on_the_socket_needs_no_leave(market: Market) -> None:
    market.rule(others=AccessRule())
    async with market.provider.connect("owner", local=True) as client:
        await ResourcesClient(client).free()


async def test_rules_are_asked_before_the_request_is_read(market: Market, requester: Any) -> None:
    market.rule(commit=TOKEN)
    async with market.provider.connect(requester.peer_id) as client:
        allocations = AllocationClient(client)
        assert await code_of(allocations.commit([b"no bid"], ttl=-1)) == "token_required"


@pytest.mark.parametrize("token", ["text", 5, True, [b""], {"a": b""}])
async def test_a_token_that_is_no_bytes_is_a_bad_message(
    market: Market, requester: Any, nursery: trio.Nursery, raw_peer: Any, token: Any
) -> None:
    market.rule(free=TOKEN)
    ours, theirs = trio.testing.memory_stream_pair()
    provider = market.provider
    nursery.start_soon(
        lambda: serve_stream(theirs, provider.operations, Caller(requester.peer_id), access=provider.access)
    )
    peer = raw_peer(ours)
    await peer.send({"id": 1, "op": "free", "token": token})
    error = (await peer.receive())["error"]
    assert (error["code"], error["path"]) == ("bad_message", "token")
    await trio.aclose_forcefully(ours)


# Tokens


async def test_each_way_in_which_a_token_is_no_good_reaches_the_caller(
    market: Market, requester: Any, stranger: Any
) -> None:
    market.rule(commit=TOKEN)
    now = int(market.provider.clock.now)
    other = create_token(bytes([9]) * 32, market.peer_id, GrantTerms())
    grants = {
        "token_required": None,
        "token_invalid": other,
        "token_expired": market.grant(expires=now - 1),
        "token_not_for_this": market.grant(operations=frozenset({"free"})),
        "token_not_yours": market.grant(peers=frozenset({stranger.peer_id})),
        "token_not_here": market.grant(providers=frozenset({stranger.peer_id})),
    }
    for code, token in grants.items():
        assert await market.refused(requester, token) == code
    changed = bytearray(market.grant())
    changed[len(changed) // 2] ^= 1
    assert await market.refused(requester, bytes(changed)) == "token_invalid"
    await market.take(requester, market.grant(peers=frozenset({requester.peer_id}), expires=now + 3600))


async def test_a_grant_is_for_what_is_outstanding_and_not_again_and_again(market: Market, requester: Any) -> None:
    market.rule(commit=TOKEN)
    token = market.grant(millicores=2000)
    assert await market.refused(requester, token, cores=2.5) == "token_exceeded"
    first = await market.take(requester, token, cores=1.5)
    assert await market.refused(requester, token, cores=1) == "token_exceeded"
    await market.take(requester, token, cores=0.5)
    async with market.visit(requester, token) as (_, allocations):
        await allocations.release(first.lease_id)
    await market.take(requester, token, cores=1.5)


async def test_two_halves_in_two_hands_are_no_more_than_the_whole(
    market: Market, requester: Any, stranger: Any
) -> None:
    market.rule(commit=TOKEN)
    whole = market.grant(millicores=4000)
    half = market.cut(whole, millicores=3000, peers=frozenset({requester.peer_id}))
    other = market.cut(whole, millicores=3000, peers=frozenset({stranger.peer_id}))
    lease = await market.take(requester, half, cores=3)
    assert lease.accounts == tuple(block.id for block in open_token(half, KEY).grants.blocks)
    assert await market.refused(stranger, other, cores=1.5) == "token_exceeded"
    await market.take(stranger, other, cores=1)
    assert await market.refused(stranger, half, cores=1) == "token_not_yours"


async def test_a_commitment_ends_with_its_grant_and_is_not_renewed_beyond(market: Market, requester: Any) -> None:
    market.rule(commit=TOKEN)
    token = market.grant(expires=int(market.provider.clock.now) + 100)
    assert await market.refused(requester, token, ttl=101) == "token_exceeded"
    lease = await market.take(requester, token, ttl=50)
    async with market.visit(requester) as (_, allocations):
        assert await code_of(allocations.renew(lease.lease_id, ttl=101)) == "token_exceeded"
        assert (await allocations.renew(lease.lease_id, ttl=100)).until == lease.until


async def test_what_a_revoked_grant_holds_is_released_and_nothing_else(market: Market, requester: Any) -> None:
    market.rule(commit=TOKEN)
    whole = market.grant()
    half = market.cut(whole)
    committed = await market.take(requester, half)
    running = await market.take(requester, half)
    async with market.visit(requester) as (_, allocations):
        await allocations.allocate(running.lease_id)
        market.revoked.add(open_token(whole, KEY).grants.blocks[0].id)
        assert await market.refused(requester, half) == "token_revoked"
        assert await code_of(allocations.renew(committed.lease_id, ttl=60)) == "token_revoked"
        assert await code_of(allocations.allocate(committed.lease_id)) == "token_revoked"
        # Running jobs continue, and all leases can be released.
        assert market.provider.manager.lease(running.lease_id).state is LeaseState.ALLOCATED
        await allocations.release(committed.lease_id)
        await allocations.release(running.lease_id)


async def test_that_a_grant_was_revoked_is_nobody_elses_business(market: Market, requester: Any, stranger: Any) -> None:
    market.rule(commit=TOKEN)
    token = market.grant()
    lease = await market.take(requester, token)
    market.revoked.add(open_token(token, KEY).grants.blocks[0].id)
    async with market.visit(stranger) as (_, allocations):
        assert await code_of(allocations.renew(lease.lease_id, ttl=60)) == "not_holder"


async def test_a_hold_is_charged_when_bids_need_a_token_and_a_bid_says_what_the_grant_has_left(
    market: Market, requester: Any, ask: Any, node: Any
) -> None:
    market.rule(commit=TOKEN, bid_request=TOKEN)
    token = market.grant(millicores=2000)
    async with market.visit(requester, token) as (bids, allocations):
        envelope = await market.bid(bids, 2, hold=30)
        refusal = (await bids.request_bids(ask(node(cores=1), nonce=99))).refusals[0]
        assert refusal.code == "policy"
        assert "grant" in refusal.message
        await allocations.commit([envelope], ttl=60)


async def test_a_listed_peer_needs_no_token_and_its_grant_is_not_charged(market: Market, requester: Any) -> None:
    market.rule(commit=AccessRule(peers=frozenset({requester.peer_id}), token=True))
    token = market.grant(millicores=500)
    assert (await market.take(requester, token, cores=1)).accounts == ()


# Shares of what is onboarded


def shares(total: dict[str, Any] | None = None, **peer: Any) -> Shares:
    usual = Shares()
    return Shares(
        peer=Share(**(msgspec.structs.asdict(usual.peer) | peer)),
        total=Share(**(msgspec.structs.asdict(usual.total) | (total or {}))),
    )


@pytest.fixture
def share(market: Market) -> Callable[..., None]:
    def set_shares(total: dict[str, Any] | None = None, **peer: Any) -> None:
        market.provider.shares = shares(total, **peer)

    return set_shares


async def test_a_peer_takes_no_more_than_its_part_of_what_is_onboarded(
    market: Market, requester: Any, stranger: Any, share: Callable[..., None]
) -> None:
    share(capacity=250)
    await market.take(requester, None, cores=1.5)
    async with market.visit(requester) as (bids, _):
        refusal = (await bids.request_bids(market._ask(market._node(cores=1), nonce=7))).refusals[0]
        assert (refusal.code, refusal.retry_after) == ("busy", pytest.approx(60))
        refusal = (await bids.request_bids(market._ask(market._node(cores=2.5), nonce=8))).refusals[0]
        assert (refusal.code, refusal.retry_after) == ("policy", None), "more than the whole share"
    await market.take(requester, None, cores=0.5)
    await market.take(stranger, None, cores=2)


async def test_a_commitment_beyond_the_share_is_refused_although_the_bid_came_before(
    market: Market, requester: Any, share: Callable[..., None]
) -> None:
    share(capacity=250)
    async with market.visit(requester) as (bids, allocations):
        first, second = await market.bid(bids, 1.5), await market.bid(bids, 1)
        await allocations.commit([first], ttl=60)
        with pytest.raises(RemoteError) as caught:
            await allocations.commit([second], ttl=60)
        assert caught.value.code == "share_exceeded"
        assert caught.value.details["problems"] == ["cores: 2.5 would be outstanding, 2 are allowed"]
        assert caught.value.retry_after == pytest.approx(60)


@pytest.mark.parametrize("bounds", [{"commitments": 2}, {"total": {"commitments": 2}}])
async def test_commitments_are_counted(
    market: Market, requester: Any, share: Callable[..., None], bounds: dict[str, Any]
) -> None:
    share(**bounds)
    async with market.visit(requester) as (bids, allocations):
        envelopes = [await market.bid(bids) for _ in range(3)]
        await allocations.commit(envelopes[:2], ttl=60)
        assert await code_of(allocations.commit(envelopes[2:], ttl=60)) == "share_exceeded"


async def test_a_commitment_is_no_longer_than_the_share_allows(
    market: Market, requester: Any, share: Callable[..., None]
) -> None:
    share(longest_ttl=100)
    assert await market.refused(requester, None, ttl=101) == "share_exceeded"
    lease = await market.take(requester, None, ttl=100)
    async with market.visit(requester) as (bids, allocations):
        assert await code_of(allocations.renew(lease.lease_id, ttl=101)) == "share_exceeded"
        await allocations.renew(lease.lease_id, ttl=100)
        refusal = (await bids.request_bids(market._ask(market._node(), nonce=7), ttl=101)).refusals[0]
        assert (refusal.code, refusal.retry_after) == ("policy", None)


async def test_the_owner_on_the_socket_has_no_share(market: Market, share: Callable[..., None]) -> None:
    share(commitments=1, longest_ttl=10)
    async with market.provider.connect(market.peer_id, local=True) as client:
        bids = market.provider.bidder(client, market.peer_id)
        envelopes = [await market.bid(bids) for _ in range(3)]
        await AllocationClient(client).commit(envelopes, ttl=60)
