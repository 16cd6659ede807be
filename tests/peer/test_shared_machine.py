"""Two homes on one machine do not offer the same core twice: `run`, `onboard` and `status`, on the real hardware."""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from dms_peer.discovery.settings import DiscoverySettings
from dms_peer.home.home import Home
from dms_peer.node import Node
from dms_peer.owner import client as owner
from dms_peer.owner.offers import Offer
from dms_protocols.errors import RemoteError
from dms_resources.components import PortRange
from dms_resources.errors import MachineInUseError
from dms_resources.units import MIB, Cores

QUIET = DiscoverySettings(known=False, exchange=False, mdns=False, dht=False, broadcast=False)
LITTLE = Offer(cpu=Cores(1), ram=MIB, disk=0, port_range=PortRange(first=20000, last=20009))


@pytest.fixture(autouse=True)
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A registry of this test alone, because other tests run peers on this machine at the same time."""
    monkeypatch.setattr("dms_resources.machine.registry.shared_folder", lambda: tmp_path / "registry")
    return tmp_path / "registry"


async def _onboard(home: Home, offer: Offer, **options: Any) -> Any:
    return await trio.to_thread.run_sync(partial(owner.onboard_resources, home, offer, **options))


async def _everything(home: Home) -> Offer:
    """An offer of all CPUs of this machine."""
    machine = await trio.to_thread.run_sync(home.machine, None)
    return Offer(cpu=machine.cpu.cores, ram=MIB, disk=0)


def _node(home: Home, **options: Any) -> Node:
    return Node(home=home, listen=("/ip4/127.0.0.1/tcp/0",), discovery=QUIET, **options)


async def test_the_second_home_runs_only_with_what_the_first_leaves(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one, two = Home(tmp_path / "one"), Home(tmp_path / "two")
    whole = await _everything(one)
    await _onboard(one, whole)
    assert not any("another peer" in warning for warning in (await _onboard(two, LITTLE)).warnings)
    async with _node(one).open():
        # An owner who onboards while the other peer runs is warned at once.
        answer = await _onboard(two, LITTLE)
        assert any(warning.startswith("CPU: 0.001 cores here and ") for warning in answer.warnings)
        with pytest.raises(MachineInUseError, match=r"peers of other homes offer this machine too: CPU: 0\.001 cores"):
            async with _node(two).open():
                pytest.fail("it runs")
        status = await trio.to_thread.run_sync(owner.read_status, two)
        assert any(sentence.endswith("is another peer on this machine") for sentence in status.other_peers)
        assert any(sentence.startswith("CPU: ") for sentence in status.other_peers)
        async with _node(two, share_machine=True).open():
            assert "is another peer on this machine" in caplog.text
            status = await trio.to_thread.run_sync(owner.read_status, one)
            assert any(sentence.startswith("CPU: ") for sentence in status.other_peers)
    # Alone on the machine it may.
    async with _node(two).open():
        status = await trio.to_thread.run_sync(owner.read_status, two)
        assert status.other_peers == ()


async def test_a_running_peer_is_refused_what_another_offers(tmp_path: Path) -> None:
    one, two = Home(tmp_path / "one"), Home(tmp_path / "two")
    whole = await _everything(one)
    await _onboard(one, LITTLE)
    await _onboard(two, LITTLE)
    async with _node(one).open(), _node(two).open():
        for dry_run in (True, False):
            with pytest.raises(RemoteError, match="peers of other homes offer this machine too") as refused:
                await _onboard(two, whole, dry_run=dry_run)
            assert refused.value.code == "machine_in_use"
            assert "--share-machine" in refused.value.details["hint"]
        status = await trio.to_thread.run_sync(owner.read_status, two)
        assert status.onboarded is not None
        assert status.onboarded.cpu.cores == LITTLE.cpu
        # What the first withdraws, the second may offer.
        await trio.to_thread.run_sync(partial(owner.withdraw_offer, one, drain=False, tell=lambda _: None))
        await _onboard(two, whole)
        with pytest.raises(RemoteError) as refused:
            await _onboard(one, LITTLE)
        assert refused.value.code == "machine_in_use"


async def test_an_onboarding_that_fails_leaves_what_was_published(tmp_path: Path, registry: Path) -> None:
    home = Home(tmp_path / "one")
    whole = await _everything(home)
    await _onboard(home, LITTLE)
    async with _node(home).open():
        with pytest.raises(RemoteError, match="but the machine has"):
            await _onboard(home, Offer(cpu=Cores(whole.cpu.millicores + 1), ram=MIB, disk=0))
        (name,) = os.listdir(registry)
        assert json.loads((registry / name).read_bytes())["offer"]["cores"] == 1


async def test_described_machines_are_not_this_one(tmp_path: Path, registry: Path) -> None:
    machine = tmp_path / "machine.json"
    machine.write_text('{"cpu": {"cores": 4096}, "ram": {"size": "1TiB"}, "disk": {"size": "1TiB"}}')
    for name in ("one", "two"):
        await _onboard(Home(tmp_path / name), Offer(cpu=Cores.of(4096), ram=MIB, disk=0), machine=str(machine))
    async with _node(Home(tmp_path / "one")).open(), _node(Home(tmp_path / "two")).open():
        assert "registry" not in os.listdir(tmp_path)
