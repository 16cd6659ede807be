"""YAML as a tree whose every node knows its line and column, safe to read whatever the bytes.

Read from PyYAML's events, so that depth and size are bounded while it is read. Nothing is guessed from a plain scalar
(`NO` is a country and no falsehood): who reads a field knows its type. Aliases, tags, second documents and keys that
are there twice are refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import yaml

__all__ = ["ListNode", "MapNode", "NodeError", "ScalarNode", "YamlNode", "parse_nodes"]

LARGEST: Final = 128 * 1024
_DEEPEST: Final = 16
_MOST_NODES: Final = 20_000
_LONGEST: Final = 300


class NodeError(Exception):
    """What is wrong, where (`line`, `column`, from 1), and what to do about it."""

    def __init__(self, problem: str, hint: str, line: int = 1, column: int = 1) -> None:
        super().__init__(problem)
        self.problem = problem
        self.hint = hint
        self.line = line
        self.column = column


@dataclass(frozen=True, slots=True)
class ScalarNode:
    """A scalar as it was written; `plain` without quotes."""

    text: str
    plain: bool
    line: int
    column: int


@dataclass(frozen=True, slots=True)
class ListNode:
    """A sequence."""

    items: tuple[YamlNode, ...]
    line: int
    column: int


@dataclass(frozen=True, slots=True)
class MapNode:
    """A mapping; each entry has its key's node and its value."""

    entries: dict[str, tuple[ScalarNode, YamlNode]]
    line: int
    column: int


YamlNode: TypeAlias = ScalarNode | ListNode | MapNode


def parse_nodes(content: bytes) -> YamlNode:
    """The one document in these bytes (UTF-8). Raises NodeError and nothing else, whatever they are."""
    if len(content) > LARGEST:
        raise NodeError(f"it is larger than {LARGEST // 1024} KiB", "make it smaller")
    text = _decoded(content)
    try:
        return _Tree(text).root()
    except NodeError:
        raise
    except yaml.reader.ReaderError as error:
        line, column = _place(text[: error.position])
        raise NodeError("a character that YAML does not allow", "remove it", line, column) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        problem = ": ".join(filter(None, (error.context, error.problem)))[:_LONGEST]
        raise NodeError(f"it is no YAML: {problem}", "check the indentation and the quotes", *place) from None
    except Exception as error:
        # The scanner lets Python's own errors through, for example of an escape beyond Unicode.
        raise NodeError(f"it is no YAML: {str(error)[:_LONGEST]}", "check what it says") from None


def _decoded(content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line, column = _place(content[: error.start].decode("utf-8", "replace"))
        raise NodeError("it is not UTF-8", "save it as UTF-8", line, column) from None


def _place(before: str) -> tuple[int, int]:
    return before.count("\n") + 1, len(before) - before.rfind("\n")


class _Tree:
    """One document on its way from events to nodes."""

    def __init__(self, text: str) -> None:
        self._events: Iterator[Any] = iter(yaml.parse(text, Loader=yaml.SafeLoader))
        self._count = 0

    def root(self) -> YamlNode:
        event = self._next()
        while isinstance(event, yaml.StreamStartEvent | yaml.DocumentStartEvent):
            event = self._next()
        if isinstance(event, yaml.StreamEndEvent):
            raise NodeError("it is empty", "write something")
        node = self._node(event, 0)
        self._next()
        after = self._next()
        if not isinstance(after, yaml.StreamEndEvent):
            raise NodeError("a second document", "keep one document in a file", *_mark(after))
        return node

    def _next(self) -> Any:
        return next(self._events)

    def _node(self, event: Any, depth: int) -> YamlNode:
        self._check(event, depth)
        line, column = _mark(event)
        if isinstance(event, yaml.ScalarEvent):
            return ScalarNode(event.value, event.style is None, line, column)
        if isinstance(event, yaml.SequenceStartEvent):
            items = []
            while not isinstance(inner := self._next(), yaml.SequenceEndEvent):
                items.append(self._node(inner, depth + 1))
            return ListNode(tuple(items), line, column)
        entries: dict[str, tuple[ScalarNode, YamlNode]] = {}
        while not isinstance(inner := self._next(), yaml.MappingEndEvent):
            key = self._key(inner, entries, depth)
            entries[key.text] = (key, self._node(self._next(), depth + 1))
        return MapNode(entries, line, column)

    def _key(self, event: Any, entries: dict[str, tuple[ScalarNode, YamlNode]], depth: int) -> ScalarNode:
        key = self._node(event, depth + 1)
        if not isinstance(key, ScalarNode):
            raise NodeError("a key that is no text", "write a field's name before the colon", *_mark(event))
        if key.text in entries:
            first = entries[key.text][0].line
            raise NodeError(
                f"{key.text[:64]} is there twice, first on line {first}", "keep one of them", key.line, key.column
            )
        return key

    def _check(self, event: Any, depth: int) -> None:
        self._count += 1
        if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
            raise NodeError("anchors and aliases (& and *) are not read here", "write it out", *_mark(event))
        if event.tag is not None:
            raise NodeError("tags (!) are not read here", "leave the tag out", *_mark(event))
        if depth > _DEEPEST:
            raise NodeError(f"more than {_DEEPEST} levels", "nest it less", *_mark(event))
        if self._count > _MOST_NODES:
            raise NodeError(f"more than {_MOST_NODES} values", "make it smaller", *_mark(event))


def _mark(event: Any) -> tuple[int, int]:
    return event.start_mark.line + 1, event.start_mark.column + 1
