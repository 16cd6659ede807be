"""dms-peer commit"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..options.common import AddressArgument, DebugOption, HomeOption, JSONOption, TokenOption, home_at, time_to_live
from ..output import run_and_show

__all__ = ["commit"]


def commit(
    address: AddressArgument,
    bid: Annotated[Path, typer.Argument(metavar="BID", help="The file that `bid -o` wrote, with one bid or several.")],
    ttl: Annotated[
        float | None,
        typer.Option("--ttl", parser=time_to_live, metavar="SECONDS", help="For how long.", show_default="60"),
    ] = None,
    token: TokenOption = None,
    home: HomeOption = None,
    as_json: JSONOption = False,
    debug: DebugOption = False,
) -> None:
    """Take a bid, or several together: the capacity is promised to this home's key until a deadline."""
    from ..remote import commit_bids
    from ..tables.common import show_commit

    run_and_show(as_json, show_commit, commit_bids, home_at(home), address, bid, 60.0 if ttl is None else ttl, token)
