"""Resources, leases and bids as tables: drawn with rich on a terminal, plain aligned columns in a pipe."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final, TextIO, cast

from dms_resources.components import GPU, Resources
from dms_resources.ledger.leases import Lease, Price
from dms_resources.units import format_duration, format_size

from ...owner.messages import AuditAnswer, HistoryAnswer, OnboardAnswer, StatusAnswer, TermsSummary
from ...text import printable

if TYPE_CHECKING:
    # They come with libp2p, which local commands do not load.
    from ..reports import PeerEndedLease, PeerFree, PeerLease, PeerLeases

__all__ = [
    "capacity_rows",
    "show_audit",
    "show_commit",
    "show_free",
    "show_history",
    "show_lease",
    "show_leases",
    "show_offer",
    "show_proposed_offer",
    "show_release",
    "show_resources",
    "show_status",
    "show_table",
]


def show_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], out: TextIO | None = None) -> None:
    """Prints a table; the first column is on the left, the others on the right."""
    out = out or sys.stdout
    rows = [[printable(cell) for cell in row] for row in rows]
    if out.isatty():
        _show_drawn(title, columns, rows, out)
    else:
        _show_plain(title, columns, rows, out)


def _show_drawn(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], out: TextIO) -> None:
    # Half of the time that a local command takes, and of no use in a pipe.
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title), title_justify="left", title_style="bold", box=box.ROUNDED)
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    Console(file=out).print(table)


def _show_plain(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], out: TextIO) -> None:
    widths = [max(map(len, cells)) for cells in zip(columns, *rows, strict=True)]
    print(title, file=out)
    for row in (columns, *rows):
        first, *others = zip(row, widths, strict=True)
        cells = [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]
        print("  " + "  ".join(cells).rstrip(), file=out)


def capacity_rows(amounts: Sequence[Resources | None]) -> list[list[str]]:
    """One row for CPU, RAM, disk and every GPU, with a column for each of the amounts; None is shown as nothing."""
    rows = [
        ["CPU cores", *(str(one.cpu.cores) if one else "-" for one in amounts)],
        ["RAM", *(format_size(one.ram.size) if one else "-" for one in amounts)],
        ["disk", *(format_size(one.disk.size) if one else "-" for one in amounts)],
    ]
    devices: dict[str, GPU] = {}
    for one in amounts:
        for gpu in one.gpus if one else ():
            devices.setdefault(gpu.uuid, gpu)
    for uuid, device in devices.items():
        name = f"GPU {device.index} {device.model}".rstrip()
        rows.append([name, *(_vram(one, uuid) for one in amounts)])
    return rows


def _vram(resources: Resources | None, uuid: str) -> str:
    found = [gpu for gpu in resources.gpus if gpu.uuid == uuid] if resources else []
    return format_size(found[0].vram) if found else "-"


def show_resources(title: str, amounts: Mapping[str, Resources | None]) -> None:
    """Prints amounts side by side, each under its name."""
    show_table(title, ["", *amounts], capacity_rows(list(amounts.values())))


def _words(*words: str) -> str:
    return " ".join(filter(None, words))


def show_offer(answer: OnboardAnswer) -> None:
    """Prints what is offered now."""
    if answer.onboarded is None:
        print("nothing is offered to the network any more")
        return
    note = " (simulated machine)" if answer.simulated else ""
    show_resources(f"offered to the network{note}", {"offered": answer.onboarded, "free": answer.free})


def show_proposed_offer(answer: OnboardAnswer) -> None:
    """Prints what would be offered."""
    show_resources("would be offered to the network (dry run)", {"offered": answer.onboarded})


def show_status(status: StatusAnswer) -> None:
    """Prints the state of one's own peer."""
    state = "running" if status.running else "not running (start it with `dms-peer run`)"
    notes = [state, *(["draining"] if status.draining else []), *(["simulated machine"] if status.simulated else [])]
    print(f"peer {status.peer_id}: {', '.join(notes)}")
    for address in status.addrs:
        print(f"  {address}")
    if status.onboarded is None:
        print("nothing is offered; offer something with `dms-peer onboard`")
    amounts: dict[str, Resources | None] = {
        "offered": status.onboarded,
        "committed": status.committed,
        "allocated": status.allocated,
        "free": status.free,
    }
    if status.usage is not None:
        amounts["in use now"] = status.usage
    show_resources("resources", amounts)
    if status.terms is not None:
        _show_terms(status.terms)
    if status.usage_age is not None:
        print(f"  use of the machine sampled {format_duration(status.usage_age)} ago")
    if status.leases:
        show_leases(f"leases ({status.lease_count})", status.leases)
    if status.storage_error:
        print(f"  nothing can be promised now: {printable(status.storage_error)}")
    for sentence in status.missing:
        print(f"  no longer there: {printable(sentence)}")
    for sentence in status.short_now:
        print(f"  used by others now: {printable(sentence)}")
    for finding in status.findings:
        print(f"  audit: {finding.code}: {printable(finding.message)}")
    for what, counted in (
        ("did not bid", status.refusals),
        ("answered with an error", status.failures),
        ("turned away", status.limits_hit),
    ):
        if counted:
            print(f"  {what} since the start: {_counts(counted)}")
    for sentence in (*status.limits, *status.problems):
        print(f"  note: {printable(sentence)}")


