"""dms-peer stop"""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from ..options.common import DebugOption, HomeOption, JSONOption, TokenOption, duration, home_at
from ..output import show_answer

__all__ = ["stop"]

_LONGEST_GRACE = 3600.0


def stop(
    names: Annotated[
        list[str],
        typer.Argument(metavar="JOB...", help="A lease (or its beginning), a deployment, or DEPLOYMENT/NODE."),
    ],
    grace: Annotated[
        float,
        typer.Option("--grace", parser=duration, metavar="TIME", help="Time from SIGTERM to SIGKILL, at most 1h."),
    ] = 10.0,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the leases.")] = False,
    token: TokenOption = None,
    home: HomeOption = None,
    as_json: JSONOption = False,
    debug: DebugOption = False,
) -> int:
    """Stop jobs of this home, wait until they have exited, and release their leases.

    Ends with 1 when one was not stopped. Example: dms-peer stop nightly --grace 30s
    """
    from ..event_loop import run_async
    from ..job_names import find_jobs
    from ..job_output import JSONJobs, ShownJobs
    from ..remote_jobs import stop_jobs
    from ..tables.leases import show_released

    if grace > _LONGEST_GRACE:
        raise typer.BadParameter("the longest grace is 1h", param_hint="--grace")
    place = home_at(home)
    jobs = find_jobs(place, names)
    printer = JSONJobs() if as_json else ShownJobs([job.name for job in jobs])
    report = run_async(partial(stop_jobs, place, jobs, printer, grace=grace, keep=keep, token=token))
    if as_json or not keep or report.failed:
        show_answer(as_json, show_released, report)
    return 1 if report.failed else 0
