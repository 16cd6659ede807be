"""Clients and providers of other languages: every language with every other, over loopback."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import json
import os
import platform
from collections.abc import Callable
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import trio

from dms_host import dial, open_host
from dms_host.keys.identity import load_identity, new_identity
from dms_peer.__main__ import run_command
from dms_peer.clients import open_bids
from dms_peer.home.home import Home
from dms_protocols.bidding.versions import BID_1_0, BID_1_1, BidVersion
from dms_protocols.messages.bid import EnsembleRequest, NodeRequest
from dms_protocols.wire.cbor import encode_deterministic
from dms_protocols.wire.conversion import from_map, to_map
from dms_resources.demands import Demand
from dms_resources.units import GIB

HERE = Path(__file__).parent
MATRIX = HERE / "matrix.json"
PAGE = HERE.parents[1] / "docs" / "interop.md"
BEGIN, END = "<!-- matrix: written by the run -->\n", "<!-- end of the matrix -->\n"
VECTORS = Path(str(files("dms_protocols") / "test_vectors.json"))

LANGUAGES = ["Python", "Go", "JavaScript", "Rust"]
FOREIGN = ["Go", "JavaScript", "Rust"]
LIBRARIES = {"Python": "py-libp2p", "Go": "go-libp2p", "JavaScript": "js-libp2p", "Rust": "rust-libp2p"}
AGREED = {"transport": "tcp", "security": "/noise", "muxer": "/yamux/1.0.0"}
DEMAND = {"cpu": {"cores": 1}, "ram": {"size": GIB}, "disk": {"size": GIB}}


# The Python client: the commands of `dms-peer`


def dms_peer(*arguments: str) -> dict[str, Any]:
    """The output of a command with --json."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(io.StringIO()):
        run_command([*arguments, "--json"])
    return json.loads(printed.getvalue())


def ask_in_python(address: str, home: Path) -> dict[str, Any]:
    """The same steps as the other clients, by commands."""

    def ask(command: str, *arguments: str) -> dict[str, Any]:
        return dms_peer(command, address, *arguments, "--home", str(home))

    bid_file, amounts = str(home / "bid.cbor"), ["--ram", "1GiB", "--disk", "1GiB"]
    found: dict[str, Any] = {"free_before": ask("free")}
    found["bid"] = ask("bid", "--cpu", "1", *amounts, "-o", bid_file)["bid"]
    found["committed"], found["again"] = (ask("commit", bid_file, "--ttl", "60") for _ in range(2))
    lease_id = found["lease_id"] = found["committed"]["lease_id"]
    found["stale_fence"] = ask("allocate", lease_id, "--fence", "12345")["error"]["code"]
    found["allocated"] = ask("allocate", lease_id, "--fence", str(found["committed"]["fence"]))
    found["free_during"] = ask("free")
    found["released"] = ask("release", lease_id)
    found["free_after"] = ask("free")
    found["refusals"] = [ask("bid", "--cpu", "99", *amounts)["error"]]
    identity = load_identity(Home(home).key_path)
    return {**found, "peer_id": identity.peer_id, "connection": trio.run(_agreed, identity, address)}


async def _agreed(identity: Any, address: str) -> dict[str, Any]:
    async with open_host(identity) as host:
        peer_id = await dial(host, address)
        (connection,) = (one for one in host.swarm.get_connections() if str(one.muxed_conn.peer_id) == peer_id)
        muxed = connection.muxed_conn
        security, muxer = muxed.negotiated_security_protocol, muxed.negotiated_muxer_protocol
        return {"transport": "tcp", "security": security, "muxer": muxer}


# What every client has to find at every provider


