"""dms-peer logs"""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from ..options.common import DebugOption, HomeOption, JSONOption, TokenOption, home_at

__all__ = ["logs"]


def logs(
    names: Annotated[
        list[str],
        typer.Argument(metavar="JOB...", help="A lease (or its beginning), a deployment, or DEPLOYMENT/NODE."),
    ],
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on until the jobs have exited.")] = False,
    offset: Annotated[
        int, typer.Option("--offset", min=0, metavar="BYTES", help="Begin at this byte of the output.")
    ] = 0,
    token: TokenOption = None,
    home: HomeOption = None,
    as_json: JSONOption = False,
    debug: DebugOption = False,
) -> None:
    """Show the output of jobs of this home.

    A job's standard error goes to standard error. Example: dms-peer logs -f 3f2a9c1b
    """
    from ..event_loop import run_async
    from ..job_names import find_jobs
    from ..job_output import JSONJobs, ShownJobs
    from ..remote_jobs import follow_logs

    place = home_at(home)
    jobs = find_jobs(place, names)
    printer = JSONJobs() if as_json else ShownJobs([job.name for job in jobs])
    run_async(partial(follow_logs, place, jobs, printer, follow=follow, offset=offset, token=token))
