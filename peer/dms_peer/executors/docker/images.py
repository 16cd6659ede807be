"""Gets images: pulls them with a deadline and a bound, and says which image a name stands for."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from typing import Any, Final, NamedTuple
from urllib.parse import quote

import trio

from dms_resources.machine.architectures import architecture_name
from dms_resources.units import format_size

from ..executor import ExecutorError, OnPull
from ..settings import DockerSettings
from .engine import Engine
from .references import ImageReference

__all__ = ["Image", "Images"]

_SILENCE: Final = 60.0
_LONGEST_LINE: Final = 256 * 1024
_MOST_VOLUMES: Final = 16
_MOST_LAYERS: Final = 1024


class Image(NamedTuple):
    """An image that is there: its id, which no other image ever has, and the folders that it declares as volumes."""

    id: str
    volumes: tuple[str, ...]
    has_command: bool


class Images:
    """The images of one engine. One pull of an image serves all jobs that wait for it."""

    def __init__(self, engine: Engine, settings: DockerSettings) -> None:
        self._engine = engine
        self._settings = settings
        self._pulling: dict[str, trio.Lock] = {}

    async def find(self, name: ImageReference) -> Image | None:
        """The image of this name, None where it is not there.

        Raises ExecutorError `refused` for one of another architecture or that is too large, and `unavailable`.
        """
        answer = await self._engine.call("GET", f"/images/{quote(str(name), safe='')}/json")
        if not answer.succeeded or not isinstance(answer.content, dict):
            return None
        content: Mapping[str, Any] = answer.content
        self._check(name, content)
        config = content.get("Config") or {}
        volumes = sorted(config.get("Volumes") or {})
        if len(volumes) > _MOST_VOLUMES or not all(_is_folder(one) for one in volumes):
            raise ExecutorError(f"{name} declares volumes that cannot be made", code="refused")
        identity = str(content["Id"])
        return Image(
            identity if ":" in identity else f"sha256:{identity}",
            tuple(volumes),
            bool(config.get("Cmd") or config.get("Entrypoint")),
        )

    def _check(self, name: ImageReference, content: Mapping[str, Any]) -> None:
        theirs, ours = (architecture_name(str(one)) for one in (content.get("Architecture", ""), platform.machine()))
        if content.get("Architecture") and theirs != ours:
            raise ExecutorError(f"{name} is for {theirs}, and this machine is {ours}", code="refused")
        if int(content.get("Size") or 0) > self._settings.image_bytes:
            raise ExecutorError(f"{name} is larger than {format_size(self._settings.image_bytes)}", code="refused")

    async def get(self, name: ImageReference, on_progress: OnPull) -> Image:
        """The image of this name, pulled unless it is there.

        Raises ExecutorError `failed` where it cannot be pulled in time, `refused` and `unavailable`.
        """
        lock = self._pulling.setdefault(str(name), trio.Lock())
        try:
            async with lock:
                found = await self.find(name)
                if found is not None:
                    return found
                with trio.move_on_after(self._settings.pull_seconds) as scope:
                    problem = await self._pull(name, on_progress)
                if scope.cancelled_caught:
                    problem = f"not there after {self._settings.pull_seconds:g} s"
                # An engine reports errors of a pull in the middle of a good answer, and not all of them.
                found = await self.find(name)
        finally:
            if not lock.statistics().tasks_waiting:
                self._pulling.pop(str(name), None)
        if found is None:
            raise ExecutorError(f"cannot pull {name}: {problem or 'it is not there afterwards'}", code="failed")
        return found

    async def _pull(self, name: ImageReference, on_progress: OnPull) -> str:
        """Pulls; returns what the engine said was wrong, "" for nothing."""
        query = {"fromImage": name.name, "tag": name.version}
        on_progress(f"pulling {name}")
        report = _PullReport(name, self._settings.image_bytes, on_progress)
        with trio.move_on_after(_SILENCE) as silence:

            async def take(status: int, part: bytes) -> bool:
                silence.deadline = trio.current_time() + _SILENCE
                return report.feed(status, part)

            await self._engine.read_stream("POST", "/images/create", query, take)
        return f"no progress for {_SILENCE:g} s" if silence.cancelled_caught else report.end()


class _PullReport:
    """Reads what an engine reports of a pull: one JSON object a line."""

    def __init__(self, name: ImageReference, most: int, on_progress: OnPull) -> None:
        self._name = name
        self._most = most
        self._on_progress = on_progress
        self._layers: dict[str, int] = {}
        self._rest = b""
        self._problem = ""

    def feed(self, status: int, part: bytes) -> bool:
        """Reads a part; whether the pull shall go on."""
        *lines, self._rest = (self._rest + part).split(b"\n")
        if len(self._rest) > _LONGEST_LINE:
            self._problem = "the engine's report has a line without an end"
        for line in filter(None, lines):
            self._problem = self._problem or self._read(line)
        if status >= 400 and not self._problem and not self._rest:
            self._problem = f"status {status}"
        return not self._problem

    def end(self) -> str:
        """What was wrong; "" for nothing."""
        return self._problem or (self._read(self._rest) if self._rest.strip() else "")

    def _read(self, line: bytes) -> str:
        try:
            said = json.loads(line)
        except ValueError:
            return ""
        if not isinstance(said, dict):
            return ""
        if any(said.get(name) for name in ("error", "errorDetail", "message", "cause")):
            return _message(line)
        detail = said.get("progressDetail")
        detail = detail if isinstance(detail, dict) else {}
        done, total, layer = detail.get("current"), detail.get("total"), str(said.get("id", ""))[:64]
        if isinstance(total, int) and isinstance(done, int) and len(self._layers) < _MOST_LAYERS:
            self._layers[layer] = max(self._layers.get(layer, 0), total)
            self._on_progress(f"pulling {self._name}: {said.get('status', '')} {layer} {done * 100 // max(1, total)} %")
        if sum(self._layers.values()) > self._most:
            return f"it is larger than {format_size(self._most)}"
        return ""


def _message(line: bytes) -> str:
    try:
        said = json.loads(line)
    except ValueError:
        return ""
    detail = said.get("errorDetail") if isinstance(said.get("errorDetail"), dict) else {}
    text = str(said.get("error") or detail.get("message") or said.get("message") or said.get("cause") or "")[:400]
    if "toomanyrequests" in text or "429" in text:
        return f"the registry limits pulls, try again later: {text}"
    return text


def _is_folder(text: str) -> bool:
    return text.startswith("/") and len(text) <= 256 and text.isprintable() and not {":", ","} & {*text}
