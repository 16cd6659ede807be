"""A job without any published port, on a machine that only a relay reaches, is read from another network."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

ROOT = Path(__file__).parents[3]
RUNNER = ROOT / "examples" / "executors" / "run_cmd.py"
PATHS = os.pathsep.join(str(ROOT / package) for package in ("peer", "protocols", "resources"))
SIZE = 2_000_000


@pytest.fixture
def networks() -> Iterator[tuple[str, str, str]]:
    """Three namespaces: a provider and a requester that reach a relay between them, and not each other."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and the program ip")
    number = random.randrange(10**6)
    provider, relay, requester = names = tuple(f"dms{number}{side}" for side in "prq")
    commands = [f"ip netns add {name}" for name in names]
    commands += [f"ip -n {name} link set lo up" for name in names]
    for network, end in ((1, provider), (2, requester)):
        ours, theirs = f"d{number}{network}a", f"d{number}{network}b"
        commands.append(f"ip link add {ours} netns {relay} type veth peer name {theirs} netns {end}")
        for name, device, host in ((relay, ours, 1), (end, theirs, 2)):
            commands.append(f"ip -n {name} addr add 198.51.{network}.{host}/24 dev {device}")
            commands.append(f"ip -n {name} link set {device} up")
        commands.append(f"ip -n {end} route add default via 198.51.{network}.1")
    try:
        for command in commands:
            done = subprocess.run(command.split(), capture_output=True, text=True, check=False)
            if done.returncode:
                pytest.skip(f"this machine makes no network namespaces: {command}: {done.stderr.strip()}")
        yield provider, relay, requester
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


def command(network: str, *arguments: str) -> list[str]:
    return ["ip", "netns", "exec", network, sys.executable, "-m", "dms_peer", *arguments]


@asynccontextmanager
async def running(network: str, home: Path, *arguments: str) -> AsyncIterator[trio.Process]:
    """A command that runs until the block ends."""
    environment = {**os.environ, "PYTHONPATH": PATHS, "DMS_HOME": str(home)}
    process = await trio.lowlevel.open_process(command(network, *arguments), stdout=subprocess.PIPE, env=environment)
    try:
        yield process
    finally:
        with trio.CancelScope(shield=True):
            process.terminate()
            with trio.move_on_after(10):
                await process.wait()
            process.kill()
            await process.wait()
            assert process.stdout is not None
            await process.stdout.aclose()


async def first_line(process: trio.Process) -> dict[str, Any]:
    line = b""
    assert process.stdout is not None
    with trio.fail_after(90):
        while not line.endswith(b"\n"):
            part = await process.stdout.receive_some(1)
            assert part, "it ended before it was ready"
            line += part
    found: dict[str, Any] = json.loads(line)
    return found


async def once(network: str, home: Path, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, "PYTHONPATH": PATHS, "DMS_HOME": str(home)}
    with trio.fail_after(120):
        return await trio.run_process(
            command(network, *arguments), check=False, capture_stdout=True, capture_stderr=True, env=environment
        )


async def test_a_job_behind_a_relay_is_read_from_another_network(
    networks: tuple[str, str, str], tmp_path: Path
) -> None:
    provider, relay, requester = networks
    homes = {name: tmp_path / name for name in ("provider", "relay", "requester")}
    served = tmp_path / "served"
    served.mkdir()
    (served / "page").write_bytes(bytes(SIZE))
    machine = tmp_path / "machine.json"
    machine.write_text(
        json.dumps({"cpu": {"cores": 8}, "ram": {"size": "32GiB"}, "disk": {"size": "1TiB"}, "gpus": []})
    )
    offer = ("--cpu", "4", "--ram", "8GiB", "--disk", "8GiB", "--machine", str(machine))
    done = await once(provider, homes["provider"], "onboard", *offer)
    assert done.returncode == 0, done.stderr
    executors = {"command": {"command": [sys.executable, str(RUNNER)]}}
    (homes["provider"] / "peer.yaml").write_text(json.dumps({"executors": executors, "discovery": {"mdns": False}}))
    server = [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", "--directory", str(served), "8080"]
    needed = {"cpu": {"cores": 1}, "ram": {"size": "512MiB"}, "disk": {"size": "64MiB"}}
    ensemble = {
        "id": "web",
        "request": [{"node_id": "web", "resources": needed}],
        "jobs": {"web": {"execution": {"type": "command", "cmd": server}, "ports": [{"private": 8080}]}},
    }
    (tmp_path / "web.yaml").write_text(json.dumps(ensemble))
    async with AsyncExitStack() as stack:
        listening = ("run", "--listen", "/ip4/0.0.0.0/tcp/4001", "--relay", "--no-mdns", "--json")
        between = await first_line(await stack.enter_async_context(running(relay, homes["relay"], *listening)))
        near = f"/ip4/198.51.1.1/tcp/4001/p2p/{between['peer_id']}"
        far = f"/ip4/198.51.2.1/tcp/4001/p2p/{between['peer_id']}"
        hidden = ("run", "--listen", "/ip4/127.0.0.1/tcp/4001", "--reserve-at", near, "--json")
        offered = await first_line(await stack.enter_async_context(running(provider, homes["provider"], *hidden)))
        way = f"{far}/p2p-circuit/p2p/{offered['peer_id']}"
        # There is no other way.
        direct = f"/ip4/198.51.1.2/tcp/4001/p2p/{offered['peer_id']}"
        assert (await once(requester, homes["requester"], "ping", direct)).returncode
        deploy = ("deploy", "--detach", "-f", str(tmp_path / "web.yaml"), "--bootstrap", way, "--no-mdns", "--no-dht")
        done = await once(requester, homes["requester"], *deploy)
        assert done.returncode == 0, (done.stdout, done.stderr)
        forward = await stack.enter_async_context(
            running(requester, homes["requester"], "forward", "web/web", "18080:8080", "--json")
        )
        listening_at = await first_line(forward)
        assert listening_at.get("port") == 18080, listening_at
        url = "http://127.0.0.1:18080/page"
        with trio.fail_after(60):
            got = await trio.run_process(
                ["ip", "netns", "exec", requester, sys.executable, "-c", FETCH, url], capture_stdout=True
            )
        assert int(got.stdout) == SIZE
        done = await once(requester, homes["requester"], "release", "--all")
        assert done.returncode == 0, done.stderr


FETCH = """
import sys, time, urllib.request
opener, until = urllib.request.build_opener(urllib.request.ProxyHandler({})), time.monotonic() + 50
while True:
    try:
        print(len(opener.open(sys.argv[1], timeout=50).read()))
        break
    except OSError:
        # The job runs, and may not listen yet.
        if time.monotonic() > until:
            raise
        time.sleep(0.2)
"""
