"""Draws tables that can be read at 80 columns: aligned, without frames, the least important columns left out first.

A table on a terminal is as wide as the terminal. In a pipe it is as wide as COLUMNS says, otherwise as wide as it
needs.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple, TextIO

from ...text import cell_width, printable
from ..output import say

__all__ = ["Column", "show_table"]

_GAP: Final = "  "
# A column of sentences is not made narrower than this while a column of lower weight could be left out.
_LEAST_SENTENCE: Final = 16
_LEAST: Final = 6
# Amounts are compared digit by digit, so they are aligned right. All other text is aligned left.
_AMOUNT: Final = re.compile(r"|[-?]|[+-]?[\d.,]+ ?(?:%|B|[KMGTP]i?B|cores?|ms|s|GHz|MHz|[MG]bit/s)?", re.ASCII)


class Column(NamedTuple):
    """One column. If a table is too wide, columns of the lowest `weight` are left out first; columns with None never
    are.

    A column of `sentences` is folded between words if it is too wide.
    """

    name: str
    weight: int | None = None
    sentences: bool = False


def show_table(
    title: str, columns: Sequence[str | Column], rows: Sequence[Sequence[str]], out: TextIO | None = None
) -> None:
    """Print a table under its title. Of columns given by name alone the last is left out first, the first never."""
    out = out or sys.stdout
    known = [
        column if isinstance(column, Column) else Column(column, len(columns) - number if number else None)
        for number, column in enumerate(columns)
    ]
    cells = [[printable(cell) for cell in row] for row in rows]
    say(title, out, bold=True)
    for line in _lines(known, cells, _available(out)):
        say(line, out)


def _available(out: TextIO) -> int | None:
    if (said := os.environ.get("COLUMNS", "")).isdecimal() and int(said) > 0:
        return int(said)
    if not out.isatty():
        return None
    try:
        return os.get_terminal_size(out.fileno()).columns or None
    except (OSError, ValueError):
        return None


def _lines(columns: Sequence[Column], rows: Sequence[Sequence[str]], available: int | None) -> Iterator[str]:
    widths = [
        max(map(cell_width, (column.name, *(row[number] for row in rows)))) for number, column in enumerate(columns)
    ]
    kept = _kept(columns, widths, available)
    widths = _narrowed(columns, widths, kept, available)
    right = {number for number in kept if rows and all(_AMOUNT.fullmatch(row[number]) for row in rows)}
    heading = [column.name for column in columns]
    for row in (heading, *rows) if any(heading) else rows:
        folded = {number: _fold(row[number], widths[number]) for number in kept}
        for line in range(max(map(len, folded.values()))):
            cells = [
                _padded(folded[number][line] if line < len(folded[number]) else "", widths[number], number in right)
                for number in kept
            ]
            yield (_GAP + _GAP.join(cells)).rstrip()
    if left_out := [column.name for number, column in enumerate(columns) if number not in kept]:
        yield f"{_GAP}(left out at this width: {', '.join(left_out)})"


def _kept(columns: Sequence[Column], widths: Sequence[int], available: int | None) -> list[int]:
    """The numbers of the columns that are shown."""
    kept = list(range(len(columns)))
    least = [
        min(width, _LEAST_SENTENCE) if column.sentences else width
        for column, width in zip(columns, widths, strict=True)
    ]
    while available is not None and _total(least[number] for number in kept) > available:
        light = [number for number in kept if columns[number].weight is not None]
        if not light:
            break
        kept.remove(min(light, key=lambda number: (columns[number].weight or 0, -number)))
    return kept


def _narrowed(
    columns: Sequence[Column], widths: Sequence[int], kept: Sequence[int], available: int | None
) -> list[int]:
    """The widths at which the remaining columns fit: sentences are narrowed first, then the widest column."""
    narrowed = list(widths)
    while available is not None and _total(narrowed[number] for number in kept) > available:
        sentences = [number for number in kept if columns[number].sentences and narrowed[number] > _LEAST_SENTENCE]
        widest = max(sentences or kept, key=lambda number: narrowed[number])
        if narrowed[widest] <= _LEAST:
            break
        narrowed[widest] -= 1
    return narrowed


def _total(widths: Iterator[int]) -> int:
    return sum(len(_GAP) + width for width in widths)


def _fold(text: str, width: int) -> list[str]:
    """The text in lines of at most `width` columns, broken between words if possible."""
    lines, line = [], ""
    for word in text.split(" "):
        longer = f"{line} {word}" if line else word
        if cell_width(longer) <= width:
            line = longer
            continue
        if line:
            lines.append(line)
        *full, line = _pieces(word, width)
        lines += full
    return [*lines, line]


def _pieces(word: str, width: int) -> list[str]:
    pieces = [""]
    for character in word:
        if pieces[-1] and cell_width(pieces[-1] + character) > width:
            pieces.append("")
        pieces[-1] += character
    return pieces


def _padded(text: str, width: int, right: bool) -> str:
    padding = " " * (width - cell_width(text))
    return padding + text if right else text + padding
