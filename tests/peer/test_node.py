"""The running peer, in this process: its home, its socket, and the owner's operations while it runs."""

from __future__ import annotations

import json
import os
import socket
import stat
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from dms_host import HardenedHost, dial, open_stream
from dms_host.errors import AddressError, IdentityError, ListenError
from dms_peer.clients import open_allocations, open_bids, open_resources
from dms_peer.errors import PeerError
from dms_peer.home.home import Home
from dms_peer.node import Node, Ready
from dms_peer.owner import client as owner
from dms_peer.owner.messages import DrainEvent, DrainRequest, StatusAnswer, StatusRequest
from dms_peer.owner.offers import GPUChoice, Offer
from dms_peer.owner.offline import open_ledger
from dms_peer.owner.socket_file import connect
from dms_protocols.errors import RemoteError
from dms_protocols.messages.bid import EnsembleRequest, NodeRequest
from dms_protocols.protocol_ids import ALLOCATION_PROTOCOL, BID_PROTOCOL, RESOURCES_PROTOCOL
from dms_protocols.rpc.client import open_client
from dms_resources.components import MachineResources
from dms_resources.demands import CPUDemand, Demand
from dms_resources.errors import LedgerInUseError
from dms_resources.units import GIB, Cores

LOOPBACK = ("/ip4/127.0.0.1/tcp/0",)
MACHINE = {"cpu": {"cores": 8}, "ram": {"size": "32GiB"}, "disk": {"size": "1TiB"}, "gpus": [{"vram": "24GiB"}]}
OFFER = Offer(cpu=Cores.of(4), ram=16 * GIB, disk=100 * GIB, gpus=(GPUChoice(device="all"),))


async def in_thread(ask: Any, *arguments: Any, **options: Any) -> Any:
    """The owner's commands block, and the peer runs in this process."""
    return await trio.to_thread.run_sync(partial(ask, *arguments, **options))


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home", patience=0.2)


@pytest.fixture
def machine_file(tmp_path: Path) -> str:
    path = tmp_path / "machine.json"
    path.write_text(json.dumps(MACHINE))
    return str(path)


@pytest.fixture
def running(home: Home, machine_file: str) -> Callable[..., AbstractAsyncContextManager[Ready]]:
    """Opens a peer on loopback with a described machine."""

    def open_peer(at: Home = home, listen: tuple[str, ...] = LOOPBACK) -> AbstractAsyncContextManager[Ready]:
        return Node(home=at, listen=listen, machine=machine_file).open()

    return open_peer


async def _committed(client: HardenedHost, ready: Ready, cores: int = 1) -> str:
    """The id of a lease that a requester committed at the peer."""
    peer_id = await dial(client, ready.addrs[0])
    node = NodeRequest(node_id="n", resources=Demand(cpu=CPUDemand(cores=Cores.of(cores))))
    ensemble = EnsembleRequest(id="e", nonce=1, deadline=2e9, request=(node,))
    async with open_bids(client, peer_id) as bids, open_allocations(client, peer_id) as allocations:
        answer = await bids.request_bids(ensemble)
        (lease,) = await allocations.commit([answer.bids[0].envelope], ttl=600)
        return lease.lease_id


async def test_the_socket_is_the_owners_alone_and_goes_with_the_peer(home: Home, running: Any) -> None:
    # A file that a killed peer left behind and that anybody could write to.
    home.prepare()
    home.socket_path.touch(mode=0o666)
    async with running():
        mode = home.socket_path.stat().st_mode
        assert stat.S_ISSOCK(mode)
        assert stat.S_IMODE(mode) == 0o600
        assert stat.S_IMODE(home.key_path.stat().st_mode) == 0o600
        assert stat.S_IMODE(home.ledger_path.stat().st_mode) == 0o600
    assert not home.socket_path.exists()


async def test_the_socket_is_never_wider_not_even_under_an_open_umask(
    home: Home, running: Any, monkeypatch: Any
) -> None:
    modes = []
    chmod = os.chmod

    def note(path: Any, mode: int) -> None:
        if Path(path) == home.socket_path:
            modes.append(stat.S_IMODE(home.socket_path.stat().st_mode))
        chmod(path, mode)

    monkeypatch.setattr("dms_peer.owner.socket_file.os.chmod", note)
    before = os.umask(0)
    try:
        async with running():
            pass
    finally:
        os.umask(before)
    assert modes == [0o600], "it had its mode before anybody set it"


