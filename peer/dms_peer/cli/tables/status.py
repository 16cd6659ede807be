"""The state of the home's own peer, on one screen."""

from __future__ import annotations

import time
from collections.abc import Mapping
from decimal import Decimal
from typing import Final

from dms_resources.components import Resources
from dms_resources.ledger.leases import Lease, Price
from dms_resources.units import format_cores, format_duration, format_size

from ...owner.messages import LeaseJobStatus, LeaseUse, StatusAnswer, TermsSummary
from ..output import say
from .common import peer_and_purpose, short_ids, show_resources
from .layout import Column, show_table

__all__ = ["show_status"]


# A quota of CPU time holds over periods of 0.1 s, and a sample does not begin with one.
_CPU_TOLERANCE: Final = 1.1


def show_status(status: StatusAnswer, *, full: bool = False) -> None:
    """Print the state of the home's own peer. `full` shows ids in full."""
    state = "running" if status.running else "not running (start it with `dms-peer run`)"
    notes = [state, *_drain(status), *(["simulated machine"] if status.simulated else [])]
    say(f"peer {status.peer_id}: {', '.join(notes)}")
    if status.version:
        say(f"  dms-peer {status.version}")
    for address in status.addrs:
        say(f"  {address}")
    if status.onboarded is None:
        say("nothing is offered; offer something with `dms-peer onboard`")
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
        say(f"  use of the machine sampled {format_duration(status.usage_age)} ago")
    if status.leases:
        _show_leases(status, full=full)
    if status.storage_error:
        say(f"  nothing can be promised now: {status.storage_error}")
    for sentence in status.missing:
        say(f"  no longer there: {sentence}")
    for sentence in status.short_now:
        say(f"  used by others now: {sentence}")
    for sentence in status.other_peers:
        say(f"  shared machine: {sentence}")
    for finding in status.findings:
        say(f"  audit: {finding.code}: {finding.message}")
    for what, counted in (
        ("did not bid", status.refusals),
        ("answered with an error", status.failures),
        ("turned away", status.limits_hit),
    ):
        if counted:
            say(f"  {what} since the start: {_counts(counted)}")
    for executor in status.executors:
        works = f"works ({executor.version})" if executor.version else "works"
        say(f"  executor {executor.name}: {works if executor.works else f'not offered: {executor.problem}'}")
        for note in executor.notes:
            say(f"    {note}")
    for sentence in (*status.limits, *status.problems):
        say(f"  note: {sentence}")


def _drain(status: StatusAnswer) -> list[str]:
    if not status.draining:
        return []
    if status.drain_deadline is None:
        return ["draining"]
    left = status.drain_deadline - time.time()
    if left > 0:
        return [f"draining, deadline in {format_duration(left)}"]
    return [f"draining, deadline passed {format_duration(-left)} ago"]


def _show_leases(status: StatusAnswer, *, full: bool) -> None:
    ids = [lease.lease_id for lease in status.leases]
    used = {one.lease_id: one for one in status.lease_use}
    jobs = {one.lease_id: one for one in status.jobs}
    now = time.time()
    rows = [
        [
            lease.lease_id if full else short,
            peer_and_purpose(lease.holder, lease, full=full),
            _state(lease, jobs.get(lease.lease_id), now),
            _used_of(lease.resources, used.get(lease.lease_id)),
            _price_so_far(lease.price, now - lease.created),
            str(lease.fence),
        ]
        for lease, short in zip(status.leases, short_ids(ids), strict=True)
    ]
    # At 80 columns all but the fencing number is shown.
    columns = (
        Column("lease"),
        Column("holder", sentences=True),
        Column("since, until", sentences=True),
        Column("uses now, has", sentences=True),
        Column("price so far", 4),
        Column("fence", 1),
    )
    count = len(rows)
    shown = f"{count}" if count == status.lease_count else f"the newest {count} of {status.lease_count}"
    show_table(f"leases ({shown})", columns, rows)


def _state(lease: Lease, job: LeaseJobStatus | None, now: float) -> str:
    """The state of a lease and of its job: "allocated 2 h ago, ends in 14 min; job running for 3 min"."""
    if lease.ended is not None:
        since = format_duration(max(0.0, now - lease.ended.ended))
        said = f"{lease.ended.reason.value} {since} ago, ending until its job is gone"
    else:
        said = f"{lease.state.value} {format_duration(now - lease.created)} ago, {_until(lease, now)}"
    if job is not None:
        said += f"; job {_job_state(job, now)}"
    elif lease.job is not None:
        said += "; job gone" if lease.job.gone else "; job unknown"
    return said


def _job_state(job: LeaseJobStatus, now: float) -> str:
    if job.exit is None:
        return f"{job.state} for {format_duration(max(0.0, now - job.since))}"
    return job.exit.describe()


def _until(lease: Lease, now: float) -> str:
    return "until released" if lease.deadline is None else f"ends in {format_duration(max(0.0, lease.deadline - now))}"


def _used_of(has: Resources, use: LeaseUse | None) -> str:
    """What the lease has. Where its use is known, it is "used of what it has", and more than that is marked."""
    cores, ram = format_cores(has.cpu.cores), f"{format_size(has.ram.size)} RAM"
    vram = {gpu.uuid: format_size(gpu.vram) for gpu in has.gpus}
    if use is not None:
        # It is known only for jobs whose processes have a cgroup of their own.
        cores = _of(str(use.cores), cores, use.cores.millicores > _CPU_TOLERANCE * has.cpu.cores.millicores)
        ram = _of(format_size(use.ram), ram, use.ram > has.ram.size)
        for gpu in has.gpus:
            if (bytes_used := use.vram.get(gpu.uuid)) is not None:
                vram[gpu.uuid] = _of(format_size(bytes_used), vram[gpu.uuid], bytes_used > gpu.vram)
    disk = [f"{format_size(has.disk.size)} disk"] if has.disk.size else []
    gpus = [f"GPU {gpu.index} {vram[gpu.uuid]}" for gpu in has.gpus]
    return ", ".join((cores, ram, *disk, *gpus))


def _of(used: str, has: str, exceeds: bool) -> str:
    return f"{used} of {has}" + (" (exceeded)" if exceeds else "")


def _price_so_far(price: Price | None, seconds: float) -> str:
    if price is None or not price.micros_per_hour:
        return "-"
    owed = Decimal(price.micros_per_hour) * Decimal(max(0, round(seconds))) / 3600 / 1_000_000
    return f"{owed.quantize(Decimal('0.0001')).normalize():f} {price.currency}"


def _counts(counted: Mapping[str, int]) -> str:
    most_first = sorted(counted.items(), key=lambda entry: -entry[1])
    return ", ".join(f"{count} {code}" for code, count in most_first)


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
    rows += [["executors", ", ".join(terms.executors) or "none"]]
    rows += [["privileged containers", "allowed" if terms.privileged_docker else "refused"]]
    rows += [["bids are valid for", format_duration(terms.valid_seconds)]]
    rows += [["bids only for", peer] for peer in terms.allowed_peers]
    rows += [["no bids for", peer] for peer in terms.denied_peers]
    rows += [["decides", policy] for policy in terms.policies]
    show_table("terms", ["", ""], rows)
