"""`dms-peer token`, the list of revoked grants, and tokens and rules at a running peer."""

from __future__ import annotations

import base64
import json
import os
import re
import shlex
import stat
import sys
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from dms_host.keys.identity import load_identity, load_or_create_identity, public_key_of
from dms_peer.__main__ import run_command
from dms_peer.config.access import read_access_file
from dms_peer.errors import DocumentError, PeerError
from dms_peer.home.home import Home
from dms_peer.node import Node, Ready
from dms_peer.owner.revocations import Revocations
from dms_protocols.errors import AccessError
from dms_protocols.tokens.biscuits import granter_of, open_token
from dms_resources.ledger.accounts import Allowance

PEER = "12D3KooWKT4R3MXsXok4hq59xGx1JubPnfybYn24aSHFQNUEiaBG"
OTHER = "12D3KooWEFqgCwFkGcjuuf1JYbF4mF2d1rkqEMbgtW8W8Dq81M1M"
MACHINE = {"cpu": {"cores": 8}, "ram": {"size": "32GiB"}, "disk": {"size": "1TiB"}, "gpus": [{"vram": "24GiB"}]}


@pytest.fixture
def home(tmp_path: Path) -> str:
    return str(tmp_path / "home")


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Runs a command that has to succeed and returns what it prints, as JSON if requested."""

    def run(*arguments: str) -> Any:
        code = run_command(arguments)
        out, err = capsys.readouterr()
        assert code == 0, err
        return json.loads(out) if "--json" in arguments else out

    return run


@pytest.fixture
def failing(capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Runs a command that has to fail. Returns its error and exit code."""

    def run(*arguments: str) -> tuple[str, int]:
        code = run_command([*arguments, "--json"])
        out, err = capsys.readouterr()
        assert err.count("\n") == 1
        return json.loads(out)["error"]["code"], code

    return run


def grants_of(path: Path) -> Any:
    raw = base64.urlsafe_b64decode(path.read_text().strip() + "==")
    return open_token(raw, public_key_of(granter_of(raw)) or b"").grants


def test_an_owner_grants_and_an_organisation_passes_half_on(cli: Any, home: str, tmp_path: Path) -> None:
    whole, half = tmp_path / "whole", tmp_path / "half"
    before = int(time.time())
    cli(
        "token", "create", "--home", home, "--cpu", "8", "--gpus", "1", "--ram", "16GiB", "--disk", "1TiB", "--vram",
        "24GiB", "--leases", "3", "--for", "3d", "-o", str(whole),
    )  # fmt: skip
    shown = cli(
        "token", "attenuate", str(whole), "--cpu", "4", "--peer", PEER, "--provider", PEER, "--operation", "commit",
        "-o", str(half),
    )  # fmt: skip
    grants = grants_of(half)
    assert grants.granted_by == load_identity(Home(Path(home)).key_path).peer_id
    first, second = grants.blocks
    assert first.terms.allowance == Allowance(
        millicores=8000, gpus=1, ram=16 << 30, disk=1 << 40, vram=24 << 30, leases=3
    )
    assert before + 3 * 86400 <= first.terms.expires <= time.time() + 3 * 86400
    assert second.terms.allowance == Allowance(millicores=4000)
    assert (second.terms.peers, second.terms.providers) == (frozenset({PEER}), frozenset({PEER}))
    assert second.terms.operations == frozenset({"commit"})
    assert second.id in shown
    # Only the owner may read a token.
    assert stat.S_IMODE(os.stat(half).st_mode) == 0o600


def test_a_token_in_the_place_of_a_file_that_everybody_could_read_is_its_owners(
    cli: Any, home: str, tmp_path: Path
) -> None:
    path = tmp_path / "old.token"
    path.write_text("something longer than any token is" * 100)
    path.chmod(0o644)
    cli("token", "create", "--home", home, "--cpu", "1", "-o", str(path))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert cli("token", "inspect", str(path), "--home", home, "--json")


