"""Text of other peers: every table and every printer shows it, and it controls none of them."""

from __future__ import annotations

import ast
import io
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

import dms_peer
from dms_peer.cli.failures import describe_failure
from dms_peer.cli.output import comment, say
from dms_peer.cli.tables import bids, common, layout, leases, machine, owner, search, status
from dms_peer.errors import PeerError, RefusedError
from dms_peer.owner.messages import (
    AuditAnswer,
    EvictAnswer,
    HistoryAnswer,
    HistoryRow,
    OnboardAnswer,
    PeerRow,
    PeersAnswer,
    StatusAnswer,
    TermsSummary,
)  # fmt: skip
from dms_peer.requesting.progress import SearchProgress
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
    UnansweredPeer,
)  # fmt: skip
from dms_peer.text import cell_width, printable, shortened
from dms_protocols.errors import RemoteError
from dms_protocols.messages.bid import Bid, Refusal
from dms_resources.components import (
    CPU,
    GPU,
    RAM,
    Disk,
    FreeResources,
    MachineResources,
    NetworkInfo,
    NetworkInterface,
    OnboardedResources,
    Resources,
)  # fmt: skip
from dms_resources.demands import Demand
from dms_resources.ledger.history import Finding
from dms_resources.ledger.leases import EndedLease, EndReason, Lease, LeaseState, Price
from dms_resources.units import GIB, Cores
from hostile_text import HOSTILE

