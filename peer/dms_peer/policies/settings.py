"""The policies of an owner, and the limits of each."""

from __future__ import annotations

from typing import TypeAlias

from msgspec import Struct

__all__ = ["EndpointSettings", "EntryPointSettings", "ExecutableSettings", "PolicySettings"]


class _Bounds(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`budget` is in seconds for one question; at most `max_concurrent` questions run at a time."""

    budget: float = 1.0
    max_concurrent: int = 4


class EntryPointSettings(_Bounds, frozen=True, kw_only=True, omit_defaults=True, tag_field="kind", tag="python"):
    """The entry point of this name in the group `dms_peer.policies`."""

    name: str
    # Each is a process that keeps running.
    max_concurrent: int = 2

    def describe(self) -> str:
        """One line for people and logs."""
        return f"python {self.name}"


class ExecutableSettings(_Bounds, frozen=True, kw_only=True, omit_defaults=True, tag_field="kind", tag="command"):
    """A program, by its absolute path and arguments, started in `folder`."""

    command: tuple[str, ...]
    folder: str = "/"

    def describe(self) -> str:
        """One line for people and logs."""
        return f"command {' '.join(self.command)}"


class EndpointSettings(_Bounds, frozen=True, kw_only=True, omit_defaults=True, tag_field="kind", tag="url"):
    """An HTTP endpoint."""

    url: str

    def describe(self) -> str:
        """One line for people and logs, without the query part, which may hold a secret."""
        return f"url {self.url.partition('?')[0]}"


PolicySettings: TypeAlias = EntryPointSettings | ExecutableSettings | EndpointSettings
