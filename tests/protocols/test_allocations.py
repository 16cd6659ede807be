from __future__ import annotations

from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest

from dms_protocols.bidding.signing import seal_bid
from dms_protocols.clients import AllocationClient
from dms_protocols.errors import RemoteError
from dms_resources.demands import CPUDemand, Demand, GPUDemand, PortDemand
from dms_resources.ledger.leases import LeaseState
from dms_resources.units import Cores

GIB = 2**30


@pytest.fixture
def session(provider: Any) -> Any:
    """A bid client and an allocation client of one peer over one stream."""

    @asynccontextmanager
    async def open_session(peer: Any) -> Any:
        async with provider.connect(peer.peer_id) as client:
            yield provider.bidder(client, peer.peer_id), AllocationClient(client)

    return open_session


async def code_of(awaitable: Any) -> str:
    with pytest.raises(RemoteError) as caught:
        await awaitable
    return str(caught.value.code)


async def test_the_whole_way(provider: Any, session: Any, requester: Any, ask: Any, node: Any) -> None:
    manager = provider.manager
    async with session(requester) as (bids, allocations):
        (signed,) = (await bids.request_bids(ask(node(cores=2, gpus=(8,))))).bids
        (lease,) = await allocations.commit([signed.envelope], ttl=60)
        assert (lease.state, lease.holder) == (LeaseState.COMMITTED, requester.peer_id)
        assert lease.deadline == provider.clock.now + 60
        assert [gpu.uuid for gpu in lease.resources.gpus] == [gpu.uuid for gpu in signed.bid.resources.gpus]
        assert manager.get_free_resources().cpu.cores == Cores.of(6)

        provider.clock.now += 30
        assert (await allocations.renew(lease.lease_id, ttl=60, fence=lease.fence)).deadline == provider.clock.now + 60
        assert (await allocations.allocate(lease.lease_id, fence=lease.fence)).state is LeaseState.ALLOCATED
        assert manager.get_total_allocation().cpu.cores == Cores.of(2)
        assert [one.lease_id for one in (await allocations.list()).leases] == [lease.lease_id]

        assert (await allocations.release(lease.lease_id, fence=lease.fence)).lease_id == lease.lease_id
        assert manager.get_free_resources().cpu.cores == Cores.of(8)
        assert (await allocations.list()).leases == ()


async def test_bids_of_several_requests_bring_no_more_ports_together_than_one_may(
    provider: Any, session: Any, requester: Any, ask: Any, node: Any
) -> None:
    many = [ask(node(public_ports=PortDemand(dynamic=512)), nonce=nonce) for nonce in range(3)]
    async with session(requester) as (bids, allocations):
        envelopes = [(await bids.request_bids(one)).bids[0].envelope for one in many]
        assert await code_of(allocations.commit(envelopes, ttl=60)) == "bad_message"
        assert provider.manager.leases() == ()
        leases = await allocations.commit(envelopes[:2], ttl=60)
    assert len({port for lease in leases for port in lease.ports}) == 1024


async def test_the_same_commit_twice_answers_the_same_and_takes_once(
    provider: Any, session: Any, requester: Any, ask: Any, node: Any
) -> None:
    async with session(requester) as (bids, allocations):
        (signed,) = (await bids.request_bids(ask(node(cores=5, gpus=(8,))))).bids
        first = await allocations.commit([signed.envelope], ttl=60)
        assert await allocations.commit([signed.envelope], ttl=60) == first
        # Even if the bid has expired meanwhile, because the answer may have been lost.
        await allocations.renew(first[0].lease_id, ttl=1000)
        provider.clock.now += 301
        assert (await allocations.commit([signed.envelope], ttl=60))[0].fence == first[0].fence
    assert len(provider.manager.leases()) == 1


async def test_a_held_bid_is_committed_without_a_gap(
    provider: Any, session: Any, requester: Any, stranger: Any, ask: Any, node: Any
) -> None:
    async with session(requester) as (bids, allocations), session(stranger) as (others, _):
        (signed,) = (await bids.request_bids(ask(node(cores=8, gpus=(40,))), hold=20)).bids
        assert (await others.request_bids(ask(node(cores=1)))).bids == ()
        (lease,) = await allocations.commit([signed.envelope], ttl=60)
    assert lease.state is LeaseState.COMMITTED
    assert lease.resources == signed.bid.resources


