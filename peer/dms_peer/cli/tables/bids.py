"""Bids and refusals as tables: what each node would get, the price, and the reasons of refusals."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from dms_protocols.messages.bid import Bid, Refusal
from dms_resources.demands import describe_shortage
from dms_resources.units import format_duration

from ...text import printable
from ..output import say
from .common import show_resources
from .layout import Column, show_table

if TYPE_CHECKING:
    # For type annotations only.
    from ...requesting.reports import BidReport, EnsembleBidReport

__all__ = ["show_bid", "show_bids", "show_refusals"]


def show_bid(report: BidReport) -> None:
    """Print a bid, or the answer to a dry run."""
    bid = report.bid
    show_resources(f"{report.peer_id} {_what(report.dry_run, bid)}", {"bid": bid.resources})
    if bid.price is not None:
        say(f"price: {printable(bid.price.describe())}")
    _show_how_kept((bid,), report.dry_run, report.file)


def show_bids(report: EnsembleBidReport) -> None:
    """Print the bids and refusals of one peer for the nodes of an ensemble."""
    bids = [one.bid for one in report.bids]
    if bids:
        title = f"{report.peer_id} {_what(report.dry_run, *bids)}"
        show_resources(title, {bid.node_id: bid.resources for bid in bids})
    for bid in bids:
        if bid.price is not None:
            say(f"price of {printable(bid.node_id)}: {printable(bid.price.describe())}")
    if report.refusals:
        show_refusals(f"{report.peer_id} refuses", report.refusals)
    for node_id in report.not_asked:
        say(f"not asked about {printable(node_id)}: it is for another peer")
    if bids:
        _show_how_kept(bids, report.dry_run, report.file)


def show_refusals(title: str, refusals: Sequence[Refusal]) -> None:
    """Print refusals with every shortage of each."""
    columns = (Column("node"), Column("why"), Column("what", sentences=True), Column("again in", 1))
    show_table(title, columns, [row for one in refusals for row in _refusal_rows(one)])


def _refusal_rows(refusal: Refusal) -> Iterator[list[str]]:
    node_id = refusal.node_id
    for reason in refusal.all_reasons:
        again = "-" if reason.retry_after is None else format_duration(reason.retry_after)
        sentences = [describe_shortage(shortage) for shortage in reason.shortages] or [reason.message]
        for number, sentence in enumerate([*sentences, *([f"hint: {reason.hint}"] if reason.hint else [])]):
            yield [node_id, reason.code, sentence, again] if number == 0 else ["", "", sentence, ""]
            node_id = ""


def _what(dry_run: bool, *bids: Bid) -> str:
    what = "would bid (dry run)" if dry_run else "bids"
    return what + (", simulated machine" if any(bid.simulated for bid in bids) else "")


def _show_how_kept(bids: Sequence[Bid], dry_run: bool, file: str | None) -> None:
    if dry_run:
        return
    ends = min(bid.valid_until for bid in bids)
    held = ", held until then" if all(bid.held for bid in bids) else ""
    say(f"valid for {format_duration(ends - time.time())}{held}")
    if file is None:
        say("not kept: write it to a file with -o bid.cbor to commit it")
    else:
        say(f"written to {printable(file)}: take it with `dms-peer commit`")
