"""The fields of a file that a person wrote: each is read as what it has to be, and errors say where and what is wrong.

Amounts are read as they are written, so that none is ever a float.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Final, NoReturn

import base58

from dms_protocols.messages.bid import Place
from dms_resources.errors import AmountError
from dms_resources.units import Cores, parse_duration, parse_size

from ..errors import DocumentError
from ..text import printable
from .yaml_nodes import LARGEST, ListNode, MapNode, NodeError, ScalarNode, YamlNode, parse_nodes

__all__ = ["Field", "parse_fields", "read_file", "read_peer_id", "read_place"]

_WHOLE: Final = re.compile(r"[0-9]{1,20}")
_AMOUNT: Final = re.compile(r"([0-9]{1,10})(?:\.([0-9]{1,30}))?")
_MICRO_DIGITS: Final = 6
_MILLIS: Final = re.compile(r"([0-9]{1,9})\s*ms")


def read_file(path: Path, code: str) -> bytes:
    """The content of a file, a byte more than may be read at most. Raises DocumentError. Blocks on disk."""
    try:
        with open(path, "rb") as file:
            return file.read(LARGEST + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DocumentError(
            f"{path} cannot be read: {reason}", code=code, hint="give the path of a file", line=0, column=0, field=""
        ) from None


def parse_fields(content: bytes, name: str, code: str) -> Field:
    """The root of a file; `name` is what errors call it, `code` is theirs. Raises DocumentError."""
    try:
        return Field(parse_nodes(content), "", name, code)
    except NodeError as error:
        raise DocumentError(
            f"{name}, line {error.line}, column {error.column}: {printable(error.problem)}",
            code=code,
            hint=error.hint,
            line=error.line,
            column=error.column,
            field="",
        ) from None


@dataclass(frozen=True, slots=True)
class Field:
    """One field: where it is in its file and what was written. Every method raises DocumentError and nothing else."""

    node: YamlNode
    path: str
    name: str
    code: str

    def fail(self, problem: str, hint: str = "") -> NoReturn:
        """Raises the error that this field is wrong."""
        self._fail(self.node, self.path, problem, hint)

    def _fail(self, node: YamlNode, path: str, problem: str, hint: str) -> NoReturn:
        what = printable(f"{path}: {problem}" if path else problem)
        raise DocumentError(
            f"{self.name}, line {node.line}, column {node.column}: {what}",
            code=self.code,
            hint=hint,
            line=node.line,
            column=node.column,
            field=path,
        )

    @property
    def is_mapping(self) -> bool:
        """Whether fields were written here, and not one value or a list."""
        return isinstance(self.node, MapNode)

    def fields(self, known: Sequence[str], needed: Collection[str] = ()) -> dict[str, Field]:
        """The fields of a mapping, which are among those known."""
        if not isinstance(self.node, MapNode):
            self.fail("is no mapping", f"write its fields: {', '.join(known)}")
        found = {}
        for name, (key, value) in self.node.entries.items():
            path = f"{self.path}.{name}" if self.path else name
            if name not in known:
                self._fail(key, path[:200], "is no field here", _suggestion(name, known))
            found[name] = Field(value, path, self.name, self.code)
        for name in needed:
            if name not in found:
                self.fail(f"{name} is missing", f"add {name}")
        return found

    def items(self, most: int) -> list[Field]:
        """The entries of a list."""
        if not isinstance(self.node, ListNode):
            self.fail("is no list", "write [a, b], or each entry on a line of its own that begins with a dash")
        if len(self.node.items) > most:
            self.fail(f"has {len(self.node.items)} entries", f"there may be {most}")
        return [
            Field(item, f"{self.path}[{index}]", self.name, self.code) for index, item in enumerate(self.node.items)
        ]

    def text(self, longest: int = 128) -> str:
        """Text, quoted or not, that is not empty."""
        if not isinstance(self.node, ScalarNode):
            self.fail("is no text", "write one word, or text in quotes")
        if not self.node.text:
            self.fail("is empty", "write something, or leave the field out")
        if len(self.node.text) > longest:
            self.fail(f"has {len(self.node.text)} characters", f"there may be {longest}")
        if not self.node.text.isprintable():
            self.fail("has characters that cannot be shown", "write it in one line")
        return self.node.text

    def texts(self, most: int) -> tuple[str, ...]:
        """A list of texts."""
        return tuple(item.text() for item in self.items(most))

    def flag(self) -> bool:
        """true or false."""
        text = self.text()
        if text not in ("true", "false"):
            self.fail(f"{text[:40]!r} is neither true nor false", "write true or false")
        return text == "true"

    def whole(self, least: int, most: int) -> int:
        """A whole number."""
        text = self.text()
        if not _WHOLE.fullmatch(text) or not least <= int(text) <= most:
            self.fail(f"{text[:40]!r} is no number from {least} to {most}", "write the digits alone")
        return int(text)

    def choice(self, values: Sequence[str]) -> str:
        """One of some words."""
        text = self.text()
        if text not in values:
            self.fail(f"{text[:40]!r} is none of {', '.join(values)}", _suggestion(text, values))
        return text

    def size(self) -> int:
        """Bytes, written as "16GiB" or as a number."""
        try:
            return parse_size(self.text())
        except AmountError as error:
            self.fail(error.message)

    def cores(self) -> Cores:
        """Cores, written as 2 or 0.5."""
        try:
            return Cores.of(self.text())
        except AmountError as error:
            self.fail(error.message)

    def duration(self, least: float, most: float) -> float:
        """Seconds, written as "500ms", 90, "5m" or "2h"."""
        text = self.text()
        millis = _MILLIS.fullmatch(text)
        try:
            seconds = int(millis[1]) / 1000 if millis else parse_duration(text)
        except AmountError as error:
            self.fail(error.message)
        if not least <= seconds <= most:
            self.fail(f"{text} is not from {least:g} s to {most:g} s")
        return seconds

    def micros(self, most: int) -> int:
        """An amount of money in millionths, written as 2 or 0.25 and read exactly."""
        text = self.text()
        found = _AMOUNT.fullmatch(text)
        if found is None:
            self.fail(f"{text[:40]!r} is no amount", "write it as 2 or 0.25")
        if len((found[2] or "").rstrip("0")) > _MICRO_DIGITS:
            self.fail(f"{text[:40]} is not a whole number of millionths", f"write {_MICRO_DIGITS} decimals at most")
        micros = int(Decimal(f"{found[1]}.{(found[2] or '0')[:_MICRO_DIGITS]}").scaleb(_MICRO_DIGITS))
        if micros > most:
            self.fail(f"{text[:40]} is more than can be asked")
        return micros


def _suggestion(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name[:64], known, 1)
    return f"did you mean {close[0]}?" if close else f"use one of {', '.join(known)}"


def read_peer_id(field: Field) -> str:
    """A peer id in its usual form (base58 of a multihash)."""
    text = field.text()
    try:
        raw = base58.b58decode(text)
    except ValueError:
        raw = b""
    # The multihash of a key: its SHA-256, or a short key as it is.
    if len(raw) < 34 or raw[0] not in (0x00, 0x12) or raw[1] != len(raw) - 2:
        field.fail(f"{text[:64]!r} is no peer id", "write one as `dms-peer status` shows it: 12D3KooW...")
    return text


def read_place(field: Field) -> Place:
    """A place, as exactly as its fields say."""
    fields = field.fields(("continent", "country", "city"))
    if not fields:
        field.fail("says nothing", "write continent, country or city")
    return Place(**{name: part.text() for name, part in fields.items()})
