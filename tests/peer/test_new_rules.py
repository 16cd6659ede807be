"""Rules that are replaced while a peer serves apply to the next request, even on an open stream."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dms_host import dial, host_addresses, open_host
from dms_host.keys.identity import new_identity
from dms_peer.clients import open_bids, open_resources
from dms_peer.serving import serve
from dms_protocols.bidding.prices import PricesPerHour
from dms_protocols.bidding.service import BidTerms, CurrentTerms
from dms_protocols.errors import RemoteError
from dms_protocols.messages.bid import EnsembleRequest, NodeRequest
from dms_protocols.rpc.access import ANYONE, AccessRule, AccessRules
from dms_protocols.rpc.limits import ServiceLimits
from dms_resources.components import CPU, RAM, Disk, MachineResources, OnboardedResources
from dms_resources.demands import CPUDemand, Demand
from dms_resources.manager import open_manager
from dms_resources.units import Cores

PARTS: dict[str, Any] = {"cpu": CPU(cores=Cores.of(4)), "ram": RAM(size=1), "disk": Disk(size=1), "gpus": ()}


def request(nonce: int) -> EnsembleRequest:
    node = NodeRequest(node_id="n", resources=Demand(cpu=CPUDemand(cores=Cores.of(1))))
    return EnsembleRequest(id="e", nonce=nonce, deadline=2e9, request=(node,))


async def test_rules_limits_and_terms_change_while_streams_are_open(tmp_path: Path) -> None:
    terms = CurrentTerms()
    async with (
        open_manager(tmp_path / "ledger.db", MachineResources(**PARTS)) as manager,
        open_host(new_identity(), ["/ip4/127.0.0.1/tcp/0"]) as host,
        serve(host, manager, terms=terms) as serving,
        open_host(new_identity()) as client,
    ):
        await manager.update_onboarded_resources(OnboardedResources(**PARTS))
        peer_id = await dial(client, host_addresses(host)[0])
        async with open_resources(client, peer_id) as resources, open_bids(client, peer_id) as bids:
            assert (await resources.free()).cpu.cores == Cores.of(4)
            assert (await bids.request_bids(request(1))).bids[0].bid.price is None

            serving.replace(AccessRules(operations={"free": AccessRule()}), ServiceLimits(frame_bytes=1))
            terms.terms = BidTerms(policies=(PricesPerHour(currency="EUR", core=7),))
            with pytest.raises(RemoteError) as refused:
                await resources.free()
            assert refused.value.code == "forbidden"
            price = (await bids.request_bids(request(2))).bids[0].bid.price
            assert price is not None
            assert price.micros_per_hour == 7
            assert serving.rules.is_public("bid_request")
            assert not serving.rules.is_public("free")

        # New streams have the new limits.
        async with open_bids(client, peer_id) as bids:
            with pytest.raises(RemoteError) as large:
                await bids.request_bids(request(3))
            assert large.value.code == "frame_too_large"

        serving.replace(AccessRules(operations={"free": ANYONE}), ServiceLimits())
        async with open_resources(client, peer_id) as resources:
            assert (await resources.free()).cpu.cores == Cores.of(4)
