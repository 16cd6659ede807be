"""Commands that reach the network through the running peer of their home, and what that home holds elsewhere."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from dms_peer import __version__
from dms_peer.__main__ import run_command
from dms_peer.cli.tables.common import short_peer_id
from dms_peer.config.access import OwnerAccess
from dms_peer.discovery.settings import DiscoverySettings
from dms_peer.home.home import Home
from dms_peer.home.lease_journal import LeaseJournal
from dms_peer.node import Node, Ready
from dms_peer.owner import client as owner
from dms_peer.owner.offers import Offer
from dms_protocols.rpc.limits import Shares
from dms_resources.units import GIB, Cores

# These tests are not about strangers: anyone may take the whole offer.
WHOLE_OFFER = OwnerAccess(shares=Shares())


MACHINE = {"cpu": {"cores": 8}, "ram": {"size": "32GiB"}, "disk": {"size": "1TiB"}, "gpus": []}
OFFER = Offer(cpu=Cores.of(4), ram=8 * GIB, disk=10 * GIB)
QUIET = DiscoverySettings(mdns=False, dht=False, exchange=False, broadcast=False)
SMALL = ("--cpu", "1", "--ram", "1GiB", "--disk", "1GiB")
ABSENT = "/ip4/127.0.0.1/tcp/1/p2p/12D3KooWKT4R3MXsXok4hq59xGx1JubPnfybYn24aSHFQNUEiaBG"

Command = Callable[..., Awaitable[tuple[int, str, str]]]


@pytest.fixture
async def peers(tmp_path: Path) -> AsyncIterator[tuple[Ready, Ready]]:
    """A provider, and a requester's peer that offers capacity itself. Both run."""
    machine = tmp_path / "machine.json"
    machine.write_text(json.dumps(MACHINE))
    ready: list[Ready] = []
    async with AsyncExitStack() as stack:
        for name in ("provider", "own"):
            home = Home(tmp_path / name)
            await trio.to_thread.run_sync(partial(owner.onboard_resources, home, OFFER, str(machine)))
            node = Node(home=home, listen=("/ip4/127.0.0.1/tcp/0",), access=WHOLE_OFFER, discovery=QUIET)
            ready.append(await stack.enter_async_context(node.open()))
        yield ready[0], ready[1]


