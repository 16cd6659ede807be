"""For operators: metrics, logs, status, which peers may connect, private networks, relays."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from dms_host.errors import DialError
from dms_host.keys.identity import load_or_create_identity
from dms_host.keys.swarm_key import create_swarm_key
from dms_peer.cli.own_host import perform
from dms_peer.cli.peer_names import find_peer
from dms_peer.errors import PeerError
from dms_peer.home.home import Home
from dms_peer.home.network import NetworkSettings
from dms_peer.node import Node, Ready
from dms_peer.owner import client as owner
from dms_peer.owner.offers import Offer
from dms_peer.owner.remote_messages import RemoteFreeRequest
from dms_peer.requesting.reports import PeerFree
from dms_resources.units import GIB, Cores

LOOPBACK = "/ip4/127.0.0.1/tcp/0"
OFFER = Offer(cpu=Cores.of(2), ram=GIB, disk=GIB)


async def ask_free(home: Home, address: str) -> PeerFree:
    """The answer that a requester gets over a host of its own."""
    named = find_peer(home, address)
    answer = await perform(home, RemoteFreeRequest(peer_id=named.peer_id, addrs=named.addrs))
    assert isinstance(answer, PeerFree)
    return answer


Opened = Callable[..., AbstractAsyncContextManager[Ready]]


@pytest.fixture
def running(tmp_path: Path) -> Opened:
    """Opens a peer on loopback that offers something; `prepare` is called with its home before."""
    machine = tmp_path / "machine.json"
    machine.write_text(json.dumps({"cpu": {"cores": 4}, "ram": {"size": "8GiB"}, "disk": {"size": "100GiB"}}))

    @asynccontextmanager
    async def opened(name: str = "provider", prepare: Callable[[Home], Any] | None = None, **options: Any) -> Any:
        home = Home(tmp_path / name)
        home.prepare()
        if prepare is not None:
            prepare(home)
        await trio.to_thread.run_sync(partial(owner.onboard_resources, home, OFFER, str(machine)))
        async with Node(home=home, listen=(LOOPBACK,), **options).open() as ready:
            yield ready

    return opened


@pytest.fixture
def requester(tmp_path: Path) -> Home:
    home = Home(tmp_path / "requester")
    home.prepare()
    return home


async def test_metrics_of_a_running_peer(running: Opened, requester: Home) -> None:
    async with running(metrics=":0") as ready:
        assert ready.metrics is not None
        assert ready.metrics.startswith("http://127.0.0.1:")
        await ask_free(requester, ready.addrs[0])
        async with httpx.AsyncClient(trust_env=False) as client:
            text = (await client.get(ready.metrics)).text
    assert 'dms_requests_total{operation="free",outcome="ok"} 1.0' in text
    assert 'dms_cores{kind="free"} 2.0' in text
    assert "dms_usage_sample_age_seconds" in text


async def test_status_says_what_was_refused_and_why(running: Opened, requester: Home, tmp_path: Path) -> None:
    async with running() as ready:
        words = ["bid", ready.addrs[0], "--cpu", "64", "--ram", "1GiB", "--disk", "1GiB", "--home", str(requester.path)]
        for _ in range(2):
            done = await trio.run_process([sys.executable, "-m", "dms_peer", *words], capture_stderr=True, check=False)
            assert done.returncode == 3
        status = await trio.to_thread.run_sync(owner.read_status, Home(tmp_path / "provider"))
        assert status.refusals == {"resources": 2}
        assert status.limits_hit == {}
        told = await trio.run_process(
            [sys.executable, "-m", "dms_peer", "status", "--home", str(tmp_path / "provider")], capture_stdout=True
        )
    assert "did not bid since the start: 2 resources" in told.stdout.decode()


async def test_who_is_denied_is_not_connected(running: Opened, requester: Home, tmp_path: Path) -> None:
    peer_id = load_or_create_identity(requester.key_path).peer_id
    async with running(network=NetworkSettings(deny_peers=(peer_id,))) as ready:
        with pytest.raises(DialError):
            await ask_free(requester, ready.addrs[0])
        status = await trio.to_thread.run_sync(owner.read_status, Home(tmp_path / "provider"))
        assert status.limits_hit == {"denied_peers": 1}
    async with running(network=NetworkSettings(allow_addresses=("192.0.2.0/24",))) as ready:
        with pytest.raises(DialError):
            await ask_free(requester, ready.addrs[0])
        status = await trio.to_thread.run_sync(owner.read_status, Home(tmp_path / "provider"))
        assert status.limits_hit == {"denied_addresses": 1}
    async with running(network=NetworkSettings(allow_peers=(peer_id,))) as ready:
        assert (await ask_free(requester, ready.addrs[0])).cpu.cores == Cores.of(2)


async def test_lists_that_make_no_sense_are_refused(running: Opened) -> None:
    with pytest.raises(PeerError, match="nonsense"):
        async with running(network=NetworkSettings(deny_addresses=("nonsense",))):
            pass


async def test_a_home_with_a_swarm_key_is_in_a_private_network(running: Opened, requester: Home) -> None:
    async with running(prepare=lambda home: create_swarm_key(home.swarm_key_path)) as ready:
        with trio.fail_after(30), pytest.raises(DialError):
            await ask_free(requester, ready.addrs[0])
        provider_home = requester.path.parent / "provider"
        requester.swarm_key_path.write_bytes((provider_home / "swarm.key").read_bytes())
        requester.swarm_key_path.chmod(0o600)
        assert (await ask_free(requester, ready.addrs[0])).cpu.cores == Cores.of(2)


async def test_a_peer_behind_a_relay_is_reached_through_it(running: Opened, requester: Home) -> None:
    async with (
        running("relay", network=NetworkSettings(relay=True)) as relay,
        running("hidden", network=NetworkSettings(reserve_at=(relay.addrs[0],))) as hidden,
    ):
        through = f"{relay.addrs[0]}/p2p-circuit/p2p/{hidden.peer_id}"
        with trio.fail_after(20):
            while True:
                try:
                    free = await ask_free(requester, through)
                    break
                except DialError:
                    # The reservation at the relay is made in the background.
                    await trio.sleep(0.1)
    assert free.peer_id == hidden.peer_id


async def test_the_log_says_who_asked_for_what(running: Opened, requester: Home, tmp_path: Path) -> None:
    async with running():
        pass
    words = ["run", "--home", str(tmp_path / "provider"), "--listen", LOOPBACK, "--json", "--log-level", "info"]
    bid = ["--cpu", "64", "--ram", "1GiB", "--disk", "1GiB", "--home", str(requester.path)]
    dms_peer = [sys.executable, "-m", "dms_peer"]
    peer = partial(
        trio.run_process, [*dms_peer, *words, "--log-json", "--no-mdns", "--no-dht"], stdout=-1, stderr=-1, check=False
    )
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            process = await nursery.start(peer)
            ready = json.loads(await process.stdout.receive_some())
            await trio.run_process([*dms_peer, "bid", ready["addrs"][0], *bid], capture_stderr=True, check=False)
            process.terminate()
            log = b"".join([piece async for piece in process.stderr]).decode()
    events = [json.loads(line) for line in log.splitlines()]
    answered = next(event for event in events if event.get("op") == "bid_request")
    assert answered["event"] == "answered"
    assert answered["peer"] == load_or_create_identity(requester.key_path).peer_id
