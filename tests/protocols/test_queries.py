from __future__ import annotations

from typing import Any

import pytest
import trio.testing

from dms_protocols.clients import ResourcesClient
from dms_protocols.errors import RemoteError
from dms_resources.demands import CPUDemand, Demand
from dms_resources.units import Cores


def cores(number: float) -> Demand:
    return Demand(cpu=CPUDemand(cores=Cores.of(number)))


async def test_what_is_free_onboarded_and_allocated(provider: Any, machine: Any) -> None:
    await provider.manager.commit_resources("a", cores(1.5), holder="x", ttl=60)
    async with provider.connect() as client:
        resources = ResourcesClient(client)
        assert await resources.free() == provider.manager.get_free_resources()
        assert (await resources.free()).cpu.cores == Cores.of("6.5")
        assert await resources.onboarded() == provider.manager.get_onboarded_resources()
        assert (await resources.allocated()).cpu.cores == Cores(0)


async def test_an_answer_is_encoded_anew_when_something_changed_and_only_then(
    provider: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dms_protocols import queries

    encoded = []
    encode = queries.to_bytes
    monkeypatch.setattr(queries, "to_bytes", lambda answer: encoded.append(1) or encode(answer))
    async with provider.connect() as client:
        resources = ResourcesClient(client)
        for _ in range(3):
            assert (await resources.free()).cpu.cores == Cores.of(8)
        assert len(encoded) == 1
        await provider.manager.commit_resources("a", cores(1), holder="x", ttl=60)
        assert (await resources.free()).cpu.cores == Cores.of(7)
        provider.clock.now += 61
        assert (await resources.free()).cpu.cores == Cores.of(8)
    assert len(encoded) == 3


async def test_the_addresses_of_the_network_are_for_the_owner_alone(provider: Any, machine: Any) -> None:
    async with provider.connect("peer") as client:
        seen = await ResourcesClient(client).machine()
        assert seen.network.interfaces == ()
        assert seen.cpu == machine.cpu
    async with provider.connect("owner", local=True) as client:
        assert await ResourcesClient(client).machine() == machine


async def test_nothing_onboarded(provider: Any) -> None:
    await provider.manager.offboard()
    async with provider.connect() as client:
        with pytest.raises(RemoteError) as caught:
            await ResourcesClient(client).onboarded()
        assert caught.value.code == "not_onboarded"
        assert not (await ResourcesClient(client).free()).onboarded


async def test_usage_that_nobody_watches(provider: Any) -> None:
    async with provider.connect() as client:
        with pytest.raises(RemoteError) as caught:
            await ResourcesClient(client).usage()
    assert caught.value.code == "usage_unknown"


async def test_a_watch_begins_with_a_snapshot_and_follows(provider: Any) -> None:
    async with provider.connect() as client, ResourcesClient(client).watch() as changes:
        assert (await anext(changes)).cpu.cores == Cores.of(8)
        await provider.manager.commit_resources("a", cores(2), holder="x", ttl=60)
        assert (await anext(changes)).cpu.cores == Cores.of(6)
        await provider.manager.release("a", holder="x")
        assert (await anext(changes)).cpu.cores == Cores.of(8)


async def test_changes_behind_a_stalled_reader_are_one_event(provider: Any, nursery: Any, raw_peer: Any) -> None:
    from dms_protocols.rpc.operations import Caller
    from dms_protocols.rpc.service import serve_stream

    ours, theirs = trio.testing.lockstep_stream_pair()
    nursery.start_soon(serve_stream, theirs, provider.operations, Caller("x"))
    peer = raw_peer(ours)
    await peer.send({"id": 1, "op": "watch"})
    await trio.testing.wait_all_tasks_blocked()
    for number in range(5):
        await provider.manager.commit_resources(f"l{number}", cores(1), holder="x", ttl=60)
    seen = [(await peer.receive())["event"]["cpu"]["cores"] for _ in range(2)]
    assert seen == [8, 3]
    nursery.cancel_scope.cancel()
