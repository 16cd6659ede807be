"""dms-peer hardware"""

from __future__ import annotations

from ..options.common import DebugOption, HomeOption, JSONOption, MachineOption, home_at
from ..output import show_answer

__all__ = ["hardware"]


def hardware(
    home: HomeOption = None, machine: MachineOption = None, as_json: JSONOption = False, debug: DebugOption = False
) -> None:
    """Show what this machine has, as this process may use it."""
    from ...owner.client import read_hardware
    from ..tables.machine import show_hardware

    show_answer(as_json, show_hardware, read_hardware(home_at(home), machine))
