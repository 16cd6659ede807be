"""A requester whose clock is wrong is told so, and not that its bids and deadlines are over."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
import trio

from dms_peer.discovery.settings import DiscoverySettings
from dms_peer.home.home import Home
from dms_peer.node import Node
from dms_peer.owner import client as owner
from dms_peer.owner.offers import Offer
from dms_resources.units import GIB, Cores

SHIFTED = """\
import os, time
offset = float(os.environ["CLOCK_OFFSET"])
now, now_ns = time.time, time.time_ns
time.time = lambda: now() + offset
time.time_ns = lambda: now_ns() + int(offset * 1e9)
"""
MACHINE = {"cpu": {"cores": 2}, "ram": {"size": "4GiB"}, "disk": {"size": "64GiB"}}
DEMAND = ("--cpu", "1", "--ram", "1GiB", "--disk", "1GiB")


@pytest.mark.parametrize(
    ("offset", "said"), [(-120, "s behind the peer's"), (-100_000, "s behind"), (4000, "at least 3")]
)
async def test_the_error_names_the_clocks(tmp_path: Path, offset: int, said: str) -> None:
    machine = tmp_path / "machine.json"
    await trio.Path(machine).write_text(json.dumps(MACHINE))
    await trio.Path(tmp_path / "sitecustomize.py").write_text(SHIFTED)
    home = Home(tmp_path / "provider")
    node = Node(
        home=home,
        listen=("/ip4/127.0.0.1/tcp/0",),
        machine=str(machine),
        discovery=DiscoverySettings(mdns=False, dht=False),
    )
    async with node.open() as ready:
        offer = Offer(cpu=Cores.of(2), ram=2 * GIB, disk=10 * GIB)
        await trio.to_thread.run_sync(owner.onboard_resources, home, offer)
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join((str(tmp_path), *sys.path)),
            "CLOCK_OFFSET": str(offset),
        }
        words = ("bid", ready.addrs[0], *DEMAND, "--home", str(tmp_path / "requester"), "--json")
        done = await trio.run_process(
            [sys.executable, "-m", "dms_peer", *words], capture_stdout=True, capture_stderr=True, check=False,
            env=environment,
        )  # fmt: skip
    assert done.returncode != 0
    error = json.loads(done.stdout.splitlines()[-1])["error"]
    assert said in error["message"] + error.get("hint", ""), error
    if offset == -120:
        # What is measured: between the request and the error lies less than a second or two.
        assert "the clock of this machine is 1" in error["message"]
