"""Commands that only ask the own peer, when they are asked in the plainest way: done before typer would be loaded.

Understood here are the name of such a command, --home DIR, --json and --debug. Everything else, also everything that
is wrong, is left to `command_line`, which knows all options and says what is wrong with them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from ..home.home import Home, home_at

if TYPE_CHECKING:
    from ..owner.messages import StatusAnswer

__all__ = ["run_shortcut", "show_own_status"]


def show_own_status(home: Home, as_json: bool) -> None:
    """`dms-peer status`."""
    from ..owner.client import read_status
    from .output import show_answer

    show_answer(as_json, _show_table, read_status(home))


def _show_table(status: StatusAnswer) -> None:
    # Of no use to a program that reads JSON.
    from .tables.common import show_status

    show_status(status)


_SHORTCUTS: Final[dict[str, Callable[[Home, bool], None]]] = {"status": show_own_status}


def run_shortcut(arguments: Sequence[str]) -> bool:
    """Runs the command line where it is one of these, and says whether it was. Raises what the command raises."""
    command = _SHORTCUTS.get(arguments[0]) if arguments else None
    options = None if command is None else _common_options(arguments[1:])
    if command is None or options is None:
        return False
    command(*options)
    return True


def _common_options(arguments: Sequence[str]) -> tuple[Home, bool] | None:
    """The home and whether JSON is wanted; None where there is anything else in the arguments."""
    home, as_json = None, False
    words = iter(arguments)
    for word in words:
        if word == "--home":
            home = next(words, "")
            if not home or home.startswith("-"):
                return None
        elif word == "--json":
            as_json = True
        elif word != "--debug":
            return None
    return home_at(home), as_json
