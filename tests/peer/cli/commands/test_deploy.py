"""Jobs from the command line at a real peer in another process, which runs them with a program of its owner's."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dms_peer.__main__ import run_command

PROGRAM = Path(__file__).parents[4] / "examples" / "executors" / "run_cmd.py"
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "NO_COLOR": "1"}
SMALL = "{cpu: {cores: 0.1}, ram: {size: 64MiB}, disk: {size: 1MiB}}"

STAYS = '{execution: {type: command, cmd: [sh, -c, "echo it runs; exec sleep 3600"]}}'


class Peers:
    """A provider that runs, and the home of a requester."""

    def __init__(self, folder: Path, address: str) -> None:
        self.folder = folder
        self.address = address
        self.home = str(folder / "requester")
        self.search = ("--bootstrap", address, "--no-mdns", "--no-dht")

    def popen(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "dms_peer", *arguments, "--home", self.home],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT,
        )  # fmt: skip

    def run(self, *arguments: str) -> tuple[int, str, str]:
        with self.popen(*arguments) as process:
            try:
                out, err = process.communicate(timeout=120)
            finally:
                process.kill()
        return process.returncode, out, err

    def ensemble(self, name: str, jobs: dict[str, str]) -> str:
        nodes = "\n".join(f"  - {{node_id: {node}, resources: {SMALL}}}" for node in jobs)
        run = "\n".join(f"  {node}: {job}" for node, job in jobs.items())
        path = self.folder / f"{name}.yaml"
        path.write_text(f"id: {name}\nrequest:\n{nodes}\njobs:\n{run}\n")
        return str(path)

    def leases(self) -> list[Any]:
        status = subprocess.run(
            [sys.executable, "-m", "dms_peer", "status", "--json", "--home", str(self.folder / "provider")],
            capture_output=True, text=True, env=ENVIRONMENT, check=True, timeout=60,
        )  # fmt: skip
        return list(json.loads(status.stdout)["leases"])


@pytest.fixture(scope="module")
def peers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peers]:
    folder = tmp_path_factory.mktemp("jobs")
    program = folder / "run_cmd.py"
    shutil.copy(PROGRAM, program)
    program.chmod(0o755)
    home = folder / "provider"
    home.mkdir(0o700)
    (home / "peer.yaml").write_text(
        f"executors:\n  command: {{command: [{program}]}}\naccess: {{shares: {{stranger_capacity: 1000}}}}\n"
    )
    machine = folder / "machine.json"
    machine.write_text(json.dumps({"cpu": {"cores": 8}, "ram": {"size": "8GiB"}, "disk": {"size": "64GiB"}}))
    offer = ("--cpu", "4", "--ram", "4GiB", "--disk", "8GiB", "--gpu", "none")
    assert run_command(["onboard", "--home", str(home), "--machine", str(machine), *offer]) == 0
    with subprocess.Popen(
        [sys.executable, "-m", "dms_peer", "run", "--home", str(home), "--listen", "/ip4/127.0.0.1/tcp/0", "--no-mdns",
         "--no-dht", "--json"],
        stdout=subprocess.PIPE, text=True, env=ENVIRONMENT,
    ) as process:  # fmt: skip
        try:
            assert process.stdout is not None
            ready = json.loads(process.stdout.readline())
            yield Peers(folder, ready["addrs"][0])
        finally:
            process.terminate()
            process.wait(60)


def test_one_command_runs_at_a_peer_with_its_own_exit_code(peers: Peers) -> None:
    code, out, err = peers.run(
        "run-on", peers.address, "--executor", "command", "--cpu", "0.1", "--ram", "64MiB", "--disk", "1MiB",
        "-e", "WORD=hello", "--", "sh", "-c", "echo $WORD; echo oops >&2; exit 3",
    )  # fmt: skip
    assert (code, out) == (3, "hello\n"), err
    assert "oops\n" in err
    assert "exited with code 3" in err
    assert peers.leases() == []


def test_a_deployment_ends_with_its_worst_job_and_gives_everything_back(peers: Peers) -> None:
    path = peers.ensemble(
        "worst",
        {
            "good": "{execution: {type: command, cmd: [echo, fine]}}",
            "bad": '{execution: {type: command, cmd: [sh, -c, "echo broken; exit 7"]}}',
        },
    )
    code, out, err = peers.run("deploy", "-f", path, *peers.search)
    assert code == 7, err
    assert sorted(out.splitlines()) == ["bad  | broken", "good | fine"]
    assert peers.leases() == []
    assert json.loads(peers.run("deployments", "--all", "--json")[1]) == {"jobs": [], "unanswered": []}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_a_deployment_and_gives_everything_back(peers: Peers, number: signal.Signals) -> None:
    file = peers.ensemble("endless", {"a": STAYS, "b": STAYS})
    with peers.popen("deploy", "-f", file, *peers.search) as process:
        try:
            assert process.stdout is not None
            seen = ""
            while seen.count("it runs") < 2:
                line = process.stdout.readline()
                assert line, process.communicate(timeout=60)
                seen += line
            process.send_signal(number)
            _, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 128 + number
    assert "not given back" not in err
    deadline = time.monotonic() + 60
    while peers.leases():
        # What ends is there until its processes are gone.
        assert time.monotonic() < deadline


def test_a_job_that_cannot_start_takes_the_others_back(peers: Peers) -> None:
    path = peers.ensemble(
        "half",
        {
            "good": "{execution: {type: command, cmd: [sleep, 100]}}",
            "bad": "{execution: {type: command}}",
        },
    )
    code, _, err = peers.run("deploy", "-f", path, *peers.search)
    assert code == 1, err
    assert "not all jobs could be started" in err
    deadline = time.monotonic() + 30
    while peers.leases():
        assert time.monotonic() < deadline, "its leases are still there"
        time.sleep(0.2)


def test_what_no_peer_can_run_is_a_refusal(peers: Peers) -> None:
    path = peers.ensemble("docker", {"only": "{execution: {type: docker, image: a}}"})
    code, _, err = peers.run("deploy", "-f", path, "--timeout", "15", *peers.search)
    assert code == 3, err
    assert "executor" in err


def test_a_detached_deployment_is_found_followed_reached_and_stopped(peers: Peers) -> None:
    (peers.folder / "www").mkdir()
    (peers.folder / "www" / "page").write_bytes(b"page" * 100_000)
    serve = f"[{sys.executable}, -u, -m, http.server, '0', --bind, 127.0.0.1, -d, {peers.folder / 'www'}]"
    port = _free_port()
    path = peers.ensemble(
        "detached",
        {
            "web": f"{{execution: {{type: command, cmd: {serve.replace(chr(39) + '0' + chr(39), repr(str(port)))}}}, "
            f"ports: [{{private: {port}}}]}}",
            "loop": '{execution: {type: command, cmd: [sh, -c, "echo begun; sleep 300"]}}',
        },
    )
    code, _, err = peers.run("deploy", "--detach", "-f", path, *peers.search)
    assert code == 0, err
    try:
        listed = json.loads(peers.run("deployments", "--json")[1])
        assert {(one["ensemble_id"], one["node_id"], one["job"]["state"]) for one in listed["jobs"]} == {
            ("detached", "web", "running"),
            ("detached", "loop", "running"),
        }
        assert peers.run("logs", "detached/loop")[1] == "begun\n"
        assert peers.run("logs", "detached/loop", "--offset", "2")[1] == "gun\n"
        with peers.popen("forward", "detached/web", str(port), "--json") as forward:
            try:
                assert forward.stdout is not None
                local = json.loads(forward.stdout.readline())["port"]
                with urllib.request.urlopen(f"http://127.0.0.1:{local}/page", timeout=30) as answer:
                    assert answer.read() == b"page" * 100_000
            finally:
                forward.send_signal(signal.SIGINT)
                assert forward.wait(30) == 130
    finally:
        code, out, err = peers.run("stop", "detached", "--grace", "1", "--json")
    assert code == 0, err
    released = json.loads(out.splitlines()[-1])
    assert (len(released["released"]), released["failed"]) == (2, [])
    assert peers.leases() == []


def test_what_is_not_there_says_so(peers: Peers) -> None:
    for arguments in (("logs", "nothing"), ("stop", "nothing"), ("forward", "nothing", "80")):
        code, _, err = peers.run(*arguments)
        assert code == 1
        assert "deployments" in err
    assert peers.run("forward", "x", "8080:x")[0] == 2
    assert peers.run("stop", "x", "--grace", "2h")[0] == 2


def _free_port() -> int:
    import socket

    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])
