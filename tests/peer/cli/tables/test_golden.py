"""What the tables of a requester look like at 80 columns, and `discover` in a pipe: compared with files in `golden`."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dms_peer.cli.tables.bids import show_bid
from dms_peer.cli.tables.leases import show_home_leases, show_pong, show_released
from dms_peer.cli.tables.search import search_view, show_found, show_peers, show_reserved
from dms_peer.owner.messages import PeerRow, PeersAnswer
from dms_peer.requesting.reports import (
    BidReport,
    Found,
    FoundRow,
    HomeLease,
    HomeLeases,
    PeerEndedLease,
    Pong,
    ReleasedLeases,
    Reserved,
    ReservedNode,
    SearchProgress,
    UnansweredPeer,
)
from dms_protocols.messages.bid import Bid, Refusal
from dms_resources.components import CPU, GPU, RAM, Disk, FreeResources, Resources
from dms_resources.demands import CPUDemand, Demand, DiskDemand, GPUDemand, RAMDemand
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
        created=NOW, deadline=deadline, price=PRICE if number else None,
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


@pytest.mark.parametrize("show", [leases, released, peers, reserved, discover, bid, ping])
def test_it_looks_as_in_the_golden_file(
    show: Callable[[], None], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(time, "time", lambda: NOW)
    show()
    shown = capsys.readouterr().out
    assert shown == (GOLDEN / f"{show.__name__}.txt").read_text()
    if show is not discover:
        # Lines of a table; a sentence may be longer, and wraps.
        assert max(len(line) for line in shown.splitlines() if line.startswith("  ")) <= 80 if "  " in shown else True
