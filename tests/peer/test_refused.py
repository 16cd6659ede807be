"""Attempts to take what belongs to others, over real hosts: each attempt has a code of its own."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trio
from libp2p.abc import IHost
from msgspec.structs import replace

from dms_host import dial, host_addresses, open_host
from dms_host.errors import DialError
from dms_host.keys.envelopes import sign_envelope
from dms_host.keys.identity import Identity, new_identity, public_key_of
from dms_peer.clients import open_allocations, open_bids, open_resources
from dms_peer.owner.messages import OffboardRequest, OnboardAnswer, RevokeAnswer, RevokeRequest
from dms_peer.serving import serve
from dms_peer.signing import EnvelopeChecker, IdentitySigner
from dms_protocols.bidding.signing import open_bid, seal_bid
from dms_protocols.errors import RemoteError
from dms_protocols.messages.bid import BID_DOMAIN, BID_PAYLOAD_TYPE, Bid, EnsembleRequest, NodeRequest
from dms_protocols.rpc.access import AccessRule, AccessRules
from dms_protocols.tokens.biscuits import attenuate_token, create_token, open_token
from dms_protocols.tokens.grants import GrantTerms
from dms_protocols.wire.conversion import sealed_bytes
from dms_resources.components import CPU, GPU, RAM, Disk, MachineResources, OnboardedResources
from dms_resources.demands import CPUDemand, Demand, GPUDemand
from dms_resources.ledger.accounts import Allowance
from dms_resources.ledger.leases import Lease, LeaseState
from dms_resources.manager import ResourceManager, open_manager
from dms_resources.units import GIB, Cores

LOOPBACK = "/ip4/127.0.0.1/tcp/0"
PARTS: dict[str, Any] = {
    "cpu": CPU(cores=Cores.of(16)),
    "ram": RAM(size=8 * GIB),
    "disk": Disk(size=GIB),
    "gpus": (GPU(uuid="gpu-0", vram=24 * GIB), GPU(uuid="gpu-1", vram=24 * GIB)),
}
TOKENS_ONLY = AccessRules(operations={"commit": AccessRule(token=True)})


@dataclass
class Provider:
    """A peer that offers 16 cores and two GPUs."""

    identity: Identity
    host: IHost
    manager: ResourceManager
    revoked: set[str]

    @property
    def address(self) -> str:
        return host_addresses(self.host)[0]

    def grant(self, **terms: Any) -> bytes:
        return create_token(self.identity.seed, self.identity.peer_id, grant_terms(**terms))

    def cut(self, token: bytes, **terms: Any) -> bytes:
        return attenuate_token(token, public_key_of(self.identity.peer_id) or b"", grant_terms(**terms))


def grant_terms(**terms: Any) -> GrantTerms:
    amounts = {name: terms.pop(name) for name in Allowance.__struct_fields__ if name in terms}
    return GrantTerms(allowance=Allowance(**amounts), **terms)


class Requester:
    """A requester with a host of its own."""

    def __init__(self, host: IHost) -> None:
        self.host = host
        self._nonce = 0

    @property
    def peer_id(self) -> str:
        return self.host.get_id().to_base58()

    async def bid(self, provider: Provider, cores: float = 1, gpus: int = 0) -> bytes:
        self._nonce += 1
        demand = Demand(cpu=CPUDemand(cores=Cores.of(cores)), gpus=(GPUDemand(vram=GIB),) * gpus)
        node = NodeRequest(node_id="n", resources=demand)
        ensemble = EnsembleRequest(id="e", nonce=self._nonce, deadline=time.time() + 60, request=(node,))
        peer_id = await dial(self.host, provider.address)
        async with open_bids(self.host, peer_id) as bids:
            return (await bids.request_bids(ensemble)).bids[0].envelope

    async def commit(self, provider: Provider, *bids: bytes, token: bytes | None = None, ttl: float = 60) -> Lease:
        peer_id = await dial(self.host, provider.address)
        async with open_allocations(self.host, peer_id, token=token) as allocations:
            return (await allocations.commit(bids, ttl=ttl))[0]

    async def take(self, provider: Provider, token: bytes | None = None, **wanted: Any) -> Lease:
        ttl = wanted.pop("ttl", 60)
        return await self.commit(provider, await self.bid(provider, **wanted), token=token, ttl=ttl)


@pytest.fixture
def open_provider(tmp_path: Path, nursery: trio.Nursery) -> Callable[..., Any]:
    """Opens providers, each with a key, a ledger and a host of its own, until the end of the test."""

    async def run(rules: AccessRules | None, task_status: Any) -> None:
        identity, revoked = new_identity(), set[str]()
        async with (
            open_manager(tmp_path / f"{identity.peer_id}.db", MachineResources(**PARTS)) as manager,
            open_host(identity, [LOOPBACK]) as host,
            serve(host, manager, access=rules, revoked=revoked),
        ):
            await manager.update_onboarded_resources(OnboardedResources(**PARTS))
            task_status.started(Provider(identity, host, manager, revoked))
            await trio.sleep_forever()

    async def open_(rules: AccessRules | None = None) -> Provider:
        opened: Provider = await nursery.start(run, rules)
        return opened

    return open_


@pytest.fixture
async def provider(open_provider: Callable[..., Any]) -> Provider:
    opened: Provider = await open_provider()
    return opened


@pytest.fixture
async def guarded(open_provider: Callable[..., Any]) -> Provider:
    """A provider at which only holders of a token may commit."""
    opened: Provider = await open_provider(TOKENS_ONLY)
    return opened


@asynccontextmanager
async def requester() -> AsyncIterator[Requester]:
    async with open_host(new_identity()) as host:
        yield Requester(host)


@pytest.fixture
async def alice() -> AsyncIterator[Requester]:
    async with requester() as opened:
        yield opened


@pytest.fixture
async def mallory() -> AsyncIterator[Requester]:
    async with requester() as opened:
        yield opened


async def code_of(attempt: Any) -> str:
    with pytest.raises(RemoteError) as caught:
        await attempt
    return caught.value.code


# Impersonation


async def test_a_host_at_anothers_address_does_not_pass_for_it(provider: Provider, alice: Requester) -> None:
    somebody = new_identity().peer_id
    with pytest.raises(DialError) as caught:
        await dial(alice.host, provider.address.replace(provider.identity.peer_id, somebody))
    assert caught.value.code == "wrong_peer"


async def test_a_lease_is_its_holders_whoever_knows_its_number(
    provider: Provider, alice: Requester, mallory: Requester
) -> None:
    lease = await alice.take(provider)
    peer_id = await dial(mallory.host, provider.address)
    async with open_allocations(mallory.host, peer_id) as allocations:
        assert await code_of(allocations.release(lease.lease_id, fence=lease.fence)) == "not_holder"
        assert await code_of(allocations.allocate(lease.lease_id)) == "not_holder"
        assert await code_of(allocations.renew(lease.lease_id, ttl=60)) == "not_holder"
        assert (await allocations.list()).leases == ()
    assert provider.manager.is_committed(lease.lease_id)


async def test_a_bid_that_somebody_signed_in_the_providers_name_is_none(provider: Provider, mallory: Requester) -> None:
    bid = open_bid(await mallory.bid(provider), EnvelopeChecker())
    forged = seal_bid(replace(bid, price=None), IdentitySigner(new_identity()))
    assert await code_of(mallory.commit(provider, forged)) == "bad_bid"


async def test_nobody_administers_a_peer_from_outside(provider: Provider, mallory: Requester) -> None:
    peer_id = await dial(mallory.host, provider.address)
    async with open_resources(mallory.host, peer_id) as resources:
        client = resources._client
        assert await code_of(client.call(OffboardRequest(), OnboardAnswer, timeout=5)) == "unknown_operation"
        revoke = RevokeRequest(grants=("0" * 32,))
        assert await code_of(client.call(revoke, RevokeAnswer, timeout=5)) == "unknown_operation"


# Replayed bids, and bids of others


async def test_a_bid_of_another_peer_cannot_be_taken(provider: Provider, alice: Requester, mallory: Requester) -> None:
    bid = await alice.bid(provider)
    assert await code_of(mallory.commit(provider, bid)) == "not_your_bid"
    # Not even together with an own one.
    assert await code_of(mallory.commit(provider, await mallory.bid(provider), bid)) == "not_your_bid"
    assert provider.manager.leases() == ()


async def test_a_bid_counts_at_the_provider_that_made_it_alone(
    open_provider: Callable[..., Any], provider: Provider, alice: Requester
) -> None:
    other = await open_provider()
    assert await code_of(alice.commit(other, await alice.bid(provider))) == "not_my_bid"


async def test_a_bid_taken_twice_is_one_lease_and_given_back_it_is_spent(provider: Provider, alice: Requester) -> None:
    bid = await alice.bid(provider)
    first = await alice.commit(provider, bid)
    assert (await alice.commit(provider, bid)).lease_id == first.lease_id
    assert len(provider.manager.leases()) == 1
    await provider.manager.release(first.lease_id)
    assert await code_of(alice.commit(provider, bid)) == "ended"


async def test_an_old_bid_is_of_no_use(provider: Provider, alice: Requester) -> None:
    bid = open_bid(await alice.bid(provider), EnvelopeChecker())
    # As the provider signed it at that time.
    old = seal_bid(replace(bid, valid_until=time.time() - 1), IdentitySigner(provider.identity))
    assert await code_of(alice.commit(provider, old)) == "bid_expired"


# Changed envelopes


def sealed(provider: Provider, bid: Bid, *, domain: str = BID_DOMAIN, kind: bytes = BID_PAYLOAD_TYPE) -> bytes:
    return sign_envelope(provider.identity, domain, kind, sealed_bytes(bid))


async def test_a_changed_envelope_is_refused_wherever_it_was_changed(provider: Provider, alice: Requester) -> None:
    raw = await alice.bid(provider)
    codes = set()
    for at in range(0, len(raw), 7):
        changed = bytearray(raw)
        changed[at] ^= 1
        codes.add(await code_of(alice.commit(provider, bytes(changed))))
    assert codes == {"bad_envelope", "bad_signature"}
    assert provider.manager.leases() == ()


async def test_a_better_bid_under_the_old_signature_is_refused(provider: Provider, alice: Requester) -> None:
    raw = await alice.bid(provider, cores=1)
    bid = open_bid(raw, EnvelopeChecker())
    wanted = replace(bid, demand=replace(bid.demand, cpu=CPUDemand(cores=Cores.of(8))))
    before, after = sealed_bytes(bid), sealed_bytes(wanted)
    assert len(before) == len(after)
    assert await code_of(alice.commit(provider, raw.replace(before, after))) == "bad_signature"


async def test_what_was_signed_for_another_purpose_is_no_bid(provider: Provider, alice: Requester) -> None:
    bid = open_bid(await alice.bid(provider), EnvelopeChecker())
    assert await code_of(alice.commit(provider, sealed(provider, bid, domain="dms-advert"))) == "bad_signature"
    assert await code_of(alice.commit(provider, sealed(provider, bid, kind=b"/dms/advert/1.0.0"))) == "bad_envelope"
    assert await code_of(alice.commit(provider, await alice.bid(provider) + b"\x00")) == "bad_envelope"


# Tokens


async def test_without_a_token_or_with_a_forged_one_nothing_is_taken(guarded: Provider, mallory: Requester) -> None:
    own = new_identity()
    forged = create_token(own.seed, guarded.identity.peer_id, GrantTerms())
    foreign = create_token(own.seed, own.peer_id, GrantTerms())
    changed = bytearray(guarded.grant(millicores=1000))
    changed[changed.index(b"millicores")] ^= 1
    assert await code_of(mallory.take(guarded)) == "token_required"
    for token in (forged, foreign, bytes(changed), b"", b"\xff" * 9000):
        assert await code_of(mallory.take(guarded, token)) == "token_invalid"
    assert guarded.manager.leases() == ()


async def test_an_expired_token_is_refused(guarded: Provider, alice: Requester) -> None:
    token = guarded.grant(expires=int(time.time()) + 3600)
    await alice.take(guarded, token)
    assert await code_of(alice.take(guarded, guarded.grant(expires=int(time.time()) - 1))) == "token_expired"
    # Nor a token that was derived with a shorter time.
    assert await code_of(alice.take(guarded, guarded.cut(token, expires=int(time.time()) - 1))) == "token_expired"


async def test_a_token_is_of_no_use_beyond_its_bounds(guarded: Provider, alice: Requester, mallory: Requester) -> None:
    token = guarded.grant(
        millicores=8000, gpus=1, expires=int(time.time()) + 1000, peers=frozenset({alice.peer_id}),
        operations=frozenset({"commit"}), providers=frozenset({guarded.identity.peer_id}),
    )  # fmt: skip
    assert await code_of(alice.take(guarded, token, cores=9)) == "token_exceeded"
    assert await code_of(alice.take(guarded, token, gpus=2)) == "token_exceeded"
    assert await code_of(alice.take(guarded, token, ttl=2000)) == "token_exceeded"
    assert await code_of(mallory.take(guarded, token)) == "token_not_yours"
    assert await code_of(alice.take(guarded, guarded.grant(operations=frozenset({"free"})))) == "token_not_for_this"
    assert await code_of(alice.take(guarded, guarded.grant(providers=frozenset({alice.peer_id})))) == "token_not_here"
    assert guarded.manager.leases() == ()
    lease = await alice.take(guarded, token, cores=8, gpus=1)
    # The sum of what is outstanding counts, not each commitment alone.
    assert await code_of(alice.take(guarded, token, cores=1)) == "token_exceeded"
    await guarded.manager.release(lease.lease_id)
    await alice.take(guarded, token, cores=8)


async def test_an_organisation_passes_half_of_its_grant_on_and_both_halves_are_no_more_than_the_whole(
    guarded: Provider, alice: Requester, mallory: Requester
) -> None:
    whole = guarded.grant(millicores=8000, gpus=1, expires=int(time.time()) + 3600)
    half = guarded.cut(whole, millicores=4000, peers=frozenset({alice.peer_id}))
    # Derived again: it grants no more than its own half.
    greedy = guarded.cut(half, millicores=8000)
    assert await code_of(alice.take(guarded, greedy, cores=5)) == "token_exceeded"
    await alice.take(guarded, half, cores=4)
    assert await code_of(mallory.take(guarded, whole, cores=5)) == "token_exceeded"
    await mallory.take(guarded, whole, cores=4)
    assert await code_of(mallory.take(guarded, whole, cores=0.001)) == "token_exceeded"


async def test_a_revoked_grant_ends_what_came_of_it_and_what_runs_goes_on(guarded: Provider, alice: Requester) -> None:
    whole = guarded.grant()
    half = guarded.cut(whole, millicores=4000)
    lease = await alice.take(guarded, half)
    peer_id = await dial(alice.host, guarded.address)
    async with open_allocations(alice.host, peer_id) as allocations:
        await allocations.allocate(lease.lease_id)
        guarded.revoked.add(open_token(whole, public_key_of(guarded.identity.peer_id) or b"").grants.blocks[0].id)
        assert await code_of(alice.take(guarded, half)) == "token_revoked"
        running = guarded.manager.lease(lease.lease_id)
        assert running is not None
        assert running.state is LeaseState.ALLOCATED
        await allocations.release(lease.lease_id)


async def test_an_owner_of_several_machines_grants_with_one_key(
    open_provider: Callable[..., Any], alice: Requester
) -> None:
    office = new_identity()
    rules = AccessRules(operations=TOKENS_ONLY.operations, trusted=(office.peer_id,))
    first, second = await open_provider(rules), await open_provider(rules)
    token = create_token(office.seed, office.peer_id, grant_terms(millicores=1000))
    for provider in (first, second):
        await alice.take(provider, token)
    # Each provider counts separately.
    assert await code_of(alice.take(first, token)) == "token_exceeded"