def check_free(report: dict[str, Any]) -> None:
    before, during, after = (report[f"free_{when}"] for when in ("before", "during", "after"))
    assert (before["cpu"]["cores"], before["ram"]["size"], before["disk"]["size"]) == (4, 16 * GIB, 100 * GIB)
    assert (before["onboarded"], before["draining"], before["simulated"]) == (True, False, True)
    assert (during["cpu"]["cores"], during["ram"]["size"], during["disk"]["size"]) == (3, 15 * GIB, 99 * GIB)
    assert after == before


def check_bid(report: dict[str, Any], provider: str) -> None:
    bid = report["bid"]
    assert (bid["provider"], bid["requester"]) == (provider, report["peer_id"])
    assert _without_zeros(bid["demand"]) == _without_zeros(bid["resources"]) == DEMAND
    assert bid["simulated"] is True
    assert bid["valid_until"] > report["committed"]["created"]
    named = {
        "requester": report["peer_id"],
        "request_digest": _octets(bid["request_digest"]),
        "node_id": bid["node_id"],
        "provider": provider,
    }
    assert bid["lease_id"] == hashlib.sha256(encode_deterministic(named)).hexdigest()[:32]


def check_lease(report: dict[str, Any]) -> None:
    committed, allocated, released = report["committed"], report["allocated"], report["released"]
    assert (committed["lease_id"], committed["holder"]) == (report["bid"]["lease_id"], report["peer_id"])
    assert (committed["state"], committed["ttl"]) == ("committed", 60)
    assert _without_zeros(committed["demand"]) == _without_zeros(committed["resources"]) == DEMAND
    assert committed["deadline"] == pytest.approx(committed["created"] + 60)
    assert report["again"] == committed
    timed = {"state", "ttl", "deadline", "longest"}
    unchanged = {name: value for name, value in committed.items() if name not in timed}
    assert {name: value for name, value in allocated.items() if name not in timed} == unchanged
    assert allocated["state"] == "allocated"
    # A provider may end an allocation that its holder does not renew.
    assert allocated.get("deadline") is None or allocated["deadline"] > allocated["created"]
    assert (released["lease_id"], released["holder"]) == (committed["lease_id"], committed["holder"])
    assert (released["fence"], released["state"], released["reason"]) == (committed["fence"], "allocated", "released")
    assert committed["created"] <= released["ended"] <= committed["deadline"]


def check_refusals(report: dict[str, Any]) -> None:
    assert report["stale_fence"] == "stale_fence"
    (refusal,) = report["refusals"]
    assert refusal["code"] == "resources"
    short = {"dimension": "cpu", "asked": {"cores": 99}, "free": {"cores": 4}, "total": {"cores": 4}}
    assert _without_zeros(refusal["shortages"]) == [short]


def _without_zeros(value: Any) -> Any:
    """The value without empty fields: the commands write every field, the wire leaves out what has its default."""
    if isinstance(value, list):
        return [_without_zeros(one) for one in value]
    if isinstance(value, dict):
        return {name: _without_zeros(one) for name, one in value.items() if one not in (0, "", [], None, False)}
    return value


def check_envelope(report: dict[str, Any], provider: str) -> None:
    """What the clients in other languages report in addition to the commands: their own library opened the envelope."""
    assert report["signer"] == provider
    assert report["digest"] == report["bid"]["request_digest"]
    assert report["lease_id"] == report["bid"]["lease_id"]
    assert "signature" in report["tampered_here"]
    assert report["tampered"] == "bad_signature"
    assert report["unknown_operation"] == "unknown_operation"
    assert report["pipelined"] == 64


def _octets(value: Any) -> bytes:
    return bytes.fromhex(value["hex"]) if isinstance(value, dict) else base64.b64decode(value)


# The matrix


