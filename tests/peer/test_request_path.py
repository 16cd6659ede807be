"""No system call, and therefore no disk access, on the path of a query or a bid: a tracer counts them."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
# The interpreter may allocate and free memory. The numbers are those of x86_64 and of the generic table.
MEMORY_CALLS = {"x86_64": {9, 11, 12, 25, 28}, "aarch64": {214, 215, 216, 222, 233}}


@pytest.fixture(scope="module")
def tracer(tmp_path_factory):
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler: system calls cannot be counted")
    if os.uname().machine not in MEMORY_CALLS:
        pytest.skip(f"the numbers of the memory calls on {os.uname().machine} are not known here")
    program = tmp_path_factory.mktemp("tracer") / "count_calls"
    subprocess.run([compiler, "-O1", "-o", program, HERE / "count_calls.c"], check=True)
    return program


def system_calls(tracer: Path, home: Path, word: str) -> dict[int, int]:
    report = home / "report"
    paths = os.pathsep.join(str(ROOT / room) for room in ("peer", "protocols", "resources"))
    done = subprocess.run(
        [tracer, report, sys.executable, HERE / "request_path.py", home, word],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if done.returncode == 77:
        pytest.skip("tracing of processes is not permitted here")
    assert done.returncode == 0, done.stderr
    counts = dict(tuple(map(int, line.split())) for line in report.read_text().splitlines())
    return {number: count for number, count in counts.items() if number not in MEMORY_CALLS[os.uname().machine]}


def test_queries_bids_and_refusals_make_no_system_call(tracer, tmp_path):
    assert system_calls(tracer, tmp_path, "quiet") == {}


def test_the_tracer_sees_one_call_among_thousands_of_requests(tracer, tmp_path):
    assert sum(system_calls(tracer, tmp_path, "disturb").values()) == 1
