"""Engines that fail, lie, hang and come back: nothing is inferred from an answer, and nothing is given up."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from dms_peer.executors.docker import engine as engine_module
from dms_peer.executors.docker import executor as executor_module
from dms_peer.executors.docker import images as images_module
from dms_peer.executors.docker import watching
from dms_peer.executors.docker.executor import DockerExecutor, open_docker
from dms_peer.executors.executor import ExecutorError
from dms_peer.executors.settings import DockerSettings
from dms_protocols.messages.job import JobExit
from executor_jobs import DEADLINE, container_spec, joined, read_all
from fake_engine import FakeEngine, Reply, open_fake_engine

SPEC = container_spec("sh")


@asynccontextmanager
async def faulty(**settings: Any) -> AsyncIterator[tuple[FakeEngine, DockerExecutor]]:
    # A path of a socket has at most 107 bytes.
    with tempfile.TemporaryDirectory() as folder, trio.fail_after(DEADLINE):
        async with open_fake_engine(Path(folder) / "s") as engine:
            chosen = {"socket": str(engine.path), "images": ("localhost/*",), **settings}
            async with open_docker("docker", DockerSettings(**chosen), Path(folder) / "docker") as executor:
                yield engine, executor


def frame(data: bytes, stream: int = 1) -> bytes:
    return bytes([stream, 0, 0, 0]) + len(data).to_bytes(4, "big") + data


async def code_of(run: Any) -> str:
    with pytest.raises(ExecutorError) as caught:
        await run
    return caught.value.code


@pytest.mark.parametrize(
    ("version", "spoken"),
    [
        ({"ApiVersion": "1.41", "MinAPIVersion": "1.24"}, "1.41"),
        ({"ApiVersion": "1.53", "MinAPIVersion": "1.44"}, "1.47"),
        ({"ApiVersion": "1.40"}, "1.40"),
        ({"ApiVersion": "1.39", "MinAPIVersion": "1.12"}, None),
        ({"ApiVersion": "1.60", "MinAPIVersion": "1.50"}, None),
        ({"ApiVersion": "new"}, None),
        ([], None),
    ],
)
async def test_the_version_is_one_that_both_speak(version: Any, spoken: str | None) -> None:
    async with faulty() as (engine, executor):
        engine.version = version
        capabilities = await executor.probe()
        assert capabilities.works is (spoken is not None)
        if spoken:
            assert f"API {spoken}" in capabilities.version
            assert ("GET", f"/v{spoken}/info") in engine.asked


async def test_an_engine_that_is_not_there_ends_and_frees_nothing(tmp_path: Path) -> None:
    async with open_docker("docker", DockerSettings(socket=str(tmp_path / "none")), tmp_path) as executor:
        assert not (await executor.probe()).works
        for run in (executor.find(SPEC), executor.list("a", "b"), executor.wait(SPEC), executor.remove(SPEC)):
            assert await code_of(run) == "unavailable"


async def test_an_engine_that_comes_back_as_another_is_asked_for_its_version_again() -> None:
    async with faulty() as (engine, executor):
        await executor.find(SPEC)

        async def cut(*_: Any) -> Reply:
            return 200, _parts(b"")

        engine.on("GET", "/json", cut)
        assert await code_of(executor.find(SPEC)) == "unavailable"
        engine._handlers.clear()
        engine.version = {"ApiVersion": "1.44", "MinAPIVersion": "1.44"}
        assert await executor.find(SPEC) is None
        assert engine.asked[-1][1].startswith("/v1.44/")


async def _parts(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


@pytest.mark.parametrize("status", [500, 404, 409])
async def test_what_an_engine_says_of_a_create_counts_for_nothing(status: int) -> None:
    async with faulty() as (engine, executor):

        async def create(path: str, query: dict[str, str], body: Any) -> Reply:
            engine.usual("POST", path, query, body)
            return status, {"message": "that name is already in use"}

        engine.on("POST", "/containers/create", create)
        found = await executor.start(SPEC)
        assert found.state == "exited"
        assert len([one for one in engine.asked if one[1].endswith("/start")]) == 1


async def test_a_start_that_is_cancelled_is_carried_out_once() -> None:
    async with faulty() as (engine, executor):
        arrived, go_on = trio.Event(), trio.Event()

        async def start(path: str, query: dict[str, str], body: Any) -> Reply:
            arrived.set()
            await go_on.wait()
            return engine.usual("POST", path, query, body)

        engine.on("POST", "/start", start)
        async with trio.open_nursery() as nursery:

            async def cancelled() -> None:
                with trio.CancelScope() as scope:
                    nursery.start_soon(_cancel_on, arrived, scope, go_on)
                    await executor.start(SPEC)

            nursery.start_soon(cancelled)
        assert (await executor.start(SPEC)).state == "exited"
        assert len([one for one in engine.asked if one[1].endswith("/start")]) == 1


async def _cancel_on(arrived: trio.Event, scope: trio.CancelScope, go_on: trio.Event) -> None:
    await arrived.wait()
    scope.cancel()
    go_on.set()


async def test_a_container_of_another_with_our_name_is_left_alone() -> None:
    async with faulty() as (engine, executor):
        engine.containers[SPEC.name] = {
            "Config": {"Labels": {"dms.peer": "another"}},
            "State": {"Status": "running", "Pid": os.getpid()},
        }
        assert await executor.find(SPEC) is None
        assert await code_of(executor.start(SPEC)) == "refused"
        await executor.signal(SPEC, signal.SIGKILL)
        await executor.remove(SPEC)
        assert SPEC.name in engine.containers
        assert not [one for one in engine.asked if one[0] == "DELETE" or one[1].endswith("/kill")]


async def test_a_list_is_filtered_again_and_a_failed_one_is_no_empty_one() -> None:
    async with faulty() as (engine, executor):
        await executor.start(SPEC)
        await executor.start(container_spec("sh", name="other"))
        engine.containers["other"]["Config"]["Labels"]["dms.home"] = "another"
        assert [one.name for one in await executor.list(SPEC.peer_id, SPEC.home_id)] == [SPEC.name]
        for label in ("digest", "fence", "created"):
            await executor.start(container_spec("sh", name=label))
            engine.containers[label]["Config"]["Labels"][f"dms.{label}"] = "nonsense"
        assert [one.name for one in await executor.list(SPEC.peer_id, SPEC.home_id)] == [SPEC.name]
        for answer in ((500, {"message": "locked"}), (200, {"not": "a list"}), (200, b"half a lis")):
            engine.on("GET", "/containers/json", lambda *_, answer=answer: answer)
            assert await code_of(executor.list(SPEC.peer_id, SPEC.home_id)) == "unavailable"


async def test_a_container_that_cannot_be_removed_is_tried_until_it_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor_module, "_LONGEST_PAUSE", 0.01)
    monkeypatch.setattr(executor_module, "_KILL_SECONDS", 0.05)
    async with faulty() as (engine, executor):
        await executor.start(SPEC)
        engine.containers[SPEC.name]["State"] = {"Status": "running", "Pid": os.getpid()}
        tries = []

        async def delete(path: str, query: dict[str, str], body: Any) -> Reply:
            tries.append(query["force"])
            # A process that waits for a device is not killed by anything.
            return (500, {"message": "did not exit"}) if len(tries) < 20 else engine.usual("DELETE", path, query, body)

        engine.on("DELETE", SPEC.name, delete)
        engine.on("POST", "/kill", lambda *_: (500, {"message": "tried to kill, but did not receive an exit event"}))
        await executor.remove(SPEC)
        assert len(tries) == 20
        assert set(tries) == {"1"}


async def test_the_word_of_wait_is_not_believed_while_the_job_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "_PAUSE", 0.001)
    async with faulty() as (engine, executor):
        await executor.start(SPEC)
        state = engine.containers[SPEC.name]["State"]
        state |= {"Status": "running", "Pid": os.getpid()}
        looks = []

        async def inspect(path: str, query: dict[str, str], body: Any) -> Reply:
            looks.append(path)
            if len(looks) == 5:
                state.update({"Status": "exited", "ExitCode": 7, "Pid": 0})
            return engine.usual("GET", path, query, body)

        engine.on("GET", f"{SPEC.name}/json", inspect)
        engine.on("POST", "/wait", lambda *_: (200, {"StatusCode": 0, "Error": {"Message": "no such container"}}))
        found = await executor.wait(SPEC)
        assert found is not None
        assert found.exit == JobExit(kind="code", code=7)


async def test_a_wait_that_hangs_is_not_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The watcher of the container was killed: `wait` hangs, and an inspection says `running` for ever."""
    monkeypatch.setattr(watching, "_SAMPLE_SECONDS", 0.01)
    monkeypatch.setattr(watching, "_LOST_SECONDS", 0.1)
    async with faulty() as (engine, executor):
        await executor.start(SPEC)
        engine.containers[SPEC.name]["State"] |= {"Status": "running", "Pid": 2**22 - 1}
        engine.on("POST", "/wait", _never)
        found = await executor.wait(SPEC)
        assert found is not None
        assert found.exit is not None
        assert found.exit.kind == "lost"
        # It is remembered, for the engine goes on saying so.
        assert await executor.find(SPEC) == found


