"""The command line: `dms-peer`, or `python -m dms_peer`."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Sequence

__all__ = ["main", "run_command"]


def main() -> None:
    """The entry point of `dms-peer`; ends the process with 0, 1, or 2 for a command line that makes no sense."""
    if sys.argv[1:2] == ["run"]:
        # The one command that lasts.
        from .telemetry.heap import use_system_allocator

        use_system_allocator()
    # Of what a command loads nothing becomes garbage: to look for some is a tenth of the time of a short one.
    gc.disable()
    code = run_command(sys.argv[1:])
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read the output has gone; without this Python would complain at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = code or 1
    # The system takes memory back faster than a last collection would find what is free in it.
    gc.freeze()
    sys.exit(code)


def run_command(arguments: Sequence[str]) -> int:
    """Runs one command; every failure becomes one line on stderr (with `--json`, an object on stdout) and a code."""
    try:
        return _run(arguments)
    except BrokenPipeError:
        # Whoever reads the output has heard enough.
        return 1


def _run(arguments: Sequence[str]) -> int:
    try:
        # Here and not above, so that it is loaded when nobody looks for garbage.
        from .cli.fast_path import run_shortcut

        if run_shortcut(arguments):
            return 0
        # The one import that half of the commands' time goes into.
        from .cli.app import run_typer

        return run_typer(arguments)
    except BaseException as error:
        if isinstance(error, SystemExit | GeneratorExit | BrokenPipeError):
            raise
        if isinstance(error, BaseExceptionGroup) and error.subgroup(BrokenPipeError):
            raise BrokenPipeError from error
        return _report(error, arguments)


def _report(error: BaseException, arguments: Sequence[str]) -> int:
    from .cli.failures import describe_failure
    from .cli.output import print_json

    if "--debug" in arguments:
        import traceback

        traceback.print_exception(error)
    failure = describe_failure(error)
    if "--json" in arguments:
        print_json({"error": failure.error})
    print(f"dms-peer: {failure.line}", *failure.said, sep="\n  ", file=sys.stderr)
    return failure.exit_code


if __name__ == "__main__":
    main()
