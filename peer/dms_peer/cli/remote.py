"""Requests of the commands to other peers: through the running peer of the home, or over a host of their own.

If a peer runs, a command sends its request over the peer's Unix socket and loads neither libp2p nor trio. What the home
takes at other peers is written to its journal of leases.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from msgspec import Struct
from msgspec.structs import asdict, replace

from dms_protocols.errors import BidError, ProtocolError, RemoteError
from dms_protocols.messages.bid import EnsembleRequest, NodeRequest
from dms_protocols.rpc.blocking_client import BlockingClient
from dms_resources.ledger.leases import LeaseState

from ..errors import PeerError, RefusedError
from ..home.home import Home
from ..home.lease_journal import HeldLease, LeaseJournal
from ..owner.remote_messages import (
    PeerRequest,
    RemoteAllocateRequest,
    RemoteBidRequest,
    RemoteCommitRequest,
    RemoteFreeRequest,
    RemoteListRequest,
    RemoteMachineRequest,
    RemotePingRequest,
    RemoteReleaseRequest,
    RemoteRenewRequest,
    RemoteUsageRequest,
)
from ..owner.socket_file import connect
from ..requesting.reports import (
    BidReport,
    EnsembleBidReport,
    HomeLease,
    HomeLeases,
    OfferedBid,
    PeerEndedLease,
    PeerFree,
    PeerLease,
    PeerLeases,
    PeerMachine,
    PeerUsage,
    Pong,
    ReleasedLeases,
    UnansweredPeer,
)
from .bid_files import bids_document, read_bids_file
from .peer_names import NamedPeer, find_lease, find_peer
from .peer_search import one_node

if TYPE_CHECKING:
    # It loads YAML, which a request for one node does not need.
    from ..config.ensemble import EnsembleFile

__all__ = [
    "allocate_lease",
    "ask_bid",
    "ask_bids",
    "ask_free",
    "ask_hardware",
    "ask_usage",
    "commit_bids",
    "list_leases",
    "ping",
    "release_all",
    "release_lease",
    "renew_lease",
]

Answer = TypeVar("Answer", bound=Struct)

# The time for which bids are requested, in seconds: long enough for two clocks that differ.
_WINDOW: Final = 60.0
# Longer than the running peer needs to dial and to get an answer.
_TIMEOUT: Final = 40.0


def ask_peer(home: Home, request: PeerRequest, answer_type: type[Answer]) -> Answer:
    """The answer of the peer that the request names. Blocks.

    Raises AddressError, DialError, RemoteError with the error of the other peer or of the running peer of the home, and
    ProtocolError for an invalid answer.
    """
    home.prepare()
    connection = connect(home.socket_path)
    if connection is not None:
        with connection:
            try:
                return BlockingClient(connection).call(request, answer_type, timeout=_TIMEOUT)
            except RemoteError as error:
                # An older peer, or one that runs without discovery.
                if error.code != "unknown_operation":
                    raise
    from functools import partial

    from .event_loop import run_async
    from .own_host import perform

    answer = run_async(partial(perform, home, request))
    assert isinstance(answer, answer_type)
    return answer


def ask_free(home: Home, address: str, token: bytes | None = None) -> PeerFree:
    """What a peer has free. Raises what `find_peer` and `ask_peer` raise."""
    peer = find_peer(home, address)
    return ask_peer(home, RemoteFreeRequest(peer_id=peer.peer_id, addrs=peer.addrs, token=token), PeerFree)


def ask_usage(home: Home, address: str, token: bytes | None = None) -> PeerUsage:
    """What a peer's machine uses now. Raises what `find_peer` and `ask_peer` raise."""
    peer = find_peer(home, address)
    return ask_peer(home, RemoteUsageRequest(peer_id=peer.peer_id, addrs=peer.addrs, token=token), PeerUsage)


def ask_hardware(home: Home, address: str, token: bytes | None = None) -> PeerMachine:
    """The hardware of a peer. Raises what `find_peer` and `ask_peer` raise."""
    peer = find_peer(home, address)
    return ask_peer(home, RemoteMachineRequest(peer_id=peer.peer_id, addrs=peer.addrs, token=token), PeerMachine)


def ping(home: Home, peer: NamedPeer) -> Pong:
    """One round trip to a peer. Raises what `ask_peer` raises."""
    return ask_peer(home, RemotePingRequest(peer_id=peer.peer_id, addrs=peer.addrs), Pong)