async def _never(*_: Any) -> Reply:
    await trio.sleep_forever()
    raise AssertionError


async def test_output_goes_on_where_a_connection_was_cut() -> None:
    async with faulty() as (engine, executor):
        await executor.start(SPEC)
        whole = frame(b"one ") + frame(b"err", 2) + frame(b"two ") + frame(b"three")
        engine.on("GET", "/logs", lambda *_: (200, _parts(whole[:30], b"")))
        said: list[bytes] = []

        async def follow() -> None:
            async with executor.output(SPEC, 0) as pieces:
                async for piece in pieces:
                    said.append(piece.data)

        assert await code_of(follow()) == "unavailable"
        assert b"".join(said) == b"one err"
        offset = len(b"".join(said))
        engine.on("GET", "/logs", lambda *_: (200, _parts(*(bytes([byte]) for byte in whole))))
        assert joined(await read_all(executor, SPEC, offset)) == b"two three"


async def test_an_output_that_is_left_early_leaves_nothing_behind() -> None:
    async with faulty() as (engine, executor):
        await executor.start(SPEC)

        async def endless() -> AsyncIterator[bytes]:
            while True:
                yield frame(b"x" * 60_000)

        engine.on("GET", "/logs", lambda *_: (200, endless()))
        for _ in range(3):
            async with executor.output(SPEC, 0) as pieces:
                assert (await anext(pieces)).data
        assert await executor.find(SPEC) is not None


