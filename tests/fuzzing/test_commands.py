"""A little of what the fuzzers of the command line and of live connections do for longer, as commands."""

from __future__ import annotations

import random
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest

from dms_fuzzing.command_lines import Values, command_lines, commands
from dms_fuzzing.sequences import Finding, open_world
from dms_peer.cli.app import COMMANDS

HERE = Path(__file__).parent
VALUES = Values(homes=("h",), addresses=("a",), peer_ids=("p",), leases=("l",), files=("f",), outputs=("o",))


def test_every_command_is_a_target() -> None:
    assert {command.words[0] for command in commands()} == set(COMMANDS)


def test_the_command_lines_repeat_and_name_every_option() -> None:
    def first() -> list[list[str]]:
        return list(islice(command_lines(VALUES, random.Random(3)), 6000))

    lines = first()
    assert lines == first()
    named = {(line[0], word.partition("=")[0]) for line in lines if line for word in line}
    missing = {
        (command.words[0], name)
        for command in commands()
        for names, _, _ in command.options
        for name in names
        if (command.words[0], name) not in named
    }
    assert not missing


def test_command_lines_end_with_coded_errors_only() -> None:
    command = [sys.executable, str(HERE / "command_lines.py"), "--inputs", "100", "--seed", "4", "--teaching", "20"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "100 command lines, 0 failed" in done.stdout


async def test_sequences_over_live_connections_leave_nothing_behind() -> None:
    async with open_world() as world:
        await world.play(1, 2.0)
        assert world.done["ok"]
        assert any(what.startswith("error ") for what in world.done)


async def test_a_round_that_leaves_something_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dms_fuzzing.sequences.SETTLING", 0.5)
    async with open_world() as world:
        world._shares._total.streams += 1
        with pytest.raises(Finding, match="'streams': 1"):
            await world.play(1, 0.1)
