"""Containers of one engine, by the names of their jobs.

A request that failed may have been carried out. So the outcome of each is looked up, and all of them may be repeated.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, TypeVar

import trio

from ..executor import ExecutorError, JobSpec
from .create_body import LABEL
from .engine import Engine, EngineAnswer

__all__ = ["Containers", "has_job_labels", "is_ours", "is_started", "process_of", "state_of"]

Value = TypeVar("Value")

_CHANGE_SECONDS: Final = 60.0
_NOT_STARTED: Final = ("created", "configured", "initialized", "")
_RUNNING: Final = ("running", "paused", "stopping", "restarting")
_GONE: Final = 404
_DIGEST_BYTES: Final = 32

Container = dict[str, Any]
"""A container as an inspection shows it."""


class Containers:
    """Creates, finds, signals and removes containers. Raises ExecutorError `unavailable` where the engine is silent."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def find(self, name: str, *, size: bool = False) -> Container | None:
        """The container of this name; None only where the engine says that there is none."""
        answer = await self._engine.call("GET", f"/containers/{name}/json", query={"size": "1"} if size else None)
        if answer.status == _GONE:
            return None
        if not answer.succeeded or not isinstance(answer.content, dict):
            raise _unclear("finding", name, answer)
        return answer.content

    async def names(self, peer_id: str, home_id: str) -> list[str]:
        """The names of all containers with the labels of this peer and home, whatever their state."""
        query = {"all": "1", "filters": json.dumps({"label": [f"{LABEL}peer={peer_id}", f"{LABEL}home={home_id}"]})}
        answer = await self._engine.call("GET", "/containers/json", query=query)
        if not answer.succeeded or not isinstance(answer.content, list):
            raise _unclear("listing", "containers", answer)
        found = []
        for one in answer.content:
            labels = one.get("Labels") or {}
            # A filter may match more than it says.
            if (labels.get(f"{LABEL}peer"), labels.get(f"{LABEL}home")) == (peer_id, home_id) and one.get("Names"):
                found.append(str(one["Names"][0]).lstrip("/"))
        return found

    async def create(self, name: str, body: Mapping[str, Any]) -> EngineAnswer:
        """Creates; the answer says nothing certain, look with `find`."""
        query = {"name": name}
        return await _finished(
            lambda: self._engine.call("POST", "/containers/create", query=query, content=body, seconds=_CHANGE_SECONDS)
        )

    async def start(self, name: str) -> EngineAnswer:
        """Starts a container that never ran: an engine starts one that has exited again, too."""
        return await _finished(lambda: self._engine.call("POST", f"/containers/{name}/start", seconds=_CHANGE_SECONDS))

    async def kill(self, name: str, number: int) -> None:
        """Sends a signal to the first process; SIGKILL ends all. What came of it has to be looked up."""
        await self._engine.call("POST", f"/containers/{name}/kill", query={"signal": str(number)})

    async def remove(self, name: str, *, force: bool) -> bool:
        """Removes a container with its volumes; whether it is gone. With `force` also one whose watcher is dead."""
        query = {"v": "1", "force": "1" if force else "0"}
        await _finished(
            lambda: self._engine.call("DELETE", f"/containers/{name}", query=query, seconds=_CHANGE_SECONDS)
        )
        return await self.find(name) is None

    async def wait(self, name: str) -> None:
        """Returns when the engine says that it has exited, or says anything else; what is true has to be looked up."""

        async def take(status: int, part: bytes) -> bool:
            return True

        await self._engine.read_stream("POST", f"/containers/{name}/wait", None, take)


async def _finished(change: Callable[[], Awaitable[Value]]) -> Value:
    """Carries a change through: cancelled on its way it would be carried out all the same, unseen."""
    with trio.CancelScope(shield=True):
        return await change()


def _unclear(doing: str, name: str, answer: EngineAnswer) -> ExecutorError:
    return ExecutorError(f"the engine fails at {doing} {name}: {answer.message}", code="unavailable")


def state_of(container: Container) -> str:
    """The engine's word for its state, in lower case."""
    return str((container.get("State") or {}).get("Status") or "").lower()


def is_started(container: Container) -> bool:
    """Whether it ever ran."""
    return state_of(container) not in _NOT_STARTED


def process_of(container: Container) -> int | None:
    """Its first process, as this machine numbers it; None where none runs."""
    number = (container.get("State") or {}).get("Pid")
    return number if isinstance(number, int) and number > 0 and state_of(container) in _RUNNING else None


def is_ours(container: Container, spec: JobSpec) -> bool:
    """Whether its labels are those of this job, its digest apart."""
    labels = (container.get("Config") or {}).get("Labels") or {}
    wanted = {"peer": spec.peer_id, "home": spec.home_id, "lease": spec.lease_id, "fence": str(spec.fence)}
    return all(labels.get(f"{LABEL}{name}") == value for name, value in wanted.items())


def has_job_labels(container: Container) -> bool:
    """Whether its labels can be those of a job."""
    labels = (container.get("Config") or {}).get("Labels") or {}
    try:
        float(labels[f"{LABEL}created"])
        return len(bytes.fromhex(labels[f"{LABEL}digest"])) == _DIGEST_BYTES and int(labels[f"{LABEL}fence"]) >= 0
    except (KeyError, ValueError, TypeError):
        return False
