"""Reads the limits of a running peer (docs/limits.md lists all of them with their defaults).

The shares of peers are in the access file, not here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

from dms_host.limits import HostLimits, RelayLimits
from dms_protocols.rpc.limits import ServiceLimits

from ..connections.limits import ConnectionLimits
from ..discovery.gossip.limits import GossipLimits
from .yaml_fields import Field, parse_fields, read_file

__all__ = ["PeerLimits", "parse_limits", "read_limits", "read_limits_file"]

_CODE: Final = "bad_limits"
_HIGHEST: Final = 2**40
_LONGEST: Final = 30 * 86400.0

Limits = TypeVar("Limits")


@dataclasses.dataclass(frozen=True, slots=True)
class PeerLimits:
    """The limits of the host, of each served stream, of outbound connections, of gossip and of a relay."""

    host: HostLimits = dataclasses.field(default_factory=HostLimits)
    service: ServiceLimits = dataclasses.field(default_factory=ServiceLimits)
    connections: ConnectionLimits = dataclasses.field(default_factory=ConnectionLimits)
    gossip: GossipLimits = dataclasses.field(default_factory=GossipLimits)
    relay: RelayLimits = dataclasses.field(default_factory=RelayLimits)


def read_limits_file(path: Path) -> PeerLimits:
    """Reads a limits file. Raises DocumentError `bad_limits`. Blocks on disk."""
    return parse_limits(read_file(path, _CODE), str(path))


def parse_limits(content: bytes, name: str) -> PeerLimits:
    """Reads limits from bytes; `name` is their name in errors. Raises DocumentError `bad_limits`, and nothing else."""
    return read_limits(parse_fields(content, name, _CODE))


def read_limits(field: Field) -> PeerLimits:
    """Reads limits; a missing field has its default. Raises DocumentError."""
    usual = PeerLimits()
    sections = [section.name for section in dataclasses.fields(usual)]
    read = {name: _section(one, getattr(usual, name)) for name, one in field.fields(sections).entries.items()}
    return dataclasses.replace(usual, **read)


def _section(field: Field, usual: Any) -> Any:
    names = [one.name for one in dataclasses.fields(usual)]
    values = {name: _reader(name, getattr(usual, name))(one) for name, one in field.fields(names).entries.items()}
    try:
        return dataclasses.replace(usual, **values)
    except ValueError as error:
        # The class refuses limits that contradict each other.
        field.fail(str(error), "see docs/limits.md")


def _reader(name: str, usual: float) -> Callable[[Field], float]:
    if isinstance(usual, float):
        return lambda field: field.duration(0.001, _LONGEST)
    return Field.size if name.endswith("bytes") else lambda field: field.whole(1, _HIGHEST)
