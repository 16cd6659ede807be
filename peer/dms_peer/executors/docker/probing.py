"""What an engine is, and what it lets the peer do; what it enforces is read from the kernel at each start."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import NamedTuple

from ..executor import ExecutorError
from ..settings import DockerSettings
from .engine import Engine
from .networks import find_nft

__all__ = ["EngineFacts", "notes_for_owner", "read_facts"]


class EngineFacts(NamedTuple):
    """What is known of an engine.

    `surrounds`: a cgroup of ours can be put around that of each job, whose counters outlive it. `filters`: networks can
    be filtered, which `outbound` needs.
    """

    kind: str
    version: str
    api: str
    rootless: bool
    surrounds: bool
    filters: bool

    @property
    def is_podman(self) -> bool:
        """Whether it is Podman, which ignores some fields of Docker's requests."""
        return self.kind == "Podman"


async def read_facts(engine: Engine) -> EngineFacts:
    """Asks an engine. Raises ExecutorError `unavailable`, and `refused` for one with which no version is shared."""
    api = await engine.version()
    answers = await engine.look("/version"), await engine.call("GET", "/info")
    said, info = (one.content if isinstance(one.content, dict) else {} for one in answers)
    if not all(one.succeeded for one in answers):
        raise ExecutorError(f"the engine fails: {answers[1].message}", code="unavailable")
    components = [str(one.get("Name", "")) for one in said.get("Components") or []]
    security = [str(one) for one in info.get("SecurityOptions") or []]
    rootless = bool(info.get("Rootless")) or any("rootless" in one for one in security)
    # Only root sees and changes the groups and the network of a rootful engine.
    master = not rootless and os.geteuid() == 0
    return EngineFacts(
        kind="Podman" if any("podman" in one.lower() for one in components) else "Docker",
        version=str(said.get("Version", ""))[:64],
        api=api,
        rootless=rootless,
        surrounds=master and info.get("CgroupDriver") == "cgroupfs",
        filters=master and bool(find_nft()),
    )


def notes_for_owner(facts: EngineFacts, settings: DockerSettings, disk_bounded: bool | None) -> Iterator[str]:
    """Sentences on what the owner should know."""
    if not facts.rootless:
        yield "who may open its socket is root on this machine; a rootless engine is safer"
    if os.geteuid():
        yield "tunnels into jobs need CAP_SYS_ADMIN, which the peer has not"
    if not settings.images:
        yield "no image is allowed: name some under `images`"
    if "outbound" in settings.networks and not facts.filters:
        yield "the network `outbound` is not offered: its filter takes a rootful engine, a peer that is root, and nft"
    if disk_bounded is False:
        yield "the disk of a job is watched, not bounded: a job that writes more than its lease has is ended"
