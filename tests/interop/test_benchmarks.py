"""The benchmark with all three providers and the load generator in Go: one short round, whose figures mean nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

RUN = Path(__file__).parents[1] / "benchmarks" / "run.py"


def test_a_short_round_measures_all_three_side_by_side(programs: Any, tmp_path: Path) -> None:
    programs.need("Go", "JavaScript")
    file = tmp_path / "run.json"
    options = ["--only", "a,b,c,d,e,f", "--rounds", "1", "--seconds", "0.25", "--connections", "1", "20"]
    done = subprocess.run(
        [sys.executable, str(RUN), *options, "--json", str(file)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(file.read_text())["figures"]
    series = {part: {figure["series"] for figure in figures if figure["part"] == part} for part in "abcdef"}
    open_background = {"ours", "js-libp2p", "go-libp2p"}
    assert series == {
        "a": open_background | {"ours to ours"},
        "b": {"ours", "ours to ours", "bare Ed25519"},
        "c": {"ours", "ours to ours", "bare SQLite"},
        "d": open_background | {"ours to ours"},
        "e": open_background | {"ours to ours"},
        "f": open_background,
    }
    assert all(figure["values"][0] > 0 for figure in figures if figure["what"] != "each further one")
