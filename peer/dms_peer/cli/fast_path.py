"""Commands that only query the home's own peer, in their simplest form: they run without typer.

These are `status` with --home DIR, --json, --full and --debug, and `--version`. Everything else, including every
invalid command line, is left to `app`, which knows all options and reports what is wrong with them.
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
    # A program that reads JSON does not need it.
    from .tables.status import show_status

    show_status(status, full=full)


def run_shortcut(arguments: Sequence[str]) -> bool:
    """Run the command line if it is one of these, and return whether it was. Raises what the command raises."""
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
    """The home, whether JSON is wanted, and whether ids are shown in full; None if there is any other option."""
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
