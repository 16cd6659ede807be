"""A running peer performs the requests of the owner's commands over its own connections."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import trio
from libp2p.abc import IHost

from dms_protocols.errors import JobError
from dms_protocols.jobs.service import JobService, job_limits, job_operations
from dms_protocols.jobs.tunnels import TunnelsInUse, serve_tunnel
from dms_protocols.protocol_ids import JOB_PROTOCOL, TUNNEL_PROTOCOL
from dms_protocols.rpc.limits import ServiceLimits
from dms_protocols.rpc.operations import Caller, Operations
from dms_protocols.rpc.service import refuse_stream, serve_stream
from dms_resources.manager import ResourceManager

from ..connections.ping import ping_peer
from ..discovery.open import Discovery
from ..requesting.own_peer import OwnPeer
from ..requesting.requester import Requester
from ..signing import EnvelopeChecker
from .requesting import RemoteRequests, discover_operations, remote_operations
from .reserving import reserve_operations

__all__ = ["requesting_operations"]


def requesting_operations(
    host: IHost,
    discovery: Discovery,
    manager: ResourceManager,
    served: Mapping[str, Operations],
    jobs: JobService | None = None,
    tunnels: TunnelsInUse | None = None,
) -> Operations:
    """The operations for the owner's socket. `served` are the operations that the peer itself serves, by
    protocol id, `jobs` those of the peer's own leases at itself.
    """
    pool = discovery.network
    caller = Caller(pool.peer_id, local=True)
    in_use = tunnels or TunnelsInUse()

    async def serve(protocol: str, stream: trio.abc.HalfCloseableStream) -> None:
        if protocol in served:
            await serve_stream(stream, served[protocol], caller)
        elif jobs is not None and protocol == JOB_PROTOCOL:
            await serve_stream(stream, job_operations(jobs), caller, job_limits(ServiceLimits()))
        elif jobs is not None and protocol == TUNNEL_PROTOCOL:
            await serve_tunnel(stream, caller, jobs.connect, in_use)
        else:
            error = JobError("this peer has no executors", code="no_executor", hint="name one in peer.yaml")
            await refuse_stream(stream, error)

    own = OwnPeer(pool, serve, lambda: manager.get_onboarded_resources() is not None)

    def requester(token: bytes | None) -> Requester:
        return replace(discovery, sources=(own, *discovery.sources)).requester(token=token, network=own)

    requests = RemoteRequests(own, EnvelopeChecker(), partial(ping_peer, host, pool), discovery.known)
    return remote_operations(requests) | discover_operations(requester) | reserve_operations(requester)
