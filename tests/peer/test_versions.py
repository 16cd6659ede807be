"""Versions of a protocol between real hosts: the newest that both have is used, and trading works in each."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from dms_host import HardenedHost, attach_protocols, dial, host_addresses, open_stream
from dms_host.errors import DialError
from dms_peer import clients as requester
from dms_peer.clients import open_allocations, open_bids
from dms_peer.connections import open_connections
from dms_peer.serving import peer_operations, serve
from dms_peer.signing import EnvelopeChecker, host_identity
from dms_protocols.bidding.versions import BID_1_0, BID_1_1, BID_VERSIONS, BidVersion
from dms_protocols.clients import BidClient
from dms_protocols.messages.bid import EnsembleRequest, NodeRequest
from dms_protocols.protocol_ids import BID_PROTOCOL, BID_PROTOCOL_1_1
from dms_protocols.rpc.operations import Caller
from dms_protocols.rpc.service import serve_stream
from dms_protocols.wire.conversion import to_map
from dms_resources.components import CPU, RAM, Disk, MachineResources, OnboardedResources
from dms_resources.demands import CPUDemand, Demand
from dms_resources.manager import ResourceManager, open_manager
from dms_resources.units import GIB, Cores

PARTS = {"cpu": CPU(cores=Cores.of(4)), "ram": RAM(size=8 * GIB), "disk": Disk(size=100 * GIB), "gpus": ()}
# The deadline is a whole number: the versions have different digests of it.
ENSEMBLE = EnsembleRequest(
    id="e",
    nonce=1,
    deadline=2e9,
    request=(NodeRequest(node_id="n", resources=Demand(cpu=CPUDemand(cores=Cores.of(1)))),),
)
BOTH = [BID_PROTOCOL_1_1, BID_PROTOCOL]

Serving = Callable[[list[str]], AbstractAsyncContextManager[str]]


@pytest.fixture
async def manager(tmp_path: Path) -> AsyncIterator[ResourceManager]:
    async with open_manager(tmp_path / "ledger.db", MachineResources(**PARTS)) as manager:
        await manager.update_onboarded_resources(OnboardedResources(**PARTS))
        yield manager


@pytest.fixture
def serving(server: HardenedHost, client: HardenedHost, manager: ResourceManager) -> Serving:
    """A provider of these versions of the bid protocol, to which the client is connected. Yields its peer id."""
    operations = peer_operations(manager, host_identity(server))

    async def answer(served: Any, stream: Any, peer_id: str) -> None:
        await serve_stream(stream, served, Caller(peer_id))

    @asynccontextmanager
    async def serve_versions(versions: list[str]) -> AsyncIterator[str]:
        others = [protocol for protocol in operations if protocol not in BOTH]
        handlers = {protocol: functools.partial(answer, operations[protocol]) for protocol in [*versions, *others]}
        async with attach_protocols(server, handlers):
            yield await dial(client, host_addresses(server)[0])

    return serve_versions


@pytest.mark.parametrize(
    ("spoken", "served", "agreed"),
    [
        (BOTH, BOTH, BID_1_1),
        (BOTH, [BID_PROTOCOL], BID_1_0),
        ([BID_PROTOCOL], BOTH, BID_1_0),
        (BOTH, [BID_PROTOCOL_1_1], BID_1_1),
    ],
)
async def test_the_newest_version_that_both_have(
    serving: Serving, client: HardenedHost, monkeypatch: pytest.MonkeyPatch, spoken: Any, served: Any, agreed: Any
) -> None:
    known = requester.versions_of
    monkeypatch.setattr(requester, "versions_of", lambda protocol: spoken if protocol in BOTH else known(protocol))
    async with serving(served) as provider, open_bids(client, provider) as bids:
        (signed,) = (await bids.request_bids(ENSEMBLE)).bids
        assert signed.bid.request_digest == agreed.digest(to_map(ENSEMBLE))
        assert len({version.digest(to_map(ENSEMBLE)) for version in BID_VERSIONS}) == 2
        async with open_allocations(client, provider) as allocations:
            (lease,) = await allocations.commit([signed.envelope], ttl=60)
            assert lease.lease_id == signed.bid.lease_id


async def test_who_has_no_version_in_common_is_told_so(serving: Serving, client: HardenedHost) -> None:
    async with serving([BID_PROTOCOL]) as provider:
        with pytest.raises(DialError) as caught:
            await open_stream(client, provider, ["/dms/bid/2.0.0", "/dms/bid/1.9.0"])
    assert caught.value.code == "protocol_not_supported"
    assert "/dms/bid/2.0.0, /dms/bid/1.9.0" in caught.value.message


async def test_a_peer_serves_all_versions(server: HardenedHost, client: HardenedHost, manager: ResourceManager) -> None:
    async with serve(server, manager):
        provider = await dial(client, host_addresses(server)[0])
        for protocol in BOTH:
            stream = await open_stream(client, provider, [protocol])
            assert stream.protocol == protocol
            await stream.aclose()
        stream = await open_stream(client, provider, ["/dms/bid/1.7.0", *BOTH])
        assert stream.protocol == BID_PROTOCOL_1_1
        await stream.aclose()


@pytest.mark.parametrize(("served", "agreed"), [(BOTH, BID_1_1), ([BID_PROTOCOL], BID_1_0)])
async def test_shared_clients_speak_the_newest_version_that_the_peer_has(
    serving: Serving, client: HardenedHost, served: list[str], agreed: BidVersion
) -> None:
    requester_id = client.get_id().to_base58()
    async with (
        serving(served) as provider,
        open_connections(client) as connections,
        connections.client(provider, BID_PROTOCOL) as shared,
    ):
        assert shared.protocol == agreed.protocol
        bids = BidClient(shared, EnvelopeChecker(), requester=requester_id, provider=provider)
        (signed,) = (await bids.request_bids(ENSEMBLE)).bids
    assert signed.bid.request_digest == agreed.digest(to_map(ENSEMBLE))
