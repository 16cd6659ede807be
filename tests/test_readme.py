"""What the README tells a new user to type works as it stands there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from dms_peer.cli.app import COMMANDS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def block(name: str) -> list[str]:
    """The lines of the fenced block behind a marker."""
    found = re.search(rf"^<!-- {name} -->\n```(?:bash|yaml)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    assert found, f"the README has no block {name}"
    return found[1].splitlines()


def _typed(lines: list[str]) -> str:
    """A script that types the lines one after another in one shell, and reports each line's exit code."""
    typed = []
    for number, line in enumerate(lines):
        typed.append(f"{line}\n" if line.endswith("&") else f"{line}\nprintf '\\n@@ {number} %s\\n' $?\n")
    return "set -m\ntrap 'kill $(jobs -p) 2>/dev/null; wait' EXIT\n" + "".join(typed)


def test_the_first_minutes_typed_word_by_word(tmp_path: Path) -> None:
    commands = tmp_path / "bin"
    commands.mkdir()
    script = commands / "dms-peer"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m dms_peer "$@"\n')
    script.chmod(0o755)
    (tmp_path / "ensemble.yaml").write_text("\n".join(block("ensemble")))
    lines = [line for name in ("owner", "requester", "search", "owner-end") for line in block(name)]
    environment = {
        **os.environ,
        "PATH": f"{commands}:{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(sys.path),
        "HOME": str(tmp_path),
        "XDG_DATA_HOME": str(tmp_path / "data"),
    }
    done = subprocess.run(
        ["bash", "-c", _typed(lines)], cwd=tmp_path, env=environment, timeout=240,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    text = done.stdout + done.stderr
    outputs = re.split(r"\n@@ (\d+) (\d+)\n", done.stdout)
    said = {lines[int(outputs[at + 1])]: (int(outputs[at + 2]), outputs[at]) for at in range(0, len(outputs) - 1, 3)}
    for line, (code, output) in said.items():
        # The dry run asks for more than there is.
        assert code == (3 if "--dry-run" in line else 0), f"{line}\n{output}\n{text}"
    assert len(said) == len([line for line in lines if not line.endswith("&")]), text
    assert "not running" not in text
    (held,) = [output for line, (_, output) in said.items() if line.startswith("dms-peer reserve")]
    assert len(re.findall(r"[0-9a-f]{32}", held)) == 2, "both nodes were held while the command ran"
    assert "released" in said["dms-peer release $PEER $LEASE"][1]
    assert "offboard" in said["dms-peer history"][1]


def test_the_table_of_commands_is_complete() -> None:
    assert re.findall(r"^\| `dms-peer (\w+)` \|", README, re.MULTILINE) == list(COMMANDS)


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
