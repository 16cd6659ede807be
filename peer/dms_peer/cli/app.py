"""All commands, as typer reads them; loaded for every command line but those that `shortcuts` understands."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Sequence
from typing import Any, Final

import typer

from ..errors import AbortedError, UsageError

__all__ = ["COMMANDS", "command_app", "run_typer"]

# Each is the function of this name in the module of this name in `commands`; in this order they are shown.
COMMANDS: Final = (
    "hardware",
    "onboard",
    "offboard",
    "evict",
    "drain",
    "run",
    "config",
    "status",
    "history",
    "audit",
    "peers",
    "discover",
    "reserve",
    "free",
    "bid",
    "commit",
    "allocate",
    "renew",
    "release",
    "leases",
    "ping",
    "usage",
    "token",
)

# The base of all that typer says about a command line that cannot be understood.
_TyperUsageError: Final[Any] = typer.BadParameter.__mro__[1]


def command_app(names: Sequence[str] = COMMANDS) -> typer.Typer:
    """The command line with these commands."""
    app = typer.Typer(
        name="dms-peer",
        help="A libp2p peer that lets machines find each other's free compute and take it safely.",
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    # Without it, an app of one command would not expect that command's name.
    app.callback()(_no_options)
    for name in names:
        command = getattr(importlib.import_module(f".commands.{name}", __package__), name)
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=name)
        else:
            app.command()(_interruptible(command))
    return app


def _interruptible(command: Callable[..., Any]) -> Callable[..., Any]:
    """Typer ends without a word on Ctrl-C; in a group, it lets it through to those who say so."""

    @functools.wraps(command)
    def run(*arguments: Any, **options: Any) -> Any:
        try:
            return command(*arguments, **options)
        except KeyboardInterrupt as error:
            raise BaseExceptionGroup("interrupted", [error]) from None

    return run


def _no_options() -> None:
    pass


def run_typer(arguments: Sequence[str]) -> int:
    """Runs a command line; returns its exit code. Raises UsageError, AbortedError, and what the command raises."""
    # One command is loaded faster than all of them; who names none wants to know which there are.
    app = command_app(arguments[:1] if arguments and arguments[0] in COMMANDS else COMMANDS)
    try:
        code = app(args=list(arguments) or ["--help"], prog_name="dms-peer", standalone_mode=False)
    except _TyperUsageError as error:
        raise UsageError(error.format_message(), code="usage", hint="see --help") from error
    except typer.Abort as error:
        raise AbortedError("nothing was changed", code="aborted") from error
    return code if isinstance(code, int) else 0
