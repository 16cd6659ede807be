"""Opens clients of the DMS protocols on a libp2p host that is connected to the provider.

Each client is one stream, in the newest version of its protocol that both sides speak. `token` is the grant that the
provider's access rules may require.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from libp2p.abc import IHost

from dms_host import open_stream
from dms_protocols.clients import AllocationClient, BidClient, ResourcesClient
from dms_protocols.jobs.client import JOB_CLIENT_LIMITS, JobClient
from dms_protocols.protocol_ids import ALLOCATION_PROTOCOL, BID_PROTOCOL, JOB_PROTOCOL, RESOURCES_PROTOCOL, versions_of
from dms_protocols.rpc.client import Client, open_client
from dms_protocols.rpc.client_limits import ClientLimits

from .signing import EnvelopeChecker

__all__ = ["open_allocations", "open_bids", "open_jobs", "open_resources"]


@asynccontextmanager
async def open_resources(host: IHost, peer_id: str, *, token: bytes | None = None) -> AsyncIterator[ResourcesClient]:
    """Open a client for the resources of a connected peer. Raises DialError."""
    async with _open_client(host, peer_id, RESOURCES_PROTOCOL) as client:
        yield ResourcesClient(client, token=token)


@asynccontextmanager
async def open_bids(host: IHost, peer_id: str, *, token: bytes | None = None) -> AsyncIterator[BidClient]:
    """Open a client that requests bids of a connected peer, for this host's peer id. Raises DialError."""
    async with _open_client(host, peer_id, BID_PROTOCOL) as client:
        requester = host.get_id().to_base58()
        yield BidClient(client, EnvelopeChecker(), requester=requester, provider=peer_id, token=token)


@asynccontextmanager
async def open_allocations(host: IHost, peer_id: str, *, token: bytes | None = None) -> AsyncIterator[AllocationClient]:
    """Open a client that commits bids of a connected peer, and renews and releases leases. Raises DialError."""
    async with _open_client(host, peer_id, ALLOCATION_PROTOCOL) as client:
        yield AllocationClient(client, token=token)


@asynccontextmanager
async def open_jobs(host: IHost, peer_id: str, *, token: bytes | None = None) -> AsyncIterator[JobClient]:
    """Opens a client that starts, follows and stops jobs on leases of this host's. Raises DialError."""
    async with _open_client(host, peer_id, JOB_PROTOCOL, JOB_CLIENT_LIMITS) as client:
        yield JobClient(client, token=token)


@asynccontextmanager
async def _open_client(
    host: IHost, peer_id: str, protocol: str, limits: ClientLimits | None = None
) -> AsyncIterator[Client]:
    stream = await open_stream(host, peer_id, versions_of(protocol))
    async with open_client(stream, limits) as client:
        yield client
