"""Compares two runs of the benchmark: real changes, and differences that are only noise."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

COMPARE = Path(__file__).parent / "compare.py"


def figure(series: str, values: list[float], *, part: str = "a", better: str = "higher") -> dict[str, Any]:
    return {
        "part": part, "what": "64 in flight", "series": series, "unit": "1/s", "better": better, "values": values,
    }  # fmt: skip


def write_run(path: Path, *figures: dict[str, Any], machine: str = "one", **others: Any) -> Path:
    run = {
        "format": 1, "version": "0.0.1", "date": "2026-11-24", "machine": machine, "software": {}, "rounds": 3,
        "figures": figures,
    }  # fmt: skip
    path.write_text(json.dumps({**run, **others}))
    return path


def compare(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(COMPARE), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def verdicts(before: Path, after: Path, *options: str) -> dict[str, tuple[float, str]]:
    found = json.loads(compare(before, after, "--json", *options).stdout)
    return {one["series"]: (pytest.approx(one["ratio"]), one["verdict"]) for one in found}


def test_what_lies_apart_has_changed_and_what_overlaps_has_not(tmp_path: Path) -> None:
    before = write_run(
        tmp_path / "before.json",
        figure("ours", [100, 110, 120]),
        figure("js-libp2p", [100, 110, 120]),
        figure("ms", [10, 11, 12], part="e", better="lower"),
        figure("gone", [1, 1, 1]),
    )
    after = write_run(
        tmp_path / "after.json",
        figure("ours", [121, 220, 300]),
        figure("js-libp2p", [120, 220, 300]),
        figure("ms", [13, 22, 30], part="e", better="lower"),
        figure("new", [1, 1, 1]),
    )
    assert verdicts(before, after) == {"ours": (2.0, "better"), "js-libp2p": (2.0, ""), "ms": (2.0, "worse")}
    assert verdicts(after, before) == {"ours": (0.5, "worse"), "js-libp2p": (0.5, ""), "ms": (0.5, "better")}
    assert set(verdicts(before, after, "--changed")) == {"ours", "ms"}


def test_on_two_machines_ratios_are_compared_and_not_what_each_machine_does(tmp_path: Path) -> None:
    before = write_run(
        tmp_path / "slow.json", figure("ours", [50, 60, 70]), figure("go-libp2p", [100, 120, 140]), machine="slow"
    )
    quick = figure("ours", [500, 600, 700]), figure("go-libp2p", [1000, 1200, 1400])
    better = figure("ours", [900, 1080, 1260]), figure("go-libp2p", [1000, 1200, 1400])
    same = write_run(tmp_path / "quick.json", *quick, machine="quick")
    faster = write_run(tmp_path / "better.json", *better, machine="quick")
    assert verdicts(before, same) == {"ours / go-libp2p": (1.0, "")}
    assert verdicts(before, faster) == {"ours / go-libp2p": (1.8, "better")}


def test_two_rounds_tell_nothing(tmp_path: Path) -> None:
    before = write_run(tmp_path / "before.json", figure("ours", [100, 110]))
    after = write_run(tmp_path / "after.json", figure("ours", [200, 210, 220]))
    assert [verdict for _, verdict in verdicts(before, after).values()] == [""]


def test_people_get_a_table(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run.json", figure("ours", [1, 2, 3]))
    done = compare(run, run)
    assert done.returncode == 0
    assert "64 in flight" in done.stdout


@pytest.mark.parametrize("content", ["", "[]", '{"format": 1}'])
def test_what_is_no_run_is_named(tmp_path: Path, content: str) -> None:
    run, other = write_run(tmp_path / "run.json"), tmp_path / "other.json"
    other.write_text(content)
    done = compare(run, other)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_a_run_of_another_format_is_refused(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run.json", format=2)
    done = compare(run, run)
    assert done.returncode == 2
    assert "format 2" in done.stderr
