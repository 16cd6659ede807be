"""A peer never grants the ports on which it listens itself."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio

from dms_host import HardenedHost
from dms_peer import node as node_module
from dms_peer.home.home import Home
from dms_peer.node import Node, _own_ports
from dms_resources.manager import ResourceManager


def test_the_ports_of_every_address_and_of_the_metrics() -> None:
    addresses = ["/ip4/0.0.0.0/tcp/4001", "/ip6/::/tcp/4002", "/ip4/10.0.0.1/udp/4003/quic-v1", "/dns/x/ws"]
    host = cast(HardenedHost, SimpleNamespace(get_transport_addrs=lambda: addresses))
    assert _own_ports(host, None) == {4001, 4002, 4003}
    assert _own_ports(host, "http://127.0.0.1:9100/metrics") == {4001, 4002, 4003, 9100}


async def test_a_running_peer_reserves_what_it_listens_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = tmp_path / "machine.json"
    machine.write_text(json.dumps({"cpu": {"cores": 1}, "ram": {"size": "1GiB"}, "disk": {"size": "1GiB"}}))
    reserved: list[frozenset[int]] = []
    real = ResourceManager.reserve_ports

    def reserve(self: ResourceManager, ports: Any) -> None:
        reserved.append(frozenset(ports))
        real(self, ports)

    monkeypatch.setattr(node_module.ResourceManager, "reserve_ports", reserve)
    node = Node(
        home=Home(tmp_path / "home"),
        listen=("/ip4/127.0.0.1/tcp/0",),
        machine=str(machine),
        metrics="127.0.0.1:0",
    )
    with trio.fail_after(120):
        async with node.open() as ready:
            assert ready.metrics is not None
            own = {int(ready.addrs[0].split("/tcp/")[1].split("/")[0]), int(ready.metrics.split(":")[2].split("/")[0])}
    assert reserved == [own]
