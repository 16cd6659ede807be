"""Every recorded machine is measured as a careful owner would; adding one is adding a text file."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from dms_resources.machine.file import machine_document, parse_machine
from dms_resources.machine.hardware import Roots, measure_machine
from dms_resources.machine.hardware import disk as disk_module
from dms_resources.machine.hardware.gpu import GPUReport
from dms_resources.machine.hardware.load import free_ram, read_domain

sys.path.insert(0, str(Path(__file__).parent))
from recorded import differences, parse_expected

Build = Callable[[str], Roots]

_MACHINES = sorted((Path(__file__).parent / "machines").glob("*.txt"))


def test_there_are_many_machines() -> None:
    assert len(_MACHINES) >= 60


@pytest.mark.parametrize("path", _MACHINES, ids=lambda path: path.stem)
def test_a_recorded_machine_is_measured_as_its_file_says(
    build_machine: Build, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = parse_expected(path.read_text("utf-8"))
    assert expected.why, "say why these values are right"
    assert expected.lines.keys() - {"env", "nvidia", "statvfs"}, "say what is right"
    monkeypatch.setattr(disk_module, "read_space", lambda _: expected.space)
    roots = build_machine(path.stem)
    nvidia = expected.nvidia
    machine = measure_machine(
        Path("/"), roots, environment=expected.environment,
        ask_gpus=lambda vendor: nvidia if vendor == "nvidia" else GPUReport(),
    )  # fmt: skip
    found = free_ram(roots, read_domain(roots))
    assert list(differences(expected, machine, found)) == []
    # What we write can be read again, and is the same machine.
    written = msgspec.json.encode(machine_document(machine))
    assert parse_machine(written, path.name) == replace(machine, simulated=True)


def test_a_wrong_value_would_be_noticed(build_machine: Build) -> None:
    machine = measure_machine(Path("/"), build_machine("vm_kvm"), environment={})
    wrong = parse_expected("# why\ncores: 5\nram: 1GiB\ngpus: GPU-x 1GiB\nlimit: nothing\nproblems: some\n== /x\n")
    assert len(list(differences(wrong, machine, None))) == 5
