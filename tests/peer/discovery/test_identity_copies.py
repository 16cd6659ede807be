"""Two machines with one key: both say so, each with the other's address, and neither blames itself."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import trio

from dms_host import host_addresses, open_host
from dms_host.keys.identity import new_identity
from dms_peer.discovery.adverts.own_advert import OwnAdvert
from dms_peer.discovery.identity_copies import IdentityCopies
from dms_peer.discovery.mdns import MDNSPeers, _Heard
from dms_peer.discovery.open import open_discovery
from dms_peer.discovery.settings import DiscoverySettings
from dms_peer.signing import IdentitySigner
from dms_protocols.bidding.service import BidTerms
from dms_protocols.messages.adverts import CapacityAdvert
from dms_resources.components import CPU, RAM, Disk, FreeResources, MachineResources
from dms_resources.manager import open_manager
from dms_resources.units import GIB, Cores

PEER = new_identity(bytes(32)).peer_id
OWN = (f"/ip4/192.0.2.1/tcp/4001/p2p/{PEER}", f"/ip4/10.0.0.1/tcp/4001/p2p/{PEER}")
MACHINE = MachineResources(
    cpu=CPU(cores=Cores(2000)), ram=RAM(size=4 * GIB), disk=Disk(size=64 * GIB), gpus=(), simulated=True
)
QUIET = DiscoverySettings(mdns=False, dht=False)


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "has this peer's key" in record.getMessage()]


def at(number: int) -> str:
    return f"/ip4/198.51.100.{number}/tcp/4001/p2p/{PEER}"


def test_another_address_is_named_once(caplog: pytest.LogCaptureFixture) -> None:
    copies = IdentityCopies(lambda: OWN)
    for _ in range(3):
        copies.heard(OWN)
        copies.heard((*OWN[:1], at(7), at(8)))
    (line,) = lines(caplog)
    assert at(7) in line


def test_strangers_that_invent_addresses_cause_a_few_lines(caplog: pytest.LogCaptureFixture) -> None:
    read = 0

    def own() -> Sequence[str]:
        nonlocal read
        read += 1
        return OWN

    copies = IdentityCopies(own)
    for number in range(200):
        copies.heard((at(number),))
    assert len(lines(caplog)) == 3
    assert read == 3, "the rest costs no question to the operating system"


def test_an_address_that_was_the_own_one_is_no_other_machine(caplog: pytest.LogCaptureFixture) -> None:
    own: Sequence[str] = OWN
    copies = IdentityCopies(lambda: own)
    copies.note_own()
    own = (at(9),)
    copies.heard(OWN)
    copies.heard((at(9),))
    assert lines(caplog) == []


async def test_a_record_of_mdns_with_the_own_id_is_heard(caplog: pytest.LogCaptureFixture) -> None:
    copies = IdentityCopies(lambda: OWN)
    peers = MDNSPeers(PEER, trio.current_time(), copies.heard)
    for number, address in enumerate((OWN[0], at(3))):
        text = b"dnsaddr=" + address.encode()
        peers.heard(_Heard(f"x{number}", bytes([len(text)]) + text, 120))
    (line,) = lines(caplog)
    assert at(3) in line
    assert peers.peers() == {}


def test_an_advert_that_this_peer_did_not_make_proves_it(caplog: pytest.LogCaptureFixture) -> None:
    """Its own older adverts come back from others, also from before a restart at another port."""
    copies = IdentityCopies(lambda: OWN)
    before, newest = 1_700_000_000_000, 1_700_000_060_000
    copies.heard_advert(advert(before, at(1)), newest)
    copies.heard_advert(advert(newest, at(2)), newest)
    assert lines(caplog) == []
    copies.heard_advert(advert(newest + 1, at(3)), newest)
    (line,) = lines(caplog)
    assert at(3) in line


def advert(sequence: int, address: str) -> CapacityAdvert:
    return CapacityAdvert(
        peer_id=PEER, addrs=(address,), sequence=sequence, issued_at=0.0, ttl=60.0,
        free=FreeResources(
            cpu=CPU(cores=Cores(1000)), ram=RAM(size=GIB), disk=Disk(size=GIB), gpus=(), ports=0, onboarded=True,
            draining=False, simulated=False,
        ),
    )  # fmt: skip


async def test_both_machines_are_told_of_the_other(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The discovery of each hears what the other has signed, and says so."""
    identity = new_identity()
    async with AsyncExitStack() as stack:
        made = []
        for name in ("a", "b"):
            manager = await stack.enter_async_context(open_manager(tmp_path / f"{name}.db", MACHINE))
            host = await stack.enter_async_context(open_host(identity, ["/ip4/127.0.0.1/tcp/0"]))
            discovery = await stack.enter_async_context(
                open_discovery(host, identity, QUIET, manager=manager, terms=BidTerms())
            )
            own = OwnAdvert(IdentitySigner(identity), partial(host_addresses, host), clock=lambda: time.time() + 30)
            made.append((discovery.adverts.table, own.renew(manager.get_free_resources(), 60.0), host))
        (first, own_raw, own_host), (second, copied_raw, copied_host) = made
        assert first.accept(own_raw).outcome == "old"
        assert lines(caplog) == [], "its own addresses"
        assert first.accept(copied_raw).outcome == "old"
        assert second.accept(own_raw).outcome == "old"
        told = lines(caplog)
        assert len(told) == 2
        assert host_addresses(copied_host)[0] in told[0]
        assert host_addresses(own_host)[0] in told[1]


async def test_a_bootstrap_address_with_the_own_id_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    identity = new_identity()
    elsewhere = f"/ip4/198.51.100.7/tcp/4001/p2p/{identity.peer_id}"
    settings = replace(QUIET, bootstrap=(elsewhere,))
    async with (
        open_manager(tmp_path / "a.db", MACHINE) as manager,
        open_host(identity) as host,
        open_discovery(host, identity, settings, manager=manager),
    ):
        (line,) = lines(caplog)
    assert elsewhere in line
    caplog.clear()
    # A command of the home, which has the same key, warns of nothing: the address is that of its own peer.
    async with open_host(identity) as host, open_discovery(host, identity, settings):
        assert lines(caplog) == []
