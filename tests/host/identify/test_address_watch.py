"""When the machine's addresses change, connected peers are told the new ones."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import pytest
import trio
from multiaddr import Multiaddr

from dms_host import AddressError, HostLimits, dial, host_addresses, new_identity, open_host
from dms_host import addresses as module
from dms_host.addresses import announced_addresses, is_loopback
from dms_host.identify.address_watch import AddressWatch

ANYWHERE = "/ip4/0.0.0.0/tcp/0"


class Machine:
    """The addresses of the machine's interfaces."""

    def __init__(self) -> None:
        self.ips: Sequence[str] = ("192.0.2.10",)

    def expand(self, address: Multiaddr) -> list[Multiaddr]:
        return [Multiaddr(f"/ip4/{ip}/tcp/{address.value_for_protocol('tcp')}") for ip in self.ips]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine()
    monkeypatch.setattr(module, "expand_wildcard_address", made.expand)
    monkeypatch.setattr(module, "_default_route_sources", frozenset)
    return made


def told(client: Any, server: Any) -> list[str]:
    """The addresses of the server that identify has told the client."""
    return [str(address) for address in client.get_peerstore().addrs(server.get_id())]


async def test_connected_peers_are_told_the_new_addresses(
    machine: Machine, eventually: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    limits = HostLimits(address_interval=0.05)
    async with open_host(new_identity(), [ANYWHERE], limits) as server, open_host(new_identity()) as client:
        await dial(client, next(filter(is_loopback, host_addresses(server))))
        await eventually(lambda: any("192.0.2.10" in address for address in told(client, server)))
        machine.ips = ("192.0.2.20", "198.51.100.7")
        with trio.fail_after(5):
            await server.address_watch.wait_changed()
        await eventually(lambda: any("192.0.2.20" in address for address in told(client, server)))
    assert any("have changed: /ip4/192.0.2.20/" in record.getMessage() for record in caplog.records)


async def test_only_a_change_is_announced(eventually: Any) -> None:
    addresses, announced, reads = ("a",), [], 0

    def read() -> tuple[str, ...]:
        nonlocal reads
        reads += 1
        return addresses

    watch = AddressWatch(read, 0.01)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch.keep, lambda: announced.append(addresses))
        await eventually(lambda: reads >= 10)
        assert announced == []
        addresses = ("b",)
        await eventually(lambda: announced)
        before = reads
        await eventually(lambda: reads >= before + 10)
        nursery.cancel_scope.cancel()
    assert announced == [("b",)]


# What the owner announces


@pytest.mark.parametrize("ending", ["", "/", "/p2p/{id}", "/ipfs/{id}"])
async def test_what_the_owner_announces_is_told_first(machine: Machine, ending: str) -> None:
    identity = new_identity()
    published = "/dns4/node.example.org/tcp/4001"
    announce = [published + ending.format(id=identity.peer_id)]
    machine.ips = tuple(f"192.0.2.{number}" for number in range(1, 20))
    async with open_host(identity, [ANYWHERE], announce=announce) as host:
        assert host_addresses(host)[0] == f"{published}/p2p/{identity.peer_id}"
        assert str(host.get_addrs()[0]) == f"{published}/p2p/{identity.peer_id}"
        assert len(host.get_addrs()) == 8


REFUSED = {
    "/ip4/0.0.0.0/tcp/4001": "unsupported_address",
    "/ip4/192.0.2.1/tcp/0": "unsupported_address",
    "/ip4/192.0.2.1/udp/4001/quic-v1": "unsupported_address",
    "/ip4/192.0.2.1": "unsupported_address",
    "192.0.2.1:4001": "bad_address",
    f"/ip4/192.0.2.1/tcp/4001/p2p/{new_identity(bytes(32)).peer_id}": "wrong_peer",
}


@pytest.mark.parametrize(("address", "code"), REFUSED.items(), ids=[text[:30] for text in REFUSED])
async def test_an_announced_address_has_to_be_one_that_can_be_dialled(address: str, code: str) -> None:
    with pytest.raises(AddressError) as caught:
        async with open_host(new_identity(), [ANYWHERE], announce=[address]):
            pass
    assert caught.value.code == code


def test_an_announced_address_is_not_told_twice() -> None:
    own = "/ip4/192.0.2.1/tcp/4001"
    assert announced_addresses([own, "/ip4/10.0.0.1/tcp/4001"], [own]) == (own, "/ip4/10.0.0.1/tcp/4001")
