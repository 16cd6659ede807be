"""What the README tells a new user to type works as it stands there."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def block(name: str) -> list[str]:
    """The lines of the fenced block behind a marker."""
    found = re.search(rf"^<!-- {name} -->\n```(?:bash|yaml)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    assert found, f"the README has no block {name}"
    return found[1].splitlines()


class Shell:
    """A user's shell: `dms-peer` is on the PATH, and the home directory is empty."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        commands = directory / "bin"
        commands.mkdir()
        script = commands / "dms-peer"
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m dms_peer "$@"\n')
        script.chmod(0o755)
        self.directory = directory
        self._environment = {
            **os.environ,
            "PATH": f"{commands}:{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join(sys.path),
            "HOME": str(directory),
            "XDG_DATA_HOME": str(directory / "data"),
        }

    def run(self, line: str, code: int = 0) -> str:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", line], cwd=self.directory, env=self._environment, timeout=120,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == code, f"{line}\n{done.stdout}{done.stderr}"
        return done.stdout

    def start(self, line: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["bash", "-c", f"exec {line.removesuffix('&')}"], cwd=self.directory, env=self._environment,
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip


@pytest.fixture
def provider(tmp_path: Path) -> Iterator[Shell]:
    """The owner's first five minutes, up to a peer that runs."""
    shell = Shell(tmp_path / "owner")
    lines = block("owner")
    background = [line for line in lines if line.endswith("&")]
    assert background == ["dms-peer run &"]
    before, after = lines[: lines.index(background[0])], lines[lines.index(background[0]) + 1 :]
    for line in before:
        shell.run(line)
    with shell.start(background[0]) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline().startswith("peer 12D3KooW")
            for line in after:
                assert "running" in shell.run(line)
            yield shell
        finally:
            process.terminate()
        assert process.wait(30) == 0


def test_the_first_five_minutes(provider: Shell, tmp_path: Path) -> None:
    address = json.loads(provider.run("dms-peer status --json"))["addrs"][0]
    shell = Shell(tmp_path / "requester")
    script = block("requester")
    assert script[0].startswith("PEER=")
    lease_id = ""
    for line in script[1:]:
        # The dry run asks for more than there is.
        code = 3 if "--dry-run" in line else 0
        output = shell.run(f"PEER={address}; {line.replace('LEASE_ID', lease_id)}", code)
        if " commit " in line:
            lease_id = re.findall(r"lease (\S+) is committed", output)[0]
    assert f"lease {lease_id}" in output
    assert "released" in output
    (shell.directory / "ensemble.yaml").write_text("\n".join(block("ensemble")))
    outputs = [shell.run(f"PEER={address}; {line}") for line in block("search")]
    assert "one peer would take it" in outputs[0]
    assert len(re.findall(r"[0-9a-f]{32}", outputs[1])) == 2, "both nodes were held while the command ran"
    assert address.rpartition("/")[2][:16] in outputs[2]
    for line in block("owner-end"):
        output = provider.run(line)
    assert "offboard" in output


def test_the_two_commands_of_a_new_user() -> None:
    (main,) = block("main-command")
    assert main.startswith("python3 -m venv .venv && .venv/bin/pip install . && .venv/bin/python ")
    assert (ROOT / main.split()[-1]).is_file()
    (tests,) = block("test-command")
    assert tests == "python3 -m venv .venv && .venv/bin/pip install -e '.[test]' && .venv/bin/python -m pytest"


def test_ci_runs_the_test_command_of_the_readme() -> None:
    text = (ROOT / ".ci" / "run").read_text()
    function = text[text.index("readme_command() {") : text.index("command=$(")]
    script = f"{function}\nreadme_command test-command"
    found = subprocess.run(["bash", "-c", script], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert found.splitlines() == block("test-command")


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("http") or (ROOT / target).exists(), target