def test_a_token_is_printed_where_no_file_is_given(cli: Any, home: str, tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text(cli("token", "create", "--home", home, "--cpu", "1"))
    assert grants_of(path).blocks[0].terms.allowance == Allowance(millicores=1000)


@pytest.mark.parametrize(
    ("until", "end"),
    [
        ("2026-11-27", datetime(2026, 11, 27, 23, 59, 59)),
        ("2026-11-27T18:00", datetime(2026, 11, 27, 18)),
        ("2026-11-27T18:00+00:00", None),
    ],
)
def test_a_day_is_all_of_it_and_a_time_is_local(
    cli: Any, home: str, tmp_path: Path, until: str, end: datetime | None
) -> None:
    cli("token", "create", "--home", home, "--until", until, "-o", str(tmp_path / "token"))
    expected = 1_795_802_400 if end is None else int(end.timestamp())
    assert grants_of(tmp_path / "token").expires == expected


def test_inspect_shows_every_block_and_what_was_revoked(cli: Any, home: str, tmp_path: Path) -> None:
    whole, half = str(tmp_path / "whole"), str(tmp_path / "half")
    cli("token", "create", "--home", home, "--cpu", "8", "--until", "2026-11-27", "-o", whole)
    cli("token", "attenuate", whole, "--gpus", "1", "-o", half)
    shown = cli("token", "inspect", half, "--home", home)
    assert "this home's own key" in shown
    assert "8 cores, until 2026-11-27 23:59:59" in shown
    assert "1 GPU" in shown
    report = cli("token", "inspect", half, "--home", str(tmp_path / "elsewhere"), "--json")
    assert report["own"] is False
    assert report["revoked"] == []
    last = report["grants"]["blocks"][-1]["id"]
    assert cli("token", "revoke", "--home", home, "--token", half, "--reason", "left us") == "1 revoked\n"
    assert cli("token", "inspect", half, "--home", home, "--json")["revoked"] == [last]
    assert cli("token", "inspect", whole, "--home", home, "--json")["revoked"] == []


def test_the_list_of_revoked_grants_is_kept_and_shown(cli: Any, home: str) -> None:
    Path(home).mkdir(mode=0o700)
    load_or_create_identity(Path(home) / "key")
    assert cli("token", "revoke", "--home", home) == "nothing was revoked\n"
    assert cli("token", "revoke", "--home", home, "a" * 32, "b" * 32, "--json")["added"] == 2
    assert cli("token", "revoke", "--home", home, "b" * 32, "c" * 32, "--reason", "why not", "--json")["added"] == 1
    answer = cli("token", "revoke", "--home", home, "--json")
    assert answer["count"] == 3
    assert {one["id"]: one["reason"] for one in answer["revocations"]} == {
        "a" * 32: "", "b" * 32: "", "c" * 32: "why not",
    }  # fmt: skip


def test_what_makes_no_sense_is_said(failing: Any, home: str, tmp_path: Path) -> None:
    missing, noise = str(tmp_path / "missing"), tmp_path / "noise"
    noise.write_text("no token!")
    long = tmp_path / "long"
    long.write_text("A" * 20_000)
    zeros = tmp_path / "zeros"
    zeros.write_text("A" * 400)
    assert failing("token", "inspect", missing) == ("bad_token_file", 1)
    assert failing("token", "inspect", str(noise)) == ("bad_token_file", 1)
    assert failing("token", "inspect", str(long)) == ("bad_token_file", 1)
    assert failing("token", "inspect", str(zeros)) == ("token_invalid", 1)
    assert failing("token", "create", "--home", home, "--until", "friday") == ("usage", 2)
    assert failing("token", "create", "--home", home, "--until", "2026-11-27", "--for", "3d") == ("usage", 2)
    assert failing("token", "create", "--home", home, "--peer", "me") == ("usage", 2)
    assert failing("token", "create", "--home", home, "--operation", "fly") == ("usage", 2)
    assert failing("token", "create", "--home", home, "-o", str(tmp_path / "no" / "where")) == ("bad_token_file", 1)
    assert failing("token", "revoke", "--home", home, "A" * 32) == ("usage", 2)
    assert failing("token", "revoke", "--home", home, "a" * 32, "--reason", "two\nlines") == ("usage", 2)
    assert failing("token") == ("usage", 2)


def test_every_command_of_the_group_has_help_and_json(cli: Any) -> None:
    for command in ("create", "attenuate", "inspect", "revoke"):
        assert command in cli("token", "--help")
        assert "--json" in cli("token", command, "--help")


def test_the_commands_in_the_docs_do_what_they_say(cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    page = (Path(__file__).parents[4] / "docs" / "access.md").read_text()
    lines = re.findall(r"^dms-peer (token .*)$", page, re.MULTILINE)
    assert len(lines) == 7
    for line in lines:
        arguments = [os.path.expanduser(word) for word in shlex.split(line.replace("GRANT_ID", "a" * 32))]
        cli(*arguments)
    allowances = [block.terms.allowance for block in grants_of(tmp_path / "team.token").blocks]
    assert allowances == [Allowance(millicores=8000, gpus=1), Allowance(millicores=4000)]


# The list


def test_a_list_that_cannot_be_read_is_no_empty_list(tmp_path: Path, failing: Any, home: str) -> None:
    path = Home(Path(home)).revocations_path
    path.parent.mkdir()
    for content in (b"what is this?\n", b"\xff\xfe", b"a" * 32 + b"\n"):
        path.write_bytes(content)
        with pytest.raises(PeerError) as caught:
            Revocations(path)
        assert caught.value.code == "bad_revocations"
    assert failing("token", "revoke", "--home", home, "b" * 32) == ("bad_revocations", 1)
    assert path.read_bytes() == b"a" * 32 + b"\n"


async def test_revocations_at_the_same_time_are_all_kept(tmp_path: Path) -> None:
    revocations = Revocations(tmp_path / "revoked")
    ids = [f"{number:032x}" for number in range(20)]
    async with trio.open_nursery() as nursery:
        for one in ids:
            nursery.start_soon(revocations.revoke, (one,), "")
    assert all(one in revocations for one in ids)
    assert [one.id in ids for one in Revocations(tmp_path / "revoked").revocations] == [True] * 20


async def test_a_revocation_that_is_not_on_the_disk_is_not_acknowledged(tmp_path: Path) -> None:
    revocations = Revocations(tmp_path / "missing" / "revoked")
    with pytest.raises(PeerError):
        await revocations.revoke(("a" * 32,), "")
    assert "a" * 32 not in revocations
    for grant, reason in (("x", ""), ("a" * 32, "two\nlines")):
        with pytest.raises(PeerError):
            await Revocations(tmp_path / "revoked").revoke((grant,), reason)


# A running peer


@pytest.fixture
def running(home: str, tmp_path: Path) -> Callable[..., AbstractAsyncContextManager[Ready]]:
    """Opens the home's peer on loopback, with a described machine and rules."""
    machine = tmp_path / "machine.json"
    machine.write_text(json.dumps(MACHINE))
    assert run_command(["onboard", "--home", home, "--machine", str(machine), *OFFER]) == 0

    def open_peer(rules: str) -> AbstractAsyncContextManager[Ready]:
        access = tmp_path / "access.yaml"
        access.write_text(rules)
        return Node(home=Home(Path(home)), listen=("/ip4/127.0.0.1/tcp/0",), access=read_access_file(access)).open()

    return open_peer


OFFER = ("--cpu", "8", "--ram", "16GiB", "--disk", "100GiB")
JOB = ("--ram", "1GiB", "--disk", "1GiB")


async def command(*arguments: str) -> int:
    """A command of another process, from the running peer's point of view."""
    return await trio.to_thread.run_sync(partial(run_command, arguments))


async def test_a_job_is_taken_with_a_token_until_it_is_revoked(
    running: Any, home: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other, bid, token = str(tmp_path / "other"), str(tmp_path / "bid"), str(tmp_path / "token")
    async with running("operations: {commit: token, bid_request: token, free: nobody}") as ready:
        address = ready.addrs[0]
        ask = ("bid", address, "--home", other, *JOB, "-o", bid)

        async def code_of(*arguments: str) -> str:
            assert await command(*arguments, "--json") in (1, 3)
            code: str = json.loads(capsys.readouterr().out.splitlines()[-1])["error"]["code"]
            return code

        assert await command("token", "create", "--home", home, "--cpu", "4", "-o", token) == 0
        assert await code_of("free", address, "--home", other, "--token", token) == "forbidden"
        assert await code_of(*ask, "--cpu", "2") == "token_required"
        assert await code_of(*ask, "--cpu", "5", "--token", token) == "policy"
        assert await command(*ask, "--cpu", "4", "--token", token) == 0
        assert await code_of("commit", address, bid, "--home", other) == "token_required"
        assert await command("commit", address, bid, "--home", other, "--token", token) == 0
        capsys.readouterr()
        assert await command("status", "--home", home, "--json") == 0
        (lease,) = json.loads(capsys.readouterr().out)["leases"]
        assert len(lease["accounts"]) == 1
        assert await command("token", "revoke", "--home", home, "--token", token) == 0
        assert await code_of(*ask, "--cpu", "1", "--token", token) == "token_revoked"
        assert await code_of("allocate", address, lease["lease_id"], "--home", other) == "token_revoked"
        assert await command("release", address, lease["lease_id"], "--home", other) == 0
    async with running("operations: {bid_request: token}") as ready:
        # It stays revoked.
        again = ("bid", ready.addrs[0], "--home", other, *JOB, "--cpu", "1", "--token", token)
        assert await code_of(*again) == "token_revoked"


async def test_an_ensemble_is_reserved_with_a_token(running: Any, home: str, tmp_path: Path) -> None:
    ensemble, token = tmp_path / "ensemble.yaml", str(tmp_path / "token")
    ensemble.write_text(
        "request: [{node_id: a, resources: {cpu: {cores: 2}, ram: {size: 1GiB}, disk: {size: 1GiB}}}]\n"
    )
    assert await command("token", "create", "--home", home, "--cpu", "2", "-o", token) == 0
    async with running("others: token") as ready:
        alone = ("--no-mdns", "--no-dht", "--no-exchange", "--bootstrap", ready.addrs[0])
        ask = ("--home", str(tmp_path / "other"), *alone, "-f", str(ensemble), "--timeout", "8s", "--json")

        async def run(*words: str) -> tuple[int, str]:
            # `reserve` needs the main thread of a process.
            program = [sys.executable, "-m", "dms_peer", *words]
            done = await trio.run_process(program, capture_stdout=True, capture_stderr=True, check=False)
            return done.returncode, done.stdout.decode()

        code, out = await run("discover", *ask)
        assert (code, json.loads(out.splitlines()[-1])["able"]) == (3, 0)
        code, out = await run("discover", *ask, "--token", token)
        assert (code, json.loads(out.splitlines()[-1])["able"]) == (0, 1)
        code, out = await run("reserve", *ask, "--token", token, "--allocate", "--", "true")
        assert (code, json.loads(out)["event"]) == (0, "reserved")
        assert (await run("reserve", *ask, "--", "true"))[0] == 3


async def test_a_share_from_the_file_holds(running: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = str(tmp_path / "other")
    async with running("shares: {peer: {capacity: 500}}") as ready:
        ask = ("bid", ready.addrs[0], "--home", other, *JOB)
        assert await command(*ask, "--cpu", "4") == 0
        assert await command(*ask, "--cpu", "5") == 3
        assert "5 would be outstanding, 4 are allowed" in capsys.readouterr().err


async def test_rules_or_a_list_that_cannot_be_read_stop_the_peer(running: Any, home: str) -> None:
    with pytest.raises(DocumentError):
        async with running("operations: {commit: perhaps}"):
            pytest.fail("it started")
    Home(Path(home)).revocations_path.write_text("perhaps\n")
    with pytest.raises(PeerError, match="revoked"):
        async with running("{}"):
            pytest.fail("it started")


def test_errors_of_tokens_are_the_wires() -> None:
    with pytest.raises(AccessError):
        granter_of(b"")


@pytest.mark.parametrize(
    ("wider", "named"),
    [
        (["--cpu", "3"], "--cpu"),
        (["--ram", "9GiB"], "--ram"),
        (["--leases", "6"], "--leases"),
        (["--operation", "release"], "--operation release"),
        (["--peer", OTHER], f"--peer {OTHER}"),
        (["--provider", OTHER], f"--provider {OTHER}"),
        (["--for", "2d"], "the end of the grant"),
    ],
)
def test_a_token_that_is_passed_on_cannot_claim_more(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], wider: list[str], named: str
) -> None:
    home, whole, part = tmp_path / "home", tmp_path / "whole", tmp_path / "part"
    bounds = ["--cpu", "2", "--ram", "8GiB", "--leases", "5", "--for", "1d", "--operation", "commit"]
    who = ["--peer", PEER, "--provider", PEER]
    assert run_command(["token", "create", *bounds, *who, "--home", str(home), "-o", str(whole)]) == 0
    capsys.readouterr()
    assert run_command(["token", "attenuate", str(whole), *wider, "-o", str(part), "--json"]) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert named in error["message"]
    assert not part.exists()


def test_inspect_shows_what_is_effective_and_create_prints_the_id(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home, whole, part = str(tmp_path / "home"), tmp_path / "whole", tmp_path / "part"
    assert run_command(["token", "create", "--cpu", "4", "--ram", "8GiB", "--home", home]) == 0
    out, err = capsys.readouterr()
    whole.write_text(out)
    assert run_command(["token", "inspect", str(whole), "--home", home, "--json"]) == 0
    first = json.loads(capsys.readouterr().out)
    assert first["grants"]["blocks"][0]["id"] in err
    assert run_command(["token", "attenuate", str(whole), "--cpu", "1", "-o", str(part), "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["id"] == made["grants"]["blocks"][-1]["id"]
    assert run_command(["token", "inspect", str(part), "--home", home, "--json"]) == 0
    effective = json.loads(capsys.readouterr().out)["effective"]
    assert effective["allowance"] == {"millicores": 1000, "ram": 8 * 2**30}
    assert run_command(["token", "inspect", str(part), "--home", home]) == 0
    assert "effective: 1 core, 8 GiB RAM" in capsys.readouterr().out
    assert run_command(["token", "revoke", "--token", str(whole), "--home", home]) == 0
    capsys.readouterr()
    assert run_command(["token", "inspect", str(part), "--home", home]) == 0
    assert "effective: nothing" in capsys.readouterr().out
