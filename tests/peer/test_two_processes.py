"""Provider and requester in two processes over real TCP, as a user has them."""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from libp2p.peer.envelope import unmarshal_envelope
from libp2p.peer.id import ID

from dms_host import HardenedHost, dial
from dms_host.keys.identity import load_identity
from dms_peer.__main__ import run_command
from dms_peer.clients import open_allocations, open_bids, open_resources
from dms_peer.home.home import Home
from dms_peer.owner import client as owner
from dms_peer.owner.offers import GPUChoice, Offer
from dms_protocols.errors import RemoteError
from dms_protocols.messages.bid import BID_DOMAIN, BID_PAYLOAD_TYPE, EnsembleRequest, NodeRequest
from dms_protocols.wire.cbor import decode_map
from dms_resources.components import FreeResources
from dms_resources.demands import CPUDemand, Demand, DiskDemand, GPUDemand, RAMDemand
from dms_resources.ledger.leases import LeaseState
from dms_resources.units import GIB, Cores

MACHINE = {
    "cpu": {"cores": 8},
    "ram": {"size": "32GiB"},
    "disk": {"size": "1TiB"},
    "gpus": [{"uuid": "GPU-a", "vram": "24GiB"}, {"uuid": "GPU-b", "vram": "10GiB"}],
}
OFFER = Offer(cpu=Cores.of(4), ram=16 * GIB, disk=100 * GIB, gpus=(GPUChoice(device="all"),))
DEMAND = Demand(
    cpu=CPUDemand(cores=Cores.of("1.3")),
    ram=RAMDemand(size=3 * GIB),
    disk=DiskDemand(size=7 * GIB + 1),
    gpus=(GPUDemand(vram=8 * GIB), GPUDemand(vram=20 * GIB)),
)
DEMANDED = ("--cpu", "1", "--ram", "1GiB", "--disk", "1GiB")
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


@dataclass(frozen=True)
class Provider:
    """A peer in another process."""

    process: trio.Process
    peer_id: str
    address: str


@pytest.fixture
async def home(tmp_path: Path) -> Home:
    """The home of a provider that offers a part of a described machine."""
    machine = tmp_path / "machine.json"
    machine.write_text(json.dumps(MACHINE))
    home = Home(tmp_path / "provider")
    await trio.to_thread.run_sync(owner.onboard_resources, home, OFFER, str(machine))
    return home


@asynccontextmanager
async def _running(home: Home) -> AsyncIterator[Provider]:
    access = home.path.parent / "access.yaml"
    access.write_text("shares: {stranger_capacity: 1000}\n")
    command = ["run", "--home", str(home.path), "--listen", "/ip4/127.0.0.1/tcp/0", "--access", str(access), "--json"]
    process = await trio.lowlevel.open_process(
        [sys.executable, "-m", "dms_peer", *command], stdout=subprocess.PIPE, env=ENVIRONMENT
    )
    try:
        with trio.fail_after(60):
            ready = await _read_line(process)
        assert ready["event"] == "ready"
        yield Provider(process, ready["peer_id"], ready["addrs"][0])
    finally:
        with trio.CancelScope(shield=True):
            process.kill()
            await process.wait()
            assert process.stdout is not None
            await process.stdout.aclose()


async def _read_line(process: trio.Process) -> Any:
    line = b""
    assert process.stdout is not None
    while not line.endswith(b"\n"):
        part = await process.stdout.receive_some(1)
        assert part, "the peer ended without a word"
        line += part
    return json.loads(line)


def _ensemble(demand: Demand) -> EnsembleRequest:
    node = NodeRequest(node_id="n", resources=demand)
    return EnsembleRequest(id="e", nonce=time.time_ns() >> 11, deadline=time.time() + 10, request=(node,))


async def _commit(host: HardenedHost, peer_id: str) -> str:
    async with open_bids(host, peer_id) as bids, open_allocations(host, peer_id) as allocations:
        (signed,) = (await bids.request_bids(_ensemble(DEMAND))).bids
        (lease,) = await allocations.commit([signed.envelope], ttl=600)
        return lease.lease_id


async def _free(host: HardenedHost, peer_id: str) -> FreeResources:
    async with open_resources(host, peer_id) as resources:
        return await resources.free()


