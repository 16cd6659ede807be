"""The command line: `dms-peer`, or `python -m dms_peer`.

Exit codes: 0 when the command did what it was asked, 1 when it failed, 2 for a command line that cannot be understood,
3 when a peer (or all peers) refused, 128 and a signal's number when that signal ended it.
"""

from __future__ import annotations

import contextlib
import gc
import os
import sys
from collections.abc import Sequence

__all__ = ["main", "run_command"]


def main() -> None:
    """The entry point of `dms-peer`; ends the process with one of the exit codes above."""
    arguments = sys.argv[1:]
    _open_standard_streams(discard=arguments[:1] == ["run"])
    if arguments[:1] == ["run"]:
        # The one command that lasts.
        from .telemetry.heap import use_system_allocator

        use_system_allocator()
    # Nothing that a command loads becomes garbage: to look for it takes a tenth of the time of a short command.
    gc.disable()
    code = _flushed(run_command(arguments))
    # The system takes memory back faster than a last collection would find what is free in it.
    gc.freeze()
    sys.exit(code)


def _open_standard_streams(*, discard: bool) -> None:
    """Makes standard streams of what this process was started with.

    A closed one is replaced, so that no file that is opened later gets its number. What is written to a closed standard
    output fails, or is discarded (`discard`) for a command whose output is not its purpose.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # The lowest free number is taken, which is this one.
            os.open(os.devnull, os.O_RDONLY if number == 1 and not discard else os.O_RDWR)
    # Python has set those that were closed to None.
    if sys.stdout is None:
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 (open until the process ends)
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 (open until the process ends)
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:
        # A locale may lack characters that a peer or a device has in its name.
        reconfigure(errors="replace")


def _flushed(code: int) -> int:
    """Writes what is left of the output; the exit code is at least 1 where that fails."""
    try:
        sys.stdout.flush()
    except OSError as error:
        # Without this Python would try again at its end, and print a traceback.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        # A failure has been reported already; nobody who stops reading wants to hear of it.
        if code == 0 and not isinstance(error, BrokenPipeError):
            from .cli.output import unwritable

            _report(unwritable(error), ())
        return code or 1
    return code


def run_command(arguments: Sequence[str]) -> int:
    """Runs one command; every failure becomes one line on stderr (with `--json`, an object on stdout) and a code."""
    try:
        return _run(arguments)
    except BrokenPipeError:
        # The reader of the output has stopped reading.
        return 1


def _run(arguments: Sequence[str]) -> int:
    try:
        # Here and not above, so that it is loaded while the garbage collector is off.
        from .cli.fast_path import run_shortcut

        if run_shortcut(arguments):
            return 0
        if arguments[:1] in (["free"], ["bid"], ["discover"]):
            from .cli.fast_requests import run_request

            if (code := run_request(arguments)) is not None:
                return code
        # Half of the time of most commands goes into this import.
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
    from .cli.output import print_json, say
    from .errors import OutputError

    if "--debug" in arguments:
        import traceback

        traceback.print_exception(error)
    failure = describe_failure(error)
    # What cannot be written is the failure itself, or leaves the exit code to say it.
    with contextlib.suppress(OutputError, BrokenPipeError):
        if "--json" in arguments and not isinstance(error, OutputError):
            print_json({"error": failure.error})
    with contextlib.suppress(OutputError, BrokenPipeError):
        for line in (f"dms-peer: {failure.line}", *(f"  {line}" for line in failure.said)):
            say(line, sys.stderr)
    return failure.exit_code


if __name__ == "__main__":
    main()
