"""Opens the owner's executors by their settings."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from importlib.metadata import entry_points
from pathlib import Path
from typing import Final

from .executor import Executor, ExecutorError
from .settings import CommandSettings, DockerSettings, EntryPointExecutorSettings, ExecutorSettings

__all__ = ["EXECUTOR_GROUP", "open_executors"]

EXECUTOR_GROUP: Final = "dms_peer.executors"
"""The entry-point group of executors.

An entry point is a function of the executor's name, a folder for its files and its options (texts by name). It returns
an asynchronous context manager of an Executor.
"""


@asynccontextmanager
async def open_executors(settings: Mapping[str, ExecutorSettings], folder: Path) -> AsyncIterator[dict[str, Executor]]:
    """Opens all executors, by name; their files are in `folder`. Jobs go on when the block ends.

    Nothing is started and no engine is asked: `Executor.probe` tells which of them work. Raises ExecutorError
    `executor_unusable` for an entry point that is not there or cannot be opened.
    """
    async with AsyncExitStack() as stack:
        opened: dict[str, Executor] = {}
        for name, one in settings.items():
            if isinstance(one, CommandSettings):
                from .command.executor import CommandExecutor

                opened[name] = CommandExecutor(name, one, folder / name)
            elif isinstance(one, DockerSettings):
                # Importing httpx takes half a second; only peers with an engine need it.
                from .docker.executor import open_docker

                opened[name] = await stack.enter_async_context(open_docker(name, one, folder / name))
            else:
                opened[name] = await _open_entry_point(name, one, folder / name, stack)
        yield opened


async def _open_entry_point(
    name: str, settings: EntryPointExecutorSettings, folder: Path, stack: AsyncExitStack
) -> Executor:
    found = tuple(entry_points(group=EXECUTOR_GROUP, name=settings.name))
    if not found:
        there = ", ".join(sorted(entry_points(group=EXECUTOR_GROUP).names)) or "none"
        raise ExecutorError(
            f"unknown entry point {settings.name!r} of the executor {name}",
            code="executor_unusable",
            hint=f"install its package; known in the group {EXECUTOR_GROUP}: {there}",
        )
    try:
        opened: Executor = await stack.enter_async_context(found[0].load()(name, folder, settings.options))
    except Exception as error:
        raise ExecutorError(
            f"cannot open the executor {name}: {error}",
            code="executor_unusable",
            hint="correct its package or its options, or remove it from peer.yaml",
        ) from error
    return opened
