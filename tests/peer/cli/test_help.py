"""The help of each command has an example, and the example is one that the command takes."""

from __future__ import annotations

import re

import pytest

from dms_peer.__main__ import run_command
from dms_peer.cli.app import COMMANDS

GROUPS = {
    "config": ("show", "check", "init"),
    "token": ("create", "attenuate", "inspect", "revoke"),
}
ALL = [(name, *below) for name in COMMANDS for below in ([(one,) for one in GROUPS[name]] if name in GROUPS else [()])]


def help_of(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> str:
    assert run_command([*words, "--help"]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("words", ALL, ids=" ".join)
def test_the_help_of_a_command_has_an_example_with_its_own_options(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    shown = help_of(words, capsys)
    text = " ".join(shown.partition("╭")[0].split())
    found = re.search(r"Example: (dms-peer .+)$", text)
    assert found, text
    example = found[1].partition(" -- ")[0]
    assert example.startswith(f"dms-peer {' '.join(words)}"), example
    for option in re.findall(r"(?<= )--?[a-z][a-z-]*", example):
        assert re.search(rf"(?<![a-z-]){option}(?![a-z-])", shown), option


def test_each_group_has_the_commands_that_are_looked_at(capsys: pytest.CaptureFixture[str]) -> None:
    for group, names in GROUPS.items():
        listed = set(re.findall(r"^│ ([a-z-]+) ", help_of((group,), capsys), re.MULTILINE))
        assert {name for name in listed if not name.startswith("-")} == set(names)
