"""`dms-peer bid` and `commit` for one node and for an ensemble file, against a running peer."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from libp2p.peer.envelope import unmarshal_envelope

from dms_host.keys.identity import load_identity
from dms_peer.__main__ import run_command
from dms_peer.cli.bid_files import read_bids
from dms_peer.config.access import OwnerAccess
from dms_peer.config.terms import read_terms_file
from dms_peer.home.home import Home
from dms_peer.node import Node, Ready
from dms_peer.owner import client as owner
from dms_peer.owner.offers import GPUChoice, Offer
from dms_protocols.rpc.limits import Shares
from dms_resources.components import PortRange
from dms_resources.units import GIB, Cores

# These tests are not about strangers: anyone may take the whole offer.
WHOLE_OFFER = OwnerAccess(shares=Shares())


MACHINE = {"cpu": {"cores": 8}, "ram": {"size": "32GiB"}, "disk": {"size": "1TiB"}, "gpus": [{"vram": "24GiB"}]}
OFFER = Offer(
    cpu=Cores.of(8),
    ram=16 * GIB,
    disk=100 * GIB,
    gpus=(GPUChoice(device="all"),),
    hold=60.0,
    port_range=PortRange(first=20000, last=20999),
)
TERMS = """
location: {continent: Europe, country: DE}
executors: [docker]
prices: {currency: EUR, core: 0.1}
"""
ONE = ["--cpu", "1", "--ram", "1B", "--disk", "1B"]
SMALL = "resources: {cpu: {cores: 1}, ram: {size: 1B}, disk: {size: 1B}}"
ABSENT = "/ip4/127.0.0.1/tcp/1/p2p/12D3KooWKT4R3MXsXok4hq59xGx1JubPnfybYn24aSHFQNUEiaBG"
OTHER = "12D3KooWKT4R3MXsXok4hq59xGx1JubPnfybYn24aSHFQNUEiaBG"
ENSEMBLE = """
id: e
request:
- node_id: trainer
  executors: [docker]
  resources: {{cpu: {{cores: 2}}, ram: {{size: 4GiB}}, disk: {{size: 1GiB}}, gpus: [{{vram: 8GiB}}]}}
  location: {{accept: [{{continent: Europe}}]}}
  public_ports: {{dynamic: 2}}
- node_id: store
  resources: {{cpu: {{cores: {cores}}}, ram: {{size: {ram}}}, disk: {{size: 1GiB}}}}
- node_id: elsewhere
  peer: {peer}
  resources: {{cpu: {{cores: 1}}, ram: {{size: 1GiB}}, disk: {{size: 1GiB}}}}