async def test_an_answer_without_an_end_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "_LARGEST_ANSWER", 10_000)
    async with faulty() as (engine, executor):
        engine.on("GET", f"{SPEC.name}/json", lambda *_: (200, b"[" + b"0," * 100_000))
        assert await code_of(executor.find(SPEC)) == "unavailable"


TINY = {"Id": "b" * 64, "Architecture": "", "Size": 1000}
OTHER = container_spec("sh", image="localhost/other:2")


@pytest.mark.parametrize(
    ("report", "problem"),
    [
        ([b'{"errorDetail":{"message":"connection refused"},"error":"connection refused"}\n'], "connection refused"),
        ([b'{"status":"Pulling"}\n'], "not there afterwards"),
        ([b'{"error":"toomanyrequests: limit"}'], "the registry limits pulls"),
        ([b'{"id":"a","progressDetail":{"current":1,"total":3000}}\n'] * 2, "larger than"),
        ([b'{"id":"%s","progressDetail":{"total":600,"current":1}}\n' % one for one in (b"a", b"b")], "larger than"),
        ([b"x" * 300_000], "without an end"),
        ([b"not JSON\n", b"[]\n", b'{"status":1}\n'], "not there afterwards"),
    ],
)  # fmt: skip
async def test_a_pull_worked_only_if_the_image_is_there(report: list[bytes], problem: str) -> None:
    async with faulty(image_bytes=1000) as (engine, executor):
        engine.on("POST", "/images/create", lambda *_: (200, _parts(*report)))
        with pytest.raises(ExecutorError, match=problem) as caught:
            await executor.prepare(OTHER, lambda message: None)
        assert caught.value.code == "failed"


async def test_a_pull_without_progress_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images_module, "_SILENCE", 0.05)
    async with faulty() as (engine, executor):

        async def silent() -> AsyncIterator[bytes]:
            yield b'{"status":"Waiting"}\n'
            await trio.sleep_forever()

        engine.on("POST", "/images/create", lambda *_: (200, silent()))
        with pytest.raises(ExecutorError, match="no progress for"):
            await executor.prepare(OTHER, lambda message: None)


async def test_a_pull_has_a_deadline() -> None:
    async with faulty(pull_seconds=0.05) as (engine, executor):
        engine.on("POST", "/images/create", _never)
        with pytest.raises(ExecutorError, match="not there after"):
            await executor.prepare(OTHER, lambda message: None)


async def test_one_pull_serves_all_that_wait_and_asks_only_for_the_name() -> None:
    async with faulty() as (engine, executor):
        asked: list[dict[str, str]] = []

        async def pull(path: str, query: dict[str, str], body: Any) -> Reply:
            asked.append(query)
            engine.images["localhost/other:2"] = TINY
            return 200, b'{"id":"a","status":"Downloading","progressDetail":{"current":1,"total":4}}'

        engine.on("POST", "/images/create", pull)
        said: list[str] = []
        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(executor.prepare, OTHER, said.append)
        assert asked == [{"fromImage": "localhost/other", "tag": "2"}]
        assert said[0] == "pulling localhost/other:2"
        assert said[-1].endswith("25 %")


@pytest.mark.parametrize(
    ("image", "problem"),
    [
        ({**TINY, "Architecture": "s390x"}, "is for s390x"),
        ({**TINY, "Size": 2**40}, "is larger than"),
        ({**TINY, "Config": {"Volumes": {"relative": {}}}}, "volumes"),
        ({**TINY, "Config": {"Volumes": {"/a,b:c": {}}}}, "volumes"),
        ({**TINY, "Config": {"Volumes": {f"/{number}": {} for number in range(40)}}}, "volumes"),
    ],
)
async def test_images_that_are_refused(image: dict[str, Any], problem: str) -> None:
    async with faulty() as (engine, executor):
        engine.images["localhost/other:2"] = image
        with pytest.raises(ExecutorError, match=problem) as caught:
            await executor.start(OTHER)
        assert caught.value.code == "refused"
        assert engine.containers == {}


async def test_the_image_that_was_looked_at_is_the_one_that_runs() -> None:
    async with faulty() as (engine, executor):
        bodies: list[Any] = []

        async def create(path: str, query: dict[str, str], body: Any) -> Reply:
            bodies.append(body)
            return engine.usual("POST", path, query, body)

        engine.on("POST", "/containers/create", create)
        await executor.start(SPEC)
        assert bodies[0]["Image"] == engine.images["localhost/tiny:1"]["Id"]
