"""The peer's answers to its owner besides the status: offers, history, audits."""

from __future__ import annotations

import time

from dms_resources.ledger.leases import EndedLease, Lease
from dms_resources.units import format_duration

from ...owner.messages import AuditAnswer, CancelDrainAnswer, DrainAnswer, EvictAnswer, HistoryAnswer, OnboardAnswer
from ..output import say
from .common import short_ids, short_peer_id, show_resources
from .layout import Column, show_table

__all__ = [
    "local_time",
    "show_audit",
    "show_cancelled_drain",
    "show_drain",
    "show_eviction",
    "show_history",
    "show_offer",
    "show_proposed_offer",
]


def local_time(moment: float) -> str:
    """Unix seconds in the time zone of this machine, with the name of the zone."""
    return time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(moment))


def show_offer(answer: OnboardAnswer) -> None:
    """Print what is offered now."""
    if answer.onboarded is None:
        say("nothing is offered to the network any more")
        return
    note = " (simulated machine)" if answer.simulated else ""
    show_resources(f"offered to the network{note}", {"offered": answer.onboarded, "free": answer.free})
    _show_warnings(answer)


def show_proposed_offer(answer: OnboardAnswer) -> None:
    """Print what would be offered."""
    show_resources("would be offered to the network (dry run)", {"offered": answer.onboarded})
    _show_warnings(answer)


def _show_warnings(answer: OnboardAnswer) -> None:
    for warning in answer.warnings:
        say(f"warning: {warning}")


def show_history(answer: HistoryAnswer, *, full: bool = False) -> None:
    """Print what happened, newest first. `full` shows ids in full."""
    leases = [entry.lease_id for entry in answer.entries]
    rows = [
        [
            str(entry.number),
            local_time(entry.at),
            " ".join(filter(None, (entry.action, entry.reason))),
            lease or "-",
            entry.actor if full else short_peer_id(entry.actor),
            entry.detail,
        ]
        for entry, lease in zip(answer.entries, leases if full else short_ids(leases), strict=True)
    ]
    columns = (
        Column("number", 1),
        Column("at"),
        Column("what"),
        Column("lease"),
        Column("who", 3),
        Column("detail", 2, sentences=True),
    )
    show_table("history", columns, rows)


def show_eviction(answer: EvictAnswer, *, full: bool = False) -> None:
    """Print which leases ended, and which end soon."""
    leases: list[EndedLease | Lease] = [*answer.ended, *answer.noticed]
    if not leases:
        say("there is no such lease: nothing was evicted")
        return
    now = time.time()
    ids = [one.lease_id for one in leases]
    ending = set(answer.ending)
    ends = [
        one.reason.value + (", counts until its job is gone" if one.lease_id in ending else "") for one in answer.ended
    ]
    ends += [f"ends in {format_duration((one.deadline or now) - now)}" for one in answer.noticed]
    rows = [
        [lease, one.holder if full else short_peer_id(one.holder), one.state.value, end]
        for lease, one, end in zip(ids if full else short_ids(ids), leases, ends, strict=True)
    ]
    show_table(f"leases ({len(rows)})", ("lease", "holder", "was", Column("now")), rows)


def show_drain(answer: DrainAnswer) -> None:
    """Print the progress of a drain."""
    if not answer.leases:
        say("drained: nothing is promised any more, and nothing new is taken")
        return
    say(f"draining: nothing new is taken; leases that have not ended yet: {answer.leases}")
    if answer.ending:
        say(f"of these, {answer.ending} ended for their holders and count until their jobs are gone")
    if not answer.running:
        say("the peer does not run: leases end at their deadlines, or with `dms-peer evict --all`")
        if answer.ending:
            say("start it with `dms-peer run`: it ends the jobs that still run")


def show_cancelled_drain(answer: CancelDrainAnswer) -> None:
    """Print what a cancelled drain has left."""
    say("new commitments are taken again" if answer.drained else "there was no drain")
    if answer.withdrawn:
        say(f"notices withdrawn: {answer.withdrawn}")


def show_audit(answer: AuditAnswer) -> None:
    """Print what an audit found, and how to repair what can be repaired."""
    if not answer.findings:
        say("the ledger matches its file and the operating system")
        return
    leases = short_ids([finding.lease_id for finding in answer.findings])
    rows = [[one.code, lease or "-", one.message] for one, lease in zip(answer.findings, leases, strict=True)]
    show_table(f"findings ({len(rows)})", ["code", Column("lease", 1), Column("what", sentences=True)], rows)
    if repairable := sum(finding.repairable for finding in answer.findings):
        say(f"{repairable} repaired" if answer.repaired else f"`dms-peer audit --repair` repairs {repairable} of these")
    elif answer.repaired:
        say("nothing of this can be repaired by the audit; each finding says what to do")
