"""`dms-peer discover`, `peers` and `reserve` on a network of running peers."""

from __future__ import annotations

import io
import json
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from rich.console import Console
from rich.live import Live

from dms_peer.__main__ import run_command
from dms_peer.cli.child_process import run_child, stopped_by_signals
from dms_peer.cli.failures import describe_failure
from dms_peer.cli.tables.search import _LiveView
from dms_peer.config.access import OwnerAccess
from dms_peer.discovery.settings import DiscoverySettings
from dms_peer.errors import PeerError, StoppedError
from dms_peer.home.home import Home
from dms_peer.node import Node, Ready
from dms_peer.owner import client as owner
from dms_peer.owner.offers import GPUChoice, Offer
from dms_peer.requesting.progress import ProgressLog
from dms_peer.requesting.reports import FoundRow
from dms_protocols.rpc.limits import Shares
from dms_resources.units import GIB, Cores

# These tests are not about strangers: anyone may take the whole offer.
WHOLE_OFFER = OwnerAccess(shares=Shares())
LOOPBACK = "/ip4/127.0.0.1/tcp/0"
MACHINE = {"cpu": {"cores": 8}, "ram": {"size": "32GiB"}, "disk": {"size": "1TiB"}, "gpus": [{"vram": "24GiB"}]}
ENSEMBLE = """
different_peers: true
request:
- {{node_id: a, resources: {{cpu: {{cores: 2}}, ram: {{size: 4GiB}}, disk: {{size: 1GiB}}, gpus: [{{vram: 16GiB}}]}}}}
- {{node_id: b, resources: {{cpu: {{cores: {cores}}}, ram: {{size: 4GiB}}, disk: {{size: 1GiB}}}}}}
"""
QUIET = DiscoverySettings(mdns=False, dht=False, exchange=False, broadcast=False)
# The commands use only the named peers.
ALONE = ("--no-mdns", "--no-dht", "--no-exchange")

Command = Callable[..., Awaitable[tuple[int, str, str]]]


@pytest.fixture
async def providers(tmp_path: Path) -> AsyncIterator[list[Ready]]:
    """Three peers on loopback; the last one has no GPU to offer."""
    machine = tmp_path / "machine.json"
    machine.write_text(json.dumps(MACHINE))
    async with AsyncExitStack() as stack:
        ready = []
        for number in range(3):
            home = Home(tmp_path / f"provider-{number}")
            gpus = (GPUChoice(device="all"),) if number < 2 else ()
            offer = Offer(cpu=Cores.of(4), ram=16 * GIB, disk=100 * GIB, gpus=gpus)
            await trio.to_thread.run_sync(partial(owner.onboard_resources, home, offer, str(machine)))
            node = Node(home=home, listen=(LOOPBACK,), access=WHOLE_OFFER, discovery=QUIET)
            ready.append(await stack.enter_async_context(node.open()))
        yield ready


