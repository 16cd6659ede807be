"""The values of a configuration in the form in which a person writes them, by their dotted path."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any, Final, TypeAlias

from msgspec import Struct

from dms_protocols.bidding.prices import PricesPerHour
from dms_protocols.rpc.access import AccessRule
from dms_resources.units import format_size

from .settings import SETTINGS, PeerConfig

__all__ = ["ConfigValue", "config_values", "needs_restart"]

ConfigValue: TypeAlias = str | int | float | bool | list[str] | None

# The only settings that a running peer applies. All others apply from the next start.
_LIVE: Final = ("terms", "access.operations", "access.others", "limits.service")
_FIXED: Final = ("terms.policies",)
_MILLION: Final = 10**6


def config_values(config: PeerConfig) -> dict[str, ConfigValue]:
    """Every value of a configuration by its dotted path, in the form of peer.yaml."""
    sections = ("terms", "access", "limits")
    values = {one.path: _plain(_at(config, one.path)) for one in SETTINGS if one.path not in sections}
    if config.terms is not None:
        values |= _flat(config.terms, "terms")
    # In the form of the file: an allocation without a keep-alive, or without a longest time, ends `never`.
    values |= {
        path: "never" if value is None else value for path, value in _flat(config.allocations, "allocations").items()
    }
    values |= _flat(config.access.rules, "access")
    values |= _flat(config.access.shares, "access.shares")
    values |= _flat(config.limits, "limits")
    for name, executor in config.executors.items():
        values[f"executors.{name}.kind"] = type(executor).__struct_config__.tag
        values |= _flat(executor, f"executors.{name}")
    return values


def needs_restart(old: PeerConfig, new: PeerConfig) -> tuple[str, ...]:
    """The paths of values that differ but cannot change in a running peer."""
    before, after = config_values(old), config_values(new)
    changed = sorted(path for path in before.keys() | after.keys() if before.get(path) != after.get(path))
    return tuple(path for path in changed if not path.startswith(_LIVE) or path.startswith(_FIXED))


def _at(config: PeerConfig, path: str) -> Any:
    if path == "metrics.address":
        return config.metrics
    found: Any = config
    for name in path.split("."):
        found = getattr(found, name)
    return found


def _flat(value: Any, path: str) -> dict[str, ConfigValue]:
    found: dict[str, ConfigValue] = {}
    for name, inner in _fields(value):
        where = f"{path}.{name}"
        if isinstance(inner, AccessRule):
            found[where] = _rule(inner)
        elif isinstance(value, PricesPerHour) and isinstance(inner, int):
            found[where] = format(Decimal(inner) / _MILLION, "f")
        elif isinstance(inner, Mapping | Struct) or dataclasses.is_dataclass(inner):
            found |= _flat(inner, where)
        elif name.endswith("bytes") or name in ("bytes_in_flight", "output_rate", "scratch"):
            found[where] = _size(inner)
        else:
            found[where] = _plain(inner)
    return found


def _fields(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        yield from value.items()
    elif isinstance(value, Struct):
        yield from ((name, getattr(value, name)) for name in value.__struct_fields__)
    else:
        yield from ((field.name, getattr(value, field.name)) for field in dataclasses.fields(value))


def _rule(rule: AccessRule) -> str:
    if rule.anyone:
        return "anyone"
    words = [*sorted(rule.peers), *(["token"] if rule.token else [])]
    return " or ".join(words) or "nobody"


def _size(size: int) -> str:
    shown = format_size(size).replace(" ", "")
    # `format_size` rounds, but a limit must be shown exactly.
    return shown if "." not in shown else f"{size}B"


def _plain(value: Any) -> ConfigValue:
    if isinstance(value, frozenset):
        return sorted(map(str, value))
    if isinstance(value, tuple):
        return [str(one.describe()) if hasattr(one, "describe") else str(one) for one in value]
    if isinstance(value, float) and math.isinf(value):
        return None
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)
