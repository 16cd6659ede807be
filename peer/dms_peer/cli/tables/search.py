"""Searches on a terminal: a table that fills as answers arrive, a line with the progress, and the result."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, TextIO

from msgspec.structs import replace

from dms_resources.components import Resources
from dms_resources.units import format_duration, format_size

from ...text import printable
from ..output import say
from .common import short_ids, short_peer_id, show_table
from .layout import Column

if TYPE_CHECKING:
    from ...owner.messages import PeersAnswer
    from ...requesting.progress import SearchProgress
    from ...requesting.reports import Found, FoundRow, Reserved

__all__ = ["progress_line", "search_view", "show_found", "show_peers", "show_reserved", "watched_progress"]

COLUMNS: Final = ("peer", "source", "takes it", "CPU", "RAM", "disk", "GPUs", "price", "age", "round trip")
# Widths of usual values, for rows that are printed before the others are known.
_USUAL: Final = (52, 9, 13, 4, 8, 8, 8, 17, 5, 10)
# On a narrow terminal only these columns are drawn.
_NARROW: Final = 100
_NEEDED: Final = ("peer", "takes it", "CPU", "RAM", "GPUs", "price")


def progress_line(progress: SearchProgress) -> str:
    """One line: how many peers were queried and answered, and why others did not take it."""
    parts = [f"{progress.asked} asked", f"{progress.answered} answered"]
    if progress.in_flight:
        parts.append(f"{progress.in_flight} awaited")
    if progress.skipped:
        parts.append(f"{progress.skipped} known to be full")
    if refused := _counted(progress.refused):
        parts.append(f"refused: {refused}")
    if failed := _counted(progress.failed):
        parts.append(f"failed: {failed}")
    if progress.source:
        parts.append(f"looking in {progress.source}")
    return printable(", ".join(parts)) + f" ({progress.elapsed:.1f} s)"


def _counted(codes: dict[str, int]) -> str:
    return ", ".join(f"{count} {code}" for code, count in Counter(codes).most_common(5))


def _row(found: FoundRow) -> list[str]:
    free, price = found.free, next((offer.price for offer in found.offers if offer.price), None)
    why = ", ".join(sorted({refusal.code for refusal in found.refusals}))
    return [
        found.peer_id,
        found.source,
        "yes" if found.able else f"no: {why or 'no answer'}",
        *_amounts(free),
        price.describe() if price else "-",
        "-" if found.age is None else ("now" if found.age < 1 else format_duration(found.age)),
        "-" if found.round_trip is None else f"{found.round_trip * 1000:.0f} ms",
    ]


def _amounts(free: Resources | None) -> list[str]:
    if free is None:
        return ["-"] * 4
    gpus = " + ".join(format_size(gpu.vram) for gpu in free.gpus) or "none"
    return [str(free.cpu.cores), format_size(free.ram.size), format_size(free.disk.size), gpus]


class _PlainView:
    """Rows as they arrive under a heading, for a pipe. The progress is printed at the end."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._begun = False

    def found(self, row: FoundRow, progress: SearchProgress) -> None:
        if not self._begun:
            self._line(COLUMNS)
            self._begun = True
        self._line([printable(cell) for cell in _row(row)])

    def _line(self, cells: Sequence[str]) -> None:
        # A later row may be wider than all rows before it, so the widths are those of usual values.
        padded = (cell.ljust(width) for cell, width in zip(cells, _USUAL, strict=True))
        say("  ".join(padded).rstrip(), self._out)

    def progress(self, progress: SearchProgress) -> None:
        """No effect in a pipe."""


class _LiveView:
    """A table that is redrawn with every answer, and a line below it."""

    def __init__(self, live: Any) -> None:
        self._live = live
        self._rows: list[list[str]] = []
        self._line = ""

    def found(self, row: FoundRow, progress: SearchProgress) -> None:
        peer_id, *cells = map(printable, _row(row))
        self._rows.append([short_peer_id(peer_id), *cells])
        self.progress(progress)

    def progress(self, progress: SearchProgress) -> None:
        self._line = progress_line(progress)
        self._live.update(self._drawn())

    def _drawn(self) -> Any:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
        wide = self._live.console.width >= _NARROW
        drawn = [number for number, column in enumerate(COLUMNS) if wide or column in _NEEDED]
        for number in drawn:
            table.add_column(COLUMNS[number], overflow="fold")
        for row in self._rows:
            style = "" if row[2] == "yes" else "dim"
            table.add_row(*(Text(row[number]) for number in drawn), style=style)
        return Group(table, Text(self._line, style="cyan")) if self._rows else Text(self._line, style="cyan")


