"""What the tests of discovery share."""

from __future__ import annotations

import socket
import struct
import threading
import time

import pytest

MDNS_GROUP = "224.0.0.251"


def _multicast_error() -> str | None:
    """Why a datagram to a multicast group does not come back over the loopback interface; None when it does."""
    try:
        with (
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver,
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
        ):
            receiver.bind(("", 0))
            loopback = socket.inet_aton("127.0.0.1")
            receiver.setsockopt(
                socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, struct.pack("4s4s", socket.inet_aton(MDNS_GROUP), loopback)
            )
            sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, loopback)
            receiver.settimeout(2)
            sender.sendto(b"?", (MDNS_GROUP, receiver.getsockname()[1]))
            receiver.recv(1)
    except OSError as error:
        return str(error)
    return None


@pytest.fixture(scope="session")
def _loopback_multicast():
    if (error := _multicast_error()) is not None:
        pytest.skip(f"this machine has no multicast on its loopback interface: {error}")


@pytest.fixture
def multicast(_loopback_multicast):
    """Multicast over loopback, and no thread left of it afterwards."""
    before = set(threading.enumerate())
    yield "127.0.0.1"
    deadline = time.monotonic() + 5
    while {thread for thread in threading.enumerate() if "trio" not in thread.name.lower()} - before:
        assert time.monotonic() < deadline, threading.enumerate()
        time.sleep(0.01)
