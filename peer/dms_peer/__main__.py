"""The command line: `dms-peer`, or `python -m dms_peer`."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, Final

import typer

from .commands.allocate import allocate
from .commands.audit import audit
from .commands.bid import bid
from .commands.commit import commit
from .commands.free import free
from .commands.hardware import hardware
from .commands.history import history
from .commands.offboard import offboard
from .commands.onboard import onboard
from .commands.output import print_json
from .commands.release import release
from .commands.run import run
from .commands.status import status
from .failures import describe_failure

__all__ = ["app", "main", "run_command"]

app = typer.Typer(
    name="dms-peer",
    help="A libp2p peer that lets machines find each other's free compute and take it safely.",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_COMMANDS: Final[Sequence[Callable[..., Any]]] = (
    hardware,
    onboard,
    offboard,
    run,
    status,
    history,
    audit,
    free,
    bid,
    commit,
    allocate,
    release,
)
for _command in _COMMANDS:
    app.command()(_command)


def main() -> None:
    """The entry point of `dms-peer`; ends the process with 0, 1, or 2 for a command line that makes no sense."""
    code = run_command(sys.argv[1:])
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read the output has gone; without this Python would complain at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = code or 1
    sys.exit(code)


def run_command(arguments: Sequence[str]) -> int:
    """Runs one command; every failure becomes one line on stderr (with `--json`, an object on stdout) and a code."""
    try:
        code = app(args=list(arguments) or ["--help"], prog_name="dms-peer", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except BrokenPipeError:
        # Whoever reads the output has heard enough.
        return 1
    except BaseException as error:
        if isinstance(error, SystemExit | GeneratorExit):
            raise
        return _report(error, arguments)


def _report(error: BaseException, arguments: Sequence[str]) -> int:
    if "--debug" in arguments:
        traceback.print_exception(error)
    failure = describe_failure(error)
    if "--json" in arguments:
        print_json({"error": failure.error})
    print(f"dms-peer: {failure.line}", file=sys.stderr)
    return failure.exit_code


if __name__ == "__main__":
    main()