def _assert_less(before: FreeResources, after: FreeResources) -> None:
    """Assert that `after` is `before` without exactly the demand."""
    assert after.cpu.cores == before.cpu.cores - Cores.of("1.3")
    assert after.ram.size == before.ram.size - 3 * GIB
    assert after.disk.size == before.disk.size - (7 * GIB + 1)
    assert [gpu.vram for gpu in before.gpus] == [24 * GIB, 10 * GIB]
    assert [gpu.vram for gpu in after.gpus] == [4 * GIB, 2 * GIB]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="this machine has no glibc")
async def test_a_peer_begins_with_an_allocator_that_returns_memory(home: Home) -> None:
    async with _running(home) as provider:
        environment = await trio.Path(f"/proc/{provider.process.pid}/environ").read_bytes()
    assert b"PYTHONMALLOC=malloc" in environment.split(b"\0")


async def test_free_falls_by_what_was_allocated_and_returns(home: Home, client: HardenedHost) -> None:
    async with _running(home) as provider:
        peer_id = await dial(client, provider.address)
        before = await _free(client, peer_id)
        lease_id = await _commit(client, peer_id)
        committed = await _free(client, peer_id)
        _assert_less(before, committed)
        async with open_allocations(client, peer_id) as allocations:
            lease = await allocations.allocate(lease_id)
            assert lease.state is LeaseState.ALLOCATED
            assert await _free(client, peer_id) == committed
            await allocations.release(lease_id)
        assert await _free(client, peer_id) == before


async def test_an_allocation_survives_kill_9(home: Home, client: HardenedHost) -> None:
    async with _running(home) as provider:
        peer_id = await dial(client, provider.address)
        before = await _free(client, peer_id)
        lease_id = await _commit(client, peer_id)
        async with open_allocations(client, peer_id) as allocations:
            await allocations.allocate(lease_id)
        provider.process.send_signal(signal.SIGKILL)
        assert await provider.process.wait() == -signal.SIGKILL
    async with _running(home) as restarted:
        assert restarted.peer_id == provider.peer_id
        peer_id = await dial(client, restarted.address)
        _assert_less(before, await _free(client, peer_id))
        async with open_allocations(client, peer_id) as allocations:
            (lease,) = (await allocations.list()).leases
            assert (lease.lease_id, lease.state, lease.demand.cpu) == (lease_id, LeaseState.ALLOCATED, DEMAND.cpu)
            await allocations.release(lease_id)
        assert await _free(client, peer_id) == before


async def test_a_commitment_survives_kill_9_with_its_deadline(home: Home, client: HardenedHost) -> None:
    async with _running(home) as provider:
        peer_id = await dial(client, provider.address)
        await _commit(client, peer_id)
        async with open_allocations(client, peer_id) as allocations:
            (before,) = (await allocations.list()).leases
        provider.process.send_signal(signal.SIGKILL)
        await provider.process.wait()
    async with _running(home) as restarted:
        peer_id = await dial(client, restarted.address)
        async with open_allocations(client, peer_id) as allocations:
            (after,) = (await allocations.list()).leases
    assert after == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_stops_the_peer_in_good_order(home: Home, client: HardenedHost, number: signal.Signals) -> None:
    async with _running(home) as provider:
        peer_id = await dial(client, provider.address)
        async with open_resources(client, peer_id) as resources, resources.watch() as changes:
            # Another requester asks for more.
            await anext(changes)
            provider.process.send_signal(number)
            with trio.fail_after(30):
                assert await _read_line(provider.process) == {"event": "stopped"}
                assert await provider.process.wait() == 0
    assert not home.socket_path.exists()


async def test_a_bid_on_the_wire_is_checked_by_libp2p_itself(home: Home, client: HardenedHost) -> None:
    async with _running(home) as provider:
        peer_id = await dial(client, provider.address)
        async with open_bids(client, peer_id) as bids:
            (signed,) = (await bids.request_bids(_ensemble(DEMAND))).bids
    raw = signed.envelope
    envelope = unmarshal_envelope(raw)
    envelope.validate(BID_DOMAIN)
    assert envelope.payload_type == BID_PAYLOAD_TYPE
    assert ID.from_pubkey(envelope.public_key).to_base58() == provider.peer_id
    assert decode_map(envelope.raw_payload)["provider"] == provider.peer_id
    accepted = [bit for bit in range(len(raw) * 8) if _libp2p_accepts(_flipped(raw, bit))]
    assert accepted == []
    with pytest.raises(Exception, match=r"[Ss]ignature"):
        envelope.validate("another-domain")


