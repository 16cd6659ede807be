"""One errand to another peer and back, as the remote commands run them: dial with the home's key, ask, hang up."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import trio
from libp2p.abc import IHost
from msgspec.structs import asdict

from dms_host import dial, parse_peer_address
from dms_host.keys.identity import load_or_create_identity
from dms_protocols.bidding.signing import open_bid
from dms_protocols.clients import BidClient
from dms_protocols.errors import BidError
from dms_protocols.messages.bid import NodeRequest, Refusal

from ..clients import open_allocations, open_bids, open_resources
from ..config.ensemble import EnsembleFile
from ..errors import PeerError, RefusedError
from ..home.home import Home
from ..home.host import open_home_host
from ..signing import EnvelopeChecker
from .bid_files import bids_document, read_bids_file
from .reports import BidReport, EnsembleBidReport, OfferedBid, PeerEndedLease, PeerFree, PeerLease, PeerLeases

__all__ = [
    "allocate_lease",
    "ask_bid",
    "ask_bids",
    "ask_free",
    "commit_bids",
    "release_lease",
]

# Long enough for two clocks that differ.
_WINDOW: Final = 60.0


@asynccontextmanager
async def _visit(home: Home, address: str) -> AsyncIterator[tuple[IHost, str]]:
    """A host with the home's key, connected to the peer at `address`, and that peer's id."""
    parse_peer_address(address)
    home.prepare()
    identity = await trio.to_thread.run_sync(load_or_create_identity, home.key_path)
    async with open_home_host(home, identity) as host:
        yield host, await dial(host, address)


async def ask_free(home: Home, address: str, token: bytes | None = None) -> PeerFree:
    """What the peer at `address` has free. Raises AddressError, DialError and what `ResourcesClient.free` raises."""
    async with _visit(home, address) as (host, peer_id), open_resources(host, peer_id, token=token) as resources:
        return PeerFree(**asdict(await resources.free()), peer_id=peer_id)


async def ask_bid(
    home: Home,
    address: str,
    node: NodeRequest,
    *,
    dry_run: bool,
    hold: float,
    output: Path | None,
    token: bytes | None = None,
) -> BidReport:
    """A bid of the peer at `address` on one node, written to `output` where one is given.

    Raises RefusedError with the reasons.
    """
    ensemble = EnsembleFile(nodes=(node,))
    async with _visit(home, address) as (host, peer_id), open_bids(host, peer_id, token=token) as client:
        bids, refusals = await _ask(client, ensemble, dry_run=dry_run, hold=hold)
    if refusals:
        raise RefusedError(peer_id, refusals[0])
    if not bids:
        raise BidError(f"{peer_id} answered with neither a bid nor a refusal")
    file = await _write(bids, output)
    return BidReport(peer_id=peer_id, dry_run=dry_run, bid=bids[0].bid, envelope=bids[0].envelope, file=file)


async def ask_bids(
    home: Home,
    address: str,
    ensemble: EnsembleFile,
    *,
    dry_run: bool,
    hold: float,
    output: Path | None,
    token: bytes | None = None,
) -> EnsembleBidReport:
    """The bids and refusals of the peer at `address` for the nodes that are not for another peer.

    Raises PeerError `other_peer` where there are none, and `different_peers` where several are to be written that this
    peer may not have together.
    """
    async with _visit(home, address) as (host, peer_id):
        asked = ensemble.for_peer(peer_id)
        if not asked.nodes:
            raise PeerError(f"no node is for {peer_id}", code="other_peer", hint="ask the peers that the file names")
        if ensemble.different_peers and output is not None and len(asked.nodes) > 1:
            raise PeerError(
                f"{len(asked.nodes)} nodes are for different peers, and their bids would be committed together",
                code="different_peers",
                hint="pin each node to its peer, or take the ensemble with `dms-peer reserve`",
            )
        async with open_bids(host, peer_id, token=token) as client:
            bids, refusals = await _ask(client, asked, dry_run=dry_run, hold=hold)
    return EnsembleBidReport(
        peer_id=peer_id,
        dry_run=dry_run,
        bids=bids,
        refusals=refusals,
        not_asked=tuple(node.node_id for node in ensemble.nodes if node not in asked.nodes),
        file=await _write(bids, output),
    )


async def _ask(
    client: BidClient, ensemble: EnsembleFile, *, dry_run: bool, hold: float
) -> tuple[tuple[OfferedBid, ...], tuple[Refusal, ...]]:
    """Bids and refusals in the order of the nodes."""
    request = ensemble.asked(deadline=time.time() + _WINDOW)
    place = {node.node_id: number for number, node in enumerate(ensemble.nodes)}
    if dry_run:
        offer = await client.dry_run(request, hold=hold)
        bids, refusals = [OfferedBid(bid=bid) for bid in offer.offers], offer.refusals
    else:
        answer = await client.request_bids(request, hold=hold)
        bids = [OfferedBid(bid=signed.bid, envelope=signed.envelope) for signed in answer.bids]
        refusals = answer.refusals
    # A dry run is not checked as signed bids are: a node that nobody asked for goes to the end.
    bids.sort(key=lambda one: place.get(one.bid.node_id, len(place)))
    return tuple(bids), tuple(sorted(refusals, key=lambda one: place.get(one.node_id, len(place))))


async def _write(bids: Sequence[OfferedBid], output: Path | None) -> str | None:
    envelopes = [bid.envelope for bid in bids if bid.envelope is not None]
    if output is None or not envelopes:
        return None
    await trio.Path(output).write_bytes(bids_document(envelopes))
    return str(output)


async def commit_bids(
    home: Home, address: str, bid_file: Path, ttl: float, token: bytes | None = None
) -> PeerLease | PeerLeases:
    """Takes the bids in a file for `ttl` seconds, all of them or none.

    Raises EnvelopeError or BidError for a file without bids of that peer.
    """
    envelopes = await trio.to_thread.run_sync(read_bids_file, bid_file)
    bids = [open_bid(envelope, EnvelopeChecker()) for envelope in envelopes]
    async with _visit(home, address) as (host, peer_id):
        for bid in bids:
            if bid.provider != peer_id:
                raise BidError(f"the bid in {bid_file} was made by {bid.provider}", code="not_my_bid")
        async with open_allocations(host, peer_id, token=token) as allocations:
            leases = await allocations.commit(envelopes, ttl=ttl)
    if len(leases) == 1:
        return PeerLease(**asdict(leases[0]), peer_id=peer_id)
    return PeerLeases(peer_id=peer_id, leases=leases)


async def allocate_lease(
    home: Home, address: str, lease_id: str, fence: int | None, token: bytes | None = None
) -> PeerLease:
    """Turns a commitment into an allocation. Raises RemoteError with the ledger's codes."""
    async with _visit(home, address) as (host, peer_id), open_allocations(host, peer_id, token=token) as allocations:
        return PeerLease(**asdict(await allocations.allocate(lease_id, fence=fence)), peer_id=peer_id)


async def release_lease(
    home: Home, address: str, lease_id: str, fence: int | None, token: bytes | None = None
) -> PeerEndedLease:
    """Gives a lease back, whatever its state. Raises RemoteError with the ledger's codes."""
    async with _visit(home, address) as (host, peer_id), open_allocations(host, peer_id, token=token) as allocations:
        return PeerEndedLease(**asdict(await allocations.release(lease_id, fence=fence)), peer_id=peer_id)