async def test_the_owner_talks_to_the_running_peer(home: Home, running: Any, client: HardenedHost) -> None:
    async with running() as ready:
        assert not ready.offers
        answer = await in_thread(owner.onboard_resources, home, OFFER)
        assert answer.onboarded is not None
        assert answer.onboarded.cpu.cores == Cores.of(4)
        lease_id = await _committed(client, ready)
        status = await in_thread(owner.read_status, home)
        assert status.running
        assert status.simulated
        assert status.addrs == ready.addrs
        assert status.peer_id == ready.peer_id
        assert status.free.cpu.cores == Cores.of(3)
        assert status.committed.cpu.cores == Cores.of(1)
        assert [lease.lease_id for lease in status.leases] == [lease_id]
        assert status.leases[0].holder == client.get_id().to_base58()
    # The same without the peer, from the ledger itself.
    status = await in_thread(owner.read_status, home)
    assert not status.running
    assert status.free.cpu.cores == Cores.of(3)
    assert [lease.lease_id for lease in status.leases] == [lease_id]


async def test_errors_of_the_ledger_keep_their_codes_through_the_socket(home: Home, running: Any) -> None:
    async with running():
        too_much = Offer(cpu=Cores.of(9), ram=GIB, disk=GIB)
        with pytest.raises(RemoteError) as caught:
            await in_thread(owner.onboard_resources, home, too_much)
        assert caught.value.code == "onboarding"
        assert "9 cores" in caught.value.details["problems"][0]


async def test_a_running_peer_keeps_its_machine(home: Home, running: Any, machine_file: str, tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    other.write_text(json.dumps(MACHINE | {"cpu": {"cores": 64}}))
    async with running():
        with pytest.raises(RemoteError) as caught:
            await in_thread(owner.onboard_resources, home, OFFER, str(other))
        assert caught.value.code == "other_machine"
        # Its own offer is no contradiction.
        await in_thread(owner.onboard_resources, home, OFFER, machine_file)
    assert (await in_thread(owner.read_status, home)).free.cpu.cores == Cores.of(4)


async def test_onboarding_goes_on_while_capacity_is_promised(home: Home, running: Any, client: HardenedHost) -> None:
    async with running() as ready:
        await in_thread(owner.onboard_resources, home, OFFER)
        await _committed(client, ready, cores=1)
        more = await in_thread(owner.onboard_resources, home, Offer(cpu=Cores.of(6), ram=16 * GIB, disk=100 * GIB))
        assert more.free.cpu.cores == Cores.of(5)
        with pytest.raises(RemoteError, match="promised"):
            await in_thread(owner.onboard_resources, home, Offer(cpu=Cores.of(0.5), ram=16 * GIB, disk=100 * GIB))
        with pytest.raises(RemoteError) as caught:
            await in_thread(owner.withdraw_offer, home, drain=False, tell=print)
        assert caught.value.code == "still_promised"


async def test_strangers_at_one_address_share_a_part_of_the_offer(
    home: Home, running: Any, client: HardenedHost, server: HardenedHost
) -> None:
    async with running() as ready:
        await in_thread(owner.onboard_resources, home, OFFER)
        lease_id = await _committed(client, ready)
        # Another peer id at the same address gets no bid on a second core.
        with pytest.raises(IndexError):
            await _committed(server, ready)
        async with open_allocations(client, ready.peer_id) as allocations:
            (lease,) = (await allocations.list()).leases
            assert lease.accounts == ("strangers at 127.0.0.1",)
            await allocations.release(lease_id)
        await _committed(server, ready)


async def test_draining_waits_for_what_is_promised(home: Home, running: Any, client: HardenedHost) -> None:
    heard: list[int] = []
    async with running() as ready, trio.open_nursery() as nursery:
        await in_thread(owner.onboard_resources, home, OFFER)
        lease_id = await _committed(client, ready)
        draining = trio.Event()

        def hear(leases: int) -> None:
            heard.append(leases)
            trio.from_thread.run_sync(draining.set)

        async def drain() -> None:
            answer = await in_thread(owner.withdraw_offer, home, drain=True, tell=hear)
            assert answer.onboarded is None

        nursery.start_soon(drain)
        await draining.wait()
        async with open_resources(client, ready.peer_id) as resources:
            assert (await resources.free()).draining
        async with open_allocations(client, ready.peer_id) as allocations:
            await allocations.release(lease_id)
    assert heard[0] == 1
    assert heard[-1] == 0


async def test_onboarding_ends_a_drain(home: Home, running: Any) -> None:
    async with running():
        await in_thread(owner.onboard_resources, home, OFFER)
        await in_thread(owner.watch, home, DrainRequest(), DrainEvent, lambda event: None)
        assert (await in_thread(owner.read_status, home)).draining
        await in_thread(owner.onboard_resources, home, OFFER)
        assert not (await in_thread(owner.read_status, home)).draining


async def test_history_across_several_answers(home: Home, running: Any) -> None:
    async with running():
        for cores in (1, 2, 3):
            await in_thread(owner.onboard_resources, home, Offer(cpu=Cores.of(cores), ram=GIB, disk=GIB))
        entries = (await in_thread(owner.read_history, home, 1002)).entries
        assert [entry.number for entry in entries] == sorted((entry.number for entry in entries), reverse=True)
        assert [entry.action for entry in entries] == ["onboard"] * 3
        assert (await in_thread(owner.read_history, home, 2)).entries == entries[:2]


async def test_a_second_peer_on_the_same_home_is_refused(home: Home, running: Any) -> None:
    async with running():
        with pytest.raises(LedgerInUseError, match=str(os.getpid())):
            async with running():
                pytest.fail("two peers on one ledger")
        # The first peer was not affected.
        assert (await in_thread(owner.read_status, home)).running


async def test_a_starting_peer_waits_for_a_command_and_says_meanwhile_that_it_starts(home: Home, running: Any) -> None:
    patient = Home(home.path, patience=30)
    async with trio.open_nursery() as nursery:
        async with open_ledger(patient, None):
            opened = trio.Event()

            async def run() -> None:
                async with running(at=patient):
                    opened.set()
                    await trio.sleep_forever()

            nursery.start_soon(run)
            # The peer tries in vain, more than once.
            with trio.move_on_after(0.3):
                await opened.wait()
            assert not opened.is_set()
            with pytest.raises(PeerError) as caught:
                await in_thread(owner.read_status, patient)
            assert caught.value.code == "starting", "a command that only reads does not wait for the start"
        with trio.fail_after(30):
            await opened.wait()
        assert (await in_thread(owner.read_status, patient)).running
        nursery.cancel_scope.cancel()


async def test_administration_is_not_offered_to_other_peers(home: Home, running: Any, client: HardenedHost) -> None:
    async with running() as ready:
        peer_id = await dial(client, ready.addrs[0])
        for protocol in (RESOURCES_PROTOCOL, BID_PROTOCOL, ALLOCATION_PROTOCOL):
            stream = await open_stream(client, peer_id, [protocol])
            async with open_client(stream) as asking:
                with pytest.raises(RemoteError) as caught:
                    await asking.call(StatusRequest(), StatusAnswer, timeout=5)
                assert caught.value.code == "unknown_operation"


async def test_the_socket_speaks_the_protocols_of_the_peers_too(home: Home, running: Any) -> None:
    from dms_protocols.clients import ResourcesClient

    async with running():
        connection = connect(home.socket_path)
        assert connection is not None
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(connection))
        async with open_client(stream) as local:
            machine = await ResourcesClient(local).machine()
        assert isinstance(machine, MachineResources)
        assert machine.cpu.cores == Cores.of(8)