async def test_the_provider_takes_no_bid_that_was_changed(home: Home, client: HardenedHost) -> None:
    async with _running(home) as provider:
        peer_id = await dial(client, provider.address)
        async with open_bids(client, peer_id) as bids, open_allocations(client, peer_id) as allocations:
            (signed,) = (await bids.request_bids(_ensemble(DEMAND))).bids
            # The bits of the payload, between the key and the signature.
            for bit in range(8 * 100, 8 * (len(signed.envelope) - 70), 397):
                with pytest.raises(RemoteError) as caught:
                    await allocations.commit([_flipped(signed.envelope, bit)], ttl=60)
                assert caught.value.code in ("bad_signature", "bad_envelope")
            await allocations.commit([signed.envelope], ttl=60)


def _flipped(raw: bytes, bit: int) -> bytes:
    changed = bytearray(raw)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def _libp2p_accepts(raw: bytes) -> bool:
    try:
        unmarshal_envelope(raw).validate(BID_DOMAIN)
    except Exception:
        return False
    return True


@pytest.fixture
def dms_peer(capsys: pytest.CaptureFixture[str]) -> Callable[..., Awaitable[tuple[int, dict[str, Any]]]]:
    """Runs a command with --json. Returns its exit code and what it prints."""

    async def run(*arguments: str) -> tuple[int, dict[str, Any]]:
        # In a thread, with an event loop of its own, because a process for each would load libp2p again.
        code = await trio.to_thread.run_sync(run_command, [*arguments, "--json"])
        return code, json.loads(capsys.readouterr().out)

    return run


async def test_the_commands_all_the_way(home: Home, tmp_path: Path, dms_peer: Any) -> None:
    mine, bid_file = str(tmp_path / "requester"), tmp_path / "bid.cbor"
    demand = ["--cpu", "1.3", "--ram", "3GiB", "--disk", "7GiB", "--gpu", "8GiB", "--gpu", "20GiB"]
    async with _running(home) as provider:
        at = provider.address
        code, free = await dms_peer("free", at, "--home", mine)
        assert code == 0
        assert (free["cpu"]["cores"], free["ram"]["size"], free["simulated"]) == (4, 16 * GIB, True)
        code, refused = await dms_peer("bid", at, "--home", mine, *demand, "--gpu", "1GiB", "--dry-run")
        assert (code, refused["error"]["code"]) == (3, "resources")
        assert [shortage["dimension"] for shortage in refused["error"]["shortages"]] == ["gpus"]
        code, bid = await dms_peer("bid", at, "--home", mine, *demand, "-o", str(bid_file))
        assert code == 0
        assert bid["bid"]["provider"] == provider.peer_id
        assert bid["bid"]["requester"] == load_identity(Home(Path(mine)).key_path).peer_id
        assert bid["bid"]["simulated"] is True
        unmarshal_envelope(bid_file.read_bytes()).validate(BID_DOMAIN)

        # Only the requester of the bid can commit it, and only unchanged.
        code, error = await dms_peer("commit", at, str(bid_file), "--home", str(tmp_path / "other"))
        assert (code, error["error"]["code"]) == (1, "not_your_bid")
        changed = tmp_path / "changed.cbor"
        changed.write_bytes(_flipped(bid_file.read_bytes(), 8 * 500))
        code, error = await dms_peer("commit", at, str(changed), "--home", mine)
        assert (code, error["error"]["code"]) == (1, "bad_signature")

        code, lease = await dms_peer("commit", at, str(bid_file), "--home", mine, "--ttl", "60")
        assert code == 0
        assert lease["state"] == "committed"
        assert lease["deadline"] == pytest.approx(lease["created"] + 60)
        code, allocated = await dms_peer("allocate", at, lease["lease_id"], "--home", mine, "--fence", "999")
        assert (code, allocated["error"]["code"]) == (1, "stale_fence")
        code, allocated = await dms_peer("allocate", at, lease["lease_id"], "--home", mine)
        assert (code, allocated["state"], allocated["fence"]) == (0, "allocated", lease["fence"])
        status = await trio.to_thread.run_sync(owner.read_status, home)
        assert status.allocated.cpu.cores == Cores.of("1.3")
        code, stolen = await dms_peer("release", at, lease["lease_id"], "--home", str(tmp_path / "other"))
        assert (code, stolen["error"]["code"]) == (1, "not_holder")
        code, ended = await dms_peer("release", at, lease["lease_id"], "--home", mine)
        assert (code, ended["reason"]) == (0, "released")
        assert (await trio.to_thread.run_sync(owner.read_status, home)).allocated.cpu.cores == Cores(0)


