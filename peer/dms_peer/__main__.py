"""The command line: `dms-peer`, or `python -m dms_peer`.

Exit codes: 0 if the command succeeded, 1 if it failed, 2 for an invalid command line, 3 if a peer (or all peers)
refused, 128 plus the number of a signal that ended the command.
"""

from __future__ import annotations

import contextlib
import gc
import os
import sys
from collections.abc import Sequence

__all__ = ["main", "run_command"]


def main() -> None:
    """The entry point of `dms-peer`. It ends the process with one of the exit codes above."""
    arguments = sys.argv[1:]
    _open_standard_streams(discard=arguments[:1] == ["run"])
    if arguments[:1] == ["run"]:
        # `run` is the only long-running command.
        from .telemetry.heap import use_system_allocator

        use_system_allocator()
    # A short command makes no garbage worth collecting, and the collection takes a tenth of its time.
    gc.disable()
    code = _flushed(run_command(arguments))
    # The system reclaims the memory faster than a last collection would.
    gc.freeze()
    sys.exit(code)


def _open_standard_streams(*, discard: bool) -> None:
    """Open the standard streams that were closed when the process started.

    A closed stream is replaced, so that no file that is opened later gets its number. Writes to a closed standard
    output fail; with `discard`, for a command whose output is not its purpose, they are discarded.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # The system uses the lowest free number, which is this one.
            os.open(os.devnull, os.O_RDONLY if number == 1 and not discard else os.O_RDWR)
    # Python has set closed streams to None.
    if sys.stdout is None:
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 (open until the process ends)
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 (open until the process ends)
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:
        # A locale may lack characters in the name of a peer or a device.
        reconfigure(errors="replace")


def _flushed(code: int) -> int:
    """Write the rest of the output. The exit code is at least 1 if that fails."""
    try:
        sys.stdout.flush()
    except OSError as error:
        # Without this Python would try again at its end, and print a traceback.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        # A failure has already been reported, and a reader that stopped reading needs no report.
        if code == 0 and not isinstance(error, BrokenPipeError):
            from .cli.output import unwritable

            _report(unwritable(error), ())
        return code or 1
    return code


def run_command(arguments: Sequence[str]) -> int:
    """Run one command. Every failure becomes one line on stderr (with `--json`, an object on stdout) and an
    exit code.
    """
    try:
        return _run(arguments)
    except BrokenPipeError:
        # The reader of the output has stopped reading.
        return 1


def _run(arguments: Sequence[str]) -> int:
    try:
        # Imported here, so that it is loaded while the garbage collector is off.
        from .cli.fast_path import run_shortcut
        from .cli.output import print_stray_warnings

        print_stray_warnings()
        if run_shortcut(arguments):
            return 0
        if arguments[:1] in (["free"], ["bid"], ["discover"]):
            from .cli.fast_requests import run_request

            if (code := run_request(arguments)) is not None:
                return code
        # This import takes half of the time of most commands.
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
    # The write error is the failure itself, or the exit code reports it.
    with contextlib.suppress(OutputError, BrokenPipeError):
        if "--json" in arguments and not isinstance(error, OutputError):
            print_json({"error": failure.error})
    with contextlib.suppress(OutputError, BrokenPipeError):
        for line in (f"dms-peer: {failure.line}", *(f"  {line}" for line in failure.said)):
            say(line, sys.stderr)
    return failure.exit_code


if __name__ == "__main__":
    main()