def _counts(counted: Mapping[str, int]) -> str:
    most_first = sorted(counted.items(), key=lambda entry: -entry[1])
    return printable(", ".join(f"{count} {code}" for code, count in most_first))


_PRICED: Final = {
    "core": "a core",
    "ram_gib": "a GiB of RAM",
    "disk_gib": "a GiB of disk",
    "gpu": "a GPU",
    "vram_gib": "a GiB of VRAM",
    "bid": "each bid",
}


def _show_terms(terms: TermsSummary) -> None:
    rows = [
        [_PRICED.get(name, name), Price(micros_per_hour=micros, currency=terms.currency).describe()]
        for name, micros in terms.micros_per_hour.items()
    ]
    rows += [["location", ", ".join(terms.location)]] if terms.location else []
    rows += [["executors", ", ".join(terms.executors) or "none"]] if terms.executors is not None else []
    rows += [["privileged containers", "allowed" if terms.privileged_docker else "refused"]]
    rows += [["bids are valid for", format_duration(terms.valid_seconds)]]
    rows += [["bids only for", peer] for peer in terms.allowed_peers]
    rows += [["no bids for", peer] for peer in terms.denied_peers]
    rows += [["decides", policy] for policy in terms.policies]
    show_table("terms", ["", ""], rows)


def show_leases(title: str, leases: Sequence[Lease]) -> None:
    """Prints leases: who has what, and for how long yet."""
    rows = [
        [lease.lease_id, lease.state.value, lease.holder, lease.demand.describe(), _remaining(lease), str(lease.fence)]
        for lease in leases
    ]
    show_table(title, ["lease", "state", "holder", "resources", "ends in", "fence"], rows)


def _remaining(lease: Lease) -> str:
    return "-" if lease.deadline is None else format_duration(lease.deadline - time.time())


def show_history(answer: HistoryAnswer) -> None:
    """Prints what happened, newest first."""
    rows = [
        [
            str(entry.number),
            time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(entry.at)),
            _words(entry.action, entry.reason),
            entry.lease_id,
            entry.actor,
            entry.detail,
        ]
        for entry in answer.entries
    ]
    show_table("history", ["number", "at", "what", "lease", "who", "detail"], rows)


def show_audit(answer: AuditAnswer) -> None:
    """Prints what an audit found."""
    if not answer.findings:
        print("the ledger matches its file and the operating system")
        return
    rows = [[finding.code, finding.lease_id or "-", finding.message] for finding in answer.findings]
    show_table(f"findings ({len(rows)})", ["code", "lease", "what"], rows)
    if not answer.repaired:
        print("`dms-peer audit --repair` ends the allocations whose processes are gone")


def show_free(free: PeerFree) -> None:
    """Prints what another peer has free."""
    notes = [
        *([] if free.onboarded else ["offers nothing"]),
        *(["draining"] if free.draining else []),
        *(["simulated machine"] if free.simulated else []),
    ]
    show_resources(f"free at {free.peer_id}" + (f" ({', '.join(notes)})" if notes else ""), {"free": free})


def show_lease(lease: PeerLease) -> None:
    """Prints what was taken at another peer."""
    ends = "until it is released" if lease.deadline is None else f"for {_remaining(lease)}"
    print(f"lease {lease.lease_id} is {lease.state.value} {ends}, fencing number {lease.fence}")
    show_resources(f"at {lease.peer_id}", {lease.state.value: lease.resources})


def show_commit(taken: PeerLease | PeerLeases) -> None:
    """Prints what was taken of one bid, or of several together."""
    # Told apart by what they have: to load their types would load libp2p.
    leases = getattr(taken, "leases", None)
    if leases is None:
        show_lease(cast("PeerLease", taken))
    else:
        show_leases(f"leases at {taken.peer_id}", leases)


def show_release(lease: PeerEndedLease) -> None:
    """Prints what was given back."""
    print(f"lease {lease.lease_id} at {lease.peer_id} was {lease.state.value} and is {lease.reason.value}")