EVIL = "".join(HOSTILE)
# What a terminal may get besides printable characters: line ends, and this program's own colors.
OWN_COLORS = re.compile(r"\x1b\[[0-9;]*m")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def harmless(text: str, colors: bool = False) -> None:
    if colors:
        text = OWN_COLORS.sub("", text)
    for line in text.split("\n"):
        assert line.isprintable(), ascii(line)
        assert "\u0301" * 4 not in line
    assert "[/nope]" in text, "markup is shown as it is, not obeyed"


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_printable_text_is_one_line_without_controls_and_made_once(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    assert printable(shown) == shown
    assert cell_width(shown) >= 0


def test_what_people_write_stays_as_it_is() -> None:
    for text in ("plain", "Größe", "日本語", "e\u0301te\u0301", "हिन्दी", "GeForce™", "🚀"):
        assert printable(text) == text
    assert [cell_width(text) for text in ("ab", "日本", "e\u0301")] == [2, 4, 1]
    assert [shortened("abcdef", most) for most in (6, 5)] == ["abcdef", "ab..."]


RESOURCES = Resources(
    cpu=CPU(cores=Cores(1000), model=EVIL, vendor=EVIL, architecture=EVIL), ram=RAM(size=GIB, type=EVIL),
    disk=Disk(size=GIB, model=EVIL, type=EVIL, interface=EVIL, vendor=EVIL),
    gpus=(GPU(uuid=EVIL, model=EVIL, vram=GIB, driver_version=EVIL),),
)  # fmt: skip
FREE = FreeResources(
    cpu=RESOURCES.cpu,
    ram=RESOURCES.ram,
    disk=RESOURCES.disk,
    gpus=RESOURCES.gpus,
    ports=1,
    onboarded=True,
    draining=True,
    simulated=True,
)
OFFERED = OnboardedResources(cpu=RESOURCES.cpu, ram=RESOURCES.ram, disk=RESOURCES.disk, gpus=RESOURCES.gpus)
PRICE = Price(micros_per_hour=7_000_000, currency=EVIL)
LEASE = Lease(
    lease_id=EVIL, holder=EVIL, state=LeaseState.COMMITTED, demand=Demand(), resources=RESOURCES, fence=1,
    created=time.time(), deadline=time.time() + 60, price=PRICE,
    ensemble_id=EVIL, node_id=EVIL,
)  # fmt: skip
BID = Bid(
    ensemble_id=EVIL, request_digest=b"", node_id=EVIL, lease_id=EVIL, nonce=1, provider=EVIL, requester=EVIL,
    resources=RESOURCES, demand=Demand(), price=PRICE, valid_until=time.time() + 60,
)  # fmt: skip
REFUSAL = Refusal(node_id=EVIL, code=EVIL, message=EVIL)
PROGRESS = SearchProgress(
    stage=EVIL, source=EVIL, asked=1, answered=1, in_flight=1, skipped=1, bids=1, attempts=1, refused={EVIL: 1},
    failed={EVIL: 2}, elapsed=1.0,
)  # fmt: skip
FOUND = FoundRow(
    peer_id=EVIL, addrs=(EVIL,), source=EVIL, able=False, offers=(BID,), refusals=(REFUSAL,), free=FREE, age=0.0,
    round_trip=0.1,
)  # fmt: skip
NODE = ReservedNode(
    node_id=EVIL, peer_id=EVIL, addrs=(), lease_id=EVIL, fence=1, resources=RESOURCES, ports=(1,), price=PRICE
)
FINDING = Finding(code=EVIL, message=EVIL, lease_id=EVIL)
STATUS = StatusAnswer(
    peer_id=EVIL, addrs=(EVIL,), running=True, simulated=False, draining=False, onboarded=OFFERED, free=FREE,
    committed=RESOURCES, allocated=RESOURCES, leases=(LEASE,), lease_count=1, limits=(EVIL,), problems=(EVIL,),
    missing=(EVIL,), short_now=(EVIL,), storage_error=EVIL, findings=(FINDING,), refusals={EVIL: 1},
    failures={EVIL: 1}, limits_hit={EVIL: 1},
    terms=TermsSummary(
        currency=EVIL, micros_per_hour={EVIL: 1}, location=(EVIL,), executors=(EVIL,), allowed_peers=(EVIL,),
        policies=(EVIL,),
    ),
)  # fmt: skip
HISTORY = HistoryAnswer(
    entries=(HistoryRow(number=1, at=0.0, actor=EVIL, action=EVIL, lease_id=EVIL, reason=EVIL, detail=EVIL),)
)
MACHINE = MachineResources(
    cpu=RESOURCES.cpu, ram=RESOURCES.ram, disk=RESOURCES.disk, gpus=RESOURCES.gpus, limits=(EVIL,), problems=(EVIL,),
    network=NetworkInfo(interfaces=(NetworkInterface(name=EVIL, type=EVIL),)),
)  # fmt: skip


def lease_at_peer() -> PeerLease:
    return PeerLease(**msgspec.structs.asdict(LEASE), peer_id=EVIL)


def ended_at_peer() -> PeerEndedLease:
    return PeerEndedLease(
        peer_id=EVIL, lease_id=EVIL, holder=EVIL, state=LeaseState.ALLOCATED, fence=1, reason=EndReason.RELEASED,
        ended=0.0, detail=EVIL,
    )  # fmt: skip


UNANSWERED = UnansweredPeer(peer_id=EVIL, code=EVIL, message=EVIL, lease_id=EVIL)
PRINTERS: dict[str, Callable[[], object]] = {
    "say": lambda: say(EVIL),
    "comment": lambda: comment(EVIL),
    "show_table": lambda: layout.show_table(EVIL, (EVIL, "b"), [[EVIL, EVIL]]),
    "show_resources": lambda: common.show_resources(EVIL, {EVIL: RESOURCES}),
    "show_leases": lambda: common.show_leases(EVIL, [LEASE]),
    "show_free": lambda: common.show_free(PeerFree(**msgspec.structs.asdict(FREE), peer_id=EVIL)),
    "show_lease": lambda: common.show_lease(lease_at_peer()),
    "show_commit": lambda: common.show_commit(PeerLeases(peer_id=EVIL, leases=(LEASE,))),
    "show_release": lambda: common.show_release(ended_at_peer()),
    "show_status": lambda: status.show_status(STATUS),
    "show_offer": lambda: owner.show_offer(OnboardAnswer(onboarded=OFFERED, free=FREE, simulated=False)),
    "show_proposed_offer": lambda: owner.show_proposed_offer(
        OnboardAnswer(onboarded=OFFERED, free=FREE, simulated=False)
    ),
    "show_history": lambda: owner.show_history(HISTORY),
    "show_audit": lambda: owner.show_audit(AuditAnswer(findings=(FINDING,), repaired=False)),
    "show_home_leases": lambda: leases.show_home_leases(
        HomeLeases(leases=(HomeLease(peer_id=EVIL, lease=LEASE, age=9.0),), unanswered=(UNANSWERED,))
    ),
    "show_released": lambda: leases.show_released(ReleasedLeases(released=(ended_at_peer(),), failed=(UNANSWERED,))),
    "show_pong": lambda: leases.show_pong(Pong(peer_id=EVIL, round_trip=0.1, relayed=True)),
    "show_usage": lambda: leases.show_usage(
        PeerUsage(cpu=FREE.cpu, ram=FREE.ram, disk=FREE.disk, gpus=FREE.gpus, peer_id=EVIL)
    ),
    "show_eviction": lambda: owner.show_eviction(
        EvictAnswer(
            ended=(
                EndedLease(
                    lease_id=EVIL,
                    holder=EVIL,
                    state=LeaseState.COMMITTED,
                    fence=1,
                    reason=EndReason.EVICTED,
                    ended=0.0,
                    detail=EVIL,
                ),
            ),
            noticed=(LEASE,),
        )
    ),
    "show_hardware": lambda: machine.show_hardware(MACHINE),
    "show_bid": lambda: bids.show_bid(BidReport(peer_id=EVIL, dry_run=False, bid=BID, envelope=b"", file=EVIL)),
    "show_bids": lambda: bids.show_bids(
        EnsembleBidReport(
            peer_id=EVIL, dry_run=False, bids=(OfferedBid(bid=BID),), refusals=(REFUSAL,), not_asked=(EVIL,), file=EVIL
        )
    ),
    "show_refusals": lambda: bids.show_refusals(EVIL, (REFUSAL,)),
    "show_found": lambda: search.show_found(Found(able=1, progress=PROGRESS)),
    "show_peers": lambda: search.show_peers(
        PeersAnswer(peers=(PeerRow(peer_id=EVIL, addrs=(EVIL,), sources=(EVIL,)),), peer_count=1, running=True)
    ),
    "show_reserved": lambda: search.show_reserved(
        Reserved(ensemble_id=EVIL, allocated=True, nodes=(NODE,), progress=PROGRESS)
    ),
}  # fmt: skip
# Printers that show nothing that another peer chose, or return a line that `say` prints.
OWN_TEXT = {"show_cancelled_drain", "show_drain"}


@pytest.mark.parametrize("width", ["", "80", "20"])
@pytest.mark.parametrize("name", PRINTERS)
def test_no_printer_is_steered(
    name: str, width: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", width)
    PRINTERS[name]()
    out, err = capsys.readouterr()
    text = out + err
    for line in text.split("\n"):
        assert line.isprintable(), ascii(line)
        assert "\u0301" * 4 not in line
    if not width:
        harmless(text)


@pytest.mark.parametrize("name", sorted(PRINTERS))
def test_no_printer_is_steered_on_a_terminal(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("COLUMNS", "2000")
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(sys, "stderr", terminal)
    PRINTERS[name]()
    harmless(terminal.getvalue(), colors=True)


def test_every_printer_is_tried() -> None:
    names = {name for module in (bids, common, leases, machine, owner, search, status) for name in module.__all__}
    shown = {name for name in names if name.startswith("show_")}
    assert shown - OWN_TEXT <= PRINTERS.keys()


@pytest.mark.parametrize("view", ["terminal", "pipe"])
def test_progress_and_rows_of_a_search(view: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "2000")
    out = Terminal() if view == "terminal" else io.StringIO()
    with search.search_view(out) as shown:
        shown.found(FOUND, PROGRESS)
        shown.progress(PROGRESS)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue()).replace("\r", "")
    harmless(text)


def test_progress_of_a_reservation_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "2000")
    out = Terminal()
    with search.watched_progress(out) as show:
        show(PROGRESS)
        # Drawn at once and not only when its turn comes.
        show(msgspec.structs.replace(PROGRESS, stage="reserved"))
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue()).replace("\r", "")
    for line in text.split("\n"):
        assert line.isprintable(), ascii(line)


@pytest.mark.parametrize(
    "error",
    [
        PeerError(EVIL, code="x", hint=EVIL),
        RefusedError(EVIL, REFUSAL),
        RemoteError(EVIL, code=EVIL, details={}),
        ValueError(EVIL),
        OSError(2, EVIL, EVIL),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_are_one_printable_line(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    harmless(describe_failure(error).line)


def test_commands_write_through_one_module() -> None:
    """No `print`, `typer.echo` or write to a stream outside of `cli/output.py`; rich gets no plain f-string."""
    found = []
    for path in (Path(dms_peer.__file__).parent / "cli").rglob("*.py"):
        if path.name == "output.py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            markup = called.endswith((".update", "Panel", "Table", "Group", ".add_row", "Status")) and any(
                isinstance(argument, ast.JoinedStr) for argument in node.args
            )
            if called in ("print", "typer.echo", "typer.secho") or re.search(r"std(out|err)\.write$", called) or markup:
                found.append(f"{path.name}:{node.lineno}: {called}")
    assert not found
