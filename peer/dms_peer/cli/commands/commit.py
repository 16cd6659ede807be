"""dms-peer commit"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..options.common import AddressArgument, DebugOption, HomeOption, JSONOption, TokenOption, home_at, time_to_live
from ..output import show_answer

__all__ = ["commit"]


def commit(
    address: AddressArgument,
    bid: Annotated[Path, typer.Argument(metavar="BID", help="The file that `bid -o` wrote, with one bid or several.")],
    ttl: Annotated[
        float | None,
        typer.Option("--ttl", parser=time_to_live, metavar="TIME", help="Time until the deadline.", show_default="60s"),
    ] = None,
    token: TokenOption = None,
    home: HomeOption = None,
    as_json: JSONOption = False,
    debug: DebugOption = False,
) -> None:
    """Commit one bid, or several together, until a deadline.

    The provider promises the capacity to the key of this home. Example: dms-peer commit PEER bid.cbor --ttl 10m
    """
    from ..remote import commit_bids
    from ..tables.common import show_commit

    taken = commit_bids(home_at(home), address, bid, 60.0 if ttl is None else ttl, token)
    show_answer(as_json, show_commit, taken)