class Matrix:
    """Every tested pair, with the negotiated protocols, and the versions of the software."""

    def __init__(self, programs: Any, scratch: Callable[[str], Path]) -> None:
        self._programs = programs
        self._scratch = scratch
        self._agreed: dict[tuple[str, str], dict[str, str]] = {}
        self._versions: dict[str, dict[str, str]] = {
            "Python": {"runtime": platform.python_version(), "libp2p": version("libp2p")}
        }

    def trade(self, client: str, provider: str) -> None:
        """One client makes a whole trade with one provider, and every answer is checked. Done once for each pair."""
        if (client, provider) in self._agreed:
            return
        with self._programs.provider(provider) as peer:
            report = self._ask(client, peer.address)
            assert report["connection"] == AGREED
            check_free(report)
            check_bid(report, peer.peer_id)
            check_lease(report)
            check_refusals(report)
            if client in FOREIGN:
                check_envelope(report, peer.peer_id)
                self._versions[client] = report["versions"]
            if provider in FOREIGN:
                # The provider reports the same about the connection.
                assert peer.next_line() == {"connected": report["peer_id"], "connection": AGREED}
        self._agreed[client, provider] = report["connection"]

    def result(self, languages: list[str]) -> dict[str, Any]:
        """The results when all pairs were tested."""
        pairs = [(client, provider) for client in languages for provider in languages]
        for client, provider in pairs:
            self.trade(client, provider)
        trades = [
            {"client": client, "provider": provider, **self._agreed[client, provider]} for client, provider in pairs
        ]
        return {"versions": self._versions, "trades": trades}

    def _ask(self, client: str, address: str) -> dict[str, Any]:
        if client == "Python":
            return ask_in_python(address, self._scratch("requester"))
        return self._programs.ask(client, "client", address)


@pytest.fixture(scope="module")
def matrix(programs: Any, tmp_path_factory: pytest.TempPathFactory) -> Matrix:
    return Matrix(programs, tmp_path_factory.mktemp)


@pytest.mark.parametrize("provider", LANGUAGES)
@pytest.mark.parametrize("client", LANGUAGES)
def test_a_client_takes_and_returns_what_a_provider_offers(
    matrix: Matrix, programs: Any, client: str, provider: str
) -> None:
    programs.need(client, provider)
    matrix.trade(client, provider)


# Versions


@pytest.mark.parametrize(("options", "agreed"), [([], BID_1_1), (["--first"], BID_1_0)], ids=["both", "the first"])
@pytest.mark.parametrize("language", FOREIGN)
def test_a_client_of_another_hand_and_our_provider_agree_on_the_newest_version_that_both_have(
    programs: Any, language: str, options: list[str], agreed: BidVersion
) -> None:
    programs.need(language)
    with programs.provider("Python") as peer:
        report = programs.ask(language, *options, "client", peer.address)
    assert report["bid_protocol"] == agreed.protocol
    # The digest that its own code computed in that version is that of our bid.
    check_bid(report, peer.peer_id)
    check_envelope(report, peer.peer_id)


@pytest.mark.parametrize(("options", "agreed"), [([], BID_1_1), (["--first"], BID_1_0)], ids=["both", "the first"])
@pytest.mark.parametrize("language", FOREIGN)
def test_our_client_and_a_provider_of_another_hand_agree_on_the_newest_version_that_both_have(
    programs: Any, language: str, options: list[str], agreed: BidVersion
) -> None:
    programs.need(language)
    with programs.provider(language, *options) as peer:
        digest = trio.run(_digest_of_a_bid, peer.address)
    assert digest == agreed.digest(to_map(WHOLE))


# Its numbers are floats, even whole ones: the versions have different digests of it.
WHOLE = EnsembleRequest(
    id="e", nonce=2**60, deadline=2e9, request=(NodeRequest(node_id="n", resources=from_map(DEMAND, Demand)),)
)


async def _digest_of_a_bid(address: str) -> bytes:
    async with open_host(new_identity()) as host:
        peer_id = await dial(host, address)
        # A bid is accepted only if its digest matches.
        async with open_bids(host, peer_id) as bids:
            (signed,) = (await bids.request_bids(WHOLE)).bids
            return signed.bid.request_digest


# The vectors


