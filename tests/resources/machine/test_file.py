"""A machine described in a file: read as written, or refused with the file, the field and what to do."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from dms_resources.components import (
    CPU,
    GPU,
    RAM,
    Disk,
    GPUVendor,
    MachineResources,
    NetworkInfo,
    NetworkInterface,
)
from dms_resources.errors import MachineFileError
from dms_resources.machine.file import machine_document, parse_machine, read_machine_file, write_machine_file
from dms_resources.machine.hardware import HOST, measure_machine
from dms_resources.machine.hardware.gpu import GPUReport
from dms_resources.units import GIB, MIB, Cores

_SMALL: dict[str, Any] = {"cpu": {"cores": 4}, "ram": {"size": "16GiB"}, "disk": {"size": "100GB"}}


def _parse(document: object) -> MachineResources:
    return parse_machine(json.dumps(document).encode(), "machine.json")


def test_the_least_that_describes_a_machine() -> None:
    assert _parse(_SMALL) == MachineResources(
        cpu=CPU(cores=Cores(4000)), ram=RAM(size=16 * GIB), disk=Disk(size=100 * 10**9), gpus=(), simulated=True
    )


def test_gpus_get_stable_names_and_numbers() -> None:
    gpus = [{"vram": "8GiB"}, {"vram": 512, "uuid": "GPU-mine"}, {"vram": "1 MiB", "vendor": "AMD/ATI"}]
    machine = _parse({**_SMALL, "gpus": gpus})
    assert [(gpu.uuid, gpu.index, gpu.vram) for gpu in machine.gpus] == [
        ("GPU-simulated-0", 0, 8 * GIB),
        ("GPU-mine", 1, 512),
        ("GPU-simulated-2", 2, MIB),
    ]
    assert machine.gpus[2].vendor is GPUVendor.AMD


def test_any_number_of_gpus() -> None:
    assert len(_parse({**_SMALL, "gpus": [{"vram": "1GiB"}] * 1000}).gpus) == 1000


@pytest.mark.parametrize(
    ("document", "problem"),
    [
        ([], "machine.json: it is not one JSON object"),
        ({}, "machine.json: cpu is missing"),
        ({"cpu": {"cores": 1}, "ram": {"size": 1}}, "machine.json: disk is missing"),
        ({**_SMALL, "gpu": []}, "machine.json: unknown field gpu"),
        ({**_SMALL, "cpu": 4}, "machine.json: cpu is not an object"),
        ({**_SMALL, "cpu": {}}, "machine.json: cpu: Object missing required field `cores`"),
        ({**_SMALL, "cpu": {"cores": -1}}, "machine.json: cpu.cores: -1000 millicores are out of range"),
        ({**_SMALL, "cpu": {"cores": 0.0001}}, "machine.json: cpu.cores: 0.0001 cores are not a multiple of 0.001"),
        ({**_SMALL, "cpu": {"cores": "four"}}, "machine.json: cpu.cores: Expected a number of cores"),
        ({**_SMALL, "cpu": {"cores": True}}, "machine.json: cpu.cores: a number of cores is expected"),
        ({**_SMALL, "cpu": {"cores": None}}, "machine.json: cpu: Object missing required field `cores`"),
        ({**_SMALL, "cpu": {"cores": 1, "core": 1}}, "machine.json: unknown field cpu.core"),
        ({**_SMALL, "ram": {"size": "2 parsecs"}}, "machine.json: ram.size: invalid size '2 parsecs'"),
        ({**_SMALL, "ram": {"size": -1}}, "machine.json: ram.size: Expected `int` >= 0"),
        ({**_SMALL, "ram": {"size": 1.5}}, "machine.json: ram.size: Expected `int`, got `float`"),
        ({**_SMALL, "ram": {"size": 2**63}}, "machine.json: ram.size: Expected `int` <= 9223372036854775807"),
        ({**_SMALL, "ram": {"size": "1B", "type": 5}}, "machine.json: ram.type: Expected `str`, got `int`"),
        ({**_SMALL, "disk": {"size": True}}, "machine.json: disk.size: Expected `int`, got `bool`"),
        ({**_SMALL, "gpus": {}}, "machine.json: gpus is not a list"),
        ({**_SMALL, "gpus": [7]}, "machine.json: gpus[0] is not an object"),
        ({**_SMALL, "gpus": [{}]}, "machine.json: gpus[0]: Object missing required field `vram`"),
        ({**_SMALL, "gpus": [{"vram": "huge"}]}, "machine.json: gpus[0].vram: invalid size 'huge'"),
        ({**_SMALL, "gpus": [{"vram": 1, "vendor": "nvidia"}]}, "machine.json: gpus[0].vendor: Invalid enum value"),
        ({**_SMALL, "gpus": [{"vram": 1, "memory": 1}]}, "machine.json: unknown field gpus[0].memory"),
        ({**_SMALL, "gpus": [{"vram": 1, "uuid": " "}]}, "machine.json: gpus[0].uuid is empty"),
        ({**_SMALL, "gpus": [{"vram": 1, "uuid": "a"}] * 2}, "machine.json: gpus: the uuid a is there twice"),
        (
            {**_SMALL, "gpus": [{"vram": 1, "index": 1}, {"vram": 1}]},
            "machine.json: gpus: the index 1 is there twice",
        ),
        ({**_SMALL, "gpus": [{"vram": 1}] * 5000}, "machine.json: gpus has 5000 entries"),
        ({**_SMALL, "network": []}, "machine.json: network is not an object"),
        ({**_SMALL, "network": {"public": 3}}, "machine.json: network.public: Expected `bool | null`, got `int`"),
        ({**_SMALL, "limits": "none"}, "machine.json: limits is not a list of sentences"),
    ],
)
def test_bad_descriptions_are_refused_with_the_field_and_a_hint(document: object, problem: str) -> None:
    with pytest.raises(MachineFileError) as refused:
        _parse(document)
    assert refused.value.message.startswith(problem)
    assert refused.value.hint
    assert "\n" not in refused.value.message


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b'{"cpu": NaN}', b"x" * (5 * 2**20)])
def test_what_is_no_json_is_refused(content: bytes) -> None:
    with pytest.raises(MachineFileError) as refused:
        parse_machine(content, "machine.json")
    assert refused.value.hint


@given(st.binary(max_size=300))
def test_no_bytes_raise_anything_else(content: bytes) -> None:
    with pytest.raises(MachineFileError):
        parse_machine(content, "machine.json")


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["cores", "size", "vram", "uuid", "index", "vendor", "x"]), inner, max_size=4)
    ),
    max_leaves=10,
)


@given(st.fixed_dictionaries({}, optional=dict.fromkeys(("cpu", "ram", "disk", "gpus", "network", "limits"), _JSON)))
def test_no_document_raises_anything_else(document: dict[str, object]) -> None:
    with contextlib.suppress(MachineFileError):
        assert _parse({**_SMALL, **document}).simulated


@pytest.mark.parametrize("name", ["missing.json", ".", "\0", "missing/machine.json"])
def test_files_that_cannot_be_read_are_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(MachineFileError) as refused:
        read_machine_file(tmp_path / name)
    assert str(tmp_path) in refused.value.message
    assert refused.value.hint


_AMOUNTS = st.integers(min_value=0, max_value=2**63 - 1)
_TEXTS = st.text(max_size=12)
_GPUS = st.lists(
    st.builds(
        GPU,
        uuid=st.text(min_size=1, max_size=12).filter(str.strip),
        vendor=st.sampled_from(GPUVendor),
        model=_TEXTS,
        vram=_AMOUNTS,
        driver_version=_TEXTS,
        exclusive=st.booleans(),
    ),
    max_size=4,
    unique_by=lambda gpu: gpu.uuid,
).map(lambda gpus: tuple(replace(gpu, index=index) for index, gpu in enumerate(gpus)))
_MACHINES = st.builds(
    MachineResources,
    cpu=st.builds(CPU, cores=_AMOUNTS.map(lambda n: Cores(n % 10**12)), model=_TEXTS, cache_size=_AMOUNTS),
    ram=st.builds(RAM, size=_AMOUNTS, type=_TEXTS),
    disk=st.builds(Disk, size=_AMOUNTS, model=_TEXTS, read_speed=_AMOUNTS),
    gpus=_GPUS,
    network=st.builds(
        NetworkInfo,
        interfaces=st.lists(
            st.builds(NetworkInterface, name=_TEXTS, up=st.booleans(), link_speed=_AMOUNTS), max_size=2
        ).map(tuple),
        public=st.none() | st.booleans(),
    ),
    limits=st.lists(_TEXTS, max_size=2).map(tuple),
    problems=st.lists(_TEXTS, max_size=2).map(tuple),
)


@given(_MACHINES)
def test_what_is_shown_of_a_machine_can_be_read_again(machine: MachineResources) -> None:
    text = msgspec.json.encode(machine_document(machine))
    assert parse_machine(text, "shown") == replace(machine, simulated=True)


def test_this_machine_can_be_written_and_read(tmp_path: Path) -> None:
    machine = measure_machine(tmp_path, HOST, ask_gpus=lambda _: GPUReport())
    write_machine_file(tmp_path / "machine.json", machine)
    assert read_machine_file(tmp_path / "machine.json") == replace(machine, simulated=True)


def test_the_example_in_the_documents_can_be_read() -> None:
    text = (Path(__file__).parents[3] / "docs" / "hardware.md").read_text("utf-8")
    example = text.partition("```json\n")[2].partition("```")[0]
    assert parse_machine(example.encode(), "hardware.md").gpus[0].vram == 40 * GIB


@pytest.mark.parametrize(
    ("clock", "hertz"),
    [(2304000000, 2304000000), (2.304e9, 2304000000), (2399999999.6, 2400000000), (0.0, 0)],
)
def test_a_clock_is_any_number_of_hertz(clock: float, hertz: int) -> None:
    document = {**_SMALL, "cpu": {"cores": 1, "clock_speed": clock, "base_clock_speed": clock}}
    machine = parse_machine(json.dumps(document).encode(), "machine.json")
    assert (machine.cpu.clock_speed, machine.cpu.base_clock_speed) == (hertz, hertz)


@pytest.mark.parametrize("clock", [-1.5, 1e30, 9.3e18])
def test_a_clock_out_of_range_is_an_error(clock: float) -> None:
    document = {**_SMALL, "cpu": {"cores": 1, "clock_speed": clock}}
    with pytest.raises(MachineFileError, match=r"cpu.clock_speed: .* is out of range"):
        parse_machine(json.dumps(document).encode(), "machine.json")


@pytest.mark.parametrize(
    ("name", "spelling"),
    [
        ("amd64", "x86_64"),
        ("x86-64", "x86_64"),
        ("aarch64", "arm64"),
        ("ARM64", "arm64"),
        ("i686", "x86"),
        ("vax", "vax"),
    ],
)
def test_an_architecture_has_any_of_its_names(name: str, spelling: str) -> None:
    document = {**_SMALL, "cpu": {"cores": 1, "architecture": name}}
    assert parse_machine(json.dumps(document).encode(), "machine.json").cpu.architecture == spelling


def test_numbers_of_gpus_are_kept_whatever_their_order() -> None:
    gpus = tuple(GPU(uuid=f"gpu-{index}", index=index, vram=1) for index in (2, 0, 5))
    machine = MachineResources(cpu=CPU(cores=Cores(1000)), ram=RAM(size=0), disk=Disk(size=0), gpus=gpus)
    written = json.dumps(machine_document(machine)).encode()
    assert parse_machine(written, "machine.json").gpus == gpus


def test_the_largest_amounts_can_be_read_again() -> None:
    most = 2**63 - 1
    machine = MachineResources(
        cpu=CPU(cores=Cores(10**12), clock_speed=most, cache_size=most),
        ram=RAM(size=most),
        disk=Disk(size=most),
        gpus=(GPU(uuid="a", vram=most),),
    )
    written = json.dumps(machine_document(machine)).encode()
    assert parse_machine(written, "machine.json") == replace(machine, simulated=True)


def test_a_machine_comes_from_standard_input() -> None:
    script = """
        from pathlib import Path
        from dms_resources.machine.file import read_machine_file
        first, second = (read_machine_file(Path("-")) for _ in range(2))
        assert first == second
        print(first.ram.size)
    """
    found = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], input=json.dumps(_SMALL).encode(), capture_output=True
    )
    assert found.stdout.decode().strip() == str(16 * GIB), found.stderr


def test_standard_input_that_is_no_machine_is_named() -> None:
    script = "from pathlib import Path; from dms_resources.machine.file import read_machine_file as r; r(Path('-'))"
    found = subprocess.run([sys.executable, "-c", script], input=b"nonsense", capture_output=True)
    assert b"standard input: invalid JSON" in found.stderr
