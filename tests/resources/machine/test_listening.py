"""Ports that programs use are read from the kernel's tables, and a ledger does not grant them."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dms_resources.components import PortRange
from dms_resources.demands import Demand, PortDemand
from dms_resources.ledger.leases import LeaseRequest, ResourceAllocation
from dms_resources.machine.hardware import Roots
from dms_resources.machine.listening import parse_ports, read_ephemeral_ports, read_used_ports
from dms_resources.refusals import InsufficientError

_HEAD = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
_LISTEN = "   0: 00000000:4E20 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 12 1 0 100 0\n"
_ESTABLISHED = "   1: 0100007F:4E21 0100007F:0050 01 00000000:00000000 00:00000000 00000000  0        0 13 1 0 100 0\n"
_WAITING = "   2: 0100007F:4E22 0100007F:0050 06 00000000:00000000 03:00000000 00000000     0        0 0 3 0 100 0\n"
_TCP6 = "   0: 00000000000000000000000000000000:4E23 00000000000000000000000000000000:0000 0A 0 0 0 0\n"
_UDP = "  57: 00000000:4E24 00000000:0000 07 00000000:00000000 00:00000000 00000000   0        0 14 2 0 0\n"

NewDemand = Callable[..., Demand]


def _roots(tmp_path: Path, **tables: str) -> Roots:
    (tmp_path / "net").mkdir(exist_ok=True)
    for name, text in tables.items():
        (tmp_path / "net" / name).write_text(text)
    return Roots(proc=tmp_path)


def test_every_table_is_read(tmp_path: Path) -> None:
    roots = _roots(tmp_path, tcp=_HEAD + _LISTEN + _ESTABLISHED + _WAITING, tcp6=_HEAD + _TCP6, udp=_HEAD + _UDP)
    assert read_used_ports(roots) == {20000, 20001, 20003, 20004}


def test_no_table_is_unknown_and_not_nothing(tmp_path: Path) -> None:
    assert read_used_ports(Roots(proc=tmp_path)) is None
    assert read_used_ports(_roots(tmp_path, tcp=_HEAD)) == frozenset()


@pytest.mark.parametrize("line", ["", "x", "a b c d", "0: 00000000:FFFFF 0 0A", "0: :-1 0 0A", "0: 0:0000 0 0A"])
def test_a_line_that_makes_no_sense_is_left_out(line: str) -> None:
    assert parse_ports([line, _LISTEN]) == {20000}


def test_the_range_of_outgoing_connections(tmp_path: Path) -> None:
    assert read_ephemeral_ports(Roots(proc=tmp_path)) == (32768, 60999)
    folder = tmp_path / "sys" / "net" / "ipv4"
    folder.mkdir(parents=True)
    (folder / "ip_local_port_range").write_text("10000\t20000\n")
    assert read_ephemeral_ports(Roots(proc=tmp_path)) == (10000, 20000)


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_a_real_socket_is_seen(kind: socket.SocketKind, family: socket.AddressFamily) -> None:
    with socket.socket(family, kind) as bound:
        try:
            bound.bind(("::1" if family is socket.AF_INET6 else "127.0.0.1", 0))
        except OSError:
            pytest.skip("this machine has no such addresses")
        if kind is socket.SOCK_STREAM:
            bound.listen()
        found = read_used_ports()
        assert found is not None
        assert bound.getsockname()[1] in found


@pytest.fixture
def range_of_ports(new_offer: Callable[..., Any], machine: Any) -> Any:
    """An offer of the ports 20000 to 20010."""
    from msgspec.structs import replace

    return replace(new_offer(machine), port_range=PortRange(first=20000, last=20010))


async def test_what_others_and_the_peer_itself_use_is_not_promised(
    open_ledger: Any, new_demand: NewDemand, range_of_ports: Any
) -> None:
    used = {20000}
    async with open_ledger(onboarded=range_of_ports, read_ports=lambda: frozenset(used)) as manager:
        manager.reserve_ports([20001])
        assert manager.get_free_resources().ports == 9
        lease = await manager.commit_resources("a", new_demand(), PortDemand(dynamic=3), holder="p", ttl=60)
        assert lease.ports == (20002, 20003, 20004)
        for port in (20000, 20001):
            with pytest.raises(InsufficientError, match=f"ports: {port} asked, none free"):
                await manager.commit_resources("b", new_demand(), PortDemand(static=(port,)), holder="p", ttl=60)
        # A program that began to listen after the last sample is noticed when the port is granted.
        used.add(20005)
        held = LeaseRequest(lease_id="c", holder="p", demand=new_demand(), ports=PortDemand(static=(20005,)), ttl=5)
        with pytest.raises(InsufficientError):
            await manager.commit_group([held])
        with pytest.raises(InsufficientError):
            await manager.allocate_resources(
                ResourceAllocation(lease_id="d", holder="p", resources=new_demand(), ports=PortDemand(static=(20005,)))
            )
        used.clear()
        lease = await manager.commit_resources("e", new_demand(), PortDemand(static=(20000,)), holder="p", ttl=60)
        assert lease.ports == (20000,)


async def test_ports_that_cannot_be_read_leave_what_was_known(
    open_ledger: Any, new_demand: NewDemand, range_of_ports: Any, caplog: pytest.LogCaptureFixture
) -> None:
    answers: list[frozenset[int] | None] = [frozenset({20000}), None, None]
    async with open_ledger(onboarded=range_of_ports, read_ports=lambda: answers.pop(0)) as manager:
        for lease, expected in (("a", 20001), ("b", 20002)):
            granted = await manager.commit_resources(lease, new_demand(), PortDemand(dynamic=1), holder="p", ttl=60)
            assert granted.ports == (expected,)
    assert caplog.text.count("cannot be read") == 1


async def test_a_promised_port_that_another_program_took_is_found(
    open_ledger: Any, new_demand: NewDemand, new_offer: Callable[..., Any], machine: Any
) -> None:
    from msgspec.structs import replace

    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
        offer = replace(new_offer(machine), port_range=PortRange(first=port, last=port))
        async with open_ledger(onboarded=offer) as manager:
            await manager.commit_resources("a", new_demand(), PortDemand(dynamic=1), holder="p", ttl=60)
            assert not [one for one in await manager.audit() if f"port {port} " in one.message]
            bound.listen()
            (found,) = [one for one in await manager.audit() if f"port {port} " in one.message]
            assert (found.code, found.lease_id) == ("port_in_use", "a")
            # The job of an allocation uses its ports.
            await manager.allocate_resources(ResourceAllocation(lease_id="a", holder="p"))
            assert not [one for one in await manager.audit() if f"port {port} " in one.message]


async def test_a_ledger_that_is_read_again_knows_the_ports(
    open_ledger: Any, new_demand: NewDemand, range_of_ports: Any
) -> None:
    async with open_ledger(onboarded=range_of_ports, read_ports=lambda: frozenset({20000})) as manager:
        await manager.commit_resources("a", new_demand(1), holder="p", ttl=60)
        # The audit finds a difference, and builds the book again from its file.
        manager._ledger.storage._db.execute("DELETE FROM leases")
        await manager.audit(repair=True)
        assert not manager.is_committed("a")
        assert manager.get_free_resources().ports == 10
