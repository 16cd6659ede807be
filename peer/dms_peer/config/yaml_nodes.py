"""YAML as a tree in which every node knows its position. Safe for any bytes.

The tree is built from PyYAML's events, so that depth and size are limited while reading. A plain scalar keeps its text
(`NO` is a country, not false), and the reader of a field decides its type. Aliases, tags, second documents and
duplicate keys are refused.

Values from options and environment variables become nodes of the same kind, so that one reader serves all of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import yaml

__all__ = [
    "LARGEST",
    "ListNode",
    "MapNode",
    "NodeError",
    "Position",
    "ScalarNode",
    "YamlNode",
    "parse_nodes",
    "positions",
]

LARGEST: Final = 128 * 1024
"""The largest file that is read, in bytes."""
_DEEPEST: Final = 16
_MOST_NODES: Final = 20_000
_LONGEST: Final = 300


@dataclass(frozen=True, slots=True)
class Position:
    """Where a value was written: a file, line and column (from 1), or an option or variable (line 0)."""

    source: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        return f"{self.source}, line {self.line}, column {self.column}" if self.line else self.source

    @property
    def short(self) -> str:
        """The position in one word, such as `peer.yaml:12` or `--guard`."""
        return f"{self.source}:{self.line}" if self.line else self.source


class NodeError(Exception):
    """The problem, its line and column (from 1), and the remedy."""

    def __init__(self, problem: str, hint: str, line: int = 1, column: int = 1) -> None:
        super().__init__(problem)
        self.problem = problem
        self.hint = hint
        self.line = line
        self.column = column


@dataclass(frozen=True, slots=True)
class ScalarNode:
    """A scalar as it was written."""

    text: str
    position: Position


@dataclass(frozen=True, slots=True)
class ListNode:
    """A sequence."""

    items: tuple[YamlNode, ...]
    position: Position


@dataclass(frozen=True, slots=True)
class MapNode:
    """A mapping; each entry has the node of its key and the node of its value."""

    entries: dict[str, tuple[ScalarNode, YamlNode]]
    position: Position


YamlNode: TypeAlias = ScalarNode | ListNode | MapNode


def positions(node: YamlNode, path: str = "") -> Iterator[tuple[str, Position]]:
    """The dotted path and the position of every scalar and list below a node."""
    if isinstance(node, MapNode):
        for name, (_, value) in node.entries.items():
            yield from positions(value, f"{path}.{name}" if path else name)
    else:
        yield path, node.position


def parse_nodes(content: bytes, source: str = "") -> YamlNode:
    """Returns the tree of one document (UTF-8); `source` names it in positions. Raises NodeError for invalid bytes."""
    if len(content) > LARGEST:
        raise NodeError(f"the file is larger than {LARGEST // 1024} KiB", "make it smaller")
    text = _decoded(content)
    try:
        return _Tree(text, source).root()
    except NodeError:
        raise
    except yaml.reader.ReaderError as error:
        line, column = _place(text[: error.position])
        raise NodeError("YAML does not allow this character", "remove it", line, column) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        problem = ": ".join(filter(None, (error.context, error.problem)))[:_LONGEST]
        raise NodeError(f"invalid YAML: {problem}", "check the indentation and the quotes", *place) from None
    except Exception as error:
        # For some input the scanner raises Python's own errors, for example for an escape beyond Unicode.
        raise NodeError(f"invalid YAML: {str(error)[:_LONGEST]}", "check the text") from None


def _decoded(content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line, column = _place(content[: error.start].decode("utf-8", "replace"))
        raise NodeError("the file is not UTF-8", "save it as UTF-8", line, column) from None


def _place(before: str) -> tuple[int, int]:
    return before.count("\n") + 1, len(before) - before.rfind("\n")


class _Tree:
    """Builds the nodes of one document from its events."""

    def __init__(self, text: str, source: str) -> None:
        self._source = source
        self._events: Iterator[Any] = iter(yaml.parse(text, Loader=yaml.SafeLoader))
        self._count = 0

    def root(self) -> YamlNode:
        event = self._next()
        while isinstance(event, yaml.StreamStartEvent | yaml.DocumentStartEvent):
            event = self._next()
        if isinstance(event, yaml.StreamEndEvent):
            raise NodeError("the file is empty", "write at least one field")
        node = self._node(event, 0)
        self._next()
        after = self._next()
        if not isinstance(after, yaml.StreamEndEvent):
            raise NodeError("the file has a second document", "keep one document in a file", *_mark(after))
        return node

    def _next(self) -> Any:
        return next(self._events)

    def _node(self, event: Any, depth: int) -> YamlNode:
        self._check(event, depth)
        position = Position(self._source, *_mark(event))
        if isinstance(event, yaml.ScalarEvent):
            return ScalarNode(event.value, position)
        if isinstance(event, yaml.SequenceStartEvent):
            items = []
            while not isinstance(inner := self._next(), yaml.SequenceEndEvent):
                items.append(self._node(inner, depth + 1))
            return ListNode(tuple(items), position)
        entries: dict[str, tuple[ScalarNode, YamlNode]] = {}
        while not isinstance(inner := self._next(), yaml.MappingEndEvent):
            key = self._key(inner, entries, depth)
            entries[key.text] = (key, self._node(self._next(), depth + 1))
        return MapNode(entries, position)

    def _key(self, event: Any, entries: dict[str, tuple[ScalarNode, YamlNode]], depth: int) -> ScalarNode:
        key = self._node(event, depth + 1)
        if not isinstance(key, ScalarNode):
            raise NodeError("a key must be text", "write the name of a field before the colon", *_mark(event))
        if key.text in entries:
            first, second = entries[key.text][0].position, key.position
            raise NodeError(
                f"duplicate key {key.text[:64]}, first on line {first.line}",
                "keep one of them",
                second.line,
                second.column,
            )
        return key

    def _check(self, event: Any, depth: int) -> None:
        self._count += 1
        if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
            raise NodeError("anchors and aliases (& and *) are not supported", "write the value out", *_mark(event))
        if event.tag is not None:
            raise NodeError("tags (!) are not supported", "remove the tag", *_mark(event))
        if depth > _DEEPEST:
            raise NodeError(f"more than {_DEEPEST} levels", "nest it less", *_mark(event))
        if self._count > _MOST_NODES:
            raise NodeError(f"more than {_MOST_NODES} values", "make it smaller", *_mark(event))


def _mark(event: Any) -> tuple[int, int]:
    return event.start_mark.line + 1, event.start_mark.column + 1
