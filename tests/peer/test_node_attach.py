"""The protocols on a host that another program made."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from libp2p import new_host
from libp2p.abc import IHost
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.rsa import create_new_key_pair as create_rsa_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as create_noise_key_pair
from libp2p.security.noise.transport import PROTOCOL_ID, Transport
from multiaddr import Multiaddr

from dms_host import HardenedHost, dial, host_addresses
from dms_host.errors import DialError, IdentityError, ProtocolTakenError
from dms_peer.clients import open_allocations, open_bids, open_resources
from dms_peer.serving import serve
from dms_protocols.bidding.service import BidTerms
from dms_protocols.messages.bid import EnsembleRequest, NodeRequest, Place
from dms_resources.components import CPU, RAM, Disk, MachineResources, OnboardedResources
from dms_resources.demands import CPUDemand, Demand
from dms_resources.manager import ResourceManager, open_manager
from dms_resources.units import GIB, Cores

PARTS = {"cpu": CPU(cores=Cores.of(4)), "ram": RAM(size=8 * GIB), "disk": Disk(size=100 * GIB), "gpus": ()}
ENSEMBLE = EnsembleRequest(
    id="e",
    nonce=1,
    deadline=2e9,
    request=(NodeRequest(node_id="n", resources=Demand(cpu=CPUDemand(cores=Cores.of(1)))),),
)


@pytest.fixture
async def manager(tmp_path: Path) -> AsyncIterator[ResourceManager]:
    async with open_manager(tmp_path / "ledger.db", MachineResources(**PARTS)) as manager:
        await manager.update_onboarded_resources(OnboardedResources(**PARTS))
        yield manager


@pytest.fixture
def noise_only() -> Iterator[object]:
    """Makes the host of another program."""

    @asynccontextmanager
    async def open_foreign(key_pair: object = None) -> AsyncIterator[IHost]:
        key_pair = key_pair or create_new_key_pair()
        noise = Transport(key_pair, noise_privkey=create_noise_key_pair().private_key)
        host = new_host(key_pair=key_pair, sec_opt={PROTOCOL_ID: noise})
        async with host.run([Multiaddr("/ip4/127.0.0.1/tcp/0")]):
            yield host

    return open_foreign


async def test_a_foreign_host_serves_while_the_block_runs(noise_only, manager, client: HardenedHost) -> None:
    async with noise_only() as host:
        address = host_addresses(host)[0]
        async with serve(host, manager):
            peer_id = await dial(client, address)
            async with open_bids(client, peer_id) as bids, open_allocations(client, peer_id) as allocations:
                # Opening the bid checks that it is signed by the host's own key.
                (signed,) = (await bids.request_bids(ENSEMBLE)).bids
                (lease,) = await allocations.commit([signed.envelope], ttl=60)
            async with open_resources(client, peer_id) as resources:
                assert (await resources.free()).cpu.cores == Cores.of(3)
        assert manager.is_committed(lease.lease_id)
        with pytest.raises(DialError) as caught:
            async with open_resources(client, peer_id):
                pytest.fail("the protocols are gone")
        assert caught.value.code == "protocol_not_supported"


async def test_the_terms_of_the_owner_come_with_every_bid(noise_only, manager, client: HardenedHost) -> None:
    async with noise_only() as host, serve(host, manager, terms=BidTerms(location=Place(country="NL"))):
        peer_id = await dial(client, host_addresses(host)[0])
        async with open_bids(client, peer_id) as bids:
            (signed,) = (await bids.request_bids(ENSEMBLE)).bids
            assert signed.bid.location == Place(country="NL")


async def test_a_host_serves_once(noise_only, manager) -> None:
    async with noise_only() as host, serve(host, manager):
        with pytest.raises(ProtocolTakenError) as caught:
            async with serve(host, manager):
                pytest.fail("attached twice")
        assert caught.value.code == "protocol_taken"
        # The second attempt removed nothing of the first.
        assert "/dms/bid/1.0.0" in host.get_mux().get_protocols()


async def test_a_key_that_does_not_prove_its_peer_id_is_refused(noise_only, manager) -> None:
    async with noise_only(create_rsa_key_pair(2048)) as host:
        with pytest.raises(IdentityError) as caught:
            async with serve(host, manager):
                pytest.fail("nobody could check its bids")
        assert caught.value.code == "key_unsupported"


async def test_a_requester_sees_only_its_own_leases(noise_only, manager, client: HardenedHost) -> None:
    await manager.commit_resources("other", Demand(cpu=CPUDemand(cores=Cores.of(1))), holder="somebody", ttl=60)
    async with noise_only() as host, serve(host, manager):
        peer_id = await dial(client, host_addresses(host)[0])
        async with open_allocations(client, peer_id) as allocations:
            assert (await allocations.list()).leases == ()
