"""What a command prints: one JSON object, or something for people."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

import msgspec

from dms_resources.units import encode_value

__all__ = ["json_line", "print_json", "run_and_show", "show_answer"]

Answer = TypeVar("Answer", bound=msgspec.Struct)


def json_line(document: msgspec.Struct | Mapping[str, Any]) -> str:
    """The document as JSON in one line; amounts as integers in bytes, cores as numbers."""
    # The bytes of a digest or an envelope become base64, as JSON has none.
    return msgspec.json.encode(msgspec.to_builtins(document, enc_hook=encode_value)).decode()


def print_json(document: msgspec.Struct | Mapping[str, Any]) -> None:
    """Prints one JSON object in one line, at once."""
    sys.stdout.write(json_line(document) + "\n")
    sys.stdout.flush()


def show_answer(as_json: bool, show: Callable[[Answer], None], answer: Answer) -> None:
    """Prints an answer as JSON, or shows it to a person."""
    if as_json:
        print_json(answer)
    else:
        show(answer)


def run_and_show(
    as_json: bool, show: Callable[[Answer], None], ask: Callable[..., Any], *arguments: Any, **options: Any
) -> Answer:
    """Runs the async function `ask`, shows its answer and returns it."""
    # Who asks the own peer alone does without an event loop, and is done before it would be loaded.
    from .event_loop import run_async

    answer: Answer = run_async(partial(ask, *arguments, **options))
    show_answer(as_json, show, answer)
    return answer