def ask_bid(
    home: Home,
    address: str,
    node: NodeRequest,
    *,
    dry_run: bool,
    hold: float,
    output: Path | None,
    token: bytes | None = None,
) -> BidReport:
    """A bid of a peer on one node, written to `output` if one is given.

    Raises RefusedError with the reasons, and what `find_peer` and `ask_peer` raise.
    """
    peer = find_peer(home, address)
    report = _ask_bids(home, peer, one_node(node, _WINDOW), dry_run=dry_run, hold=hold, token=token)
    if report.refusals:
        raise RefusedError(report.peer_id, report.refusals[0])
    if not report.bids:
        raise BidError(f"{report.peer_id} answered with neither a bid nor a refusal")
    one = report.bids[0]
    file = _write(report.bids, output)
    return BidReport(peer_id=report.peer_id, dry_run=dry_run, bid=one.bid, envelope=one.envelope, file=file)


def ask_bids(
    home: Home,
    address: str,
    ensemble: EnsembleFile,
    *,
    dry_run: bool,
    hold: float,
    output: Path | None,
    token: bytes | None = None,
) -> EnsembleBidReport:
    """The bids and refusals of a peer for the nodes that are not pinned to other peers.

    Raises PeerError `other_peer` if there are no such nodes, and `different_peers` if several bids would be written
    that this peer may not have together; and what `find_peer` and `ask_peer` raise.
    """
    peer = find_peer(home, address)
    asked = ensemble.for_peer(peer.peer_id)
    if not asked.nodes:
        raise PeerError(f"no node is for {peer.peer_id}", code="other_peer", hint="ask the peers that the file names")
    if ensemble.different_peers and output is not None and len(asked.nodes) > 1:
        raise PeerError(
            f"{len(asked.nodes)} nodes are for different peers, and their bids would be committed together",
            code="different_peers",
            hint="pin each node to its peer, or take the ensemble with `dms-peer reserve`",
        )
    report = _ask_bids(home, peer, asked.asked(deadline=time.time() + _WINDOW), dry_run=dry_run, hold=hold, token=token)
    return replace(
        report,
        not_asked=tuple(node.node_id for node in ensemble.nodes if node not in asked.nodes),
        file=_write(report.bids, output),
    )


def _ask_bids(
    home: Home, peer: NamedPeer, ensemble: EnsembleRequest, *, dry_run: bool, hold: float, token: bytes | None
) -> EnsembleBidReport:
    request = RemoteBidRequest(
        peer_id=peer.peer_id,
        addrs=peer.addrs,
        token=token,
        ensemble=ensemble,
        dry_run=dry_run,
        hold=hold,
    )
    return ask_peer(home, request, EnsembleBidReport)


def _write(bids: Sequence[OfferedBid], output: Path | None) -> str | None:
    envelopes = [bid.envelope for bid in bids if bid.envelope is not None]
    if output is None or not envelopes:
        return None
    output.write_bytes(bids_document(envelopes))
    return str(output)


def commit_bids(
    home: Home, address: str, bid_file: Path, ttl: float, token: bytes | None = None
) -> PeerLease | PeerLeases:
    """Commit the bids in a file for `ttl` seconds, all of them or none.

    Raises EnvelopeError or BidError for a file without bids of that peer, and what `find_peer` and `ask_peer` raise.
    """
    envelopes = read_bids_file(bid_file)
    peer = find_peer(home, address)
    journal = LeaseJournal(home.path)
    home.prepare()
    # Recorded first, so that a commitment whose answer is lost can be found at its provider.
    journal.note_provider(peer.peer_id, peer.addrs)
    request = RemoteCommitRequest(peer_id=peer.peer_id, addrs=peer.addrs, token=token, bids=envelopes, ttl=ttl)
    taken = ask_peer(home, request, PeerLeases)
    journal.note(peer.peer_id, taken.leases)
    return PeerLease(**asdict(taken.leases[0]), peer_id=peer.peer_id) if len(taken.leases) == 1 else taken


def allocate_lease(
    home: Home, address: str | None, lease: str, fence: int | None, token: bytes | None = None
) -> PeerLease:
    """Turn a commitment into an allocation. Raises RemoteError with the ledger's codes, and what
    `renew_lease` raises.
    """
    peer, lease_id = _held(home, address, lease)
    request = RemoteAllocateRequest(peer_id=peer.peer_id, addrs=peer.addrs, token=token, lease_id=lease_id, fence=fence)
    return _noted(home, ask_peer(home, request, PeerLease))


