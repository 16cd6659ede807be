"""Opens the socket of an outbound connection.

What breaks: the library reports a failed dial as text, without the kind of failure, and tries an address again by
itself.
Measure: `open_socket` opens the socket with trio, to addresses that the gater allows, and reports why it failed.
Upstream: no upstream report found (November 2026).
"""

from __future__ import annotations

import socket

import trio
from libp2p.abc import IRawConnection
from libp2p.network.connection.raw_connection import RawConnection

from ..addresses import PeerAddress
from ..errors import AddressError, DialError
from ..swarm.connection_gater import ConnectionGater
from .tcp import PeerSocket

__all__ = ["open_socket"]

# The most addresses of a name that are tried, one after the other.
MAX_RESOLVED = 4
FAMILIES = {"dns": socket.AF_UNSPEC, "dns4": socket.AF_INET, "dns6": socket.AF_INET6}


async def open_socket(target: PeerAddress, gate: ConnectionGater) -> IRawConnection:
    """Open a TCP connection to `target`. Raises DialError. If cancelled, it leaves no socket open."""
    try:
        addresses = await _resolve(target)
    except OSError as error:
        raise _unreachable(target, error) from error
    allowed = [address for address in addresses if gate.allows_address(address)]
    if not allowed:
        raise _denied(target) if addresses else _nameless(target)
    for ip in allowed:
        try:
            stream = await trio.open_tcp_stream(ip, target.port)
            return RawConnection(PeerSocket(stream), True)
        except OSError as error:
            failure = error
    raise _unreachable(target, failure) from failure


async def _resolve(target: PeerAddress) -> list[str]:
    if target.kind not in FAMILIES:
        return [target.host]
    found = await trio.socket.getaddrinfo(
        target.host, target.port, family=FAMILIES[target.kind], type=socket.SOCK_STREAM
    )
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))[:MAX_RESOLVED]


def _nameless(target: PeerAddress) -> AddressError:
    return AddressError(f"{target.host} has no address", code="bad_address", address=target.text, hint="check the name")


def _denied(target: PeerAddress) -> DialError:
    return DialError(
        f"the lists of this host do not allow the address of {target.text}",
        code="denied",
        address=target.text,
        hint="change the lists of allowed and denied addresses",
    )


def _unreachable(target: PeerAddress, error: OSError) -> DialError:
    cause: BaseException = error
    while isinstance(cause.__cause__, BaseExceptionGroup | OSError):
        cause = cause.__cause__
    if isinstance(cause, BaseExceptionGroup):
        cause = cause.exceptions[0]
    if isinstance(cause, ConnectionRefusedError):
        return DialError(
            f"nobody listens at {target.text}",
            code="refused",
            address=target.text,
            hint="check that the peer runs, and that the address and port are its own",
        )
    reason = getattr(cause, "strerror", None) or str(cause)
    return DialError(
        f"cannot reach {target.text}: {reason}",
        code="unreachable",
        address=target.text,
        hint="check the address and the network",
    )