async def test_garbage_on_the_socket_hurts_nobody(home: Home, running: Any) -> None:
    async with running():
        for garbage in (b"\xff" * 64, b"\x05hello", b"GET / HTTP/1.1\r\n\r\n"):
            with socket.socket(socket.AF_UNIX) as raw:
                raw.connect(str(home.socket_path))
                raw.sendall(garbage)
        assert (await in_thread(owner.read_status, home)).running


async def test_the_port_is_kept_and_given_up_when_it_is_taken(home: Home, running: Any) -> None:
    async with running(listen=()) as first:
        pass
    async with running(listen=()) as second:
        assert second.addrs == first.addrs
    port = int(first.addrs[0].split("/")[4])
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", port))
        taken.listen()
        async with running(listen=()) as third:
            assert third.peer_id == first.peer_id
            assert third.addrs != first.addrs


async def test_a_home_with_a_long_path(tmp_path: Path, running: Any) -> None:
    home = Home(tmp_path / ("long" * 30) / ("path" * 30))
    async with running(at=home):
        assert (await in_thread(owner.read_status, home)).running
    assert not home.socket_path.exists()


async def test_an_address_that_is_taken(home: Home, running: Any) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"/ip4/127.0.0.1/tcp/{taken.getsockname()[1]}"
        with pytest.raises(ListenError) as caught:
            async with running(listen=(address,)):
                pytest.fail("two listeners on one port")
        assert caught.value.code == "address_in_use"
    # Nothing is left of the attempt.
    async with running():
        pass


async def test_bad_addresses_and_keys_are_found_before_anything_is_opened(home: Home, running: Any) -> None:
    with pytest.raises(AddressError):
        async with running(listen=("nowhere",)):
            pytest.fail("there is no such address")
    assert not home.ledger_path.exists()
    home.prepare()
    home.key_path.write_bytes(b"")
    home.key_path.chmod(0o600)
    with pytest.raises(IdentityError):
        async with running():
            pytest.fail("there is no such key")
    assert not home.ledger_path.exists()
