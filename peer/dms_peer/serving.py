"""The DMS protocols on a libp2p host, this package's own or somebody else's."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Container
from contextlib import asynccontextmanager

import trio
from libp2p.abc import IHost

from dms_host.keys.identity import Identity
from dms_host.streams.protocols import attach_protocols
from dms_protocols.allocations import allocation_operations
from dms_protocols.bidding.service import BidTerms, bid_operations
from dms_protocols.bidding.versions import BID_VERSIONS
from dms_protocols.errors import BusyError
from dms_protocols.protocol_ids import ALLOCATION_PROTOCOL, RESOURCES_PROTOCOL
from dms_protocols.queries import resource_operations
from dms_protocols.rpc.access import Access, AccessRules
from dms_protocols.rpc.counts import ServiceCounts
from dms_protocols.rpc.limits import ServiceLimits, Shares
from dms_protocols.rpc.operations import Caller, Operations
from dms_protocols.rpc.service import refuse_stream, serve_stream
from dms_protocols.rpc.shares import SharesInUse
from dms_protocols.tokens.checks import TokenChecker
from dms_resources.manager import ResourceManager

from .signing import EnvelopeChecker, IdentitySigner, host_identity, trusted_keys

__all__ = ["peer_operations", "serve"]


@asynccontextmanager
async def serve(
    host: IHost,
    manager: ResourceManager,
    *,
    identity: Identity | None = None,
    terms: BidTerms | None = None,
    limits: ServiceLimits | None = None,
    counts: ServiceCounts | None = None,
    shares: Shares | SharesInUse | None = None,
    access: AccessRules | None = None,
    revoked: Container[str] = frozenset(),
) -> AsyncIterator[None]:
    """Answers `/dms/resources`, `/dms/bid` and `/dms/allocation` on `host` while the block runs.

    The protocols are taken off again at its end; what runs then has some seconds to finish. Bids are signed with
    `identity`, by default the host's own key, which must be Ed25519 (IdentityError). What is answered is counted in
    `counts`, and bounded by `limits` on each stream and by `shares` for each peer; what else is served with the same
    SharesInUse counts against the same shares. `access` says who may ask for what; grants of tokens whose ids are in
    `revoked` do not count. Raises ProtocolError when the host serves one of the protocols already, and PeerError
    `bad_peer_id` for a trusted peer whose id is not its key.
    """
    identity, counts, rules = identity or host_identity(host), counts or ServiceCounts(), access or AccessRules()
    tokens = TokenChecker(identity.peer_id, trusted_keys((identity.peer_id, *rules.trusted)), revoked)
    in_use = shares if isinstance(shares, SharesInUse) else SharesInUse(shares)
    # Where anyone may do everything, nobody is asked.
    gate = None if rules.open else Access(rules, tokens)
    handlers = {
        protocol: functools.partial(_answer, operations, limits or ServiceLimits(), counts, in_use, gate)
        for protocol, operations in peer_operations(manager, identity, terms, counts, in_use.limits, tokens).items()
    }
    async with attach_protocols(host, handlers):
        yield


def peer_operations(
    manager: ResourceManager,
    identity: Identity,
    terms: BidTerms | None = None,
    counts: ServiceCounts | None = None,
    shares: Shares | None = None,
    tokens: TokenChecker | None = None,
) -> dict[str, Operations]:
    """What a peer answers, by protocol id: every version of every protocol."""
    signer = IdentitySigner(identity)
    bids = {
        version.protocol: bid_operations(manager, signer, terms, counts=counts, version=version, shares=shares)
        for version in BID_VERSIONS
    }
    return {
        RESOURCES_PROTOCOL: resource_operations(manager),
        **bids,
        ALLOCATION_PROTOCOL: allocation_operations(
            manager, identity.peer_id, EnvelopeChecker(), shares=shares, tokens=tokens
        ),
    }


async def _answer(
    operations: Operations,
    limits: ServiceLimits,
    counts: ServiceCounts,
    shares: SharesInUse,
    access: Access | None,
    stream: trio.abc.HalfCloseableStream,
    peer_id: str,
) -> None:
    try:
        with shares.stream(peer_id) as share:
            await serve_stream(stream, operations, Caller(peer_id), limits, counts, share, access)
    except BusyError as error:
        await refuse_stream(stream, error, limits)
