"""What unknown peers may have outstanding, all peers of one address together."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dms_protocols.clients import AllocationClient
from dms_protocols.errors import RemoteError
from dms_protocols.rpc.access import Access, AccessRule, AccessRules
from dms_protocols.rpc.limits import Shares
from dms_protocols.tokens.biscuits import create_token
from dms_protocols.tokens.checks import TokenChecker
from dms_protocols.tokens.grants import GrantTerms
from dms_resources.ledger.accounts import Allowance
from dms_resources.ledger.leases import Lease
from dms_resources.units import GIB, Cores

SEED = b"\x07" * 32
KEY = Ed25519PrivateKey.from_private_bytes(SEED).public_key().public_bytes_raw()
ADDRESS, OTHER = "203.0.113.7", "203.0.113.8"
ANYONE = AccessRule(anyone=True)


class Market:
    """A provider of 8 cores and GPUs of 40 and 80 GiB, of which strangers may have a quarter."""

    def __init__(self, provider: Any, ask: Any, node: Any) -> None:
        self.provider = provider
        self.ask, self.node = ask, node
        provider.shares = Shares(stranger_capacity=250)
        self.asked = 0

    def rule(self, **operations: AccessRule) -> None:
        name = self.provider.signer.peer_id
        tokens = TokenChecker(name, {name: KEY}, set(), self.provider.clock.wall)
        self.provider.tokens = tokens
        self.provider.access = Access(AccessRules(operations=operations), tokens)

    def grant(self, cores: int) -> bytes:
        terms = GrantTerms(allowance=Allowance(millicores=cores * 1000))
        return create_token(SEED, self.provider.signer.peer_id, terms)

    @asynccontextmanager
    async def visit(
        self, peer_id: str, address: str = ADDRESS, *, token: bytes | None = None, local: bool = False
    ) -> AsyncIterator[Callable[..., Any]]:
        """A function that requests a bid for a node and commits it."""
        async with self.provider.connect(peer_id, group=address, local=local) as client:

            async def take(*, hold: float = 0.0, **wanted: Any) -> Lease:
                self.asked += 1
                bidder = self.provider.bidder(client, peer_id, token)
                answer = await bidder.request_bids(self.ask(self.node(**wanted), nonce=self.asked), hold=hold)
                if not answer.bids:
                    raise RemoteError(answer.refusals[0].message, code=answer.refusals[0].code, details={})
                (lease,) = await AllocationClient(client, token=token).commit([answer.bids[0].envelope], ttl=60)
                return lease

            yield take

    async def take(self, peer_id: str, address: str = ADDRESS, **options: Any) -> Lease:
        token, local = options.pop("token", None), options.pop("local", False)
        async with self.visit(peer_id, address, token=token, local=local) as take:
            return await take(**options)

    async def refused(self, *args: Any, **options: Any) -> str:
        with pytest.raises(RemoteError) as caught:
            await self.take(*args, **options)
        return caught.value.message


@pytest.fixture
def market(provider: Any, ask: Any, node: Any) -> Market:
    return Market(provider, ask, node)


async def test_a_stranger_has_a_part_of_the_offer_at_most(market: Market, requester: Any) -> None:
    assert "cores: 3 would be outstanding, 2 are allowed" in await market.refused(requester.peer_id, cores=3)
    lease = await market.take(requester.peer_id, cores=2)
    assert lease.accounts == (f"strangers at {ADDRESS}",)
    await market.refused(requester.peer_id, cores=1)
    await market.provider.manager.release(lease.lease_id)
    await market.take(requester.peer_id, cores=1)


async def test_a_hundred_identities_at_one_address_count_together(market: Market, new_signer: Any) -> None:
    names = [new_signer(number).peer_id for number in range(10, 110)]
    taken = 0
    for name in names:
        try:
            await market.take(name, cores=0.5)
            taken += 1
        except RemoteError:
            pass
    assert taken == 4
    assert market.provider.manager.get_total_commitment().cpu.cores.millicores == 2000
    # A peer from another address has a share of its own.
    await market.take(names[99], OTHER, cores=2)


async def test_the_share_outlasts_the_process(market: Market, requester: Any, stranger: Any) -> None:
    """The account is stored with the leases, so that a restart gives no second share."""
    lease = await market.take(requester.peer_id, cores=2)
    stored = market.provider.manager.lease(lease.lease_id)
    assert stored is not None
    assert stored.accounts == (f"strangers at {ADDRESS}",)
    found = market.provider.manager._ledger.storage.load_leases()
    assert [one.lease.accounts for one in found] == [stored.accounts]


async def test_one_gpu_is_in_every_share(market: Market, requester: Any, stranger: Any, provider: Any) -> None:
    async with market.visit(requester.peer_id) as take:
        lease = await take(cores=1, gpus=(80,))
        assert len(lease.resources.gpus) == 1
        with pytest.raises(RemoteError, match="GPUs: 2 would be outstanding, 1 are allowed"):
            await take(cores=1, gpus=(1,))


async def test_holds_count_and_what_is_held_can_be_committed(market: Market, requester: Any, stranger: Any) -> None:
    async with market.visit(requester.peer_id) as take:
        await take(cores=2, hold=30.0)
    assert "2.5 would be outstanding" in await market.refused(stranger.peer_id, cores=0.5)


@pytest.mark.parametrize("rule", [AccessRule(anyone=True, peers=frozenset({"known"})), None])
async def test_who_the_owner_knows_is_no_stranger(
    market: Market, requester: Any, stranger: Any, rule: AccessRule | None
) -> None:
    commit = (
        AccessRule(anyone=True, peers=frozenset({requester.peer_id}))
        if rule
        else AccessRule(peers=frozenset({requester.peer_id}))
    )
    market.rule(commit=commit)
    assert (await market.take(requester.peer_id, cores=6)).accounts == ()
    if rule:
        await market.refused(stranger.peer_id, cores=2.5)
    await market.take(stranger.peer_id, local=True, cores=2)


async def test_a_token_gives_more_where_anyone_may_commit(market: Market, requester: Any, stranger: Any) -> None:
    market.rule(commit=AccessRule(anyone=True, token=True))
    token = market.grant(cores=6)
    lease = await market.take(requester.peer_id, token=token, cores=6)
    assert len(lease.accounts) == 1
    assert not lease.accounts[0].startswith("strangers")
    assert "5 would be outstanding" not in await market.refused(stranger.peer_id, cores=2.5)
    await market.take(stranger.peer_id, cores=2)
    # An invalid token is an error and not a smaller share.
    assert await market.refused(requester.peer_id, token=token[:-1], cores=0.1)


async def test_one_line_changes_it(market: Market, requester: Any) -> None:
    market.provider.shares = Shares(stranger_capacity=1000)
    assert (await market.take(requester.peer_id, cores=8)).accounts == ()
    with pytest.raises(ValueError, match="at most 1000"):
        Shares(stranger_capacity=1001)


async def test_a_small_offer_has_a_share_that_a_job_fits_in(market: Market, requester: Any) -> None:
    market.provider.shares = Shares(stranger_capacity=1)
    lease = await market.take(requester.peer_id, cores=1, gpus=(80,))
    assert (lease.resources.cpu.cores, lease.resources.gpus[0].vram) == (Cores.of(1), 80 * GIB)
