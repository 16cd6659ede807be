"""dms-peer free"""

from __future__ import annotations

from ..options.common import AddressArgument, DebugOption, HomeOption, JSONOption, TokenOption, home_at
from ..output import show_answer

__all__ = ["free"]


def free(
    address: AddressArgument,
    token: TokenOption = None,
    home: HomeOption = None,
    as_json: JSONOption = False,
    debug: DebugOption = False,
) -> None:
    """Show what a peer has free.

    Example: dms-peer free /ip4/192.0.2.7/tcp/4001/p2p/12D3KooW...
    """
    from ..remote import ask_free
    from ..tables.common import show_free

    show_answer(as_json, show_free, ask_free(home_at(home), address, token))
