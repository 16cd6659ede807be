"""Images that come from a registry, on real engines: by tag, by digest, and not at all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from container_engines import RunningEngine
from dms_peer.executors.executor import ExecutorError
from executor_jobs import container_spec, joined, read_all
from image_registry import open_image_registry

Containers = Callable[..., Any]

pytestmark = pytest.mark.containers


@pytest.mark.parametrize("by", ["tag", "digest"])
async def test_an_image_is_pulled_and_runs(containers: Containers, engine: RunningEngine, by: str) -> None:
    with open_image_registry(engine.folder / "image.tar", engine.registry_port, f"team/{by}") as registry:
        name = f"{registry.name}:1" if by == "tag" else f"{registry.name}@{registry.digest}"
        spec = container_spec(image=name)
        async with containers(spec, images=("127.0.0.1:*/team/*",)) as executor:
            said: list[str] = []
            await executor.prepare(spec, said.append)
            assert said[0] == f"pulling {name}"
            await executor.start(spec)
            assert joined(await read_all(executor, spec)) == b"from the registry\n"


async def test_an_image_that_the_registry_has_not_is_a_failure(containers: Containers, engine: RunningEngine) -> None:
    with open_image_registry(engine.folder / "image.tar", engine.registry_port, "team/none") as registry:
        spec = container_spec(image=f"{registry.name}:none")
        async with containers(images=("127.0.0.1:*/team/*",)) as executor:
            with pytest.raises(ExecutorError, match="cannot pull") as caught:
                await executor.prepare(spec, lambda message: None)
            assert caught.value.code == "failed"


async def test_an_image_for_another_machine_is_refused(containers: Containers, engine: RunningEngine) -> None:
    with open_image_registry(engine.folder / "image.tar", engine.registry_port, "team/other", "s390x") as registry:
        spec = container_spec(image=f"{registry.name}:1")
        async with containers(images=("127.0.0.1:*/team/*",)) as executor:
            with pytest.raises(ExecutorError) as caught:
                await executor.prepare(spec, lambda message: None)
            # One engine does not pull it, the other one does: it is refused then.
            assert caught.value.code in ("refused", "failed")
