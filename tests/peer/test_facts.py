"""Every way in which a running peer discloses facts, tried by a stranger with each fact closed in turn."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from dms_host import host_addresses, open_host
from dms_host.keys.identity import new_identity
from dms_peer.config.access import OPERATIONS
from dms_peer.connections.pool import open_connections
from dms_peer.discovery.adverts.own_advert import OwnAdvert
from dms_peer.discovery.dht.providing import keep_providing
from dms_peer.discovery.open import open_discovery
from dms_peer.discovery.settings import DiscoverySettings
from dms_peer.serving import serve
from dms_peer.signing import EnvelopeChecker, IdentitySigner
from dms_protocols.adverts.adverts import open_advert
from dms_protocols.adverts.exchange import PeersClient
from dms_protocols.bidding.service import BidTerms
from dms_protocols.clients import ResourcesClient
from dms_protocols.errors import AccessError, RemoteError
from dms_protocols.jobs.tunnels import open_tunnel
from dms_protocols.messages import allocation, job, resources
from dms_protocols.messages.bid import BidAnswer, BidRequest, Place
from dms_protocols.protocol_ids import (
    ALLOCATION_PROTOCOL,
    BID_PROTOCOL,
    JOB_PROTOCOL,
    PEERS_PROTOCOL,
    RESOURCES_PROTOCOL,
    TUNNEL_PROTOCOL,
)
from dms_protocols.rpc.access import NOBODY, Access, AccessRule, AccessRules, CurrentRules
from dms_protocols.rpc.facts import FACTS
from dms_protocols.rpc.operations import Caller
from dms_protocols.tokens.checks import TokenChecker
from dms_resources.components import CPU, GPU, RAM, Disk, MachineResources, OnboardedResources
from dms_resources.machine.usage import UsageMonitor
from dms_resources.manager import ResourceManager, open_manager
from dms_resources.units import GIB, Cores

LOOPBACK = "/ip4/127.0.0.1/tcp/0"
MACHINE = MachineResources(
    cpu=CPU(cores=Cores(8000)),
    ram=RAM(size=8 * GIB),
    disk=Disk(size=64 * GIB),
    gpus=(GPU(uuid="GPU-1", vram=8 * GIB, pci_address="0000:01:00.0"),),
    simulated=True,
)
TERMS = BidTerms(location=Place(country="FR"), executors=frozenset({"docker"}))
EVERYTHING_OPEN = AccessRules(operations={"machine": AccessRule(anyone=True)})
KINDS: dict[str, Any] = {
    "free": resources.FreeRequest,
    "onboarded": resources.OnboardedRequest,
    "allocated": resources.AllocatedRequest,
    "machine": resources.MachineRequest,
    "usage": resources.UsageRequest,
    "list": allocation.ListRequest,
    "job_status": lambda: job.JobStatusRequest(lease_id="lease"),
    "job_stop": lambda: job.StopJobRequest(lease_id="lease"),
    "job_start": lambda: job.StartJobRequest(
        lease_id="lease", fence=1, job=job.Job(execution=job.Execution(type="docker"))
    ),
}
SETTINGS = DiscoverySettings(mdns=False, dht=False, gossip=False, exchange=True, known=False)


class EverybodysJobs:
    """Runs one job, which belongs to every caller."""

    STATUS = job.JobStatus(
        lease_id="lease", fence=1, digest=b"d" * 32, executor="docker", state="running", created=1.0, since=1.0
    )

    async def start(self, lease_id: str, fence: int, job: Any, *, holder: str) -> job.JobStatus:
        return self.STATUS

    def status(self, lease_id: str, *, holder: str) -> job.JobStatus:
        return self.STATUS

    async def stop(self, lease_id: str, *, holder: str, grace: float) -> job.JobStatus:
        return self.STATUS

    @asynccontextmanager
    async def watch(self, lease_id: str, *, holder: str) -> AsyncIterator[Any]:
        async def once() -> AsyncGenerator[job.JobStatus, None]:
            yield self.STATUS

        async with aclosing(once()) as states:
            yield states

    @asynccontextmanager
    async def logs(self, lease_id: str, *, holder: str, offset: int, follow: bool) -> AsyncIterator[Any]:
        async def once() -> AsyncGenerator[job.JobOutput, None]:
            yield job.JobOutput(offset=0, data=b"secret")

        async with aclosing(once()) as pieces:
            yield pieces

    async def connect(self, lease_id: str, *, holder: str, port: int) -> Any:
        return trio.testing.memory_stream_pair()[0]


@asynccontextmanager
async def provider(folder: Path, rules: AccessRules) -> AsyncIterator[str]:
    """A peer that offers its machine and takes part in discovery; its address."""
    async with AsyncExitStack() as stack:
        monitor = UsageMonitor(MACHINE, folder)
        manager = await stack.enter_async_context(open_manager(folder / "ledger.db", MACHINE, usage_monitor=monitor))
        await manager.update_onboarded_resources(
            OnboardedResources(cpu=MACHINE.cpu, ram=MACHINE.ram, disk=MACHINE.disk, gpus=MACHINE.gpus)
        )
        identity = new_identity()
        host = await stack.enter_async_context(open_host(identity, [LOOPBACK]))
        await stack.enter_async_context(
            serve(host, manager, identity=identity, terms=TERMS, access=rules, jobs=EverybodysJobs())
        )
        await stack.enter_async_context(
            open_discovery(host, identity, SETTINGS, manager=manager, terms=TERMS, access=rules)
        )
        yield host_addresses(host)[0]


class Stranger:
    """Tries every way, and records which facts it learned."""

    def __init__(self, pool: Any, address: str) -> None:
        self.pool = pool
        self.address = address
        self.peer_id = address.rpartition("/")[2]
        self.learned: set[str] = set()

    async def walk(self) -> set[str]:
        await self.ask(RESOURCES_PROTOCOL, "free", "onboarded", "allocated", "machine", "usage", "watch")
        await self.ask(ALLOCATION_PROTOCOL, "list")
        await self.ask(JOB_PROTOCOL, "job_start", "job_status", "job_watch", "job_logs", "job_stop")
        await self.connect_to_a_job()
        await self.ask_for_bids()
        await self.read_adverts()
        return self.learned

    async def ask(self, protocol: str, *operations: str) -> None:
        async with self.pool.client(self.peer_id, protocol, [self.address]) as client:
            for operation in operations:
                if await self.is_told(client, operation):
                    self.learned |= {fact for fact, doors in FACTS.items() if operation in doors}

    async def is_told(self, client: Any, operation: str) -> bool:
        try:
            if operation == "watch":
                async with ResourcesClient(client).watch() as changes:
                    assert all(not gpu.pci_address for gpu in (await anext(changes)).gpus)
            elif operation == "job_watch":
                async with client.watch(job.JobWatchRequest(lease_id="lease"), job.JobAnswer, timeout=5) as states:
                    await anext(states)
            elif operation == "job_logs":
                async with client.watch(job.JobLogsRequest(lease_id="lease"), job.JobOutput, timeout=5) as pieces:
                    await anext(pieces)
            else:
                answer = await client.call(KINDS[operation](), dict, timeout=5)
                if operation != "machine":
                    assert "0000:01:00.0" not in str(answer)
        except RemoteError as error:
            if error.code != "forbidden":
                raise
            return False
        return True

    async def connect_to_a_job(self) -> None:
        async with self.pool.open_stream(self.peer_id, TUNNEL_PROTOCOL, [self.address]) as stream:
            try:
                await open_tunnel(stream, "lease", 80)
            except RemoteError as error:
                if error.code != "forbidden":
                    raise
            else:
                self.learned.add("jobs")

    async def ask_for_bids(self) -> None:
        nodes = [{"node_id": "n", "resources": {"cpu": {"cores": 99}, "ram": {"size": 99 * GIB}}}]
        ensemble = {"id": "e", "nonce": 1, "deadline": 4_000_000_000.0, "request": nodes}
        async with self.pool.client(self.peer_id, BID_PROTOCOL, [self.address]) as client:
            try:
                answer = await client.call(BidRequest(ensemble=ensemble), BidAnswer, timeout=5)
            except RemoteError as error:
                if error.code != "forbidden":
                    raise
                return
        self.learned.add("terms")
        (refusal,) = answer.refusals
        assert refusal.code == "resources"
        if refusal.shortages or any(reason.shortages for reason in refusal.reasons) or "8" in refusal.message:
            # What is free and what there is in total.
            self.learned |= {"free", "onboarded"}

    async def read_adverts(self) -> None:
        async with self.pool.client(self.peer_id, PEERS_PROTOCOL, [self.address]) as client:
            page = await PeersClient(client).adverts(limit=64)
        for raw in page.adverts:
            advert = open_advert(raw, EnvelopeChecker(), now=time.time())
            assert advert.peer_id == self.peer_id
            self.learned.add("free")
            if advert.location or advert.executors:
                self.learned.add("terms")


async def learn(folder: Path, rules: AccessRules) -> set[str]:
    async with (
        provider(folder, rules) as address,
        open_host(new_identity(), []) as host,
        open_connections(host) as pool,
    ):
        with trio.fail_after(30):
            return await Stranger(pool, address).walk()


def test_every_operation_tells_a_known_fact_or_changes_something() -> None:
    told = [operation for operations in FACTS.values() for operation in operations]
    assert len(told) == len(set(told))
    assert set(OPERATIONS) - set(told) == {"commit", "renew", "allocate", "release"}


async def test_with_everything_open_a_stranger_learns_every_fact(tmp_path: Path) -> None:
    assert await learn(tmp_path, EVERYTHING_OPEN) == set(FACTS)


async def test_by_default_the_hardware_is_not_for_strangers(tmp_path: Path) -> None:
    assert await learn(tmp_path, AccessRules()) == set(FACTS) - {"machine"}


@pytest.mark.parametrize("fact", sorted(FACTS))
async def test_a_closed_fact_leaves_by_no_door(tmp_path: Path, fact: str) -> None:
    rules = AccessRules(operations={**EVERYTHING_OPEN.operations, FACTS[fact][0]: NOBODY})
    learned = await learn(tmp_path, rules)
    # A shortage discloses two facts and is shown only if both are open. The other fact is still disclosed by its
    # operation.
    assert learned == set(FACTS) - {fact}


async def test_with_everything_closed_a_stranger_learns_nothing(tmp_path: Path) -> None:
    assert await learn(tmp_path, AccessRules(others=NOBODY)) == set()


class CountingDht:
    """A DHT in which there is always a peer that accepts announcements."""

    def __init__(self) -> None:
        self.peers, self.announced = 3, 0

    async def wait_joined(self) -> None:
        await trio.lowlevel.checkpoint()

    async def wait_peers(self, count: int) -> None:
        await trio.sleep_forever()

    async def announce(self, classes: Any) -> int:
        self.announced += 1
        return len(classes)


@pytest.mark.parametrize("public", [True, False])
async def test_provider_records_tell_what_is_free(tmp_path: Path, autojump_clock: Any, public: bool) -> None:
    rules = AccessRules(operations={} if public else {"free": NOBODY})
    dht: Any = CountingDht()
    async with open_manager(tmp_path / "ledger.db", MACHINE) as manager:
        await onboard(manager)
        with trio.move_on_after(60):
            await keep_providing(dht, manager, access=CurrentRules(rules))
    assert (dht.announced > 0) == public


async def onboard(manager: ResourceManager) -> None:
    await manager.update_onboarded_resources(
        OnboardedResources(cpu=MACHINE.cpu, ram=MACHINE.ram, disk=MACHINE.disk, gpus=MACHINE.gpus)
    )


async def test_an_advert_is_withdrawn_when_the_owner_closes_what_it_tells(tmp_path: Path) -> None:
    access = CurrentRules()
    own = OwnAdvert(IdentitySigner(new_identity()), tuple, TERMS, access=access)
    async with open_manager(tmp_path / "ledger.db", MACHINE) as manager:
        await onboard(manager)
        free = manager.get_free_resources()
    assert located(own.renew(free, 60.0)) == TERMS.location
    assert own.raw is not None
    access.rules = AccessRules(operations={"bid_request": NOBODY})
    assert located(own.renew(free, 60.0)) is None
    access.rules = AccessRules(operations={"free": NOBODY})
    assert own.raw is None


def located(raw: bytes) -> Place | None:
    return open_advert(raw, EnvelopeChecker(), now=time.time()).location


async def test_rules_that_are_replaced_hold_for_the_next_request() -> None:
    access = Access(AccessRules(), TokenChecker("provider", {}))
    stranger = Caller("stranger")
    assert access.admit("free", stranger, {}) is stranger
    access.replace_rules(AccessRules(operations={"free": NOBODY}))
    with pytest.raises(AccessError):
        access.admit("free", stranger, {})
    with pytest.raises(AccessError):
        access.admit("watch", stranger, {})
