"""Jobs at other peers, as a table."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from dms_protocols.messages.job import JobStatus
from dms_resources.units import format_duration, format_size

from ...text import shortened
from ..job_output import describe_exit
from .common import short_ids, short_peer_id
from .layout import Column, show_table

if TYPE_CHECKING:
    from ...requesting.reports import HomeJobs

__all__ = ["show_jobs"]

_NAME_CHARACTERS: Final = 24


def show_jobs(report: HomeJobs, *, full: bool = False) -> None:
    """Print the jobs of this home, with their states."""
    ids = [one.lease_id for one in report.jobs]
    rows = [
        [
            one.ensemble_id if full else shortened(one.ensemble_id, _NAME_CHARACTERS) or "-",
            one.node_id if full else shortened(one.node_id, _NAME_CHARACTERS) or "-",
            one.lease_id if full else short,
            one.peer_id if full else short_peer_id(one.peer_id),
            _state(one.job),
            format_duration(max(0.0, time.time() - one.job.since)),
            _ports(one.job),
            _usage(one.job),
        ]
        for one, short in zip(report.jobs, short_ids(ids), strict=True)
    ]
    columns = (
        Column("deployment"),
        Column("node"),
        Column("lease"),
        Column("peer"),
        Column("state", sentences=True),
        Column("since"),
        Column("ports", 1),
        Column("uses", 1),
    )
    show_table("jobs at other peers", columns, rows)


def _state(job: JobStatus) -> str:
    if job.exit is not None:
        return describe_exit(job.exit)
    return f"{job.state}: {job.reason}" if job.reason else job.state


def _ports(job: JobStatus) -> str:
    return ", ".join(f"{port.public}->{port.private}" for port in job.ports if port.public) or "-"


def _usage(job: JobStatus) -> str:
    if job.usage is None:
        return "-"
    return f"{format_size(job.usage.memory)}, {job.usage.cpu_seconds:.1f} s CPU"
