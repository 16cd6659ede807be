"""Each table of the requester's commands and of tokens at 80 columns, and `discover` also in a pipe, as golden files.

`DMS_WRITE_GOLDEN=1 pytest tests/peer/cli/tables/test_golden_requester.py` writes the files anew: look at what changed.
"""

from __future__ import annotations

import io
import os
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec.structs import asdict, replace

from dms_peer.cli.tables import tokens
from dms_peer.cli.tables.bids import show_bid, show_bids
from dms_peer.cli.tables.common import show_commit, show_free, show_release
from dms_peer.cli.tables.leases import show_home_leases, show_pong, show_released, show_usage
from dms_peer.cli.tables.search import search_view, show_found, show_peers, show_reserved
from dms_peer.cli.token_files import TokenReport
from dms_peer.owner.messages import PeerRow, PeersAnswer, Revocation, RevocationsAnswer
from dms_peer.requesting.reports import (
    BidReport,
    EnsembleBidReport,
    Found,
    FoundRow,
    HomeLease,
    HomeLeases,
    OfferedBid,
    PeerEndedLease,
    PeerFree,
    PeerLease,
    PeerLeases,
    PeerUsage,
    Pong,
    ReleasedLeases,
    Reserved,
    ReservedNode,
    SearchProgress,
    UnansweredPeer,
)
from dms_protocols.messages.bid import Bid, Reason, Refusal
from dms_protocols.tokens.grants import Grant, Grants, GrantTerms
from dms_resources.components import CPU, GPU, RAM, Disk, FreeResources, Resources
from dms_resources.demands import CPUDemand, CPUShortage, Demand, DiskDemand, GPUDemand, RAMDemand, RAMShortage
from dms_resources.ledger.accounts import Allowance
from dms_resources.ledger.leases import EndReason, Lease, LeaseState, Price
from dms_resources.units import GIB, Cores

GOLDEN = Path(__file__).parent / "golden"
NOW = 1_800_000_000.0
PEERS = ("12D3KooWKT4R3MXsXok4hq59xGx1JubPnfybYn24aSHFQNUEiaBG", "12D3KooWEFqgCwFkGcjuuf1JYbF4mF2d1rkqEMbgtW8W8Dq81M1M")
LEASES = ("3f2a9c1b753f51d0a9d7cf203bfed0a4", "109fcfdfa1a8fecd280c6285930b1660")
GPUS = (GPU(uuid="GPU-a", index=0, model="NVIDIA A100", vram=40 * GIB),)
HAS = Resources(cpu=CPU(cores=Cores.of(8)), ram=RAM(size=32 * GIB), disk=Disk(size=500 * GIB), gpus=GPUS)
FREE = FreeResources(
    cpu=HAS.cpu, ram=HAS.ram, disk=HAS.disk, gpus=GPUS, ports=100, onboarded=True, draining=False, simulated=False
)
DEMAND = Demand(
    cpu=CPUDemand(cores=Cores.of(2)),
    ram=RAMDemand(size=4 * GIB),
    disk=DiskDemand(size=10 * GIB),
    gpus=(GPUDemand(vram=8 * GIB),),
)
PRICE = Price(micros_per_hour=1_250_000, currency="EUR")
BID = Bid(
    request_digest=b"\0" * 32, ensemble_id="e", nonce=1, node_id="node", lease_id=LEASES[0], requester=PEERS[1],
    provider=PEERS[0], demand=DEMAND, resources=HAS, valid_until=NOW + 300, price=PRICE,
)  # fmt: skip
PROGRESS = SearchProgress(
    stage="searching", source="", asked=3, answered=2, in_flight=0, skipped=0, bids=1, attempts=0,
    refused={"resources": 1}, failed={"timeout": 1}, elapsed=1.25,
)  # fmt: skip


def lease(number: int, state: LeaseState, deadline: float | None) -> Lease:
    return Lease(
        lease_id=LEASES[number], holder=PEERS[1], state=state, demand=DEMAND, resources=HAS, fence=number + 1,
        created=NOW, deadline=deadline, price=PRICE if number else None, ensemble_id="training",
        node_id=("trainer", "store")[number],
    )  # fmt: skip


def leases() -> None:
    held = (
        HomeLease(peer_id=PEERS[0], lease=lease(0, LeaseState.COMMITTED, NOW + 290), age=0.1),
        HomeLease(peer_id=PEERS[1], lease=lease(1, LeaseState.ALLOCATED, None), age=7200.0),
    )
    gone = UnansweredPeer(peer_id=PEERS[1], code="refused", message="nobody listens at /ip4/192.0.2.7/tcp/4001")
    show_home_leases(HomeLeases(leases=held, unanswered=(gone,)))


def released() -> None:
    ended = PeerEndedLease(
        lease_id=LEASES[0], holder=PEERS[1], state=LeaseState.COMMITTED, fence=1, reason=EndReason.RELEASED, ended=NOW,
        peer_id=PEERS[0],
    )  # fmt: skip
    failed = UnansweredPeer(peer_id=PEERS[1], code="timeout", message="no answer", lease_id=LEASES[1])
    show_released(ReleasedLeases(released=(ended,), failed=(failed,)))


def peers() -> None:
    rows = (
        PeerRow(
            peer_id=PEERS[0], addrs=(), sources=("known", "mdns"), connected=True, seen_age=2.0, free=FREE, free_age=2.0
        ),
        PeerRow(peer_id=PEERS[1], addrs=(), sources=("adverts",), failures=2),
    )
    show_peers(PeersAnswer(peers=rows, peer_count=2, running=True))