@pytest.fixture
def command(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Command:
    """Runs a command in a separate process. Returns its exit code, and what it prints on stdout and on stderr."""

    async def run(*arguments: str) -> tuple[int, str, str]:
        words = list(arguments)
        place = words.index("--") if "--" in words else len(words)
        words[place:place] = ["--home", str(tmp_path / "requester")]
        done = await trio.run_process(
            [sys.executable, "-m", "dms_peer", *words], capture_stdout=True, capture_stderr=True, check=False
        )
        return done.returncode, done.stdout.decode(), done.stderr.decode()

    return run


def bootstrap(providers: list[Ready]) -> list[str]:
    return [word for ready in providers for word in ("--bootstrap", ready.addrs[0])]


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def owner_sees(tmp_path: Path, number: int) -> int:
    return owner.read_status(Home(tmp_path / f"provider-{number}")).lease_count


async def test_discover_finds_who_would_take_it_and_says_why_others_would_not(
    providers: list[Ready], command: Command
) -> None:
    asked = ("--cpu", "2", "--ram", "4GiB", "--gpu", "16GiB")
    code, out, _ = await command("discover", *asked, *ALONE, *bootstrap(providers), "--json")
    assert code == 0
    *peers, done = lines(out)
    assert {peer["event"] for peer in peers} == {"peer"}
    assert {peer["peer_id"]: peer["able"] for peer in peers} == {
        ready.peer_id: number < 2 for number, ready in enumerate(providers)
    }
    assert [peer["refusals"][0]["code"] for peer in peers if not peer["able"]] == ["resources"]
    assert all(peer["age"] == 0 and peer["free"]["ram"]["size"] == 16 * GIB for peer in peers)
    assert (done["event"], done["able"], done["progress"]["refused"]) == ("done", 2, {"resources": 1})

    # They are remembered: no address is needed again, and the ages of all figures are shown.
    code, out, _ = await command("discover", *asked, *ALONE, "--count", "2")
    assert code == 0
    assert "2 peers would take it" in out
    code, out, _ = await command("peers", "--json")
    known = json.loads(out)
    assert {peer["peer_id"] for peer in known["peers"]} == {ready.peer_id for ready in providers}
    assert all(peer["free_age"] >= 0 for peer in known["peers"])
    code, out, _ = await command("peers")
    assert all(ready.peer_id[:16] in out for ready in providers)
    assert " ago" in out


async def test_discover_ends_with_3_when_there_are_too_few(providers: list[Ready], command: Command) -> None:
    few = await command("discover", "--gpu", "16GiB", "--count", "3", *ALONE, *bootstrap(providers))
    assert few[0] == 3
    assert "2 peers would take it: 3 asked, 3 answered, refused: 1 resources" in few[1]
    none = await command("discover", "--cpu", "64", *ALONE, *bootstrap(providers), "--json")
    assert (none[0], lines(none[1])[-1]["able"]) == (3, 0)


async def test_an_address_where_nobody_is_is_named_and_what_to_do(command: Command) -> None:
    absent = "/ip4/127.0.0.1/tcp/1/p2p/12D3KooWKT4R3MXsXok4hq59xGx1JubPnfybYn24aSHFQNUEiaBG"
    code, out, err = await command("discover", "--cpu", "1", *ALONE, "--bootstrap", absent)
    assert code == 3
    assert out.startswith("no peers would take it: 0 asked, 0 answered (")
    assert out.endswith("; name a peer to bootstrap from (--bootstrap), or switch more sources on\n")
    assert err.startswith("dms-peer: a bootstrap peer is not there: ")
    assert absent in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("discover",), "give the demand"),
        (("discover", "--cpu", "1", "--count", "0"), "--count"),
        (("discover", "--cpu", "1", "--bootstrap", "nowhere"), "invalid multiaddr"),
        (("reserve", "-f", "ensemble.yaml", "--strategy", "clever"), "cheapest"),
        (("reserve", "-f", "ensemble.yaml", "--", "no-such-command"), "no command no-such-command"),
        (("reserve", "-f", "missing.yaml"), "missing.yaml"),
    ],
)
def test_what_makes_no_sense_is_said_in_a_line(
    words: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("ensemble.yaml").write_text(ENSEMBLE.format(cores=1))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert run_command(words) in (1, 2)
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


CHILD = """
import json, os, sys

taken = json.loads(os.environ["DMS_RESERVATION"])
assert os.environ["DMS_NODE_IDS"] == "a b"
assert os.environ["DMS_LEASE_IDS"].split() == [node["lease_id"] for node in taken["nodes"]]
assert os.environ["DMS_PEER_IDS"].split() == [node["peer_id"] for node in taken["nodes"]]
print(os.environ["DMS_RESERVATION"])
sys.exit(7)
"""


async def test_reserve_runs_a_command_while_all_nodes_are_held_and_gives_them_back(
    providers: list[Ready], command: Command, tmp_path: Path
) -> None:
    file = tmp_path / "ensemble.yaml"
    file.write_text(ENSEMBLE.format(cores=2))
    code, out, err = await command(
        "reserve", "-f", str(file), *ALONE, *bootstrap(providers), "--allocate", "--", sys.executable, "-c", CHILD
    )
    assert code == 7, err
    taken = json.loads(out)
    assert taken["allocated"] is True
    peers = [node["peer_id"] for node in taken["nodes"]]
    assert len(set(peers)) == 2, "the file asks for different peers"
    assert peers[0] in [ready.peer_id for ready in providers[:2]]
    assert "is allocated" in err
    assert [await trio.to_thread.run_sync(owner_sees, tmp_path, number) for number in range(3)] == [0, 0, 0]


async def test_reserve_takes_nothing_when_it_cannot_have_all(
    providers: list[Ready], command: Command, tmp_path: Path
) -> None:
    file = tmp_path / "ensemble.yaml"
    file.write_text(ENSEMBLE.format(cores=64))
    told = await command(
        "reserve", "-f", str(file), *ALONE, *bootstrap(providers), "--json", "--", sys.executable, "-c", "1/0"
    )
    assert told[0] == 3
    error = lines(told[1])[0]["error"]
    assert (error["code"], error["message"]) == ("no_bids", "the ensemble cannot be had: b: no peer bids on it")
    (reason,) = error["reasons"]
    assert (reason["node_id"], reason["why"]) == ("b", "no peer bids on it")
    assert {said["code"] for said in reason["peers"]} == {"resources"}
    assert sum(said["count"] for said in reason["peers"]) == 3
    assert reason["peers"][0]["shortages"][0]["asked"]["cores"] == 64
    first, *below = told[2].splitlines()
    assert first == "dms-peer: the ensemble cannot be had: b: no peer bids on it; ask for less, or wait"
    assert len(below) == len(reason["peers"])
    assert all(line.startswith("  b: ") and "cpu: 64 cores asked" in line for line in below)
    assert [await trio.to_thread.run_sync(owner_sees, tmp_path, number) for number in range(3)] == [0, 0, 0]


async def test_a_reservation_without_a_command_is_held_until_a_signal(providers: list[Ready], tmp_path: Path) -> None:
    file = tmp_path / "ensemble.yaml"
    file.write_text(ENSEMBLE.format(cores=2))
    words = ["reserve", "-f", str(file), *ALONE, *bootstrap(providers), "--home", str(tmp_path / "r"), "--json"]
    process = await trio.lowlevel.open_process([sys.executable, "-m", "dms_peer", *words], stdout=-1)
    with trio.fail_after(60):
        assert process.stdout is not None
        line = await process.stdout.receive_some()
        assert json.loads(line)["event"] == "reserved"
        counts = [await trio.to_thread.run_sync(owner_sees, tmp_path, number) for number in range(3)]
        assert sum(counts) == 2
        process.send_signal(signal.SIGINT)
        assert await process.wait() == 0
    assert [await trio.to_thread.run_sync(owner_sees, tmp_path, number) for number in range(3)] == [0, 0, 0]
    await process.stdout.aclose()


# The command beside a reservation


async def test_a_command_that_ignores_what_it_is_asked_is_killed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("dms_peer.cli.child_process._GRACE", 0.1)
    started = tmp_path / "started"
    stubborn = (
        f"import signal, time; signal.signal(15, signal.SIG_IGN); open({str(started)!r}, 'w').close(); time.sleep(60)"
    )
    with trio.move_on_after(30) as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_child, [sys.executable, "-c", stubborn], {})
            while not started.exists():  # noqa: ASYNC110  # another process says so
                await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
    assert not scope.cancelled_caught


