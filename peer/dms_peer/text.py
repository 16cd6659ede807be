"""Text from other peers, made safe to show.

A peer chooses much of what this program prints: refusal codes and messages, lease ids, node ids, device names, reasons.
Such text must not steer the terminal, begin a line of its own, reorder what stands beside it, or be read as markup.

The rules, which tests/peer/test_foreign_text.py and test_foreign_text_elsewhere.py enforce:

1. Commands write to the terminal through `dms_peer.cli.output` alone, which applies `printable` to every line.
2. Rich is given text as `rich.text.Text`, never as a string, which it would read as markup.
3. The log is written by `dms_peer.telemetry.logs` alone, which quotes every value.
4. No file is named by what a peer wrote, and no label of a metric is.
"""

from __future__ import annotations

import unicodedata
from typing import Final

__all__ = ["cell_width", "printable", "shortened"]

# A letter of a living language has at most a few marks. Hundreds of them would cover the lines above.
_MOST_MARKS: Final = 3
# A Hangul filler and a Braille blank are printable according to Unicode, but show nothing.
_BLANK: Final = frozenset("\u115f\u1160\u2800\u3164\uffa0")


def printable(text: str) -> str:
    """The text in one line, without control, format and bidi characters, and with few combining marks in a row.

    Removed characters are replaced by a space. Text that is already safe does not change.
    """
    if text.isascii() and text.isprintable():
        return text
    shown: list[str] = []
    marks = 0
    for character in text:
        marks = marks + 1 if _is_mark(character) else 0
        if marks > _MOST_MARKS:
            continue
        if marks and not shown:
            # A mark without a letter would be drawn over the character before the text.
            shown.append(" ")
        shown.append(character if character.isprintable() and character not in _BLANK else " ")
    return "".join(shown)


def shortened(text: str, most: int) -> str:
    """The text if it has at most `most` characters, otherwise its beginning and "..."."""
    return text if len(text) <= most else text[: max(0, most - 3)] + "..."


def cell_width(text: str) -> int:
    """The number of terminal columns of printable text: two for wide characters, none for combining marks."""
    if text.isascii():
        return len(text)
    return sum(_character_width(character) for character in text)


def _character_width(character: str) -> int:
    if _is_mark(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def _is_mark(character: str) -> bool:
    return unicodedata.category(character) in ("Mn", "Me")
