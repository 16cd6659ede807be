"""The commands that the README shows a new user work unchanged."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from dms_peer.cli.app import COMMANDS
from readme_session import README, block, type_first_minutes

ROOT = Path(__file__).parents[1]


def test_the_first_minutes_typed_word_by_word(tmp_path: Path) -> None:
    commands = tmp_path / "bin"
    commands.mkdir()
    script = commands / "dms-peer"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m dms_peer "$@"\n')
    script.chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{commands}:{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(sys.path),
        "HOME": str(tmp_path),
        "XDG_DATA_HOME": str(tmp_path / "data"),
    }
    type_first_minutes(tmp_path, environment)


def test_the_table_of_commands_is_complete() -> None:
    assert re.findall(r"^\| `dms-peer ([\w-]+)` \|", README, re.MULTILINE) == list(COMMANDS)


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