def reserved() -> None:
    nodes = tuple(
        ReservedNode(
            node_id=node_id, peer_id=PEERS[number], addrs=(), lease_id=LEASES[number], fence=1, resources=HAS,
            ports=(16384,), price=PRICE,
        )
        for number, node_id in enumerate(("trainer", "store"))
    )  # fmt: skip
    out = io.StringIO()
    show_reserved(Reserved(ensemble_id="training", allocated=False, nodes=nodes, progress=PROGRESS), out)
    print(out.getvalue(), end="")


def discover() -> None:
    no = Refusal(node_id="node", code="resources", message="too little")
    with search_view() as view:
        for number, (offers, refusals) in enumerate((((BID,), ()), ((), (no,)))):
            row = FoundRow(
                peer_id=PEERS[number], addrs=(), source="known", able=bool(offers), offers=offers, refusals=refusals,
                free=FREE, age=0.0, round_trip=0.012,
            )  # fmt: skip
            view.found(row, PROGRESS)
    show_found(Found(able=1, progress=PROGRESS))


def bid() -> None:
    show_bid(BidReport(peer_id=PEERS[0], dry_run=False, bid=BID, file="bid.cbor"))


def ping() -> None:
    for relayed in (False, True, None):
        show_pong(Pong(peer_id=PEERS[0], round_trip=0.0123, relayed=relayed))


def free() -> None:
    show_free(PeerFree(**asdict(FREE), peer_id=PEERS[0]))


def usage() -> None:
    show_usage(PeerUsage(**asdict(HAS), peer_id=PEERS[0]))


def bids() -> None:
    reasons = (
        Reason(
            code="resources", message="too little", hint="ask for less", retry_after=120.0,
            shortages=(
                CPUShortage(asked=DEMAND.cpu, free=CPUDemand(cores=Cores.of(1)), total=CPUDemand(cores=Cores.of(8))),
                RAMShortage(asked=DEMAND.ram.size, free=GIB, total=32 * GIB),
            ),
        ),
        Reason(
            code="executor", message="this provider does not have the executors docker, firecracker",
            hint="ask a provider that has them, or leave the executor out",
        ),
    )  # fmt: skip
    refusal = Refusal(node_id="store", code="resources", message="too little", reasons=reasons)
    report = EnsembleBidReport(
        peer_id=PEERS[0], dry_run=False, bids=(OfferedBid(bid=replace(BID, node_id="trainer"), envelope=b""),),
        refusals=(refusal,), not_asked=("elsewhere",), file="bids.cbor",
    )  # fmt: skip
    show_bids(report)


def commit() -> None:
    show_commit(PeerLease(**asdict(lease(0, LeaseState.COMMITTED, NOW + 290)), peer_id=PEERS[0]))


def commit_several() -> None:
    held = tuple(lease(number, LeaseState.COMMITTED, NOW + 290) for number in (0, 1))
    show_commit(PeerLeases(peer_id=PEERS[0], leases=held))


def release() -> None:
    ended = PeerEndedLease(
        lease_id=LEASES[0], holder=PEERS[1], state=LeaseState.COMMITTED, fence=1, reason=EndReason.RELEASED, ended=NOW,
        peer_id=PEERS[0],
    )  # fmt: skip
    show_release(ended)


def token() -> None:
    least = GrantTerms(allowance=Allowance(millicores=4000, ram=32 * GIB, leases=2), peers=frozenset(PEERS[1:]))
    grants = Grants(
        granted_by=PEERS[0],
        blocks=(
            Grant(id="0a" * 16, terms=GrantTerms(allowance=Allowance(millicores=8000, ram=32 * GIB))),
            Grant(id="1b" * 16, terms=least),
        ),
    )
    tokens.show_token(TokenReport(grants=grants, own=True, effective=least, revoked=()))


def revocations() -> None:
    tokens.show_revocations(RevocationsAnswer(revocations=(Revocation(id="0a" * 16, at=0, reason="left"),), count=1))


def discover_terminal() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    no = Refusal(node_id="node", code="resources", message="too little")
    out = Terminal()
    with search_view(out) as view:
        for number, (offers, refusals) in enumerate((((BID,), ()), ((), (no,)))):
            row = FoundRow(
                peer_id=PEERS[number], addrs=(), source="known", able=bool(offers), offers=offers, refusals=refusals,
                free=FREE, age=0.0, round_trip=0.012,
            )  # fmt: skip
            view.found(row, PROGRESS)
    # The table is drawn anew with each answer. The last drawing has a heading, two rows and a line of progress.
    drawn = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", out.getvalue())
    print("\n".join(line.rstrip() for line in drawn.splitlines()[-4:]))


SHOWN = (
    leases, released, peers, reserved, discover, discover_terminal, bid, bids, ping, free, usage, commit,
    commit_several, release, token, revocations,
)  # fmt: skip


@pytest.mark.parametrize("show", SHOWN)
def test_it_looks_as_in_the_golden_file(
    show: Callable[[], None], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for variable in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(time, "time", lambda: NOW)
    monkeypatch.setattr("dms_peer.cli.tables.tokens._local", lambda at: "2026-01-01 00:00:00 +0000")
    show()
    shown = capsys.readouterr().out
    path = GOLDEN / f"{show.__name__}.txt"
    if os.environ.get("DMS_WRITE_GOLDEN"):
        path.write_text(shown, encoding="utf-8")
    assert shown == path.read_text(encoding="utf-8")
    if show is not discover:
        # Lines of a table; a sentence may be longer, and wraps.
        assert all(len(line) <= 80 for line in shown.splitlines() if line.startswith("  "))