@pytest.mark.parametrize("language", FOREIGN)
def test_another_library_reads_the_vectors(programs: Any, language: str) -> None:
    read = programs.ask(language, "vectors", str(VECTORS))
    assert read["frames"] == [frame["meaning"] for frame in json.loads(VECTORS.read_text())["frames"]]
    assert read["derived"] is True


@pytest.mark.parametrize("language", FOREIGN)
def test_another_library_notices_a_changed_vector(programs: Any, language: str, tmp_path: Path) -> None:
    vectors = json.loads(VECTORS.read_text())
    answer = next(frame for frame in vectors["frames"] if frame["meaning"] == "the answer to free")
    answer["message"]["ok"]["cpu"]["cores"] += 1
    (tmp_path / "changed.json").write_text(json.dumps(vectors))
    programs.need(language)
    with pytest.raises(AssertionError, match="the answer to free"):
        programs.ask(language, "vectors", str(tmp_path / "changed.json"))


def test_the_structs_of_a_go_program_are_the_recorded_ones(programs: Any) -> None:
    recorded = Path(__file__).parents[1] / "protocols" / "wire" / "go_structs.json"
    assert programs.ask("Go", "structs") == json.loads(recorded.read_text())


def test_the_matrix_is_what_the_run_found(matrix: Matrix, programs: Any) -> None:
    # Rust is left out of the quick run.
    tried = LANGUAGES if os.environ.get("DMS_INTEROP") != "1" else [one for one in LANGUAGES if one != "Rust"]
    programs.need(*tried)
    found = matrix.result(tried)
    if os.environ.get("DMS_INTEROP") == "write":
        MATRIX.write_text(json.dumps(found, indent=2) + "\n")
        before, _, rest = PAGE.read_text().partition(BEGIN)
        PAGE.write_text(before + BEGIN + render(found) + END + rest.partition(END)[2])
    known = json.loads(MATRIX.read_text())
    assert _lasting(found) == _lasting(_among(known, tried)), "write it anew: DMS_INTEROP=write"


def _among(result: dict[str, Any], languages: list[str]) -> dict[str, Any]:
    """The part of a matrix that is about these languages."""
    return {
        "versions": {one: version for one, version in result["versions"].items() if one in languages},
        "trades": [one for one in result["trades"] if {one["client"], one["provider"]} <= set(languages)],
    }


def test_the_page_shows_the_matrix() -> None:
    assert BEGIN + render(json.loads(MATRIX.read_text())) + END in PAGE.read_text()


def _lasting(result: dict[str, Any]) -> dict[str, Any]:
    """Without what differs between machines: runtimes, and the patch release of py-libp2p."""
    libraries = {language: one["libp2p"] for language, one in result["versions"].items()}
    return {**result, "versions": {**libraries, "Python": libraries["Python"].rpartition(".")[0]}}


def render(result: dict[str, Any]) -> str:
    """The tables of docs/interop.md."""
    versions, trades = result["versions"], result["trades"]
    lines = ["| client | " + " | ".join(f"{one} provider" for one in LANGUAGES) + " |"]
    lines.append("| --- |" + " --- |" * len(LANGUAGES))
    for client in LANGUAGES:
        cells = [_cell(trades, client, provider) for provider in LANGUAGES]
        lines.append(f"| {client} | {' | '.join(cells)} |")
    lines += ["", "| language | library | ran on |", "| --- | --- | --- |"]
    for language in LANGUAGES:
        one = versions[language]
        runtime = f"{'Node' if language == 'JavaScript' else language} {one['runtime'].removeprefix('go').lstrip('v')}"
        lines.append(f"| {language} | {LIBRARIES[language]} {one['libp2p'].lstrip('v')} | {runtime} |")
    return "\n" + "\n".join(lines) + "\n\n"


def _cell(trades: list[dict[str, str]], client: str, provider: str) -> str:
    return "trades" if {"client": client, "provider": provider, **AGREED} in trades else "not tried"
