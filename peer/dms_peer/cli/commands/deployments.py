"""dms-peer deployments"""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from ..options.common import DebugOption, FullOption, HomeOption, JSONOption, TokenOption, home_at
from ..output import comment, show_answer

__all__ = ["deployments"]


def deployments(
    everything: Annotated[bool, typer.Option("-a", "--all", help="Show jobs that have exited, too.")] = False,
    full: FullOption = False,
    token: TokenOption = None,
    home: HomeOption = None,
    as_json: JSONOption = False,
    debug: DebugOption = False,
) -> int:
    """Show the jobs that run for this home at other peers.

    Ends with 1 when a provider did not answer. Example: dms-peer deployments --all
    """
    from msgspec.structs import replace

    from ..event_loop import run_async
    from ..job_names import all_jobs
    from ..remote_jobs import list_jobs
    from ..tables.jobs import show_jobs

    place = home_at(home)
    leases = all_jobs(place)
    if not leases:
        from ...requesting.reports import HomeJobs

        report = HomeJobs(jobs=(), unanswered=())
    else:
        report = run_async(partial(list_jobs, place, leases, token))
    if not everything:
        report = replace(report, jobs=tuple(one for one in report.jobs if one.job.exit is None))
    show_answer(as_json, partial(show_jobs, full=full), report)
    for one in report.unanswered:
        comment(f"{one.peer_id} did not tell of lease {one.lease_id[:8]}: {one.message}")
    return 1 if report.unanswered else 0
