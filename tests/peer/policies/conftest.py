"""A question, programs and packages that decide, and policies that are opened as the peer opens them."""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from dms_peer.policies.settings import ExecutableSettings
from dms_protocols.bidding import policy_gate
from dms_protocols.bidding.policies import NodeOffer, PolicyRequest
from dms_protocols.logs import LimitedLog
from dms_protocols.messages.bid import NodeRequest
from dms_resources.components import CPU, RAM, Disk, Resources
from dms_resources.demands import CPUDemand, Demand
from dms_resources.ledger.leases import Price
from dms_resources.units import GIB, Cores


@pytest.fixture(autouse=True)
def unlimited_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets every line into the log: the limit applies to a whole process."""
    monkeypatch.setattr(policy_gate, "_log", LimitedLog(policy_gate._log._logger, lines=10_000))


@pytest.fixture
def question() -> PolicyRequest:
    """What a requester would get for two nodes."""
    given = Resources(cpu=CPU(cores=Cores(1500)), ram=RAM(size=GIB), disk=Disk(size=0), gpus=())
    demand = Demand(cpu=CPUDemand(cores=Cores(1500)))
    nodes = (
        NodeOffer(
            node=NodeRequest(node_id="a", resources=demand),
            resources=given,
            price=Price(micros_per_hour=10, currency="EUR"),
        ),
        NodeOffer(node=NodeRequest(node_id="b", resources=demand), resources=given),
    )
    return PolicyRequest(requester="peer-1", ensemble_id="e", nonce=1, hold=0.0, ttl=60.0, nodes=nodes)


@pytest.fixture
def program(tmp_path: Path) -> Callable[..., ExecutableSettings]:
    """Makes an executable from the body of a Python program that has read its `question`."""

    def make(body: str, **bounds: Any) -> ExecutableSettings:
        path = tmp_path / "policy"
        head = f"#!{sys.executable} -IS\nimport json, os, sys, time\nquestion = json.loads(sys.stdin.readline())\n"
        path.write_text(head + textwrap.dedent(body))
        path.chmod(0o755)
        return ExecutableSettings(command=(str(path), "argument"), folder=str(tmp_path), **bounds)

    return make


@pytest.fixture
def entry_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Installs a module as the entry point `test-policy` and returns its name."""

    def install(body: str) -> str:
        packages = tmp_path / "packages"
        details = packages / "test_policy-1.dist-info"
        details.mkdir(parents=True, exist_ok=True)
        (packages / "test_policy.py").write_text(
            "from dms_protocols.bidding.policies import Decision, Decisions\n" + textwrap.dedent(body)
        )
        (details / "METADATA").write_text("Metadata-Version: 2.1\nName: test-policy\nVersion: 1\n")
        (details / "entry_points.txt").write_text("[dms_peer.policies]\ntest-policy = test_policy:decide\n")
        monkeypatch.syspath_prepend(str(packages))
        return "test-policy"

    return install


@pytest.fixture
def ended() -> Callable[[int], Any]:
    """Waits until a process is gone, ten seconds at most."""

    async def wait(number: int) -> None:
        try:
            descriptor = os.pidfd_open(number)
        except ProcessLookupError:
            return
        try:
            with trio.fail_after(10):
                await trio.lowlevel.wait_readable(descriptor)
        finally:
            os.close(descriptor)

    return wait
