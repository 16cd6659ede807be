"""dms-peer usage"""

from __future__ import annotations

from ..options.common import (
    AddressArgument,
    DebugOption,
    HomeOption,
    JSONOption,
    TokenOption,
    home_at,
)
from ..output import show_answer

__all__ = ["usage"]


def usage(
    address: AddressArgument,
    token: TokenOption = None,
    home: HomeOption = None,
    as_json: JSONOption = False,
    debug: DebugOption = False,
) -> None:
    """Show what a peer's machine uses now, where its owner allows that.

    Example: dms-peer usage 9pQx4KcR
    """
    from ..remote import ask_usage
    from ..tables.leases import show_usage

    show_answer(as_json, show_usage, ask_usage(home_at(home), address, token))
