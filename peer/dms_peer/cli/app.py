"""All commands, as typer reads them. Loaded for every command line except those that the fast paths handle."""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Annotated, Any, Final, TypeAlias, get_type_hints

import typer

from ..errors import AbortedError, UsageError
from .output import set_color, set_quiet

__all__ = ["COMMANDS", "command_app", "run_typer"]

# Each is the function of this name (with _ for -) in the module of this name in `commands`. The help shows them in this
# order.
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
    "deploy",
    "run-on",
    "deployments",
    "logs",
    "stop",
    "forward",
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
    "completion",
)

# The base of all errors of typer about an invalid command line.
_TyperUsageError: Final[Any] = typer.BadParameter.__mro__[1]


def command_app(names: Sequence[str] = COMMANDS) -> typer.Typer:
    """A typer app with these commands, each with the options that all share."""
    app = typer.Typer(
        name="dms-peer",
        help="A libp2p peer that lets machines find each other's free compute and take it safely.",
        add_completion=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    # Without it, an app with one command would not expect that command's name.
    app.callback()(_no_options)
    for name in names:
        function = name.replace("-", "_")
        command = getattr(importlib.import_module(f".commands.{function}", __package__), function)
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=name)
        else:
            app.command()(_with_shared_options(command))
    return app


class ColorChoice(Enum):
    """The settings of --color."""

    AUTO = "auto"
    ALWAYS = "always"
    NEVER = "never"


_QuietOption: TypeAlias = Annotated[
    bool, typer.Option("-q", "--quiet", help="Print results and errors alone.", rich_help_panel="Output")
]
_VerboseOption: TypeAlias = Annotated[
    bool, typer.Option("-v", "--verbose", help="Log on stderr what goes on.", rich_help_panel="Output")
]
_ColorOption: TypeAlias = Annotated[
    ColorChoice,
    typer.Option("--color", help="When to use colors; NO_COLOR switches them off too.", rich_help_panel="Output"),
]
_SHARED: Final = {
    "quiet": (_QuietOption, False),
    "verbose": (_VerboseOption, False),
    "color": (_ColorOption, ColorChoice.AUTO),
}


def _with_shared_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The command with -q, -v and --color. On Ctrl-C it raises a group, which typer lets through."""

    @functools.wraps(command)
    def run(*arguments: Any, quiet: bool, verbose: bool, color: ColorChoice, **options: Any) -> Any:
        _set_output(quiet, verbose, color)
        try:
            return command(*arguments, **options)
        except KeyboardInterrupt as error:
            raise BaseExceptionGroup("interrupted", [error]) from None

    signature = inspect.signature(command, eval_str=True)
    shared = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
        for name, (kind, default) in _SHARED.items()
    ]
    # Typer reads both: the order and defaults from the signature, the types from the annotations.
    run.__signature__ = signature.replace(parameters=[*signature.parameters.values(), *shared])  # type: ignore[attr-defined]
    hints = get_type_hints(command, include_extras=True)
    run.__annotations__ = hints | {name: kind for name, (kind, _) in _SHARED.items()}
    return run


def _set_output(quiet: bool, verbose: bool, color: ColorChoice) -> None:
    if quiet and verbose:
        raise typer.BadParameter("-q and -v exclude each other")
    if quiet:
        set_quiet()
    if color is not ColorChoice.AUTO:
        set_color(color is ColorChoice.ALWAYS)
    if quiet or verbose:
        from ..telemetry.logs import set_verbosity

        set_verbosity("info" if verbose else "error")


def _no_options(
    version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False,
) -> None:
    # `--version` alone is handled by the fast path.
    if version:
        raise typer.BadParameter("--version stands alone")


def run_typer(arguments: Sequence[str]) -> int:
    """Run a command line and return its exit code. Raises UsageError, AbortedError, and what the command raises."""
    # Loading one command is faster than loading all of them. Without a command's name all are needed for the help.
    app = command_app(arguments[:1] if arguments and arguments[0] in COMMANDS else COMMANDS)
    try:
        code = app(args=list(arguments) or ["--help"], prog_name="dms-peer", standalone_mode=False)
    except _TyperUsageError as error:
        raise UsageError(error.format_message(), code="usage", hint="see --help") from error
    except typer.Abort as error:
        raise AbortedError("nothing was changed", code="aborted") from error
    return code if isinstance(code, int) else 0
