"""dms-peer renew"""

from __future__ import annotations

from typing import Annotated

import typer

from ..options.common import (
    DebugOption,
    FenceOption,
    HomeOption,
    JSONOption,
    LeaseArguments,
    TokenOption,
    home_at,
    lease_at,
    time_to_live,
)
from ..output import show_answer

__all__ = ["renew"]


def renew(
    lease: LeaseArguments,
    ttl: Annotated[
        float, typer.Option("--ttl", parser=time_to_live, metavar="TIME", help="Time from now until the deadline.")
    ] = 60.0,
    fence: FenceOption = None,
    token: TokenOption = None,
    home: HomeOption = None,
    as_json: JSONOption = False,
    debug: DebugOption = False,
) -> None:
    """Move the deadline of a lease.

    Example: dms-peer renew 3f2a9c1b --ttl 10m
    """
    from ..remote import renew_lease
    from ..tables.common import show_lease

    peer, lease_id = lease_at(lease)
    show_answer(as_json, show_lease, renew_lease(home_at(home), peer, lease_id, ttl, fence, token))