async def test_only_the_peer_it_was_made_for_can_take_a_bid(
    provider: Any, session: Any, requester: Any, stranger: Any, ask: Any
) -> None:
    async with session(requester) as (bids, _), session(stranger) as (_, others):
        (signed,) = (await bids.request_bids(ask())).bids
        assert await code_of(others.commit([signed.envelope], ttl=60)) == "not_your_bid"
    assert provider.manager.leases() == ()


async def test_bids_that_are_not_good(provider: Any, session: Any, requester: Any, stranger: Any, ask: Any) -> None:
    async with session(requester) as (bids, allocations):
        (signed,) = (await bids.request_bids(ask())).bids

        async def code(envelope: bytes) -> str:
            return await code_of(allocations.commit([envelope], ttl=60))

        foreign = msgspec.structs.replace(signed.bid, provider=stranger.peer_id)
        assert await code(b"") == "bad_envelope"
        assert await code(bytes([*signed.envelope[:-1], signed.envelope[-1] ^ 1])) == "bad_signature"
        assert await code(seal_bid(signed.bid, stranger)) == "bad_bid"
        assert await code(seal_bid(foreign, stranger)) == "not_my_bid"
        provider.clock.now += 301
        assert await code(signed.envelope) == "bid_expired"
        # It was made by a clock that was years ahead, and would otherwise be valid until then.
        provider.clock.now -= 1e8
        assert await code(signed.envelope) == "bid_expired"
    assert provider.manager.leases() == ()


async def test_capacity_that_went_meanwhile_is_named(
    provider: Any, session: Any, requester: Any, ask: Any, node: Any
) -> None:
    async with session(requester) as (bids, allocations):
        (signed,) = (await bids.request_bids(ask(node(cores=5)))).bids
        await provider.manager.commit_resources("x", node(cores=4).resources, holder="other", ttl=30)
        with pytest.raises(RemoteError) as caught:
            await allocations.commit([signed.envelope], ttl=60)
    assert caught.value.code == "insufficient"
    assert caught.value.retry_after == 30
    assert caught.value.details["shortages"] == [
        {"dimension": "cpu", "asked": {"cores": 5}, "free": {"cores": 4}, "total": {"cores": 8}}
    ]


async def test_the_device_that_the_bid_names_is_given_though_another_fits_better_now(
    provider: Any, session: Any, requester: Any, ask: Any, node: Any
) -> None:
    async with session(requester) as (bids, allocations):
        (signed,) = (await bids.request_bids(ask(node(gpus=(8,))))).bids
        await provider.manager.commit_resources(
            "x", Demand(gpus=(GPUDemand(vram=60 * GIB, uuid="GPU-1"),)), holder="other", ttl=600
        )
        (fitting,) = (await bids.request_bids(ask(node(gpus=(8,)), nonce=2))).bids
        (lease,) = await allocations.commit([signed.envelope], ttl=60)
    assert fitting.bid.resources.gpus[0].uuid == "GPU-1"
    assert lease.resources.gpus[0].uuid == signed.bid.resources.gpus[0].uuid == "GPU-0"


async def test_another_device_of_the_same_model_does_when_the_named_one_went(
    provider: Any, session: Any, requester: Any, ask: Any, node: Any
) -> None:
    async with session(requester) as (bids, allocations):
        (signed,) = (await bids.request_bids(ask(node(gpus=(40,))))).bids
        assert signed.bid.resources.gpus[0].uuid == "GPU-0"
        taken = Demand(gpus=(GPUDemand(vram=GIB, uuid="GPU-0"),))
        await provider.manager.commit_resources("x", taken, holder="other", ttl=600)
        (lease,) = await allocations.commit([signed.envelope], ttl=60)
        assert lease.resources.gpus[0].uuid == "GPU-1"
        # Even if the first one is free again.
        await provider.manager.release("x")
        assert await allocations.commit([signed.envelope], ttl=60) == (lease,)


async def test_several_bids_are_taken_together_or_not_at_all(
    provider: Any, session: Any, requester: Any, ask: Any, node: Any
) -> None:
    async with session(requester) as (bids, allocations):
        signed = (await bids.request_bids(ask(node("a", cores=3), node("b", cores=3)))).bids
        envelopes = [one.envelope for one in signed]
        blocked = Demand(cpu=CPUDemand(cores=Cores.of(4)))
        await provider.manager.commit_resources("x", blocked, holder="other", ttl=600)
        assert await code_of(allocations.commit(envelopes, ttl=60)) == "insufficient"
        assert provider.manager.leases(requester.peer_id) == ()
        await provider.manager.release("x")
        leases = await allocations.commit(envelopes, ttl=60)
        assert [lease.lease_id for lease in leases] == [one.bid.lease_id for one in signed]
        assert await code_of(allocations.commit([envelopes[0]] * 2, ttl=60)) == "conflict"


