"""The output of commands: one JSON object, or lines for people. No other module of the commands writes to a stream."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TextIO, TypeVar

import msgspec

from dms_resources.encoding.documents import to_document

from ..errors import OutputError
from ..text import printable

__all__ = [
    "comment",
    "json_line",
    "print_json",
    "print_stray_warnings",
    "prints_color",
    "run_and_show",
    "say",
    "say_labelled",
    "set_color",
    "set_quiet",
    "show_answer",
    "unwritable",
]

Answer = TypeVar("Answer", bound=msgspec.Struct)

# Whether -q was given. A process runs only one command.
_quiet = False

_BOLD, _PLAIN = "\x1b[1m", "\x1b[0m"
# Cyan, yellow, green, magenta, blue: readable on dark and light, and none of them means an error.
_LABEL_COLORS = tuple(f"\x1b[{code}m" for code in (36, 33, 32, 35, 34))


def set_color(color: bool) -> None:
    """Switch colors on or off, whatever the stream is. rich reads the same variables."""
    os.environ.pop("NO_COLOR" if color else "FORCE_COLOR", None)
    os.environ["FORCE_COLOR" if color else "NO_COLOR"] = "1"


def prints_color(out: TextIO) -> bool:
    """Whether text to this stream may have colors: by NO_COLOR, then FORCE_COLOR, then by the kind of the stream."""
    if os.environ.get("NO_COLOR"):
        return False
    return bool(os.environ.get("FORCE_COLOR")) or (out.isatty() and os.environ.get("TERM") != "dumb")


def say(line: str = "", out: TextIO | None = None, *, bold: bool = False) -> None:
    """Write one line that cannot control the terminal, to standard output unless `out` is given.

    Raises OutputError if the line cannot be written, and BrokenPipeError if the reader has stopped reading.
    """
    out = out or sys.stdout
    text = printable(line)
    _write(f"{_BOLD}{text}{_PLAIN}\n" if bold and prints_color(out) else f"{text}\n", out)


def say_labelled(label: str, line: str, number: int, out: TextIO) -> None:
    """Write one line behind a label, which is colored if the stream has colors. Raises what `say` raises."""
    label, line = printable(label), printable(line)
    if label and prints_color(out):
        label = f"{_LABEL_COLORS[number % len(_LABEL_COLORS)]}{label}{_PLAIN}"
    _write(f"{label}{line}\n", out)


def comment(line: str) -> None:
    """Write one line about the progress to standard error. `-q` suppresses it. Raises what `say` raises."""
    if not _quiet:
        say(line, sys.stderr)


def print_stray_warnings() -> None:
    """Prints a warning that no handler takes in one line that cannot steer the terminal, from now on."""
    import logging

    class OneLine(logging.Formatter):
        def format(self, record: logging.LogRecord) -> str:
            return f"dms-peer: {printable(record.getMessage())}"

    if logging.lastResort is not None:
        logging.lastResort.setFormatter(OneLine())


def set_quiet() -> None:
    """Suppress comments from now on."""
    global _quiet
    _quiet = True


def _write(text: str, out: TextIO) -> None:
    try:
        out.write(text)
        out.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise unwritable(error) from error


def unwritable(error: OSError) -> OutputError:
    """The error that a user sees if standard output or standard error cannot be written."""
    reason = "it is closed" if error.errno == errno.EBADF else error.strerror or str(error)
    return OutputError(
        f"the output cannot be written: {reason}",
        code="output_failed",
        hint="the command itself was carried out; send its output elsewhere",
    )


def json_line(document: msgspec.Struct | Mapping[str, Any]) -> str:
    """The document as JSON in one line, with amounts as integers in bytes, and cores as numbers."""
    # The bytes of a digest or an envelope become base64, because JSON has no bytes.
    plain = to_document(document)
    try:
        return msgspec.json.encode(plain).decode()
    except UnicodeEncodeError:
        import json

        # A file name may hold bytes that are not UTF-8, which JSON cannot carry.
        return json.dumps(plain, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace").decode()


def print_json(document: msgspec.Struct | Mapping[str, Any]) -> None:
    """Print one JSON object in one line, at once."""
    line = json_line(document)
    try:
        line.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        import json

        # In a locale without these characters they are written as escapes, so that a program still reads the same text.
        line = json.dumps(json.loads(line), separators=(",", ":"))
    _write(line + "\n", sys.stdout)


def show_answer(as_json: bool, show: Callable[[Answer], None], answer: Answer) -> None:
    """Print an answer as JSON, or show it to a person."""
    if as_json:
        print_json(answer)
    else:
        show(answer)


def run_and_show(
    as_json: bool, show: Callable[[Answer], None], ask: Callable[..., Any], *arguments: Any, **options: Any
) -> Answer:
    """Run the async function `ask`, show its answer and return it."""
    # A command that queries its own peer needs no event loop, and ends before one would be loaded.
    from .event_loop import run_async

    answer: Answer = run_async(partial(ask, *arguments, **options))
    show_answer(as_json, show, answer)
    return answer