def renew_lease(
    home: Home, address: str | None, lease: str, ttl: float, fence: int | None, token: bytes | None = None
) -> PeerLease:
    """Move the deadline of a lease to `ttl` seconds from now.

    `lease` is its id or the beginning of one in the journal. Without an `address` the journal names its peer. Raises
    PeerError `unknown_lease`, `ambiguous_lease`, RemoteError with the ledger's codes, and what `ask_peer` raises.
    """
    peer, lease_id = _held(home, address, lease)
    request = RemoteRenewRequest(
        peer_id=peer.peer_id, addrs=peer.addrs, token=token, lease_id=lease_id, ttl=ttl, fence=fence
    )
    return _noted(home, ask_peer(home, request, PeerLease))


def release_lease(
    home: Home, address: str | None, lease: str, fence: int | None, token: bytes | None = None
) -> PeerEndedLease:
    """Release a lease in any state. Raises RemoteError with the ledger's codes, and what `renew_lease` raises."""
    peer, lease_id = _held(home, address, lease)
    return _release(home, peer, lease_id, fence, token)


def _release(home: Home, peer: NamedPeer, lease_id: str, fence: int | None, token: bytes | None) -> PeerEndedLease:
    request = RemoteReleaseRequest(peer_id=peer.peer_id, addrs=peer.addrs, token=token, lease_id=lease_id, fence=fence)
    ended = ask_peer(home, request, PeerEndedLease)
    LeaseJournal(home.path).forget(peer.peer_id, [ended.lease_id])
    return ended


def _held(home: Home, address: str | None, lease: str) -> tuple[NamedPeer, str]:
    peer = None if address is None else find_peer(home, address)
    held = find_lease(home, lease, None if peer is None else peer.peer_id)
    if peer is None and held is None:
        raise PeerError(
            f"this home holds no lease whose id begins with {lease[:64]}",
            code="unknown_lease",
            hint="see `dms-peer leases`, or name the peer too",
        )
    if peer is None and held is not None:
        peer = find_peer(home, held.peer_id)
    assert peer is not None
    return peer, held.lease.lease_id if held else lease


def _noted(home: Home, lease: PeerLease) -> PeerLease:
    journal = LeaseJournal(home.path)
    journal.note_provider(lease.peer_id, ())
    journal.note(lease.peer_id, [lease.plain()])
    return lease


def list_leases(home: Home, *, offline: bool = False, token: bytes | None = None) -> HomeLeases:
    """What this home holds at all providers of its journal, as they answer now.

    A provider that does not answer is named in `unanswered`, and its leases are shown as last reported. With `offline`
    no provider is queried. Raises PeerError and OSError. Blocks, for each provider as long as `ask_peer` does.
    """
    home.prepare()
    journal, unanswered = LeaseJournal(home.path), []
    answered: set[str] = set()
    for provider in () if offline else journal.providers():
        try:
            peer = find_peer(home, provider.peer_id)
            request = RemoteListRequest(peer_id=peer.peer_id, addrs=peer.addrs, token=token)
            journal.replace_all(peer.peer_id, ask_peer(home, request, PeerLeases).leases)
            answered.add(peer.peer_id)
        except (PeerError, ProtocolError) as error:
            unanswered.append(UnansweredPeer(peer_id=provider.peer_id, code=error.code, message=error.message))
    now = time.time()
    leases = [held for held in journal.leases() if held.peer_id in answered or _may_stand(held, now)]
    return HomeLeases(
        leases=tuple(
            HomeLease(peer_id=held.peer_id, lease=held.lease, age=max(0.0, now - held.seen)) for held in leases
        ),
        unanswered=tuple(unanswered),
    )


def _may_stand(held: HeldLease, now: float) -> bool:
    return held.lease.deadline is None or held.lease.deadline > now


def release_all(home: Home, token: bytes | None = None) -> ReleasedLeases:
    """Release everything that this home holds, at all providers of its journal. The answer names what was
    not released.
    """
    held = list_leases(home, token=token)
    released, failed = [], list(held.unanswered)
    for one in held.leases:
        if one.lease.state is LeaseState.HELD or any(peer.peer_id == one.peer_id for peer in held.unanswered):
            continue
        try:
            peer = find_peer(home, one.peer_id)
            released.append(_release(home, peer, one.lease.lease_id, one.lease.fence, token))
        except (PeerError, ProtocolError) as error:
            failed.append(
                UnansweredPeer(peer_id=one.peer_id, code=error.code, message=error.message, lease_id=one.lease.lease_id)
            )
    return ReleasedLeases(released=tuple(released), failed=tuple(failed))