async def test_a_lease_is_its_holders_alone(
    provider: Any, session: Any, requester: Any, stranger: Any, ask: Any
) -> None:
    async with session(requester) as (bids, mine), session(stranger) as (_, theirs):
        (signed,) = (await bids.request_bids(ask())).bids
        (lease,) = await mine.commit([signed.envelope], ttl=60)
        assert (await theirs.list()).leases == ()
        for attempt in (
            theirs.renew(lease.lease_id, ttl=9), theirs.allocate(lease.lease_id), theirs.release(lease.lease_id)
        ):  # fmt: skip
            assert await code_of(attempt) == "not_holder"
        assert (await mine.list()).leases == (lease,)


async def test_codes_of_the_ledger(provider: Any, session: Any, requester: Any, ask: Any) -> None:
    async with session(requester) as (bids, allocations):
        (signed,) = (await bids.request_bids(ask())).bids
        (lease,) = await allocations.commit([signed.envelope], ttl=60)
        assert await code_of(allocations.renew(lease.lease_id, ttl=60, fence=lease.fence + 1)) == "stale_fence"
        assert await code_of(allocations.allocate("unknown")) == "not_committed"
        assert await code_of(allocations.release("unknown")) == "not_allocated"
        assert await code_of(allocations.commit([signed.envelope], ttl=1e9)) == "bad_amount"
        assert await code_of(allocations.commit([signed.envelope], ttl=-1)) == "bad_message"
        provider.clock.now += 61
        assert await code_of(allocations.allocate(lease.lease_id, fence=lease.fence)) == "expired"
        assert await code_of(allocations.commit([signed.envelope], ttl=60)) == "expired"


async def test_a_long_list_comes_in_pages(provider: Any, session: Any, requester: Any, ask: Any, node: Any) -> None:
    for number in range(5):
        await provider.manager.commit_resources(
            f"lease-{number}", node(cores=1).resources, holder=requester.peer_id, ttl=60
        )
    async with session(requester) as (_, allocations):
        first = await allocations.list(limit=3)
        rest = await allocations.list(after=first.leases[-1].lease_id, limit=3)
    assert [lease.lease_id[-1] for lease in (*first.leases, *rest.leases)] == ["0", "1", "2", "3", "4"]
    assert (first.more, rest.more) == (True, False)


@pytest.mark.parametrize("ended", [None, "released", "evicted"])
async def test_a_lease_whose_job_still_runs_has_ended_for_its_holder(
    provider: Any, session: Any, requester: Any, ask: Any, node: Any, ended: str | None
) -> None:
    manager = provider.manager
    async with session(requester) as (bids, allocations):
        (signed,) = (await bids.request_bids(ask(node(cores=2)))).bids
        (lease,) = await allocations.commit([signed.envelope], ttl=60)
        await allocations.allocate(lease.lease_id)
        await manager.attach_job(lease.lease_id, "ab" * 32)
        await manager.attach_processes(lease.lease_id, [1], cgroup="/jobs/1")

        # Nothing of the job is shown, by whichever answer the lease comes.
        answers = [
            *(await allocations.list()).leases,
            *(await allocations.commit([signed.envelope], ttl=60)),
            await allocations.allocate(lease.lease_id),
            await allocations.renew(lease.lease_id, ttl=60),
        ]
        assert len(answers) == 4
        assert all((one.job, one.processes, one.cgroup) == (None, (), "") for one in answers)
        if ended is None:
            return
        if ended == "released":
            first = await allocations.release(lease.lease_id)
            assert first.state is LeaseState.ALLOCATED
            assert await allocations.release(lease.lease_id) == first
        else:
            await manager.evict([lease.lease_id])
        page = await allocations.list()
        assert page.leases == ()
        assert [one.state for one in page.evicted] == [LeaseState.ALLOCATED] * (ended == "evicted")
        code = {"released": "ended"}.get(ended, ended)
        assert await code_of(allocations.renew(lease.lease_id, ttl=60)) == code
        assert await code_of(allocations.allocate(lease.lease_id)) == code
        assert await code_of(allocations.commit([signed.envelope], ttl=60)) == code
        assert [one.state for one in manager.leases()] == [LeaseState.ENDING]
        assert manager.get_free_resources().cpu.cores == Cores.of(6)
