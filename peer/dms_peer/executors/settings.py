"""The executors of an owner, and the limits of each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal, TypeAlias

from msgspec import Struct

from dms_resources.units import GIB, MIB

__all__ = [
    "CAPABILITY_PROFILES",
    "CommandSettings",
    "DockerSettings",
    "EntryPointExecutorSettings",
    "ExecutorSettings",
    "NetworkAccess",
]

NetworkAccess: TypeAlias = Literal["none", "outbound", "full"]

CAPABILITY_PROFILES: Final[Mapping[str, tuple[str, ...]]] = {
    "none": (),
    "packages": ("CHOWN", "DAC_OVERRIDE", "FOWNER", "SETGID", "SETUID"),
}
"""Capabilities of a container by the name of their profile: `packages` is what su, chown and package managers need."""


class _Bounds(Struct, frozen=True, kw_only=True):
    """`output_bytes` bounds the output that is kept while nobody reads it, `output_rate` (bytes a second) its flow."""

    output_bytes: int = 16 * MIB
    output_rate: int = 8 * MIB


class CommandSettings(_Bounds, frozen=True, kw_only=True, tag_field="kind", tag="command"):
    """A program of the owner's, by its absolute path and arguments.

    It has `ready_seconds` to say that the job is ready. `environment` is all that it finds in its environment besides
    PATH, LANG and DMS_JOB. With `limit` it runs in a cgroup with the lease's CPU, memory and `processes`; `cgroup` is
    the folder below which these groups are made, "" the peer's own.
    """

    command: tuple[str, ...]
    ready_seconds: float = 60.0
    environment: tuple[str, ...] = ()
    limit: bool = True
    processes: int = 1024
    cgroup: str = ""

    def describe(self) -> str:
        """One line for people and logs."""
        return f"command {' '.join(self.command)}"


class DockerSettings(_Bounds, frozen=True, kw_only=True, tag_field="kind", tag="docker"):
    """An engine with the API of Docker, on the Unix socket at `socket`.

    `images` are the patterns of images that jobs may name; none allows none. `networks` are what jobs may reach, in the
    words of a job document. `capabilities` names a profile. `read_only` makes the root of every job read-only, and
    `scratch` is the size of its /tmp. Jobs have at most `processes` processes. `publish` is the address at which leased
    ports are published. `pull_seconds` bounds the pull of an image and `image_bytes` its size.
    """

    socket: str = "/var/run/docker.sock"
    images: tuple[str, ...] = ()
    networks: tuple[NetworkAccess, ...] = ("none",)
    capabilities: str = "none"
    read_only: bool = False
    scratch: int = 64 * MIB
    processes: int = 1024
    publish: str = "0.0.0.0"
    pull_seconds: float = 1800.0
    image_bytes: int = 16 * GIB

    def describe(self) -> str:
        """One line for people and logs."""
        return f"docker {self.socket}"


class EntryPointExecutorSettings(Struct, frozen=True, kw_only=True, tag_field="kind", tag="python"):
    """The entry point of this name in the group `dms_peer.executors`, with options of its own."""

    name: str
    options: Mapping[str, Any] = {}

    def describe(self) -> str:
        """One line for people and logs."""
        return f"python {self.name}"


ExecutorSettings: TypeAlias = CommandSettings | DockerSettings | EntryPointExecutorSettings
