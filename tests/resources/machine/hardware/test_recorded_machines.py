"""Every recorded machine is measured as a careful owner would. To add one, add a text file."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from dms_resources.components import MachineResources
from dms_resources.machine.file import machine_document, parse_machine, read_machine_file, write_machine_file
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


def _measure(build_machine: Build, path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Roots, MachineResources]:
    expected = parse_expected(path.read_text("utf-8"))
    monkeypatch.setattr(disk_module, "read_space", lambda _: expected.space)
    roots = build_machine(path.stem)
    nvidia = expected.nvidia
    machine = measure_machine(
        Path("/"), roots, environment=expected.environment,
        ask_gpus=lambda vendor: nvidia if vendor == "nvidia" else GPUReport(),
    )  # fmt: skip
    return roots, machine


@pytest.mark.parametrize("path", _MACHINES, ids=lambda path: path.stem)
def test_a_recorded_machine_is_measured_as_its_file_says(
    build_machine: Build, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = parse_expected(path.read_text("utf-8"))
    assert expected.why, "say why these values are right"
    assert expected.lines.keys() - {"env", "nvidia", "statvfs"}, "say what is right"
    roots, machine = _measure(build_machine, path, monkeypatch)
    found = free_ram(roots, read_domain(roots))
    assert list(differences(expected, machine, found)) == []


def _fields_left_out(document: dict[str, Any], value: msgspec.Struct, where: str = "") -> Iterator[str]:
    for field in msgspec.structs.fields(value):
        inner = getattr(value, field.name)
        # What is unknown is left out; what is zero, empty or false is not.
        if field.encode_name not in document and inner is not None:
            yield f"{where}{field.encode_name}"
        for item, shown in (
            zip(inner, document[field.encode_name], strict=True)
            if isinstance(inner, tuple)
            else [(inner, document.get(field.encode_name))]
        ):
            if isinstance(item, msgspec.Struct):
                yield from _fields_left_out(shown, item, f"{where}{field.encode_name}.")


@pytest.mark.parametrize("path", _MACHINES, ids=lambda path: path.stem)
def test_what_is_written_of_a_machine_is_that_machine(
    build_machine: Build, path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """`dms-peer hardware --json | dms-peer run --machine -`, and what the home keeps of it."""
    _, machine = _measure(build_machine, path, monkeypatch)
    document = machine_document(machine)
    assert list(_fields_left_out(document, machine)) == []
    written = msgspec.json.encode(document)
    # A reader whose integers have 64 bits, and one whose numbers are all floating-point, read it too.
    assert json.loads(written, parse_int=_int64) == document
    read = parse_machine(written, path.name)
    assert read == replace(machine, simulated=True)
    # Once more, and the document itself is the same.
    assert machine_document(read) == {**document, "simulated": True}
    write_machine_file(tmp_path / "machine.json", read)
    assert read_machine_file(tmp_path / "machine.json") == read


def _int64(text: str) -> int:
    assert -(2**63) <= int(text) < 2**63
    return int(text)


def test_a_wrong_value_would_be_noticed(build_machine: Build) -> None:
    machine = measure_machine(Path("/"), build_machine("vm_kvm"), environment={})
    wrong = parse_expected("# why\ncores: 5\nram: 1GiB\ngpus: GPU-x 1GiB\nlimit: nothing\nproblems: some\n== /x\n")
    assert len(list(differences(wrong, machine, None))) == 5
