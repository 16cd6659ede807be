"""The fast path of a command prints the same as the slow path, and accepts only what it understands."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dms_peer import __main__ as program
from dms_peer.cli.fast_path import run_shortcut
from dms_peer.home.home import Home
from dms_peer.owner.client import read_status

ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
MACHINE = {"cpu": {"cores": 8}, "ram": {"size": "32GiB"}, "disk": {"size": "500GiB"}, "gpus": [{"vram": "24GiB"}]}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The home of a peer that runs in another process and offers something."""
    directory = tmp_path_factory.mktemp("owner")
    (directory / "machine.json").write_text(json.dumps(MACHINE))
    home = str(directory / "home")
    command = [sys.executable, "-m", "dms_peer"]
    offer = ["--cpu", "2.5", "--ram", "4GiB", "--disk", "10GiB", "--gpu", "all", "--window", "mon-fri 18:00-08:00"]
    onboard = [*command, "onboard", "--home", home, "--machine", str(directory / "machine.json"), *offer]
    subprocess.run(onboard, env=ENVIRONMENT, check=True, capture_output=True, timeout=60)
    run = [*command, "run", "--home", home, "--listen", "/ip4/127.0.0.1/tcp/0", "--sample-interval", "3600", "--json"]
    with subprocess.Popen(run, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True) as peer:
        try:
            assert peer.stdout is not None
            assert json.loads(peer.stdout.readline())["event"] == "ready"
            # The use is sampled once, and not while the two paths are compared.
            while read_status(Home(Path(home))).usage is None:
                pass
            yield home
        finally:
            peer.terminate()


def outcome(arguments: list[str]) -> tuple[int, str, str]:
    """Exit code and output, without the age of the last sample of the machine's use."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = program.run_command(arguments)
    return code, re.sub(r'"usage_age":[^,]*|sampled .* ago', "", out.getvalue()), err.getvalue()


def long_way(monkeypatch: pytest.MonkeyPatch, arguments: list[str]) -> tuple[int, str, str]:
    with monkeypatch.context() as patched:
        patched.setattr("dms_peer.cli.fast_path.run_shortcut", lambda arguments: False)
        return outcome(arguments)


@pytest.mark.parametrize("options", [[], ["--json"], ["--debug"], ["--json", "--debug"]], ids=" ".join)
def test_both_ways_say_the_same_of_a_running_peer(
    home: str, monkeypatch: pytest.MonkeyPatch, options: list[str]
) -> None:
    short = outcome(["status", *options, "--home", home])
    assert short == long_way(monkeypatch, ["status", *options, "--home", home])
    assert short[0] == 0
    assert "12D3KooW" in short[1]


@pytest.mark.parametrize("options", [[], ["--json"]], ids=" ".join)
def test_both_ways_say_the_same_where_no_peer_runs_or_none_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str]
) -> None:
    arguments = ["status", "--home", str(tmp_path / "home"), *options]
    assert outcome(arguments) == long_way(monkeypatch, arguments)
    (tmp_path / "file").write_text("")
    arguments = ["status", "--home", str(tmp_path / "file"), *options]
    short = outcome(arguments)
    assert short == long_way(monkeypatch, arguments)
    assert short[0] == 1


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nonsense"],
        ["history"],
        ["status", "--help"],
        ["status", "-h"],
        ["status", "--bogus"],
        ["status", "--home"],
        ["status", "--home", ""],
        ["status", "--home", "--json"],
        ["status", "--home=DIR"],
        ["status", "--js"],
        ["status", "more"],
        ["--json", "status"],
    ],
    ids=" ".join,
)
def test_what_is_not_understood_is_left_alone(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dms_peer.owner.client.read_status", lambda home: pytest.fail("it was run"))
    assert run_shortcut(arguments) is False


def imported(*arguments: str) -> set[str]:
    """The slow modules that a command loads."""
    text = (
        "import sys\n"
        "from dms_peer.__main__ import run_command\n"
        "assert run_command(sys.argv[1:]) == 0\n"
        "slow = 'typer trio rich psutil sqlite3 libp2p platformdirs dataclasses dms_peer.cli.tables.status'.split()\n"
        "print(*(name for name in slow if name in sys.modules), file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", text, *arguments],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return set(done.stderr.split())


def test_status_of_a_running_peer_loads_nothing_slow(home: str) -> None:
    assert imported("status", "--home", home) == {"dms_peer.cli.tables.status"}
    assert imported("status", "--home", home, "--json") == set()


def test_what_asks_a_running_peer_needs_no_event_loop(home: str) -> None:
    assert imported("history", "--home", home, "--json") - {"dataclasses", "dms_peer.cli.tables.status"} == {"typer"}


def test_only_the_command_that_is_named_is_loaded() -> None:
    text = (
        "import sys\n"
        "from dms_peer.__main__ import run_command\n"
        "run_command(['audit', '--help'])\n"
        "loaded = {name.rpartition('.')[2] for name in sys.modules if name.startswith('dms_peer.cli.commands.')}\n"
        "assert loaded & {'audit', 'bid', 'run', 'onboard'} == {'audit'}, loaded\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", text], env=ENVIRONMENT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Usage: dms-peer audit [OPTIONS]" in done.stdout
