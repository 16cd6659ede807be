"""Serves the DMS protocols on any libp2p host."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Container
from contextlib import asynccontextmanager

import trio
from libp2p.abc import IHost

from dms_host.keys.identity import Identity
from dms_host.streams.protocols import attach_protocols
from dms_host.streams.stream import PeerStream
from dms_host.swarm.connection_gater import address_group
from dms_protocols.allocations import allocation_operations
from dms_protocols.bidding.service import BidTerms, CurrentTerms, bid_operations
from dms_protocols.bidding.versions import BID_VERSIONS
from dms_protocols.errors import BusyError
from dms_protocols.jobs.service import JobService, job_limits, job_operations
from dms_protocols.jobs.tunnels import TunnelConnect, TunnelsInUse, serve_tunnel
from dms_protocols.protocol_ids import (
    ALLOCATION_PROTOCOL,
    JOB_PROTOCOL,
    RESOURCES_PROTOCOL,
    TUNNEL_PROTOCOL,
    versions_of,
)
from dms_protocols.queries import resource_operations
from dms_protocols.rpc.access import Access, AccessRules, CurrentRules
from dms_protocols.rpc.counts import ServiceCounts
from dms_protocols.rpc.limits import ServiceLimits, Shares
from dms_protocols.rpc.operations import Caller, Operations
from dms_protocols.rpc.service import refuse_stream, serve_stream
from dms_protocols.rpc.shares import SharesInUse
from dms_protocols.tokens.checks import TokenChecker
from dms_resources.manager import ResourceManager

from .signing import EnvelopeChecker, IdentitySigner, host_identity, trusted_keys

__all__ = ["Serving", "peer_operations", "serve", "stream_network"]


class Serving:
    """Served protocols. Their access rules and stream limits can be replaced while they are served."""

    def __init__(self, access: Access, limits: ServiceLimits) -> None:
        self._access = access
        self._limits = limits

    @property
    def rules(self) -> AccessRules:
        """The access rules in force."""
        return self._access.rules

    @property
    def current_rules(self) -> CurrentRules:
        """The access rules in force at any time, for code that publishes the same facts."""
        return self._access.current

    def replace(self, access: AccessRules, limits: ServiceLimits) -> None:
        """Apply other rules to every request, and other limits to every new stream, from now on.

        The peers whose grants are accepted (`trusted`) stay the same.
        """
        self._access.replace_rules(access)
        self._limits = limits

    async def _answer(
        self,
        operations: Operations,
        counts: ServiceCounts,
        shares: SharesInUse,
        protocol: str,
        stream: trio.abc.HalfCloseableStream,
        peer_id: str,
    ) -> None:
        limits = job_limits(self._limits) if protocol == JOB_PROTOCOL else self._limits
        try:
            with shares.stream(peer_id) as share:
                caller = Caller(peer_id, group=stream_network(stream))
                await serve_stream(stream, operations, caller, limits, counts, share, self._access)
        except BusyError as error:
            await refuse_stream(stream, error, self._limits)

    async def _tunnel(
        self,
        connect: TunnelConnect,
        tunnels: TunnelsInUse,
        counts: ServiceCounts,
        shares: SharesInUse,
        stream: trio.abc.HalfCloseableStream,
        peer_id: str,
    ) -> None:
        try:
            with shares.stream(peer_id):
                caller = Caller(peer_id, group=stream_network(stream))
                outcome = await serve_tunnel(stream, caller, connect, tunnels, access=self._access)
        except BusyError as error:
            outcome = error.code
            await refuse_stream(stream, error, self._limits)
        counts.requests["tunnel", outcome] += 1


def stream_network(stream: trio.abc.HalfCloseableStream) -> str:
    """What counts as the address of the peer at the other end of a stream; empty where it is not known."""
    if not isinstance(stream, PeerStream):
        return ""
    # A relay hides the address, so all peers that come through relays count as one.
    return "relays" if stream.relayed else address_group(stream.remote_address)


@asynccontextmanager
async def serve(
    host: IHost,
    manager: ResourceManager,
    *,
    identity: Identity | None = None,
    terms: BidTerms | CurrentTerms | None = None,
    limits: ServiceLimits | None = None,
    counts: ServiceCounts | None = None,
    shares: Shares | SharesInUse | None = None,
    access: AccessRules | None = None,
    revoked: Container[str] = frozenset(),
    jobs: JobService | None = None,
    tunnels: TunnelsInUse | None = None,
) -> AsyncIterator[Serving]:
    """Serves `/dms/resources`, `/dms/bid` and `/dms/allocation` on `host` while the block runs, with `jobs` also
    `/dms/job` and `/dms/tunnel`.

    At the end the protocols are detached; requests that are being answered have some seconds to finish. `identity`
    signs bids; it is the host's own key by default, which must be Ed25519 (IdentityError). `counts` counts requests,
    `limits` bounds each stream, `shares` bounds each peer: give the same SharesInUse to other protocols to count them
    together. `access` has the rules; grants whose ids are in `revoked` are refused. `tunnels` counts and bounds
    tunnels. Raises ProtocolError when the host
    already serves one of the protocols, and PeerError `bad_peer_id` for a trusted peer whose id does not contain a key.
    """
    identity, counts, rules = identity or host_identity(host), counts or ServiceCounts(), access or AccessRules()
    tokens = TokenChecker(identity.peer_id, trusted_keys((identity.peer_id, *rules.trusted)), revoked)
    in_use = shares if isinstance(shares, SharesInUse) else SharesInUse(shares)
    serving = Serving(Access(rules, tokens), limits or ServiceLimits())
    served = peer_operations(manager, identity, terms, counts, in_use.limits, tokens, serving.current_rules)
    if jobs is not None:
        served[JOB_PROTOCOL] = job_operations(jobs, manager=manager, tokens=tokens)
    handlers = {
        protocol: functools.partial(serving._answer, operations, counts, in_use, protocol)
        for protocol, operations in served.items()
    }
    if jobs is not None:
        handlers[TUNNEL_PROTOCOL] = functools.partial(
            serving._tunnel, jobs.connect, tunnels or TunnelsInUse(), counts, in_use
        )
    async with attach_protocols(host, handlers):
        yield serving


def peer_operations(
    manager: ResourceManager,
    identity: Identity,
    terms: BidTerms | CurrentTerms | None = None,
    counts: ServiceCounts | None = None,
    shares: Shares | None = None,
    tokens: TokenChecker | None = None,
    access: AccessRules | CurrentRules | None = None,
) -> dict[str, Operations]:
    """The operations of every version of every protocol, by protocol id.

    `access` decides what refusals of bids may disclose. The rules themselves are applied where the operations are
    served.
    """
    signer = IdentitySigner(identity)
    current = access if isinstance(access, CurrentRules) else CurrentRules(access)

    def may_see_free(caller: Caller) -> bool:
        # A shortage discloses what is free and what there is in total.
        return current.rules.may_learn("free", caller) and current.rules.may_learn("onboarded", caller)

    bids = {
        version.protocol: bid_operations(
            manager, signer, terms, counts=counts, version=version, shares=shares, may_see_free=may_see_free
        )
        for version in BID_VERSIONS
    }
    return {
        RESOURCES_PROTOCOL: resource_operations(manager),
        **bids,
        **{
            protocol: allocation_operations(
                manager, identity.peer_id, EnvelopeChecker(), shares=shares, tokens=tokens, protocol=protocol
            )
            for protocol in versions_of(ALLOCATION_PROTOCOL)
        },
    }
