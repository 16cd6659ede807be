"""Reads the fields of a file that a person wrote. Errors name the position, the field, the problem and the remedy.

Amounts are read from their text, so that none becomes a float.
"""

from __future__ import annotations

import difflib
import errno
import os
import re
import stat
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Final, NoReturn, TypeVar

import base58

from dms_protocols.messages.bid import Place
from dms_resources.errors import AmountError
from dms_resources.units import Cores, parse_duration, parse_size

from ..errors import DocumentError
from ..text import printable
from .yaml_nodes import LARGEST, ListNode, MapNode, NodeError, ScalarNode, YamlNode, parse_nodes

__all__ = ["Field", "Fields", "parse_fields", "read_file", "read_peer_id", "read_place"]

Value = TypeVar("Value")
Default = TypeVar("Default")

_WHOLE: Final = re.compile(r"[0-9]{1,20}")
_AMOUNT: Final = re.compile(r"([0-9]{1,10})(?:\.([0-9]{1,30}))?")
_MICRO_DIGITS: Final = 6
_MILLIS: Final = re.compile(r"([0-9]{1,9})\s*ms")


def read_file(path: Path, code: str) -> bytes:
    """Reads a file, at most one byte more than allowed. Raises DocumentError. Blocks on disk."""
    try:
        # Without O_NONBLOCK, opening a FIFO would wait for a writer.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise OSError(errno.EINVAL, "not a regular file")
            return file.read(LARGEST + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DocumentError(
            printable(f"cannot read {path}: {reason}"),
            code=code,
            hint="give the path of a file that you may read",
            line=0,
            column=0,
            field="",
        ) from None


def parse_fields(content: bytes, name: str, code: str) -> Field:
    """Parses a file; `name` is its name in errors, `code` their code. Raises DocumentError."""
    try:
        return Field(parse_nodes(content, name), "", code)
    except NodeError as error:
        raise DocumentError(
            printable(f"{name}, line {error.line}, column {error.column}: {error.problem}"),
            code=code,
            hint=error.hint,
            line=error.line,
            column=error.column,
            field="",
        ) from None


@dataclass(frozen=True, slots=True)
class Fields:
    """The fields of one mapping, by name."""

    entries: Mapping[str, Field]

    def get(self, name: str, read: Callable[[Field], Value], default: Default) -> Value | Default:
        """The result of `read` for the field, or the default if the field is missing."""
        field = self.entries.get(name)
        return default if field is None else read(field)

    def read_present(self, readers: Mapping[str, Callable[[Field], Value]]) -> dict[str, Value]:
        """The values of the fields that are present."""
        return {name: read(self.entries[name]) for name, read in readers.items() if name in self.entries}

    def __getitem__(self, name: str) -> Field:
        return self.entries[name]

    def __contains__(self, name: object) -> bool:
        return name in self.entries

    def __len__(self) -> int:
        return len(self.entries)


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a file: its node, its dotted path, and the code of its errors.

    Every method raises DocumentError for an invalid value, and nothing else.
    """

    node: YamlNode
    path: str
    code: str

    def fail(self, problem: str, hint: str = "") -> NoReturn:
        """Raise the error that this field is invalid."""
        self._fail(self.node, self.path, problem, hint)

    def _fail(self, node: YamlNode, path: str, problem: str, hint: str) -> NoReturn:
        position = node.position
        raise DocumentError(
            printable(f"{position}: {path}: {problem}" if path else f"{position}: {problem}"),
            code=self.code,
            hint=hint,
            line=position.line,
            column=position.column,
            field=path,
        )

    @property
    def is_mapping(self) -> bool:
        """Whether the value is a mapping."""
        return isinstance(self.node, MapNode)

    @property
    def is_text(self) -> bool:
        """Whether the value is a scalar, not a mapping or a list."""
        return isinstance(self.node, ScalarNode)

    def names(self) -> tuple[str, ...]:
        """The names in a mapping whose names are the writer's own; none where it is not one."""
        return tuple(self.node.entries) if isinstance(self.node, MapNode) else ()

    def fields(self, known: Sequence[str], needed: Collection[str] = ()) -> Fields:
        """The fields of a mapping; refuses unknown names and missing ones."""
        if not isinstance(self.node, MapNode):
            self.fail("must be a mapping", f"write its fields: {', '.join(known)}")
        found = {}
        for name, (key, value) in self.node.entries.items():
            path = f"{self.path}.{name}" if self.path else name
            if name not in known:
                self._fail(key, path[:200], "unknown field", _suggestion(name, known))
            found[name] = Field(value, path, self.code)
        for name in needed:
            if name not in found:
                self.fail(f"{name} is missing", f"add {name}")
        return Fields(found)

    def items(self, most: int) -> list[Field]:
        """The entries of a list, at most `most`."""
        if not isinstance(self.node, ListNode):
            self.fail("must be a list", "write [a, b], or each entry on its own line after a dash")
        if len(self.node.items) > most:
            self.fail(f"has {len(self.node.items)} entries", f"write at most {most}")
        return [Field(item, f"{self.path}[{index}]", self.code) for index, item in enumerate(self.node.items)]

    def text(self, longest: int = 128) -> str:
        """Text on one line, quoted or not, not empty, of at most `longest` characters."""
        if not isinstance(self.node, ScalarNode):
            self.fail("must be text", "write one word, or text in quotes")
        if not self.node.text:
            self.fail("is empty", "write a value, or remove the field")
        if len(self.node.text) > longest:
            self.fail(f"has {len(self.node.text)} characters", f"write at most {longest}")
        if not self.node.text.isprintable():
            self.fail("has unprintable characters", "write it on one line")
        return self.node.text

    def raw_text(self, longest: int) -> str:
        """Any text, also with several lines, or none, of at most `longest` characters."""
        if not isinstance(self.node, ScalarNode):
            self.fail("must be text", "write one word, or text in quotes")
        if len(self.node.text) > longest:
            self.fail(f"has {len(self.node.text)} characters", f"write at most {longest}")
        return self.node.text

    def texts(self, most: int) -> tuple[str, ...]:
        """A list of texts, at most `most`."""
        return tuple(item.text() for item in self.items(most))

    def flag(self) -> bool:
        """Reads true or false."""
        text = self.text()
        if text not in ("true", "false"):
            self.fail(f"{text[:40]!r} is not true or false", "write true or false")
        return text == "true"

    def whole(self, least: int, most: int) -> int:
        """A whole number from `least` to `most`."""
        text = self.text()
        if not _WHOLE.fullmatch(text) or not least <= int(text) <= most:
            self.fail(f"{text[:40]!r} is not a whole number from {least} to {most}", "write digits only")
        return int(text)

    def choice(self, values: Sequence[str]) -> str:
        """One of the given words."""
        text = self.text()
        if text not in values:
            self.fail(f"{text[:40]!r} is not one of {', '.join(values)}", _suggestion(text, values))
        return text

    def size(self) -> int:
        """Bytes, written with a unit such as "16GiB"; only 0 needs none."""
        text = self.text()
        if text.isdecimal() and text.strip("0"):
            self.fail(f"{text[:40]} has no unit", f"write {text[:20]}{'GiB' if len(text) < 5 else 'B'}")
        try:
            return parse_size(text)
        except AmountError as error:
            self.fail(error.message)

    def cores(self) -> Cores:
        """Cores, written as 2 or 0.5; exact to 0.001."""
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
            self.fail(f"{text} is not between {least:g} s and {most:g} s", "write such as 500ms, 20s, 5m or 2h")
        return seconds

    def micros(self, most: int) -> int:
        """An amount of money in millionths of its currency, written as 2 or 0.25 and read exactly."""
        text = self.text()
        found = _AMOUNT.fullmatch(text)
        if found is None:
            self.fail(f"{text[:40]!r} is not an amount", "write such as 2 or 0.25")
        if len((found[2] or "").rstrip("0")) > _MICRO_DIGITS:
            self.fail(f"{text[:40]} is finer than a millionth", f"write at most {_MICRO_DIGITS} decimals")
        micros = int(Decimal(f"{found[1]}.{(found[2] or '0')[:_MICRO_DIGITS]}").scaleb(_MICRO_DIGITS))
        if micros > most:
            self.fail(f"{text[:40]} is too high", f"write at most {most // 10**_MICRO_DIGITS}")
        return micros


def _suggestion(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name[:64], known, 1)
    return f"did you mean {close[0]}?" if close else f"use one of {', '.join(known)}"


def read_peer_id(field: Field) -> str:
    """Reads a peer id: base58 of a multihash."""
    text = field.text()
    try:
        raw = base58.b58decode(text)
    except ValueError:
        raw = b""
    # The multihash of a key is its SHA-256, or a short key itself.
    if len(raw) < 34 or raw[0] not in (0x00, 0x12) or raw[1] != len(raw) - 2:
        field.fail(f"{text[:64]!r} is not a peer id", "write one as `dms-peer status` shows it: 12D3KooW...")
    return text


def read_place(field: Field) -> Place:
    """Reads a place from continent, country and city, each optional."""
    fields = field.fields(("continent", "country", "city"))
    if not fields:
        field.fail("is empty", "write continent, country or city")
    return Place(**{name: part.text() for name, part in fields.entries.items()})
