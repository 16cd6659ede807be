"""Terms and policies of a running peer, used by another one over libp2p."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from dms_host import HardenedHost, dial
from dms_peer.clients import open_allocations, open_bids
from dms_peer.config.access import parse_access
from dms_peer.config.terms import read_terms_file
from dms_peer.errors import DocumentError, PolicyError
from dms_peer.home.home import Home
from dms_peer.node import Node
from dms_peer.owner import client as owner
from dms_peer.owner.offers import Offer
from dms_protocols.clients import BidClient
from dms_protocols.messages.bid import EnsembleRequest, NodeRequest
from dms_resources.demands import CPUDemand, Demand
from dms_resources.ledger.leases import Price
from dms_resources.units import GIB, Cores

ALL_FOR_STRANGERS = parse_access(b"shares: {stranger_capacity: 1000}", "access.yaml")
LOOPBACK = ("/ip4/127.0.0.1/tcp/0",)
MACHINE = {"cpu": {"cores": 8}, "ram": {"size": "32GiB"}, "disk": {"size": "1TiB"}}


async def in_thread(ask: Callable[..., Any], *arguments: Any) -> Any:
    """The owner's commands block, and the peer runs in this process."""
    return await trio.to_thread.run_sync(ask, *arguments)


@pytest.fixture
async def bids_of(tmp_path: Path, client: HardenedHost) -> Any:
    """Opens a peer with these terms, and a client that requests bids of it: `async with bids_of(text) as bids`."""
    home = Home(tmp_path / "home")
    machine, file = tmp_path / "machine.json", tmp_path / "terms.yaml"
    machine.write_text(json.dumps(MACHINE))
    await in_thread(
        owner.onboard_resources, home, Offer(cpu=Cores.of(8), ram=32 * GIB, disk=GIB, hold=60.0), str(machine)
    )

    @asynccontextmanager
    async def open_bidder(text: str) -> AsyncIterator[BidClient]:
        file.write_text(text)
        async with Node(
            home=home, listen=LOOPBACK, terms=read_terms_file(file), access=ALL_FOR_STRANGERS
        ).open() as ready:
            peer_id = await dial(client, ready.addrs[0])
            async with open_bids(client, peer_id) as bids:
                yield bids

    open_bidder.home, open_bidder.client = home, client  # type: ignore[attr-defined]
    return open_bidder


def ensemble(cores: int = 1, nonce: int = 1) -> EnsembleRequest:
    node = NodeRequest(node_id="n", resources=Demand(cpu=CPUDemand(cores=Cores.of(cores))))
    return EnsembleRequest(id="e", nonce=nonce, deadline=2e9, request=(node,))


def euros(amount: int) -> Price:
    return Price(micros_per_hour=amount * 1_000_000, currency="EUR")


PRICES = "prices: {{currency: EUR, core: {core}}}\n"


async def test_the_price_of_a_hold_survives_another_price_list_and_a_restart(bids_of: Any) -> None:
    async with bids_of(PRICES.format(core=2)) as bids:
        (held,) = (await bids.request_bids(ensemble(3), hold=60.0)).bids
        (offered,) = (await bids.request_bids(ensemble(1, nonce=2))).bids
        assert (held.bid.price, held.bid.held, offered.bid.price) == (euros(6), True, euros(2))
    async with bids_of(PRICES.format(core=50)) as bids:
        (again,) = (await bids.request_bids(ensemble(3), hold=60.0)).bids
        assert again.bid == held.bid
        (dearer,) = (await bids.request_bids(ensemble(1, nonce=3))).bids
        assert dearer.bid.price == euros(50)
        async with open_allocations(bids_of.client, again.bid.provider) as allocations:
            # Both were signed before the list changed.
            leases = await allocations.commit([held.envelope, offered.envelope], ttl=60)
        assert [lease.price for lease in leases] == [euros(6), euros(2)]
        status = await in_thread(owner.read_status, bids_of.home)
        assert status.terms is not None
        assert status.terms.micros_per_hour == {"core": 50_000_000}
        history = (await in_thread(owner.read_history, bids_of.home, 2)).entries
        assert sorted(entry.detail.rpartition(", ")[2] for entry in history) == [
            "2 EUR per hour", "6 EUR per hour",
        ]  # fmt: skip


POLICY = """
cores = question["nodes"][0]["resources"]["cpu"]["cores"]
decision = {"node_id": "n", "accept": cores < 4, "message": "no more than four"}
print(json.dumps({"decisions": [decision]}))
"""


async def test_a_program_decides_and_a_dry_run_gets_the_same_answer(
    bids_of: Any, program: Callable[..., Any], tmp_path: Path
) -> None:
    program(POLICY)
    text = "policies: [{command: [./policy], budget: 10s}]\n" + PRICES.format(core=1)
    async with bids_of(text) as bids:
        (signed,) = (await bids.request_bids(ensemble(2))).bids
        assert signed.bid.price == euros(2)
        refused = await bids.request_bids(ensemble(5))
        dry = await bids.dry_run(ensemble(5))
        assert refused.refusals == dry.refusals
        assert [(one.code, one.message) for one in dry.refusals] == [("policy", "no more than four")]
        status = await in_thread(owner.read_status, bids_of.home)
        assert status.terms.policies == (f"command {tmp_path}/policy (within 10 s)",)


async def test_while_a_policy_hangs_other_requests_of_the_same_stream_are_answered(
    bids_of: Any, program: Callable[..., Any]
) -> None:
    program("time.sleep(1000)")
    text = "peers: {deny: []}\npolicies: [{command: [./policy], budget: 10s}]\n"
    async with bids_of(text) as bids, trio.open_nursery() as nursery:
        answered = trio.Event()

        async def ask() -> None:
            await bids.request_bids(ensemble(1))
            answered.set()

        nursery.start_soon(ask)
        # Refused without a question to the policy, in the same answer.
        refused = await bids.request_bids(ensemble(100, nonce=2))
        assert [one.code for one in refused.refusals] == ["resources"]
        assert not answered.is_set()
        nursery.cancel_scope.cancel()


async def test_what_cannot_be_used_stops_the_start(bids_of: Any) -> None:
    with pytest.raises(DocumentError, match="did you mean prices"):
        async with bids_of("price: {}"):
            pass
    with pytest.raises(PolicyError, match="unknown entry point"):
        async with bids_of("policies: [{python: absent}]"):
            pass