async def test_files_that_hold_no_bid(home: Home, tmp_path: Path, dms_peer: Any) -> None:
    at = "/ip4/127.0.0.1/tcp/1/p2p/12D3KooWKT4R3MXsXok4hq59xGx1JubPnfybYn24aSHFQNUEiaBG"
    code, error = await dms_peer("commit", at, str(tmp_path / "none"), "--home", str(home.path))
    assert (code, error["error"]["code"]) == (1, "os_error")
    (tmp_path / "garbage").write_bytes(b"no envelope")
    code, error = await dms_peer("commit", at, str(tmp_path / "garbage"), "--home", str(home.path))
    assert (code, error["error"]["code"]) == (1, "bad_envelope")


async def test_the_owner_takes_the_machine_back_from_a_stranger_who_took_all_of_it_and_vanished(
    home: Home, tmp_path: Path, dms_peer: Any
) -> None:
    stranger, bid_file = str(tmp_path / "stranger"), str(tmp_path / "bid.cbor")
    mine = str(home.path)
    everything = ["--cpu", "4", "--ram", "16GiB", "--disk", "100GiB", "--gpu", "24GiB", "--gpu", "10GiB"]
    async with _running(home) as provider:
        at = provider.address
        assert (await dms_peer("bid", at, "--home", stranger, *everything, "-o", bid_file))[0] == 0
        code, lease = await dms_peer("commit", at, bid_file, "--ttl", "600s", "--home", stranger)
        assert code == 0
        assert (await dms_peer("allocate", at, lease["lease_id"], "--home", stranger))[0] == 0
        # The stranger is gone; others are refused, and the owner sees by which peers.
        assert (await dms_peer("bid", at, "--home", stranger, *everything, "--dry-run"))[0] == 3
        _, status = await dms_peer("status", "--home", mine)
        assert [one["lease_id"] for one in status["leases"]] == [lease["lease_id"]]
        code, evicted = await dms_peer("evict", lease["lease_id"][:8], "--reason", "who are you?", "--home", mine)
        assert (code, [one["reason"] for one in evicted["ended"]]) == (0, ["evicted"])
        _, status = await dms_peer("status", "--home", mine)
        assert (status["free"]["cpu"]["cores"], status["leases"]) == (4, [])
        code, told = await dms_peer("release", at, lease["lease_id"], "--home", stranger)
        assert (code, told["error"]["code"]) == (1, "evicted")
        assert "who are you?" in told["error"]["message"]
        code, history = await dms_peer("history", "--limit", "1", "--home", mine)
        assert [(one["actor"], one["reason"]) for one in history["entries"]] == [("owner", "evicted")]


async def test_the_owner_evicts_and_drains_where_no_peer_runs(home: Home, tmp_path: Path, dms_peer: Any) -> None:
    stranger, bid_file, mine = str(tmp_path / "stranger"), str(tmp_path / "bid.cbor"), str(home.path)
    async with _running(home) as provider:
        await dms_peer("bid", provider.address, "--home", stranger, *DEMANDED, "-o", bid_file)
        code, lease = await dms_peer("commit", provider.address, bid_file, "--ttl", "600s", "--home", stranger)
        assert code == 0
    code, refused = await dms_peer("offboard", "--home", mine)
    assert (code, refused["error"]["code"]) == (1, "still_promised")
    assert "evict --all" in refused["error"]["hint"]
    assert await dms_peer("drain", "--home", mine) == (
        0,
        {"leases": 1, "evicted": 0, "running": False, "ending": 0, "deadline": None},
    )
    assert (await dms_peer("release", "ffffffffff", "--home", mine))[1]["error"]["code"] == "unknown_lease"
    code, evicted = await dms_peer("evict", "--all", "--notice", "10m", "--home", mine)
    assert (code, [one["lease_id"] for one in evicted["noticed"]]) == (0, [lease["lease_id"]])
    assert await dms_peer("drain", "--cancel", "--home", mine) == (0, {"drained": True, "withdrawn": 0})
    code, released = await dms_peer("release", lease["lease_id"][:8], "--home", mine)
    assert (code, released["lease_id"], released["reason"]) == (0, lease["lease_id"], "released")
    assert await dms_peer("drain", "--evict", "--home", mine) == (
        0,
        {"leases": 0, "evicted": 0, "running": False, "ending": 0, "deadline": None},
    )
    code, offer = await dms_peer("offboard", "--home", mine)
    assert (code, offer["onboarded"]) == (0, None)


