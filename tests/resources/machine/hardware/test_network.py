"""Network interfaces from their files, and what is known about reachability."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from dms_resources.machine.hardware import Roots
from dms_resources.machine.hardware.network import InterfaceFiles, parse_network, read_network

Build = Callable[[str], Roots]


def _interface(name: str = "eth0", **changes: object) -> InterfaceFiles:
    files = InterfaceFiles(name, "1", "1000", "up", "0x1003", frozenset({"device"}))
    return files._replace(**changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({}, "ethernet"),
        ({"folders": frozenset({"device", "wireless"})}, "wifi"),
        ({"folders": frozenset({"bridge"})}, "bridge"),
        ({"folders": frozenset({"bonding"})}, "bond"),
        ({"folders": frozenset({"tun_flags"})}, "tunnel"),
        ({"folders": frozenset()}, "virtual"),
        ({"kind": "772"}, "loopback"),
        ({"kind": "32"}, "infiniband"),
        ({"kind": "65534"}, "tunnel"),
        ({"kind": None}, "unknown"),
        ({"kind": "9999"}, "unknown"),
    ],
)
def test_interface_types(changes: dict[str, object], kind: str) -> None:
    assert parse_network((_interface(**changes),), {}).interfaces[0].type == kind


@pytest.mark.parametrize(
    ("speed", "bits"), [("25000", 25 * 10**9), ("-1", 0), (None, 0), ("4294967295", 0), ("x", 0), ("0", 0)]
)
def test_a_speed_that_nobody_knows_is_left_out(speed: str | None, bits: int) -> None:
    assert parse_network((_interface(speed=speed),), {}).interfaces[0].link_speed == bits


@pytest.mark.parametrize(
    ("state", "flags", "up"),
    [("up", None, True), ("down", "0x1003", False), ("unknown", "0x1", True), ("unknown", "0x2", False)],
)
def test_loopback_and_tunnels_are_up_by_their_flags(state: str, flags: str | None, up: bool) -> None:
    assert parse_network((_interface(state=state, flags=flags),), {}).interfaces[0].up is up


@pytest.mark.parametrize(
    ("addresses", "state", "public"),
    [
        (("8.8.8.8",), "up", True),
        (("2a00:1450::1",), "up", True),
        (("8.8.8.8",), "down", None),
        # Behind address translation a machine may well be reachable, so the result is unknown.
        (("192.168.1.2", "10.0.0.1", "100.64.0.1", "fe80::1%eth0", "fd00::1"), "up", None),
        (("nonsense",), "up", None),
        ((), "up", None),
    ],
)
def test_a_public_address_is_known_and_its_absence_proves_nothing(
    addresses: tuple[str, ...], state: str, public: bool | None
) -> None:
    assert parse_network((_interface(state=state),), {"eth0": addresses}).public is public


def test_servers_interfaces(build_machine: Build) -> None:
    interfaces = read_network(build_machine("numa_server")).value.interfaces
    assert [(i.name, i.type, i.link_speed) for i in interfaces] == [
        ("bond0", "bond", 50 * 10**9),
        ("ib0", "infiniband", 200 * 10**9),
    ]
