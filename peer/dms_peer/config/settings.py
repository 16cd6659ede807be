"""The settings of `dms-peer run`: their place in peer.yaml, their option and their environment variable."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, Literal

from msgspec import Struct

from dms_resources.manager import AllocationTerms, Guard

from ..discovery.settings import DiscoverySettings
from ..executors.settings import ExecutorSettings
from ..home.network import NetworkSettings
from .access import OwnerAccess
from .limits import PeerLimits
from .terms import OwnerTerms
from .yaml_fields import Field

__all__ = [
    "SECTIONS",
    "SETTINGS",
    "LogLevelName",
    "LogSettings",
    "PeerConfig",
    "Setting",
    "parse_metrics_address",
    "read_settings",
]

LogLevelName = Literal["error", "warning", "info", "debug"]

SECTIONS: Final = ("terms", "access", "limits")
"""Sections that may be in peer.yaml or in a separate file, whose path is then the value."""

_MOST_ADDRESSES: Final = 64
_LONGEST_ALLOCATION: Final = 10 * 365 * 86400.0
_MOST_PEERS: Final = 4096


class LogSettings(Struct, frozen=True, kw_only=True):
    """The least level that is logged, and whether log lines are JSON."""

    level: LogLevelName = "warning"
    json: bool = False


class PeerConfig(Struct, frozen=True, kw_only=True):
    """Everything that a running peer is configured with; docs/configuration.md describes each field.

    `listen` empty lets the system choose a port, `announce` are further addresses under which others reach the peer,
    `machine` None keeps the machine that the home remembers, `metrics`
    (HOST:PORT) None serves none, `terms` None bids without prices on every request. `sample_interval` is in seconds.
    `executors` run jobs, by the names that requests use; without any, leases carry no jobs.
    `share_machine` lets this peer offer beyond what the other peers of this machine leave.
    """

    listen: tuple[str, ...] = ()
    announce: tuple[str, ...] = ()
    machine: str | None = None
    guard: Guard = "enforce"
    sample_interval: float = 5.0
    share_machine: bool = False
    discovery: DiscoverySettings = DiscoverySettings()
    terms: OwnerTerms | None = None
    access: OwnerAccess = OwnerAccess()
    limits: PeerLimits = PeerLimits()
    allocations: AllocationTerms = AllocationTerms()
    metrics: str | None = None
    logs: LogSettings = LogSettings()
    network: NetworkSettings = NetworkSettings()
    executors: Mapping[str, ExecutorSettings] = {}


class Setting(Struct, frozen=True):
    """One setting of `run`: its dotted path in peer.yaml and its option. `many` marks an option that may be
    repeated.
    """

    path: str
    option: str
    many: bool = False

    @property
    def variable(self) -> str:
        """The environment variable of the setting."""
        return "DMS_PEER_" + self.option.removeprefix("--").replace("-", "_").upper()


SETTINGS: Final = (
    Setting("listen", "--listen", many=True),
    Setting("announce", "--announce", many=True),
    Setting("machine", "--machine"),
    Setting("guard", "--guard"),
    Setting("sample_interval", "--sample-interval"),
    Setting("share_machine", "--share-machine"),
    Setting("discovery.bootstrap", "--bootstrap", many=True),
    Setting("discovery.known", "--known"),
    Setting("discovery.exchange", "--exchange"),
    Setting("discovery.mdns", "--mdns"),
    Setting("discovery.dht", "--dht"),
    Setting("discovery.gossip", "--gossip"),
    Setting("terms", "--terms"),
    Setting("access", "--access"),
    Setting("limits", "--limits"),
    Setting("metrics.address", "--metrics"),
    Setting("logs.level", "--log-level"),
    Setting("logs.json", "--log-json"),
    Setting("network.allow_peers", "--allow-peer", many=True),
    Setting("network.deny_peers", "--deny-peer", many=True),
    Setting("network.allow_addresses", "--allow-address", many=True),
    Setting("network.deny_addresses", "--deny-address", many=True),
    Setting("network.relay", "--relay"),
    Setting("network.reserve_at", "--reserve-at", many=True),
)
"""Every setting that can be given as an option or in the environment."""


def parse_metrics_address(text: str) -> str:
    """Reads "9464" or "127.0.0.1:9464"; returns HOST:PORT, with an empty host for loopback. Raises ValueError."""
    host, _, port = text.rpartition(":")
    if not (port.isascii() and port.isdecimal() and len(port) <= 5 and int(port) <= 65535):
        raise ValueError(f"invalid port {text[:64]!r}")
    return f"{host.strip('[]')}:{port}"


def read_settings(name: str, field: Field) -> Any:
    """Reads one top-level field of peer.yaml that has no file of its own. Raises DocumentError."""
    return _READERS[name](field)


def _addresses(field: Field) -> tuple[str, ...]:
    return tuple(item.text(1024) for item in field.items(_MOST_ADDRESSES))


def _texts(field: Field) -> tuple[str, ...]:
    return field.texts(_MOST_PEERS)


def _discovery(field: Field) -> DiscoverySettings:
    flags = ("known", "exchange", "mdns", "dht", "gossip")
    fields = field.fields(("bootstrap", *flags))
    given: dict[str, Any] = fields.read_present({"bootstrap": _addresses, **dict.fromkeys(flags, Field.flag)})
    return DiscoverySettings(**given)


def _allocations(field: Field) -> AllocationTerms:
    readers = {"keep_alive": _seconds_or_never, "longest": _seconds_or_never}
    return AllocationTerms(**field.fields(tuple(readers)).read_present(readers))


def _seconds_or_never(field: Field) -> float | None:
    return None if field.is_text and field.text() == "never" else field.duration(1, _LONGEST_ALLOCATION)


def _metrics(field: Field) -> str | None:
    return field.fields(("address",)).get("address", _metrics_address, None)


def _metrics_address(field: Field) -> str:
    text = field.text()
    try:
        return parse_metrics_address(text)
    except ValueError as error:
        field.fail(str(error), "write such as 9464 or 127.0.0.1:9464")


def _logs(field: Field) -> LogSettings:
    readers: dict[str, Callable[[Field], Any]] = {
        "level": lambda one: one.choice(("error", "warning", "info", "debug")),
        "json": Field.flag,
    }
    return LogSettings(**field.fields(tuple(readers)).read_present(readers))


def _network(field: Field) -> NetworkSettings:
    readers: dict[str, Callable[[Field], Any]] = {
        "allow_peers": _texts,
        "deny_peers": _texts,
        "allow_addresses": _texts,
        "deny_addresses": _texts,
        "relay": Field.flag,
        "reserve_at": _addresses,
    }
    return NetworkSettings(**field.fields(tuple(readers)).read_present(readers))


_READERS: Final[dict[str, Callable[[Field], Any]]] = {
    "listen": _addresses,
    "announce": _addresses,
    "machine": lambda field: field.text(4096),
    "guard": lambda field: field.choice(("off", "warn", "enforce")),
    "sample_interval": lambda field: field.duration(0.5, 3600),
    "share_machine": Field.flag,
    "discovery": _discovery,
    "allocations": _allocations,
    "metrics": _metrics,
    "logs": _logs,
    "network": _network,
}
