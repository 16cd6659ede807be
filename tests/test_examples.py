"""Each example runs unchanged, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[1] / "examples"
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


def _run(name: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *arguments],
        capture_output=True, text=True, env=ENVIRONMENT, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    return done.stdout


def test_local_market() -> None:
    text = _run("local_market.py")
    assert "all resources are free again" in text
    assert "not true" not in text
    rows = [line.split("│")[1:-1] for line in text.splitlines() if "CPU cores" in line]
    assert [cell.strip() for cell in rows[-1]] == ["CPU cores", "12", "7.5", "7.5", "12"]


def test_provider_and_requester(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, str(EXAMPLES / "provider.py"), str(tmp_path / "home")],
        stdout=subprocess.PIPE, text=True, env=ENVIRONMENT,
    ) as provider:  # fmt: skip
        try:
            assert provider.stdout is not None
            address = provider.stdout.readline().strip()
            text = _run("requester.py", address)
        finally:
            provider.terminate()
        assert provider.wait(30) == 0
    assert "free: 1 cores, 1 GiB RAM" in text
    assert "the job runs; free: 0.5 cores, 768 MiB RAM" in text
    assert text.endswith("released\n")


def test_attach_to_your_host() -> None:
    text = _run("attach_to_your_host.py")
    bids, allocations = "/dms/bid/1.1.0 /dms/bid/1.0.0", "/dms/allocation/1.1.0 /dms/allocation/1.0.0"
    assert f"attached: /dms/resources/1.0.0 {bids} {allocations}" in text
    assert "free: 1 cores" in text
    assert "asked again: protocol_not_supported" in text


def test_find_and_reserve() -> None:
    text = _run("find_and_reserve.py")
    assert text.count("found ") == 3
    assert "a request that is too large fails: no_bids" in text
    assert "left runs at" in text
    assert "right runs at" in text
    assert text.endswith("all leases were released\n")


def test_every_example_is_tested_and_in_the_readme() -> None:
    readme = (EXAMPLES.parent / "README.md").read_text()
    tested = Path(__file__).read_text()
    for path in EXAMPLES.glob("*.py"):
        assert f'"{path.name}"' in tested
        assert path.name in readme
