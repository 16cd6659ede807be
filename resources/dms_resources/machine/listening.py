"""The ports that programs of this machine use now.

Source: proc_net(5). The tables are those of this process's network namespace. A port that the firewall forwards to a
container without a proxy process is in no table, and is not seen here.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from .hardware.roots import HOST, Roots

__all__ = ["parse_ports", "read_ephemeral_ports", "read_used_ports"]

_TABLES: Final = ("tcp", "tcp6", "udp", "udp6", "udplite", "udplite6", "dccp", "dccp6")
# A connection in this state does not keep another program from using its port.
_TIME_WAIT: Final = "06"
# A line has 150 characters. Listeners come first, so that only connections are lost from a longer table.
_LARGEST_TABLE: Final = 64 * 2**20


def read_used_ports(roots: Roots = HOST) -> frozenset[int] | None:
    """Every TCP, UDP and DCCP port to which a program of this machine is bound; None if no table can be read.

    Blocks for some milliseconds (more with many thousands of connections): call it in a thread from async code.
    """
    found: set[int] = set()
    read = False
    for table in _TABLES:
        try:
            with open(roots.proc / "net" / table, encoding="ascii", errors="replace") as lines:
                found |= parse_ports(lines.readlines(_LARGEST_TABLE))
        except OSError:
            continue
        read = True
    return frozenset(found) if read else None


def parse_ports(lines: Iterable[str]) -> frozenset[int]:
    """The local ports in the lines of a socket table. Other lines are left out."""
    found: set[int] = set()
    for line in lines:
        fields = line.split(None, 4)
        if len(fields) < 4 or ":" not in fields[1] or fields[3] == _TIME_WAIT:
            continue
        try:
            found.add(int(fields[1].rpartition(":")[2], 16))
        except ValueError:
            continue
    return frozenset(port for port in found if 0 < port < 65536)


def read_ephemeral_ports(roots: Roots = HOST) -> tuple[int, int]:
    """The range from which the kernel takes ports for outgoing connections; Linux's default if it cannot be read."""
    try:
        first, last = (roots.proc / "sys" / "net" / "ipv4" / "ip_local_port_range").read_text("ascii").split()
        return int(first), int(last)
    except (OSError, ValueError):
        return 32768, 60999
