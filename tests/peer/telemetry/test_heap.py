"""Memory is returned to the system: in separate processes, because earlier allocations here would affect the result."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="this machine has no glibc")

BEGIN = """
import json, os, sys
from dms_peer.telemetry.heap import return_free_memory, use_system_allocator
print("begun", flush=True)
use_system_allocator()
"""

SAY = """
print(json.dumps([os.environ.get("PYTHONMALLOC"), sys.argv, sys.orig_argv[1:]]))
"""

# One in a hundred of a crowd's allocations stays: enough to keep each of Python's arenas, but not each page.
CROWD = """
import psutil, trio
size = lambda: psutil.Process().memory_info().rss
before = size()
crowd = [bytes(400) for _ in range(150_000)]
stays = crowd[::100]
full = size()
del crowd

async def main():
    async with trio.open_nursery() as nursery:
        nursery.start_soon(return_free_memory, 0.01)
        with trio.move_on_after(SECONDS):
            while size() - before > (full - before) / 2:
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()

trio.run(main)
print(json.dumps((size() - before) / (full - before)))
"""


def run_script(folder: Path, script: str, *arguments: str, **environment: str) -> list[str]:
    path = folder / "script.py"
    path.write_text(script)
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONMALLOC"}
    ended = subprocess.run(
        [sys.executable, "-X", "utf8", str(path), *arguments],
        env=clean | environment, capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    return ended.stdout.splitlines()


def test_a_program_begins_anew_with_its_own_words(tmp_path: Path) -> None:
    *begun, said = run_script(tmp_path, BEGIN + SAY, "one", "two words")
    assert begun == ["begun", "begun"]
    path = str(tmp_path / "script.py")
    assert json.loads(said) == ["malloc", [path, "one", "two words"], ["-X", "utf8", path, "one", "two words"]]


def test_another_choice_of_allocator_stands(tmp_path: Path) -> None:
    *begun, said = run_script(tmp_path, BEGIN + SAY, PYTHONMALLOC="pymalloc")
    assert begun == ["begun"]
    assert json.loads(said)[0] == "pymalloc"


def test_what_a_crowd_took_goes_back(tmp_path: Path) -> None:
    *_, left = run_script(tmp_path, BEGIN + CROWD.replace("SECONDS", "30"))
    assert float(left) < 0.5


def test_pythons_own_allocator_keeps_it(tmp_path: Path) -> None:
    """Otherwise none of this is needed any more."""
    *_, left = run_script(tmp_path, BEGIN + CROWD.replace("SECONDS", "0.5"), PYTHONMALLOC="pymalloc")
    assert float(left) > 0.9
