"""Commands that only ask the own peer, in their plainest form: they run before typer would be loaded.

Understood here are `status` with --home DIR, --json, --full and --debug, and `--version`. Everything else, also
everything that is wrong, is left to `app`, which knows all options and says what is wrong with them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from ..home.home import Home, home_at

if TYPE_CHECKING:
    from ..owner.messages import StatusAnswer

__all__ = ["run_shortcut", "show_own_status", "show_version"]


def show_own_status(home: Home, as_json: bool, full: bool = False) -> None:
    """`dms-peer status`; `full` shows ids as a whole."""
    from ..owner.client import read_status
    from .output import show_answer

    show_answer(as_json, partial(_show_table, full=full), read_status(home))


def _show_table(status: StatusAnswer, *, full: bool) -> None:
    # Of no use to a program that reads JSON.
    from .tables.status import show_status

    show_status(status, full=full)


def run_shortcut(arguments: Sequence[str]) -> bool:
    """Runs the command line if it is one of these, and returns whether it was. Raises what the command raises."""
    if list(arguments) == ["--version"]:
        show_version()
        return True
    options = _status_options(arguments[1:]) if arguments and arguments[0] == "status" else None
    if options is None:
        return False
    show_own_status(*options)
    return True


def show_version() -> None:
    """`dms-peer --version`."""
    from .. import __version__
    from .output import say

    say(f"dms-peer {__version__}")


def _status_options(arguments: Sequence[str]) -> tuple[Home, bool, bool] | None:
    """The home, whether JSON is wanted and whether ids as a whole; None where there is anything else."""
    home, as_json, full = None, False, False
    words = iter(arguments)
    for word in words:
        if word == "--home":
            home = next(words, "")
            if not home or home.startswith("-"):
                return None
        elif word == "--json":
            as_json = True
        elif word == "--full":
            full = True
        elif word != "--debug":
            return None
    return home_at(home), as_json, full