"""


@pytest.fixture
async def ready(tmp_path: Path) -> AsyncIterator[Ready]:
    """A peer on loopback that offers a part of a described machine, with terms."""
    machine, terms = tmp_path / "machine.json", tmp_path / "terms.yaml"
    machine.write_text(json.dumps(MACHINE))
    terms.write_text(TERMS)
    home = Home(tmp_path / "provider")
    await trio.to_thread.run_sync(partial(owner.onboard_resources, home, OFFER, str(machine)))
    async with Node(
        home=home, listen=("/ip4/127.0.0.1/tcp/0",), access=WHOLE_OFFER, terms=read_terms_file(terms)
    ).open() as peer:
        yield peer


@pytest.fixture
def command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Awaitable[tuple[int, str, str]]]:
    """Runs a command of the requester. Returns its exit code, and what it prints on stdout and on stderr."""

    async def run(*arguments: str) -> tuple[int, str, str]:
        line = [*arguments, "--home", str(tmp_path / "requester")]
        code = await trio.to_thread.run_sync(run_command, line)
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture
def file(tmp_path: Path) -> Callable[..., str]:
    """Writes an ensemble file and returns its name."""

    def write(*, head: str = "", cores: int = 1, ram: str = "1GiB", peer: str = OTHER) -> str:
        path = tmp_path / "ensemble.yaml"
        path.write_text(head + ENSEMBLE.format(cores=cores, ram=ram, peer=peer))
        return str(path)

    return write


async def test_an_ensemble_is_bid_for_written_and_taken_together(
    ready: Ready, command: Any, file: Any, tmp_path: Path
) -> None:
    at, bids = ready.addrs[0], tmp_path / "bids.cbor"
    code, out, _ = await command("bid", at, "-f", file(), "-o", str(bids), "--hold", "30", "--json")
    report = json.loads(out)
    assert code == 0
    assert [(one["bid"]["node_id"], one["bid"].get("held")) for one in report["bids"]] == [
        ("trainer", True), ("store", True),
    ]  # fmt: skip
    assert report["bids"][0]["bid"]["price"] == {"micros_per_hour": 200_000, "currency": "EUR"}
    assert report["bids"][0]["bid"]["public_ports"] == {"static": [], "dynamic": 2}
    assert (report["not_asked"], report["refusals"], report["file"]) == (["elsewhere"], [], str(bids))
    envelopes = read_bids(bids.read_bytes())
    for envelope in envelopes:
        unmarshal_envelope(envelope).validate("dms-bid")
    code, out, _ = await command("commit", at, str(bids), "--ttl", "60", "--json")
    taken = json.loads(out)
    assert (code, taken["peer_id"]) == (0, ready.peer_id)
    assert [lease["state"] for lease in taken["leases"]] == ["committed"] * 2
    assert [lease["price"]["micros_per_hour"] for lease in taken["leases"]] == [200_000, 100_000]
    holder = load_identity(tmp_path / "requester" / "key").peer_id
    assert {lease["holder"] for lease in taken["leases"]} == {holder}


async def test_people_see_bids_prices_and_every_shortage_of_each_node(ready: Ready, command: Any, file: Any) -> None:
    code, out, err = await command("bid", ready.addrs[0], "-f", file(cores=9, ram="99GiB"))
    assert code == 3
    assert err == f"dms-peer: {ready.peer_id} refuses 1 of 2 nodes\n"
    for words in ("trainer", "price of trainer: 0.2 EUR per hour", "not asked about elsewhere", "not kept"):
        assert words in out
    (cpu,) = (line for line in out.splitlines() if "cpu: 9 cores asked, 6 cores free of 8 cores" in line)
    assert cpu.split()[:2] == ["store", "resources"]
    assert "ram: 99 GiB asked, 12 GiB free of 16 GiB" in out


async def test_what_is_refused_is_told_and_what_is_bid_is_still_written(
    ready: Ready, command: Any, file: Any, tmp_path: Path
) -> None:
    bids = tmp_path / "bids.cbor"
    code, out, _ = await command("bid", ready.addrs[0], "-f", file(cores=9), "-o", str(bids), "--json")
    report = json.loads(out)
    assert code == 3
    assert [(one["node_id"], one["code"]) for one in report["refusals"]] == [("store", "resources")]
    assert read_bids(bids.read_bytes()) == (bids.read_bytes(),), "one bid is its envelope"
    code, _, _ = await command("commit", ready.addrs[0], str(bids))
    assert code == 0


async def test_a_dry_run_of_an_ensemble(ready: Ready, command: Any, file: Any) -> None:
    code, out, _ = await command("bid", ready.addrs[0], "-f", file(), "--dry-run", "--json")
    report = json.loads(out)
    assert (code, report["dry_run"], report["file"]) == (0, True, None)
    assert [(one["bid"]["node_id"], one["envelope"]) for one in report["bids"]] == [("trainer", None), ("store", None)]
    code, out, _ = await command("bid", ready.addrs[0], "-f", file(), "--dry-run")
    assert "would bid (dry run)" in out
    assert "not kept" not in out


async def test_all_of_several_bids_are_taken_or_none(ready: Ready, command: Any, file: Any, tmp_path: Path) -> None:
    at, bids = ready.addrs[0], tmp_path / "bids.cbor"
    assert (await command("bid", at, "-f", file(), "-o", str(bids)))[0] == 0
    other = tmp_path / "other.cbor"
    assert (await command("bid", at, "--cpu", "6", "--ram", "1GiB", "--disk", "1GiB", "-o", str(other)))[0] == 0
    assert (await command("commit", at, str(other)))[0] == 0
    # Two cores are left; the trainer alone would fit.
    code, out, _ = await command("commit", at, str(bids), "--json")
    assert (code, json.loads(out)["error"]["code"]) == (3, "insufficient")
    code, out, _ = await command("free", at, "--json")
    assert json.loads(out)["cpu"]["cores"] == 2


async def test_the_options_for_one_node(ready: Ready, command: Any) -> None:
    node = ["bid", ready.addrs[0], "--cpu", "1", "--ram", "1GiB", "--disk", "1GiB", "--json"]

    async def code(*options: str) -> str:
        exit_code, out, _ = await command(*node, *options)
        answer = json.loads(out)
        assert exit_code == (3 if "error" in answer else 0)
        return answer["error"]["code"] if "error" in answer else "bid"

    assert await code("--location", "Europe", "--not-location", "Europe/FR", "--executor", "docker") == "bid"
    assert await code("--location", "Asia", "--location", "/DE") == "bid"
    assert await code("--location", "Asia") == "location"
    assert await code("--not-location", "/DE") == "location"
    assert await code("--executor", "docker", "--executor", "firecracker") == "executor"
    assert await code("--port", "20000", "--port", "20001", "--ports", "3") == "bid"
    assert await code("--port", "80") == "ports"
    # This many may be requested, which is more than there are.
    assert await code("--ports", "1024") == "ports"
    assert await code("--ports", "1024", "--dry-run") == "ports"
    assert await code("--port", "20000", "--ports", "999", "--dry-run") == "bid"


async def test_an_ensemble_of_which_nothing_is_for_this_peer(ready: Ready, command: Any, tmp_path: Path) -> None:
    path = tmp_path / "pinned.yaml"
    resources = "{cpu: {cores: 1}, ram: {size: 1B}, disk: {size: 1B}}"
    path.write_text(f"request: [{{node_id: a, peer: {OTHER}, resources: {resources}}}]")
    code, out, _ = await command("bid", ready.addrs[0], "-f", str(path), "--json")
    assert (code, json.loads(out)["error"]["code"]) == (1, "other_peer")
    path.write_text(f"request: [{{node_id: a, peer: {ready.peer_id}, resources: {resources}}}]")
    assert (await command("bid", ready.addrs[0], "-f", str(path)))[0] == 0


async def test_nodes_for_different_peers_are_not_written_to_be_committed_at_one(
    ready: Ready, command: Any, file: Any, tmp_path: Path
) -> None:
    name, bids = file(head="different_peers: true"), tmp_path / "bids.cbor"
    code, out, _ = await command("bid", ready.addrs[0], "-f", name, "-o", str(bids), "--json")
    assert (code, json.loads(out)["error"]["code"]) == (1, "different_peers")
    assert not bids.exists()
    assert (await command("bid", ready.addrs[0], "-f", name))[0] == 0


@pytest.mark.parametrize(
    ("arguments", "exit_code", "code", "fragment"),
    [
        (["--cpu", "1", "--ram", "1GiB"], 2, "usage", "-f"),
        (["-f", "e.yaml", "--cpu", "1"], 2, "usage", "leave the other demand options"),
        (["-f", "e.yaml", "--ports", "1"], 2, "usage", "leave the other demand options"),
        (["-f", "e.yaml", "--dry-run", "-o", "x"], 2, "usage", "-o"),
        ([*ONE, "--port", "0"], 2, "usage", "--port"),
        ([*ONE, "--location", "a/b/c/d"], 2, "usage", "Europe/DE"),
        ([*ONE, "--location", "/"], 2, "usage", "Europe/DE"),
        ([*ONE, *["--gpu", "1B"] * 65], 2, "usage", "64 GPUs"),
        ([*ONE, "--ports", "1025"], 2, "usage", "1024"),
        ([*ONE, "--ports", "65000", "--dry-run"], 2, "usage", "1024"),
        ([*ONE, "--port", "20000", "--ports", "1024"], 2, "usage", "at most 1024 ports"),
        (
            ["-f", "ports.yaml"],
            1,
            "bad_ensemble",
            "ports.yaml, line 3, column 3: request[1]: the nodes up to this one",
        ),
        (["-f", "absent.yaml"], 1, "bad_ensemble", "cannot read absent.yaml"),
        (["-f", "bad.yaml"], 1, "bad_ensemble", "bad.yaml, line 1, column 1: reqest: unknown field"),
    ],
)
async def test_a_command_line_or_file_that_makes_no_sense(
    command: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    exit_code: int,
    code: str,
    fragment: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.yaml").write_text("reqest: []")
    nodes = [f"- {{node_id: n{ports}, {SMALL}, public_ports: {{dynamic: {ports}}}}}\n" for ports in (1024, 1)]
    (tmp_path / "ports.yaml").write_text("request:\n" + "".join(nodes))
    found, out, err = await command("bid", ABSENT, *arguments, "--json")
    assert (found, json.loads(out)["error"]["code"]) == (exit_code, code)
    assert fragment in err