@contextmanager
def search_view(out: TextIO | None = None) -> Iterator[_PlainView | _LiveView]:
    """A view of a search on this terminal or pipe, while the block runs."""
    out = out or sys.stdout
    if not out.isatty():
        yield _PlainView(out)
        return
    from rich.console import Console
    from rich.live import Live

    with Live(console=Console(file=out), refresh_per_second=8) as live:
        yield _LiveView(live)


def show_found(found: Found) -> None:
    """Print how a search ended."""
    peers = "one peer" if found.able == 1 else f"{found.able or 'no'} peers"
    line = f"{peers} would take it: {progress_line(replace(found.progress, source=''))}"
    nobody = not (found.able or found.progress.asked or found.progress.skipped)
    say(line + "; name a peer to bootstrap from (--bootstrap), or switch more sources on" * nobody)
    if found.able:
        say("next: dms-peer bid PEER, or dms-peer reserve -f FILE")


@contextmanager
def watched_progress(out: TextIO | None = None) -> Iterator[Callable[[SearchProgress], None]]:
    """Show the progress of a reservation on a terminal while the block runs. Shows nothing in a pipe."""
    out = out or sys.stderr
    if not out.isatty():
        yield lambda progress: None
        return
    from rich.console import Console
    from rich.status import Status
    from rich.text import Text

    with Status("looking for peers", console=Console(file=out)) as status:

        def show(progress: SearchProgress) -> None:
            if progress.stage == "reserved":
                status.stop()
            else:
                # A plain string would be read as markup, and peers choose the codes in it.
                status.update(Text(printable(f"{progress.stage}: {progress_line(progress)}")))

        yield show


def show_reserved(reserved: Reserved, out: TextIO | None = None) -> None:
    """Print the nodes that are held, and their providers."""
    what = "allocated" if reserved.allocated else "committed"
    leases = short_ids([node.lease_id for node in reserved.nodes])
    rows = [
        [
            node.node_id,
            short_peer_id(node.peer_id),
            lease,
            *_amounts(node.resources),
            ", ".join(map(str, node.ports)) or "-",
            node.price.describe() if node.price else "-",
        ]
        for node, lease in zip(reserved.nodes, leases, strict=True)
    ]
    columns = (
        Column("node"),
        Column("peer"),
        Column("lease", 9),
        Column("CPU", 6),
        Column("RAM", 5),
        Column("disk", 3),
        Column("GPUs", 4),
        Column("ports", 7),
        Column("price", 8),
    )
    show_table(f"{reserved.ensemble_id} is {what}", columns, rows, out or sys.stderr)


def show_peers(answer: PeersAnswer) -> None:
    """Print the known peers, with the age of every figure."""
    rows = [
        [
            short_peer_id(peer.peer_id),
            ", ".join(peer.sources) or "-",
            "yes" if peer.connected else "no",
            *_amounts(peer.free),
            _age(peer.free_age),
            _age(peer.seen_age),
            str(peer.failures),
        ]
        for peer in answer.peers
    ]
    if not rows:
        say("no peer is known yet: start `dms-peer run --bootstrap MULTIADDR`, or use a network with mDNS")
        return
    columns = (
        Column("peer"),
        Column("source", 3),
        Column("connected", 6),
        Column("CPU", 9),
        Column("RAM", 8),
        Column("disk", 4),
        Column("GPUs", 7),
        Column("as of", 2),
        Column("seen", 5),
        Column("failures", 1),
    )
    show_table(
        f"{answer.peer_count} peers known" + ("" if answer.running else ", the peer does not run"), columns, rows
    )
    say("next: dms-peer bid PEER, with the id of a row")


def _age(seconds: float | None) -> str:
    return "-" if seconds is None else f"{format_duration(seconds)} ago"
