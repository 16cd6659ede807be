"""The DMS's own structs, as a Go program encodes them, are demands and machines.

`go_structs.json` is what `interop structs` (tests/interop/go) prints; the interop tests compare it with a fresh run.
"""

from __future__ import annotations

import contextlib
import json
import math
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dms_protocols import EnsembleRequest, MessageError
from dms_protocols.wire.cbor import decode_map, encode_fast
from dms_protocols.wire.conversion import from_map
from dms_resources.components import GPUVendor, Resources
from dms_resources.demands import NO_PORTS, CPUDemand, Demand, DiskDemand, GPUDemand, RAMDemand
from dms_resources.encoding.go_structs import nearest_thousandth, plain_resources
from dms_resources.errors import AmountError
from dms_resources.machine.file import parse_machine
from dms_resources.units import GIB, Cores

_STRUCTS = json.loads((Path(__file__).parent / "go_structs.json").read_text())["structs"]
_GPU = GPUDemand(vram=24 * GIB, vendor=GPUVendor.NVIDIA, uuid="GPU-1")


def _named(name: str) -> list[Any]:
    found = [pytest.param(one, id=one["encoding"]) for one in _STRUCTS if one["name"] == name]
    assert len(found) == 3
    return found


def _demand(millicores: int, *gpus: GPUDemand) -> Demand:
    return Demand(
        cpu=CPUDemand(cores=Cores(millicores), architecture="amd64", clock_speed=2_300_000_000),
        ram=RAMDemand(size=3 * GIB),
        disk=DiskDemand(size=7 * GIB),
        gpus=gpus,
    )


@pytest.mark.parametrize("one", _named("resources of integers"))
def test_a_slice_that_is_nil_and_a_clock_that_is_a_float(one: dict[str, str]) -> None:
    sent = decode_map(bytes.fromhex(one["cbor"]))
    assert sent["gpus"] is None
    assert isinstance(sent["cpu"]["clock_speed"], float)
    assert sent["cpu"]["cores"] == 0.10000000149011612
    assert from_map(sent, Demand) == _demand(100)


@pytest.mark.parametrize("one", _named("resources of floats"))
def test_sizes_that_are_floats(one: dict[str, str]) -> None:
    sent = decode_map(bytes.fromhex(one["cbor"]))
    assert from_map(sent, Demand) == _demand(100, _GPU)
    machine = from_map(sent, Resources)
    assert (machine.ram.size, machine.disk.size, machine.gpus[0].vram) == (3 * GIB, 7 * GIB, 24 * GIB)


@pytest.mark.parametrize("one", _named("resources of floats") + _named("resources of integers"))
def test_the_json_of_the_same_is_a_machine(one: dict[str, str]) -> None:
    machine = parse_machine(one["json"].encode(), "machine.json")
    assert (machine.cpu.cores, machine.cpu.clock_speed) == (Cores(100), 2_300_000_000)
    assert machine.cpu.architecture == "x86_64"
    assert (machine.ram.size, machine.disk.size) == (3 * GIB, 7 * GIB)
    # A Go program that reads floats of any size may write them so too.
    decoded = json.loads(one["json"])
    decoded["ram"]["size"] = float(3 * GIB)
    assert parse_machine(json.dumps(decoded).encode(), "machine.json") == machine


@pytest.mark.parametrize("one", _named("an ensemble of nil"))
def test_an_ensemble_of_which_nothing_but_the_amounts_is_set(one: dict[str, str]) -> None:
    ensemble = from_map(decode_map(bytes.fromhex(one["cbor"])), EnsembleRequest)
    (node,) = ensemble.request
    assert node.resources == _demand(1300)
    assert (node.public_ports, ensemble.peer_exclusion) == (NO_PORTS, ())


@pytest.mark.parametrize("one", _named("an ensemble of floats"))
def test_an_ensemble_with_pointers_to_empty_structs(one: dict[str, str]) -> None:
    ensemble = from_map(decode_map(bytes.fromhex(one["cbor"])), EnsembleRequest)
    (node,) = ensemble.request
    assert node.resources == _demand(1, _GPU)
    assert node.public_ports == NO_PORTS


