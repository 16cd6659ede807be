"""A command is loaded without garbage collection, and runs with it."""

from __future__ import annotations

import gc
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import dms_peer
from dms_peer.cli.event_loop import run_async

COMMANDS = Path(dms_peer.__file__).parent / "commands"


@pytest.fixture
def uncollected() -> Iterator[None]:
    gc.disable()
    yield
    gc.unfreeze()
    gc.enable()


async def state() -> tuple[bool, int]:
    return gc.isenabled(), gc.get_freeze_count()


def test_garbage_is_looked_for_from_here_on_and_not_in_what_was_loaded(uncollected: None) -> None:
    before = gc.get_freeze_count()
    enabled, kept_out = run_async(state)
    assert enabled
    assert kept_out > before


def test_a_program_that_looks_for_garbage_itself_is_left_alone() -> None:
    before = gc.get_freeze_count()
    assert run_async(state) == (True, before)


def test_every_command_with_an_event_loop_runs_it_here() -> None:
    assert not [path.name for path in COMMANDS.glob("*.py") if "trio.run(" in path.read_text(encoding="utf-8")]


def test_a_command_is_loaded_without_looking_for_garbage(tmp_path: Path) -> None:
    text = (
        "import gc, sys\n"
        "from dms_peer import __main__ as program\n"
        "loaded = 'dms_peer.cli.fast_path' in sys.modules\n"
        "program.run_command = lambda arguments: print(loaded, gc.isenabled()) or 0\n"
        "program.main()\n"
    )
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["False", "False"]
