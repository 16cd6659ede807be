"""One errand to another peer and back, as the remote commands run them: dial with the home's key, ask, hang up."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import trio
from libp2p.abc import IHost
from msgspec import Struct
from msgspec.structs import asdict

from dms_protocols.errors import BidError
from dms_protocols.messages.bid import Bid, EnsembleRequest, NodeRequest
from dms_protocols.signing import open_bid
from dms_resources.components import FreeResources
from dms_resources.demands import Demand
from dms_resources.leases import EndedLease, Lease

from .envelopes import MAX_ENVELOPE_SIZE
from .errors import RefusedError
from .home import Home
from .host import dial, open_host, parse_peer_address
from .identity import load_or_create_identity
from .requester import open_allocations, open_bids, open_resources
from .signing import EnvelopeChecker

__all__ = [
    "BidReport",
    "PeerEndedLease",
    "PeerFree",
    "PeerLease",
    "allocate",
    "ask_bid",
    "ask_free",
    "commit",
    "release",
]

# Long enough for two clocks that differ.
_WINDOW: Final = 60.0
_NODE: Final = "node"


class PeerFree(FreeResources, frozen=True, kw_only=True):
    """What a peer has free."""

    peer_id: str


class BidReport(Struct, frozen=True, kw_only=True):
    """A bid, or for a dry run what it would say; `envelope` is what to commit it with, and `file` where it was put."""

    peer_id: str
    dry_run: bool
    bid: Bid
    envelope: bytes | None = None
    file: str | None = None


class PeerLease(Lease, frozen=True, kw_only=True):
    """A lease at a peer."""

    peer_id: str


class PeerEndedLease(EndedLease, frozen=True, kw_only=True):
    """A lease at a peer that has ended."""

    peer_id: str


@asynccontextmanager
async def _visit(home: Home, address: str) -> AsyncIterator[tuple[IHost, str]]:
    """A host with the home's key, connected to the peer at `address`, and that peer's id."""
    parse_peer_address(address)
    home.prepare()
    identity = await trio.to_thread.run_sync(load_or_create_identity, home.key_path)
    async with open_host(identity) as host:
        yield host, await dial(host, address)


async def ask_free(home: Home, address: str) -> PeerFree:
    """What the peer at `address` has free. Raises AddressError, DialError and what `ResourcesClient.free` raises."""
    async with _visit(home, address) as (host, peer_id), open_resources(host, peer_id) as resources:
        return PeerFree(**asdict(await resources.free()), peer_id=peer_id)


async def ask_bid(
    home: Home, address: str, demand: Demand, *, dry_run: bool, hold: float, output: Path | None
) -> BidReport:
    """A bid of the peer at `address`, written to `output` where one is given. Raises RefusedError with the reasons."""
    node = NodeRequest(node_id=_NODE, resources=demand)
    ensemble = EnsembleRequest(
        id=secrets.token_hex(8), nonce=secrets.randbits(53), deadline=time.time() + _WINDOW, request=(node,)
    )
    async with _visit(home, address) as (host, peer_id), open_bids(host, peer_id) as bids:
        if dry_run:
            offer = await bids.dry_run(ensemble, hold=hold)
            if offer.refusals:
                raise RefusedError(peer_id, offer.refusals[0])
            return BidReport(peer_id=peer_id, dry_run=True, bid=offer.offers[0])
        answer = await bids.request_bids(ensemble, hold=hold)
    if answer.refusals:
        raise RefusedError(peer_id, answer.refusals[0])
    if not answer.bids:
        raise BidError(f"{peer_id} answered with neither a bid nor a refusal")
    signed = answer.bids[0]
    if output is not None:
        await trio.Path(output).write_bytes(signed.envelope)
    file = str(output) if output else None
    return BidReport(peer_id=peer_id, dry_run=False, bid=signed.bid, envelope=signed.envelope, file=file)


async def commit(home: Home, address: str, bid_file: Path, ttl: float) -> PeerLease:
    """Takes a bid for `ttl` seconds. Raises EnvelopeError or BidError for a file without a bid of that peer."""
    envelope = await trio.to_thread.run_sync(_read_envelope, bid_file)
    bid = open_bid(envelope, EnvelopeChecker())
    async with _visit(home, address) as (host, peer_id):
        if bid.provider != peer_id:
            raise BidError(f"the bid in {bid_file} was made by {bid.provider}", code="not_my_bid")
        async with open_allocations(host, peer_id) as allocations:
            (lease,) = await allocations.commit([envelope], ttl=ttl)
    return PeerLease(**asdict(lease), peer_id=peer_id)


def _read_envelope(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(MAX_ENVELOPE_SIZE + 1)


async def allocate(home: Home, address: str, lease_id: str, fence: int | None) -> PeerLease:
    """Turns a commitment into an allocation. Raises RemoteError with the ledger's codes."""
    async with _visit(home, address) as (host, peer_id), open_allocations(host, peer_id) as allocations:
        return PeerLease(**asdict(await allocations.allocate(lease_id, fence=fence)), peer_id=peer_id)


async def release(home: Home, address: str, lease_id: str, fence: int | None) -> PeerEndedLease:
    """Gives a lease back, whatever its state. Raises RemoteError with the ledger's codes."""
    async with _visit(home, address) as (host, peer_id), open_allocations(host, peer_id) as allocations:
        return PeerEndedLease(**asdict(await allocations.release(lease_id, fence=fence)), peer_id=peer_id)
