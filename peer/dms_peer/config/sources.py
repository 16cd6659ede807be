"""Builds the configuration of a peer from its sources. A later source overrides an earlier one:

1. the defaults,
2. the configuration file (`--config FILE`, `DMS_CONFIG`, else `peer.yaml` in the home directory),
3. environment variables (`DMS_PEER_...`),
4. options of the command line.

All sources become nodes of one tree, which one reader reads. So each error, and each line of `config show`, names the
source of its value.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeAlias, cast

from ..discovery.settings import DiscoverySettings
from ..errors import DocumentError
from ..home.home import MEASURED
from .access import read_access
from .executors import read_executors
from .limits import read_limits
from .settings import SECTIONS, SETTINGS, PeerConfig, Setting, read_settings
from .terms import read_terms
from .yaml_fields import Field, parse_fields, read_file
from .yaml_nodes import ListNode, MapNode, Position, ScalarNode, YamlNode, positions

__all__ = ["CONFIG_NAME", "ConfigSources", "LoadedConfig", "OptionValues"]

CONFIG_NAME: Final = "peer.yaml"
"""The name of the configuration file in the home directory."""

CONFIG_VARIABLE: Final = "DMS_CONFIG"
_CODE: Final = "bad_config"
_NOWHERE: Final = Position("default")

OptionValues: TypeAlias = Mapping[str, str | float | bool | Sequence[str] | None]
"""Values of options by the path of their setting; None or an empty list for an option that was not given."""


@dataclass(frozen=True, slots=True)
class LoadedConfig:
    """A configuration; `file` is its configuration file, if there is one.

    `origins` has the position of every value that is not a default, by its dotted path.
    """

    config: PeerConfig
    file: Path | None
    origins: Mapping[str, Position]


@dataclass(frozen=True, slots=True)
class ConfigSources:
    """The sources of one peer's configuration, which can be read again and again.

    `home` is the home directory, `file` the file that the command line names, `options` the values of options.
    """

    home: Path
    environment: Mapping[str, str]
    file: Path | None = None
    options: OptionValues = field(default_factory=dict)

    @property
    def path(self) -> Path | None:
        """The configuration file. None if none is named and the home has none."""
        if self.file is not None:
            return self.file
        if named := self.environment.get(CONFIG_VARIABLE):
            return Path(named)
        usual = self.home / CONFIG_NAME
        return usual if os.path.lexists(usual) else None

    def load(self) -> LoadedConfig:
        """Reads all sources. Raises the first DocumentError. Blocks on disk."""
        tree = self._tree()
        values: dict[str, Any] = {}
        for name, section in _sections(tree):
            if (value := _read_section(tree, name, section)) is not None:
                values[name] = value
        return LoadedConfig(PeerConfig(**values), self.path, tree.origins())

    def discovery(self) -> DiscoverySettings:
        """Reads the section `discovery` alone; errors of other sections are not found. Raises DocumentError. Blocks on
        disk.
        """
        tree = self._tree()
        for name, section in _sections(tree):
            if name == "discovery":
                return cast(DiscoverySettings, _read_section(tree, name, section))
        return DiscoverySettings()

    def problems(self) -> list[DocumentError]:
        """Reads all sources; returns the first error of every section. Blocks on disk."""
        found: list[DocumentError] = []
        try:
            tree = self._tree()
            sections = list(_sections(tree))
        except DocumentError as error:
            return [error]
        for name, section in sections:
            try:
                _read_section(tree, name, section)
            except DocumentError as error:
                found.append(error)
        return found

    def _tree(self) -> _Tree:
        path = self.path
        root: YamlNode = MapNode({}, _NOWHERE)
        if path is not None:
            content = read_file(path, _CODE)
            # A file with only comments sets nothing.
            if any(line.strip() and not line.lstrip().startswith(b"#") for line in content.splitlines()):
                root = parse_fields(content, str(path), _CODE).node
        if not isinstance(root, MapNode):
            Field(root, "", _CODE).fail("must be a mapping", "write its sections, such as `logs:`")
        for setting in SETTINGS:
            if text := self.environment.get(setting.variable):
                root = _with(root, setting.path, _from_text(setting, text))
        for setting in SETTINGS:
            value = self.options.get(setting.path)
            if value is not None and value != () and value != []:
                root = _with(root, setting.path, _from_option(setting, value))
        return _Tree(root, path.absolute().parent if path is not None else Path.cwd())


@dataclass(slots=True)
class _Tree:
    """The merged tree. Relative paths in the configuration file start in `folder`."""

    root: MapNode
    folder: Path

    def origins(self) -> dict[str, Position]:
        return dict(positions(self.root))


def _sections(tree: _Tree) -> Iterator[tuple[str, Field]]:
    yield from Field(tree.root, "", _CODE).fields(PeerConfig.__struct_fields__).entries.items()


def _read_section(tree: _Tree, name: str, section: Field) -> Any:
    if name == "executors":
        return read_executors(section, tree.folder)
    if name not in SECTIONS:
        value = read_settings(name, section)
        return _path(tree, section, value) if name == "machine" and value != MEASURED else value
    section, folder = _section_file(tree, name, section)
    if name == "terms":
        return read_terms(section, folder)
    return read_access(section) if name == "access" else read_limits(section)


def _section_file(tree: _Tree, name: str, section: Field) -> tuple[Field, Path]:
    """The section itself, or the content of the file that it names, and the folder of the section or file."""
    code = f"bad_{name}"
    if not section.is_text:
        return Field(section.node, section.path, code), tree.folder
    path = Path(_path(tree, section, section.text(4096)))
    root = parse_fields(read_file(path, code), str(path), code)
    tree.root = _with(tree.root, name, root.node)
    return root, path.absolute().parent


def _path(tree: _Tree, field: Field, text: str) -> str:
    """A path in the file is relative to the directory of the file; in an option or variable, to the working
    directory.
    """
    return str(tree.folder / text) if field.node.position.line else text


def _with(root: MapNode, path: str, value: YamlNode) -> MapNode:
    """The tree with `value` at a dotted path."""
    name, _, rest = path.partition(".")
    if rest:
        _, inner = root.entries.get(name, (None, None))
        # A section that is not a mapping is kept, because its reader reports it.
        if inner is not None and not isinstance(inner, MapNode):
            return root
        value = _with(inner or MapNode({}, value.position), rest, value)
    entries = {**root.entries, name: (ScalarNode(name, value.position), value)}
    return MapNode(entries, root.position)


def _from_text(setting: Setting, text: str) -> YamlNode:
    position = Position(setting.variable)
    if setting.many:
        return ListNode(tuple(ScalarNode(word, position) for word in text.replace(",", " ").split()), position)
    return ScalarNode(text, position)


def _from_option(setting: Setting, value: str | float | bool | Sequence[str]) -> YamlNode:
    if isinstance(value, bool):
        option = setting.option if value else setting.option.replace("--", "--no-", 1)
        return ScalarNode("true" if value else "false", Position(option))
    position = Position(setting.option)
    if isinstance(value, str | float | int):
        return ScalarNode(str(value), position)
    return ListNode(tuple(ScalarNode(word, position) for word in value), position)
