"""dms-peer ping"""

from __future__ import annotations

from typing import Annotated

import typer

from ..options.common import (
    AddressArgument,
    DebugOption,
    HomeOption,
    JSONOption,
    home_at,
)
from ..output import show_answer

__all__ = ["ping"]


def ping(
    address: AddressArgument,
    count: Annotated[int, typer.Option("--count", "-c", min=1, max=1000, help="Number of pings.")] = 3,
    home: HomeOption = None,
    as_json: JSONOption = False,
    debug: DebugOption = False,
) -> None:
    """Measure round trips to a peer, and show whether it is reached directly or through a relay.

    With --json there is one line for each answer. Example: dms-peer ping 9pQx4KcR -c 5
    """
    from ..peer_names import find_peer
    from ..remote import ping as ping_once
    from ..tables.leases import show_pong

    place = home_at(home)
    peer = find_peer(place, address)
    for _ in range(count):
        show_answer(as_json, show_pong, ping_once(place, peer))
