"""The processes of policies end with the peer, even if the peer is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import Any

import psutil
import pytest
import trio

from dms_peer.errors import PolicyError
from dms_peer.policies.open import open_policies
from dms_peer.policies.processes import open_processes
from dms_peer.policies.settings import EndpointSettings

PEER = """
import subprocess, sys
import trio
from dms_peer.policies.processes import open_processes

SLEEP = [sys.executable, "-c", "import subprocess; subprocess.run(['/bin/sleep', '1000'], start_new_session=True)"]

async def main():
    async with open_processes() as processes, processes.start(["/bin/sleep", "1000"]) as one:
        async with processes.start(SLEEP) as two:
            print(one.pid, two.pid, flush=True)
            await trio.sleep_forever()

trio.run(main)
"""


def children(number: int) -> list[int]:
    return [child.pid for child in psutil.Process(number).children()]


async def read_line(stream: trio.abc.ReceiveStream) -> bytes:
    line = b""
    with trio.fail_after(30):
        while not line.endswith(b"\n"):
            part = await stream.receive_some(1)
            assert part, "the peer ended without a word"
            line += part
    return line


async def test_kill_9_of_the_peer_ends_them_all(ended: Any, eventually: Any) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    peer = await trio.lowlevel.open_process([sys.executable, "-c", PEER], stdout=subprocess.PIPE, env=environment)
    try:
        assert peer.stdout is not None
        async with peer.stdout:
            one, two = map(int, (await read_line(peer.stdout)).split())
        await eventually(lambda: len(children(two)) == 1)
        started = [one, two, *children(two)]
        reaper = next(number for number in children(peer.pid) if number not in started)
    finally:
        peer.kill()
        await peer.wait()
    for number in (*started, reaper):
        await ended(number)


async def test_who_has_no_policies_starts_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trio.lowlevel, "open_process", None)
    async with open_policies([EndpointSettings(url="http://127.0.0.1:1/")]) as policies:
        assert len(policies) == 1
    async with open_policies([]) as policies:
        assert policies == ()


async def test_without_its_reaper_nothing_is_started(eventually: Any) -> None:
    async with open_processes() as processes:
        reaper = processes._watching
        os.kill(reaper.pid, signal.SIGKILL)
        await reaper.wait()
        with pytest.raises(PolicyError, match="reaper of its processes has ended"):
            async with processes.start(["/bin/true"]):
                pass


async def test_the_reaper_ends_nothing_that_is_not_marked(ended: Any) -> None:
    bystander = await trio.lowlevel.open_process(["/bin/sleep", "1000"], env={"DMS_PEER_POLICY": "another peer's"})
    try:
        async with open_processes() as processes, processes.start(["/bin/sleep", "1000"]) as process:
            number = process.pid
        await ended(number)
        assert bystander.poll() is None
    finally:
        bystander.kill()
        await bystander.wait()