@pytest.mark.parametrize(
    ("sent", "path"),
    [
        ({"ram": {"size": 1.5}}, "ram.size"),
        ({"ram": {"size": -1.0}}, "ram.size"),
        ({"ram": {"size": 1e30}}, "ram.size"),
        ({"cpu": {"clock_speed": -2.0}}, "cpu.clock_speed"),
        ({"cpu": {"cores": 0.1 + 0.2}}, "cpu.cores"),
        ({"cpu": {"cores": "1"}}, "cpu.cores"),
        ({"cpu": {"cores": 1, "clock_speed": 2e9}, "ram": {"size": "1GiB"}}, "ram.size"),
        ({"gpus": [None]}, "gpus[0]"),
        ({"gpus": {"vram": 1.0}}, "gpus"),
        ({"ram": {"size": True}}, "ram.size"),
    ],
)
def test_what_no_go_program_means_is_refused_and_named(sent: dict[str, Any], path: str) -> None:
    with pytest.raises(MessageError) as refused:
        from_map(sent, Demand)
    assert refused.value.path == path


def test_a_null_that_may_not_be_left_out_is_named_as_it_came() -> None:
    with pytest.raises(MessageError, match="got `null`") as refused:
        from_map({"id": None, "nonce": 1, "deadline": 1.0, "request": [{"node_id": "n"}]}, EnsembleRequest)
    assert refused.value.path == "id"


def test_a_float_elsewhere_is_no_integer() -> None:
    ensemble = {"id": "e", "nonce": 1.0, "deadline": 1.0, "request": []}
    with pytest.raises(MessageError) as refused:
        from_map(ensemble, EnsembleRequest)
    assert refused.value.path == "nonce"


@given(st.integers(0, 4_000_000))
def test_every_thousandth_survives_a_float32(millicores: int) -> None:
    single = struct.unpack("<f", struct.pack("<f", millicores / 1000))[0]
    assert Cores.of(single) == Cores(millicores)
    assert Cores.of(millicores / 1000) == Cores(millicores)


@given(st.floats(0, 1000, allow_nan=False))
def test_a_number_of_cores_is_never_read_as_another(cores: float) -> None:
    try:
        read = Cores.of(cores)
    except AmountError:
        return
    # A float32 has 24 bits: what it is off by is below a ten-millionth of it.
    assert math.isclose(read.millicores / 1000, cores, rel_tol=1e-7, abs_tol=1e-9)


@given(st.floats(allow_nan=True, allow_infinity=True))
def test_no_float_makes_the_nearest_thousandth_fail(cores: float) -> None:
    if math.isfinite(cores):
        nearest_thousandth(cores)


_AMOUNTS = st.none() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=3) | st.booleans()
_PARTS = st.dictionaries(st.sampled_from(["cores", "size", "clock_speed", "vram", "threads", "x"]), _AMOUNTS)
_MAPS = st.dictionaries(
    st.sampled_from(["cpu", "ram", "disk", "gpus", "request", "resources"]), _PARTS | st.lists(_PARTS) | _AMOUNTS
)


# On a busy machine the first example may take seconds.
@settings(suppress_health_check=[HealthCheck.too_slow])
@given(_MAPS)
def test_no_map_raises_anything_but_the_error(sent: dict[str, Any]) -> None:
    before = repr(sent)
    with contextlib.suppress(MessageError):
        from_map(sent, Demand)
    # The digest is taken of what was sent.
    assert repr(sent) == before


@given(st.integers(0, 10**6), st.integers(0, 2**52), st.integers(0, 2**52), st.lists(st.integers(0, 2**52), max_size=3))
def test_the_same_demand_in_integers_and_in_go_floats(cores: int, ram: int, disk: int, gpus: list[int]) -> None:
    plain = {
        "cpu": {"cores": cores / 1000, "clock_speed": ram},
        "ram": {"size": ram},
        "disk": {"size": disk},
        "gpus": [{"vram": size} for size in gpus],
    }
    single = struct.unpack("<f", struct.pack("<f", cores / 1000))[0]
    floats = {
        "cpu": {"cores": single, "clock_speed": float(ram), "model": None},
        "ram": {"size": float(ram), "type": None},
        "disk": {"size": float(disk)},
        "gpus": [{"vram": float(size), "uuid": None} for size in gpus] or None,
    }
    sent = decode_map(encode_fast(floats))
    assert from_map(sent, Demand) == from_map(plain, Demand)


def test_what_is_deeper_than_any_message_is_left_alone() -> None:
    deep: Any = []
    for _ in range(5000):
        deep = [deep]
    assert plain_resources({"x": deep})["x"] is not None