@pytest.fixture
def command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs a command in the home `own`, in a thread. Returns its exit code and what it prints."""

    async def run(*arguments: str, home: str = "own") -> tuple[int, str, str]:
        code = await trio.to_thread.run_sync(run_command, [*arguments, "--home", str(tmp_path / home)])
        out, err = capsys.readouterr()
        return code, out, err

    return run


async def test_a_command_through_the_running_peer_loads_neither_libp2p_nor_trio(
    peers: tuple[Ready, Ready], tmp_path: Path
) -> None:
    at = peers[0].addrs[0]
    for words in (["free", at], ["bid", at, *SMALL], ["discover", *SMALL, "--count", "1"], ["ping", at]):
        script = (
            "import sys\nfrom dms_peer.__main__ import run_command\n"
            f"code = run_command({[*words, '--home', str(tmp_path / 'own')]!r})\n"
            "print(code, [name for name in ('libp2p', 'multiaddr', 'trio') if name in sys.modules])\n"
        )
        done = await trio.run_process([sys.executable, "-c", script], capture_stdout=True)
        assert done.stdout.decode().splitlines()[-1] == "0 []", words


async def test_all_operations_at_a_peer_that_is_named_by_the_start_of_its_id(
    peers: tuple[Ready, Ready], command: Command, tmp_path: Path
) -> None:
    provider, short, bid = peers[0], short_peer_id(peers[0].peer_id), tmp_path / "bid.cbor"
    # Known after the first answer.
    assert (await command("free", provider.addrs[0]))[0] == 0
    code, out, _ = await command("free", short, "--json")
    assert (code, json.loads(out)["peer_id"]) == (0, provider.peer_id)
    code, out, _ = await command("ping", short, "-c", "2", "--json")
    pongs = [json.loads(line) for line in out.splitlines()]
    assert [(pong["peer_id"], pong["relayed"]) for pong in pongs] == [(provider.peer_id, False)] * 2
    assert all(0 < pong["round_trip"] < 10 for pong in pongs)
    # Strangers may not see the hardware in detail, unless the owner allows it.
    assert json.loads((await command("hardware", short, "--json"))[1])["error"]["code"] == "forbidden"
    assert json.loads((await command("hardware", peers[1].peer_id, "--json"))[1])["cpu"]["cores"] == 8
    assert json.loads((await command("usage", peers[1].peer_id, "--json"))[1])["peer_id"] == peers[1].peer_id

    assert (await command("bid", short, *SMALL, "-o", str(bid)))[0] == 0
    code, out, _ = await command("commit", short, str(bid), "--ttl", "60", "--json")
    lease = json.loads(out)
    assert (code, lease["state"], lease["peer_id"]) == (0, "committed", provider.peer_id)
    code, out, _ = await command("leases", "--json")
    held = json.loads(out)
    assert [(one["peer_id"], one["lease"]["lease_id"]) for one in held["leases"]] == [
        (provider.peer_id, lease["lease_id"])
    ]
    code, out, _ = await command("renew", lease["lease_id"][:8], "--ttl", "10m", "--json")
    assert json.loads(out)["deadline"] > lease["deadline"] + 300
    code, out, _ = await command("allocate", lease["lease_id"][:8], "--json")
    assert json.loads(out)["state"] == "allocated"
    code, out, _ = await command("leases", "--offline")
    assert lease["lease_id"][:8] in out
    assert lease["lease_id"] not in out
    assert lease["lease_id"] in (await command("leases", "--full"))[1]
    code, out, _ = await command("release", lease["lease_id"][:8])
    assert (code, "released" in out) == (0, True)
    assert json.loads((await command("leases", "--json"))[1])["leases"] == []


async def test_a_peer_is_its_own_requester(peers: tuple[Ready, Ready], command: Command, tmp_path: Path) -> None:
    own, bid = peers[1], tmp_path / "bid.cbor"
    for name in (own.addrs[0], own.peer_id, short_peer_id(own.peer_id), own.peer_id[8:14]):
        code, out, _ = await command("free", name, "--json")
        assert (code, json.loads(out)["cpu"]["cores"]) == (0, 4)
    assert json.loads((await command("ping", own.peer_id, "-c", "1", "--json"))[1])["relayed"] is None
    code, out, _ = await command("discover", *SMALL, "--json")
    *rows, _ = map(json.loads, out.splitlines())
    assert [(row["peer_id"], row["source"], row["able"]) for row in rows] == [(own.peer_id, "own", True)]
    assert (await command("bid", own.peer_id, *SMALL, "-o", str(bid)))[0] == 0
    assert (await command("commit", own.peer_id, str(bid)))[0] == 0
    (held,) = json.loads((await command("leases", "--json"))[1])["leases"]
    assert (await command("allocate", held["lease"]["lease_id"][:8]))[0] == 0
    # An allocation can be renewed only in version 1.1 of the protocol.
    code, out, err = await command("renew", held["lease"]["lease_id"][:8], "--ttl", "5m", "--json")
    assert (code, json.loads(out)["state"]) == (0, "allocated"), err
    status = await trio.to_thread.run_sync(owner.read_status, Home(tmp_path / "own"))
    assert [lease.holder for lease in status.leases] == [own.peer_id]
    assert [lease.node_id for lease in status.leases] == ["node"]
    assert status.version == __version__
    assert json.loads((await command("peers", "--json"))[1])["peers"] == [], "it does not know itself as another peer"


async def test_release_all_gives_back_what_a_lost_answer_left(
    peers: tuple[Ready, Ready], command: Command, tmp_path: Path
) -> None:
    provider, own = peers
    for place in (provider, own):
        bid = tmp_path / "bid.cbor"
        assert (await command("bid", place.addrs[0], *SMALL, "-o", str(bid)))[0] == 0
        assert (await command("commit", place.addrs[0], str(bid)))[0] == 0
    journal = LeaseJournal(tmp_path / "own")
    # As after a commitment whose answer was lost: only the provider is known.
    journal.forget(provider.peer_id, [held.lease.lease_id for held in journal.leases()])
    assert len(journal.leases()) == 1
    code, out, err = await command("release", "--all", "--json")
    assert code == 0, err
    assert {one["peer_id"] for one in json.loads(out)["released"]} == {provider.peer_id, own.peer_id}
    status = await trio.to_thread.run_sync(owner.read_status, Home(tmp_path / "provider"))
    assert status.lease_count == 0


async def test_without_a_running_peer_a_host_is_opened_and_the_journal_is_kept(
    peers: tuple[Ready, Ready], command: Command, tmp_path: Path
) -> None:
    at, bid = peers[0].addrs[0], tmp_path / "bid.cbor"
    assert (await command("bid", at, *SMALL, "-o", str(bid), home="alone"))[0] == 0
    code, out, err = await command("commit", at, str(bid), "--json", home="alone")
    assert code == 0, err
    assert (await command("ping", short_peer_id(peers[0].peer_id), "-c", "1", home="alone"))[0] == 0
    code, out, err = await command("release", json.loads(out)["lease_id"][:8], home="alone")
    assert code == 0, err


@pytest.mark.parametrize(
    ("words", "code", "error"),
    [
        (("free", ABSENT), 1, "refused"),
        (("free", "nonsense/"), 2, "bad_address"),
        (("free", "zzz"), 1, "unknown_peer"),
        (("release", "abc"), 1, "unknown_lease"),
        (("release",), 2, "usage"),
        (("release", "abc", "--all"), 2, "usage"),
        (("renew", "a", "b", "c"), 2, "usage"),
    ],
)
async def test_what_cannot_be_done_has_the_same_code_with_and_without_a_running_peer(
    peers: tuple[Ready, Ready], command: Command, words: tuple[str, ...], code: int, error: str
) -> None:
    for home in ("own", "alone"):
        done, out, err = await command(*words, "--json", home=home)
        assert (done, json.loads(out)["error"]["code"]) == (code, error), err


async def test_a_provider_that_is_gone_is_named_and_its_leases_are_still_shown(
    command: Command, tmp_path: Path
) -> None:
    machine = tmp_path / "machine.json"
    machine.write_text(json.dumps(MACHINE))
    home, bid = Home(tmp_path / "provider"), tmp_path / "bid.cbor"
    await trio.to_thread.run_sync(partial(owner.onboard_resources, home, OFFER, str(machine)))
    async with Node(home=home, listen=("/ip4/127.0.0.1/tcp/0",), access=WHOLE_OFFER, discovery=QUIET).open() as ready:
        assert (await command("bid", ready.addrs[0], *SMALL, "-o", str(bid)))[0] == 0
        assert (await command("commit", ready.addrs[0], str(bid), "--ttl", "1h"))[0] == 0
    code, out, _ = await command("leases", "--json")
    report: dict[str, Any] = json.loads(out)
    assert code == 1
    assert [one["peer_id"] for one in report["unanswered"]] == [ready.peer_id]
    assert [one["peer_id"] for one in report["leases"]] == [ready.peer_id]


ENSEMBLE = """
different_peers: true
request:
- {node_id: a, resources: {cpu: {cores: 1}, ram: {size: 1GiB}, disk: {size: 1GiB}}}
- {node_id: b, resources: {cpu: {cores: 1}, ram: {size: 1GiB}, disk: {size: 1GiB}}}
"""


async def leases_at(tmp_path: Path, name: str) -> int:
    status = await trio.to_thread.run_sync(owner.read_status, Home(tmp_path / name))
    return status.lease_count


async def reserving(tmp_path: Path, *words: str) -> trio.Process:
    """`dms-peer reserve` in a process of its own."""
    file = tmp_path / "ensemble.yaml"
    file.write_text(ENSEMBLE)
    return await trio.lowlevel.open_process(
        [sys.executable, "-m", "dms_peer", "reserve", "-f", str(file), "--home", str(tmp_path / "own"), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


async def test_reserve_through_the_running_peer_takes_its_own_capacity_too(
    peers: tuple[Ready, Ready], command: Command, tmp_path: Path
) -> None:
    # Known after the first answer.
    assert (await command("free", peers[0].addrs[0]))[0] == 0
    # While the command runs, the journal of the home knows every lease.
    script = (
        "import json, os, sys\n"
        f"journal = json.load(open({str(tmp_path / 'own' / 'leases.json')!r}))\n"
        "held = {one['lease']['lease_id'] for one in journal['leases']}\n"
        "assert held == set(os.environ['DMS_LEASE_IDS'].split()), held\n"
        "print(os.environ['DMS_PEER_IDS'])\n"
        "sys.exit(7)\n"
    )
    process = await reserving(tmp_path, "--", sys.executable, "-c", script)
    assert process.stdout is not None
    out = b"".join([part async for part in process.stdout]).decode()
    assert process.stderr is not None
    err = b"".join([part async for part in process.stderr]).decode()
    assert await process.wait() == 7, err
    assert set(out.split()) == {peers[0].peer_id, peers[1].peer_id}
    # Everything was released before the command ended.
    assert [await leases_at(tmp_path, name) for name in ("provider", "own")] == [0, 0]
    journal = LeaseJournal(tmp_path / "own")
    assert {one.peer_id for one in journal.providers()} == set(out.split())
    assert journal.leases() == []


async def test_a_reservation_of_a_running_peer_that_cannot_be_had_says_why(
    peers: tuple[Ready, Ready], tmp_path: Path
) -> None:
    # Only one provider is known, and the nodes are for different peers.
    process = await reserving(tmp_path, "--json", "--timeout", "3", "--", "true")
    assert process.stdout is not None
    out = b"".join([part async for part in process.stdout]).decode()
    assert await process.wait() == 3
    error = json.loads(out)["error"]
    assert error["code"] == "no_assignment"
    assert error["reasons"]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_what_a_killed_reserve_held_is_released_at_once(
    peers: tuple[Ready, Ready], command: Command, tmp_path: Path, number: signal.Signals
) -> None:
    assert (await command("free", peers[0].addrs[0]))[0] == 0
    process = await reserving(tmp_path, "--json", "--ttl", "10m", "--", "sleep", "60")
    assert process.stdout is not None
    with trio.fail_after(30):
        assert json.loads(bytes(await process.stdout.receive_some()).decode())["event"] == "reserved"
        assert [await leases_at(tmp_path, name) for name in ("provider", "own")] == [1, 1]
        process.send_signal(number)
        await process.wait()
        while [await leases_at(tmp_path, name) for name in ("provider", "own")] != [0, 0]:
            await trio.lowlevel.checkpoint()


async def test_a_lost_reservation_ends_its_command(
    peers: tuple[Ready, Ready], command: Command, tmp_path: Path
) -> None:
    assert (await command("free", peers[0].addrs[0]))[0] == 0
    process = await reserving(tmp_path, "--json", "--ttl", "1s", "--", "sleep", "60")
    assert process.stdout is not None
    with trio.fail_after(30):
        reserved = json.loads(bytes(await process.stdout.receive_some()).decode())
        lease = next(node for node in reserved["nodes"] if node["peer_id"] == peers[0].peer_id)["lease_id"]
        assert (await command("release", peers[0].addrs[0], lease))[0] == 0
        out = b"".join([part async for part in process.stdout]).decode()
        assert await process.wait() == 1
    assert json.loads(out)["error"]["code"] == "reservation_lost"
    assert await leases_at(tmp_path, "own") == 0
