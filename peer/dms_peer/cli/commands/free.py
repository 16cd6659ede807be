"""dms-peer free"""

from __future__ import annotations

from ..options.common import AddressArgument, DebugOption, HomeOption, JSONOption, TokenOption, home_at
from ..output import run_and_show

__all__ = ["free"]


def free(
    address: AddressArgument,
    token: TokenOption = None,
    home: HomeOption = None,
    as_json: JSONOption = False,
    debug: DebugOption = False,
) -> None:
    """Show what another peer has free."""
    from ..remote import ask_free
    from ..tables.common import show_free

    run_and_show(as_json, show_free, ask_free, home_at(home), address, token)
