"""The benchmark runs with Python alone: one short round, whose figures mean nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

RUN = Path(__file__).parent / "run.py"
PAGE = "# A page\n\n<!-- benchmarks: written by the run -->\nold\n<!-- end of the benchmarks -->\n\nThe rest.\n"


def test_a_short_round_without_go_and_node_measures_and_writes_what_it_measured(tmp_path: Path) -> None:
    file, page = tmp_path / "run.json", tmp_path / "page.md"
    page.write_text(PAGE)
    options = ["--only", "a,b,c,d,e,g", "--rounds", "1", "--seconds", "0.05"]
    done = subprocess.run(
        [sys.executable, str(RUN), *options, "--json", str(file), "--docs", str(page)],
        env={"PATH": "/nowhere", "PYTHONPATH": ":".join(sys.path), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(file.read_text())["figures"]
    assert {figure["part"] for figure in figures} == set("abcdeg")
    assert {figure["what"] for figure in figures if figure["part"] == "a"} == {
        "1 in flight", "8 in flight", "64 in flight", "256 in flight",
    }  # fmt: skip
    assert all(len(figure["values"]) == 1 and figure["values"][0] > 0 for figure in figures)
    assert "durable commits" in done.stdout
    written = page.read_text()
    assert written.startswith("# A page\n")
    assert written.endswith("\nThe rest.\n")
    assert "old" not in written
    assert "| 64 in flight |" in written
