"""`hell.py`, so short that it shows only that its peers do what they are for."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Final

PROGRAM: Final = """
import json, sys
from hell import Crowd, measure
crowd = Crowd(behaved=3, slow=4, noise=2, streams=2, unread=2)
json.dump(measure(crowd, seconds=2, cycles=8, peace=60), sys.stdout)
"""


def test_those_who_behave_are_answered_and_nothing_is_left_behind() -> None:
    folder = Path(__file__).parent
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=folder, capture_output=True, text=True, timeout=180, check=False
    )
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    for moment in ("quiet", "hell", "peace"):
        assert found[moment]["answers"] > 0
        assert found[moment]["failures"] == 0
    assert found["during"]["connections"] > found["before"]["connections"], "the attackers were there"
    assert found["cycles"] == 8
    for what in ("files", "tasks", "connections"):
        assert found["after"][what] <= found["before"][what]
        assert found["after_cycles"][what] <= found["before_cycles"][what]
