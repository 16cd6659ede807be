"""The network interfaces, as far as they can be known without sending packets."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

import psutil

from ...components import NetworkInfo, NetworkInterface
from .roots import Reading, Roots, list_names, parse_amount, parse_hex, read_text

__all__ = ["InterfaceFiles", "parse_network", "read_network"]

# Source: the kernel's include/uapi/linux/if_arp.h.
_HARDWARE: Final = {1: "ethernet", 32: "infiniband", 512: "ppp", 772: "loopback", 801: "wifi", 803: "wifi"}
_TUNNELS: Final = frozenset({768, 769, 776, 778, 823})
_UP: Final = 0x1
_MOST_MEGABITS: Final = 10**8


class InterfaceFiles(NamedTuple):
    """The texts that describe an interface. `folders` are the names in its folder."""

    name: str
    kind: str | None
    speed: str | None
    state: str | None
    flags: str | None
    folders: frozenset[str]


def read_network(roots: Roots) -> Reading[NetworkInfo]:
    """Read the network interfaces of a machine. Never raises."""
    folder = roots.sys / "class" / "net"
    names = [name for name in list_names(folder) if (folder / name).is_dir()]
    files = tuple(_read_interface(folder / name) for name in names)
    return Reading(parse_network(files, _read_addresses() if roots.is_host else {}))


def _read_interface(folder: Path) -> InterfaceFiles:
    return InterfaceFiles(
        name=folder.name,
        kind=read_text(folder / "type"),
        speed=read_text(folder / "speed"),
        state=read_text(folder / "operstate"),
        flags=read_text(folder / "flags"),
        folders=frozenset(list_names(folder)),
    )


def _read_addresses() -> Mapping[str, tuple[str, ...]]:
    families = (socket.AF_INET, socket.AF_INET6)
    try:
        found = psutil.net_if_addrs()
    except OSError:
        return {}
    return {name: tuple(one.address for one in entries if one.family in families) for name, entries in found.items()}


def parse_network(files: tuple[InterfaceFiles, ...], addresses: Mapping[str, tuple[str, ...]]) -> NetworkInfo:
    """Make the interfaces from the texts.

    `public` is True if an interface has a public address. Without one it stays None: address translation may still make
    the machine reachable.
    """
    interfaces = tuple(_parse_interface(interface, addresses.get(interface.name, ())) for interface in files)
    found = [address for interface in interfaces if interface.up for address in interface.addresses]
    return NetworkInfo(interfaces=interfaces, public=True if any(map(_is_public, found)) else None)


def _parse_interface(files: InterfaceFiles, addresses: tuple[str, ...]) -> NetworkInterface:
    # Interfaces that are down, or have no speed, report -1 or cannot be read.
    speed = parse_amount(files.speed) or 0
    flags = parse_hex(files.flags) or 0
    return NetworkInterface(
        # The name of an interface may be any bytes, but JSON and CBOR allow only text.
        name=files.name.encode("utf-8", "replace").decode(),
        type=_interface_type(files),
        link_speed=speed * 10**6 if speed < _MOST_MEGABITS else 0,
        # Loopback and tunnels have no state, only flags.
        up=files.state == "up" or (files.state == "unknown" and bool(flags & _UP)),
        addresses=addresses,
    )


def _interface_type(files: InterfaceFiles) -> str:
    kind = parse_amount(files.kind)
    if files.folders & {"wireless", "phy80211"}:
        return "wifi"
    if "bridge" in files.folders:
        return "bridge"
    if "bonding" in files.folders:
        return "bond"
    if "tun_flags" in files.folders or kind in _TUNNELS or kind == 65534:
        return "tunnel"
    if kind == 1 and "device" not in files.folders:
        return "virtual"
    return _HARDWARE.get(kind or 0, "unknown")


def _is_public(address: str) -> bool:
    try:
        return ipaddress.ip_address(address.partition("%")[0]).is_global
    except ValueError:
        return False
