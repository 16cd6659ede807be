"""The programs of docs/decisions/upstream.md still show the defects of py-libp2p that we work around."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

DECISIONS = Path(__file__).parents[2] / "docs" / "decisions"
PAGE = (DECISIONS / "upstream.md").read_text()
# The program of an entry, what it prints, and the files that work around the defect.
_PROGRAM = re.compile(
    r"\[(\w+\.py)\]\(upstream/\1\) prints\n\n```text\n(.+?)\n```.+?\*\*Our workaround\.\*\* (.+)", re.DOTALL
)


class Entry(NamedTuple):
    title: str
    name: str
    prints: str
    workaround: str


def _read(section: str) -> Entry:
    title, text = section.split("\n", 1)
    found = _PROGRAM.search(text)
    assert found is not None, f"the entry {title!r} has no program"
    return Entry(title, *found.groups())


ENTRIES = [_read(section) for section in PAGE.split("\n## ")[1:]]


def test_every_program_has_an_entry() -> None:
    assert sorted(entry.name for entry in ENTRIES) == sorted(
        path.name for path in (DECISIONS / "upstream").glob("*.py")
    )


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name.removesuffix(".py"))
def test_the_defect_still_shows(entry: Entry) -> None:
    program = DECISIONS / "upstream" / entry.name
    done = subprocess.run([sys.executable, program], capture_output=True, text=True, timeout=120, check=False)
    assert entry.prints in done.stdout, (
        f"py-libp2p no longer shows the defect {entry.title!r}. If this is a new release, drop the workaround in "
        f"{entry.workaround} and the entry in docs/decisions/upstream.md. It printed:\n{done.stdout}{done.stderr}"
    )