async def test_a_drain_of_a_running_peer_waits_for_its_leases_and_says_what_is_left(
    home: Home, tmp_path: Path, dms_peer: Any
) -> None:
    stranger, bid_file, mine = str(tmp_path / "stranger"), str(tmp_path / "bid.cbor"), str(home.path)
    async with _running(home) as provider:
        await dms_peer("bid", provider.address, "--home", stranger, *DEMANDED, "-o", bid_file)
        await dms_peer("commit", provider.address, bid_file, "--ttl", "600s", "--home", stranger)
        code, left = await dms_peer("drain", "--deadline", "0.1s", "--home", mine)
        assert (code, left["error"]["code"]) == (1, "still_promised")
        assert "1 lease has" in left["error"]["message"]
        code, drained = await dms_peer("drain", "--deadline", "1s", "--evict", "--home", mine)
        assert (code, drained["leases"], drained["evicted"], drained["running"]) == (0, 0, 1, True)


async def test_the_deadline_of_a_drain_outlives_the_peer(home: Home, dms_peer: Any) -> None:
    mine = str(home.path)
    async with _running(home):
        assert (await dms_peer("drain", "--deadline", "2h", "--home", mine))[0] == 0
        _, before = await dms_peer("status", "--home", mine)
        assert 7000 < before["drain_deadline"] - time.time() <= 7200
    async with _running(home):
        _, after = await dms_peer("status", "--home", mine)
    assert (after["draining"], after["drain_deadline"]) == (True, before["drain_deadline"])


async def test_an_interrupted_drain_goes_on_and_says_so(home: Home, tmp_path: Path, dms_peer: Any) -> None:
    stranger, bid_file, mine = str(tmp_path / "stranger"), str(tmp_path / "bid.cbor"), str(home.path)
    async with _running(home) as provider:
        await dms_peer("bid", provider.address, "--home", stranger, *DEMANDED, "-o", bid_file)
        await dms_peer("commit", provider.address, bid_file, "--ttl", "600s", "--home", stranger)
        # A suite in the background of a shell ignores SIGINT, and its children would too.
        draining = await trio.lowlevel.open_process(
            [sys.executable, "-m", "dms_peer", "drain", "--home", mine],
            stderr=subprocess.PIPE, env=ENVIRONMENT, preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip
        assert draining.stderr is not None
        async with draining.stderr:
            try:
                with trio.fail_after(60):
                    assert b"1 lease has not ended yet" in await draining.stderr.receive_some()
                    draining.send_signal(signal.SIGINT)
                    said = b"".join([part async for part in draining.stderr])
                    assert await draining.wait() == 130
            finally:
                # A command that does not end would fail another test as well.
                draining.kill()
                with trio.CancelScope(shield=True):
                    await draining.wait()
        assert b"the drain goes on" in said
        assert b"drain --cancel" in said
        assert b"Traceback" not in said
        assert (await dms_peer("status", "--home", mine))[1]["draining"] is True


async def test_an_allocation_of_a_stranger_who_vanished_ends_with_its_keep_alive(
    home: Home, tmp_path: Path, dms_peer: Any
) -> None:
    (home.path / "peer.yaml").write_text("allocations: {keep_alive: 1s}\n")
    stranger, bid_file, mine = str(tmp_path / "stranger"), str(tmp_path / "bid.cbor"), str(home.path)
    async with _running(home) as provider:
        await dms_peer("bid", provider.address, "--home", stranger, *DEMANDED, "-o", bid_file)
        code, lease = await dms_peer("commit", provider.address, bid_file, "--ttl", "600s", "--home", stranger)
        assert code == 0
        code, allocated = await dms_peer("allocate", provider.address, lease["lease_id"], "--home", stranger)
        assert (code, allocated["state"]) == (0, "allocated")
        assert allocated["deadline"] - time.time() <= 1
        # Nothing is typed: the drain only waits for the machine to be free.
        code, drained = await dms_peer("drain", "--deadline", "30s", "--home", mine)
        assert (code, drained["leases"]) == (0, 0)
        code, history = await dms_peer("history", "--limit", "10", "--home", mine)
        ended = next(one for one in history["entries"] if one["lease_id"] == lease["lease_id"])
        assert ended["reason"] == "lost"
