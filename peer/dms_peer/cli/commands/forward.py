"""dms-peer forward"""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING, Annotated, Final

import typer

from ..options.common import DebugOption, HomeOption, JSONOption, TokenOption, home_at
from ..output import comment, print_json, say

if TYPE_CHECKING:
    from ...requesting.forwarding import Forward

__all__ = ["forward"]

_PORTS: Final = re.compile(r"(?:([0-9]{0,5}):)?([0-9]{1,5})")
_LOOPBACK: Final = "127.0.0.1"


def forward(
    name: Annotated[
        str, typer.Argument(metavar="JOB", help="A lease (or its beginning), or DEPLOYMENT/NODE.", show_default=False)
    ],
    ports: Annotated[
        str,
        typer.Argument(metavar="[LOCAL:]PORT", help="The job's port, and the local one (0 or none: any free one)."),
    ],
    address: Annotated[
        str, typer.Option("--address", metavar="IP", help="Listen there; 0.0.0.0 lets everyone on this network in.")
    ] = _LOOPBACK,
    token: TokenOption = None,
    home: HomeOption = None,
    as_json: JSONOption = False,
    debug: DebugOption = False,
) -> None:
    """Make a port of a job reachable on this machine until Ctrl-C.

    The job names the port in its document; it need not be published, and the machine may be behind a NAT. Every program
    on this machine can connect, web pages in a browser included.
    Example: dms-peer forward 3f2a9c1b 8080:80
    """
    from ..event_loop import run_async
    from ..job_names import find_jobs
    from ..remote_jobs import forward_port

    local, port = _ports(ports)
    place = home_at(home)
    jobs = find_jobs(place, [name])
    if len(jobs) > 1:
        raise typer.BadParameter(f"{name} has {len(jobs)} jobs: name one, as DEPLOYMENT/NODE or by its lease")

    def tell(opened: Forward) -> None:
        if as_json:
            print_json({"event": "forward", "address": opened.address, "port": opened.port, "lease_port": port})
            return
        say(f"{opened.address}:{opened.port} leads to port {port} of {jobs[0].name}")
        if address not in (_LOOPBACK, "::1"):
            comment("everyone who reaches this address can connect")

    def tell_failure(message: str) -> None:
        comment(f"a connection was not forwarded: {message}")

    run_async(
        partial(
            forward_port, place, jobs[0], port,
            local_port=local, address=address, tell=tell, on_failure=tell_failure, token=token,
        )
    )  # fmt: skip


def _ports(text: str) -> tuple[int, int]:
    found = _PORTS.fullmatch(text)
    local, port = (int(found[1] or 0), int(found[2])) if found is not None else (0, 0)
    if not 1 <= port <= 65535 or local > 65535:
        raise typer.BadParameter(f"{text[:40]!r} is no port (write 80, or 8080:80)")
    return local, port
