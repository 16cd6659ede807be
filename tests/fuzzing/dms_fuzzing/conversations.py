"""Targets with a protocol: a whole service gets hostile bytes, and a whole client gets hostile answers."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import trio
import trio.testing

from dms_host.keys.identity import new_identity
from dms_peer.serving import peer_operations
from dms_peer.signing import EnvelopeChecker
from dms_protocols.clients import BidClient, ResourcesClient
from dms_protocols.errors import ProtocolError
from dms_protocols.messages.bid import EnsembleRequest, NodeRequest
from dms_protocols.rpc.client import open_client
from dms_protocols.rpc.operations import Caller, Operations
from dms_protocols.rpc.service import serve_stream
from dms_resources.components import CPU, RAM, Disk, MachineResources, OnboardedResources
from dms_resources.demands import CPUDemand, Demand
from dms_resources.manager import open_manager
from dms_resources.units import GIB, Cores

__all__ = ["fuzz_client", "fuzz_service", "provider"]


@asynccontextmanager
async def provider() -> AsyncIterator[tuple[list[Operations], Callable[[], None]]]:
    """The services of a peer that offers something, and a check that its ledger was not harmed."""
    machine = MachineResources(cpu=CPU(cores=Cores.of(4)), ram=RAM(size=8 * GIB), disk=Disk(size=100 * GIB), gpus=())

    async def in_place(call: Callable[[], None]) -> None:
        call()

    with tempfile.TemporaryDirectory() as place:
        async with open_manager(Path(place) / "ledger.db", machine, worker=in_place) as manager:
            offered = OnboardedResources(cpu=CPU(cores=Cores.of(2)), ram=RAM(size=GIB), disk=Disk(size=GIB), gpus=())
            await manager.update_onboarded_resources(offered)
            services = list(peer_operations(manager, new_identity(bytes(32))).values())

            def check() -> None:
                free = manager.get_free_resources()
                assert free.cpu.cores == Cores.of(2), "nobody could have committed anything"
                assert manager.storage_error is None

            yield services, check


async def fuzz_service(data: bytes, services: list[Operations]) -> None:
    """Send the bytes to each service and end the stream. The service answers what it can and ends, and
    raises nothing.
    """
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            for operations in services:
                ours, theirs = trio.testing.memory_stream_pair()
                nursery.start_soon(serve_stream, theirs, operations, Caller("stranger"))
                nursery.start_soon(_drain, ours)
                nursery.start_soon(_say, ours, data)


async def fuzz_client(data: bytes) -> None:
    """Answer two calls with the bytes. Each ends with an answer or a ProtocolError."""
    ours, theirs = trio.testing.memory_stream_pair()
    ensemble = EnsembleRequest(
        id="e",
        nonce=1,
        deadline=1.0,
        request=(NodeRequest(node_id="n", resources=Demand(cpu=CPUDemand(cores=Cores(1)))),),
    )
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_drain, theirs)
            nursery.start_soon(_say, theirs, data)
            async with open_client(ours) as client:
                with suppress(ProtocolError):
                    await ResourcesClient(client, timeout=5).free()
                bids = BidClient(client, EnvelopeChecker(), requester="me", provider="you", timeout=5)
                with suppress(ProtocolError):
                    await bids.request_bids(ensemble)


async def _say(stream: trio.StapledStream, data: bytes) -> None:
    try:
        await stream.send_all(data)
        await stream.send_eof()
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        pass


async def _drain(stream: trio.StapledStream) -> None:
    try:
        while await stream.receive_some():
            pass
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        pass
