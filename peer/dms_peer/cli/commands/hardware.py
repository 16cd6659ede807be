"""dms-peer hardware"""

from __future__ import annotations

import typer

from ..options.common import (
    DebugOption,
    HomeOption,
    JSONOption,
    MachineOption,
    OptionalPeer,
    TokenOption,
    home_at,
)
from ..output import show_answer

__all__ = ["hardware"]


def hardware(
    peer: OptionalPeer = None,
    machine: MachineOption = None,
    token: TokenOption = None,
    home: HomeOption = None,
    as_json: JSONOption = False,
    debug: DebugOption = False,
) -> None:
    """Show the hardware of this machine, as this process may use it, or that of a peer whose owner allows it.

    Example: dms-peer hardware
    """
    from ..tables.machine import show_hardware

    if peer is None:
        from ...owner.client import read_hardware

        show_answer(as_json, show_hardware, read_hardware(home_at(home), machine))
        return
    if machine is not None:
        raise typer.BadParameter("--machine is for this machine, not for a peer")
    from ..remote import ask_hardware

    show_answer(as_json, show_hardware, ask_hardware(home_at(home), peer, token).machine)