async def test_a_signal_to_the_command_is_its_exit_code() -> None:
    assert await run_child([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"], {}) == 128 + 9
    with pytest.raises(PeerError, match="cannot be run"):
        await run_child(["/nowhere/at-all"], {})


async def test_a_signal_that_ends_the_command_is_not_taken_for_ours() -> None:
    # Both at once, as from a terminal: whichever is noticed first, the exit code is the command's.
    code = await run_child(
        [sys.executable, "-c", "import os, signal; os.kill(os.getppid(), signal.SIGINT); os._exit(3)"], {}
    )
    assert code == 3


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
async def test_a_signal_cancels_what_is_held_when_no_command_runs(number: signal.Signals) -> None:
    given_back: list[bool] = []

    async def hold() -> None:
        async with stopped_by_signals():
            try:
                signal.raise_signal(number)
                await trio.sleep_forever()
            finally:
                given_back.append(True)

    with pytest.raises(StoppedError) as caught:
        await hold()
    assert given_back
    assert describe_failure(caught.value).exit_code == 128 + number


async def test_a_narrow_terminal_shows_what_matters() -> None:
    row = FoundRow(
        peer_id="12D3KooWKT4R3MXsXok4hq59xGx1JubPnfybYn24aSHFQNUEiaBG", addrs=(), source="known", able=True, offers=(),
        refusals=(), free=None, age=None, round_trip=None,
    )  # fmt: skip
    for width, shown in ((60, False), (120, True)):
        console = Console(file=io.StringIO(), width=width, force_terminal=True)
        with Live(console=console) as live:
            _LiveView(live).found(row, ProgressLog().snapshot())
        assert ("round trip" in console.file.getvalue()) is shown
        assert "takes it" in console.file.getvalue()


async def test_the_home_s_configuration_says_where_to_search(
    providers: list[Ready], command: Command, tmp_path: Path
) -> None:
    home = tmp_path / "requester"
    home.mkdir(mode=0o700)
    (home / "peer.yaml").write_text(
        "discovery:\n"
        f"  bootstrap: [{providers[2].addrs[0]}]\n"
        "  mdns: false\n  dht: false\n  exchange: false\n"
        # An error in a section that a requester does not need keeps it from nothing.
        "terms: {unknown: 1}\n"
    )
    code, out, err = await command("discover", "--cpu", "1", "--count", "1", "--json")
    assert code == 0, err
    assert lines(out)[0]["peer_id"] == providers[2].peer_id
    # An option overrides the file.
    code, out, err = await command(
        "discover", "--cpu", "1", "--count", "1", "--json", *bootstrap(providers[:1]), *ALONE
    )
    assert code == 0, err
    assert providers[0].peer_id in {row.get("peer_id") for row in lines(out)}
    # Its bootstrap peers are known by the start of their ids.
    demand = ("--cpu", "1", "--ram", "1GiB", "--disk", "1GiB")
    code, out, err = await command("bid", providers[2].peer_id[8:18], *demand, "--json")
    assert (code, json.loads(out)["peer_id"]) == (0, providers[2].peer_id), err
    file = tmp_path / "ensemble.yaml"
    file.write_text("request:\n- {node_id: a, resources: {cpu: {cores: 1}, ram: {size: 1GiB}, disk: {size: 1GiB}}}\n")
    code, out, err = await command("reserve", "-f", str(file), "--", sys.executable, "-c", "print('held')")
    assert (code, "held" in out) == (0, True), err


@pytest.mark.parametrize("words", [["discover", "--cpu", "1"], ["reserve", "-f", "ensemble.yaml", "--", "true"]])
async def test_a_search_names_an_error_in_its_configuration(
    command: Command, tmp_path: Path, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ensemble.yaml").write_text(
        "request:\n- {node_id: a, resources: {cpu: {cores: 1}, ram: {size: 1GiB}, disk: {size: 1GiB}}}\n"
    )
    home = tmp_path / "requester"
    home.mkdir(mode=0o700)
    (home / "peer.yaml").write_text("discovery: {mdns: perhaps}\n")
    code, _, err = await command(*words)
    assert code == 1
    assert "peer.yaml, line 1" in err
