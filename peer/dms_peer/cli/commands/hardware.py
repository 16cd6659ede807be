"""dms-peer hardware"""

from __future__ import annotations

from typing import Annotated

import typer

from ..options.common import (
    DebugOption,
    HomeOption,
    JSONOption,
    OptionalPeer,
    TokenOption,
    home_at,
)
from ..output import show_answer

__all__ = ["hardware"]


def hardware(
    peer: OptionalPeer = None,
    machine: Annotated[
        str | None,
        typer.Option(
            "--machine",
            metavar="FILE",
            help="Show the machine that this JSON file describes (`-`: standard input) instead; nothing is remembered.",
        ),
    ] = None,
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
