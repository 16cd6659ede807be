"""`dms-peer hardware`: what it prints as JSON is a machine for every other command."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dms_peer.__main__ import run_command

# Zeros, names without ASCII, the largest integers, a GPU that one process at a time may use.
_MACHINE = {
    "cpu": {"cores": 1.5, "model": "Intel® Xeon®", "clock_speed": 0},
    "ram": {"size": 2**63 - 1, "type": "DDR5"},
    "disk": {"size": 2**53 + 1, "read_speed": 0},
    "gpus": [
        {"uuid": "GPU-a", "index": 0, "vram": 0, "vendor": "NVIDIA", "model": "GeForce™", "exclusive": True},
        {"uuid": "GPU-b", "index": 7, "vram": 24 * 2**30, "pci_address": "0000:01:00.0"},
    ],
    "network": {"interfaces": [{"name": "eth0", "type": "ethernet", "link_speed": 10**10, "up": True}]},
    "limits": ["2 of 4 cores: CPU affinity of this process"],
}


def _show(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, object]:
    assert run_command(["hardware", "--json", *arguments]) == 0
    document: dict[str, object] = json.loads(capsys.readouterr().out)
    return document


def test_what_hardware_prints_is_the_machine_that_run_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    described = tmp_path / "machine.json"
    described.write_text(json.dumps(_MACHINE))
    printed = _show(capsys, "--machine", str(described), "--home", str(tmp_path / "home"))
    command = [sys.executable, "-m", "dms_peer", "run", "--machine", "-", "--home", str(tmp_path / "home"), "--json"]
    quiet = ["--no-mdns", "--no-dht", "--listen", "/ip4/127.0.0.1/tcp/0"]
    with subprocess.Popen([*command, *quiet], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(printed))
        process.stdin.close()
        assert json.loads(process.stdout.readline())["event"] == "ready"
        process.terminate()
    assert json.loads((tmp_path / "home" / "machine.json").read_text()) == printed


def test_no_field_is_left_out_because_it_is_zero(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    described = tmp_path / "machine.json"
    described.write_text('{"cpu": {"cores": 1}, "ram": {"size": "1GiB"}, "disk": {"size": 0}, "gpus": [{"vram": 0}]}')
    found = _show(capsys, "--machine", str(described), "--home", str(tmp_path / "home"))
    assert found["cpu"] == {
        "cores": 1, "clock_speed": 0, "architecture": "", "vendor": "", "model": "", "threads": 0, "cache_size": 0,
        "physical_cores": 0, "base_clock_speed": 0,
    }  # fmt: skip
    assert found["gpus"] == [
        {
            "uuid": "GPU-simulated-0", "index": 0, "vendor": "Unknown", "model": "", "vram": 0, "pci_address": "",
            "exclusive": False, "driver_version": "", "cuda_version": "", "compute_capability": "",
        }
    ]  # fmt: skip
    assert (found["limits"], found["problems"], found["network"]) == ([], [], {"interfaces": []})


def test_hardware_shows_the_machine_of_a_file_and_remembers_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    described = tmp_path / "machine.json"
    described.write_text(json.dumps(_MACHINE))
    assert run_command(["hardware", "--machine", str(described), "--home", str(tmp_path / "home")]) == 0
    assert "GeForce" in capsys.readouterr().out
    assert not (tmp_path / "home").exists()
    # Without the option it is this machine.
    assert _show(capsys, "--home", str(tmp_path / "home"))["cpu"] != _MACHINE["cpu"]
