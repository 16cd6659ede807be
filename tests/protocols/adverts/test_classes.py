from __future__ import annotations

import json
from hashlib import sha256
from importlib.resources import files
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dms_protocols.adverts.classes import (
    CLASSES,
    CapabilityClass,
    Dimension,
    classes_needed,
    classes_reached,
    classes_to_look_up,
)
from dms_protocols.messages.bid import EnsembleRequest, NodeRequest
from dms_resources.components import CPU, GPU, RAM, Disk, FreeResources
from dms_resources.demands import CPUDemand, Demand, DiskDemand, GPUDemand, RAMDemand
from dms_resources.estimates import would_fit
from dms_resources.units import GIB, TIB, Cores

VECTORS = json.loads((files("dms_protocols") / "test_vectors.json").read_text())


def free(cores: float = 8, ram: int = 0, disk: int = 0, gpus: tuple[GPU, ...] = (), **changes: Any) -> FreeResources:
    said: dict[str, Any] = {"ports": 0, "onboarded": True, "draining": False, "simulated": False} | changes
    return FreeResources(cpu=CPU(cores=Cores.of(cores)), ram=RAM(size=ram), disk=Disk(size=disk), gpus=gpus, **said)


def demand(cores: float = 0, ram: int = 0, disk: int = 0, vram: tuple[int, ...] = ()) -> Demand:
    return Demand(
        cpu=CPUDemand(cores=Cores.of(cores)),
        ram=RAMDemand(size=ram),
        disk=DiskDemand(size=disk),
        gpus=tuple(GPUDemand(vram=size) for size in vram),
    )


def names(classes: tuple[CapabilityClass, ...]) -> list[str]:
    return [str(one) for one in classes]


def test_the_keys_are_what_other_languages_compute() -> None:
    vector = VECTORS["derived"]["capability_class"]
    one = CapabilityClass(Dimension.VRAM, 16 * GIB)
    assert one.name == vector["name"] == "/dms/class/1.0.0/vram/17179869184"
    # A multihash: SHA-256 (0x12), 32 bytes.
    assert one.key == bytes([0x12, 32]) + sha256(vector["name"].encode()).digest() == bytes.fromhex(vector["key"])


def test_classes_are_few_and_each_has_a_key_of_its_own() -> None:
    assert len(CLASSES) < 50
    assert len({one.key for one in CLASSES}) == len(CLASSES)


def test_what_free_capacity_reaches() -> None:
    devices = (GPU(uuid="a", vram=24 * GIB), GPU(uuid="b", vram=8 * GIB), GPU(uuid="c", vram=80 * GIB, exclusive=True))
    reached = classes_reached(free(cores=6.5, ram=5 * GIB, disk=100 * GIB, gpus=(*devices, GPU(uuid="d", vram=0))))
    assert names(reached) == [
        *("gpus ≥ 1", "gpus ≥ 2"),
        *("vram ≥ 4 GiB", "vram ≥ 8 GiB", "vram ≥ 16 GiB"),
        *("ram ≥ 2 GiB", "ram ≥ 4 GiB"),
        *("cores ≥ 1", "cores ≥ 2", "cores ≥ 4"),
        "disk ≥ 64 GiB",
    ]


def test_who_takes_nothing_reaches_nothing() -> None:
    assert classes_reached(free(draining=True)) == ()
    assert classes_reached(free(onboarded=False)) == ()


def test_a_huge_machine_is_announced_as_often_as_there_are_classes() -> None:
    gpus = tuple(GPU(uuid=str(number), vram=TIB) for number in range(64))
    assert classes_reached(free(cores=100_000, ram=100 * TIB, disk=1000 * TIB, gpus=gpus)) == CLASSES


@pytest.mark.parametrize(
    ("asked", "rarest_first"),
    [
        (demand(), ["cores ≥ 1"]),
        (demand(cores=0.5, ram=GIB, disk=GIB), ["cores ≥ 1"]),
        (demand(cores=3, ram=4 * GIB), ["ram ≥ 4 GiB", "cores ≥ 2"]),
        # Memory that most machines have does not narrow the search; that of a large server does.
        (demand(cores=64, ram=4 * GIB), ["cores ≥ 64", "ram ≥ 4 GiB"]),
        (demand(cores=64, ram=2 * TIB), ["ram ≥ 1 TiB", "cores ≥ 64"]),
        (demand(cores=2, vram=(24 * GIB,)), ["vram ≥ 16 GiB", "gpus ≥ 1", "cores ≥ 2"]),
        (demand(cores=2, vram=(GIB,)), ["gpus ≥ 1", "cores ≥ 2"]),
        (demand(cores=2, vram=(4 * GIB,) * 8), ["gpus ≥ 8", "vram ≥ 4 GiB", "cores ≥ 2"]),
        (demand(disk=20 * TIB), ["disk ≥ 16 TiB", "cores ≥ 1"]),
    ],
)
def test_what_a_demand_needs(asked: Demand, rarest_first: list[str]) -> None:
    assert names(classes_needed(asked)) == rarest_first


def test_an_ensemble_looks_up_the_rarest_class_of_each_node_once() -> None:
    nodes = [demand(cores=2), demand(cores=2), demand(cores=1, vram=(16 * GIB,)), demand(ram=64 * GIB)]
    request = EnsembleRequest(
        id="e",
        nonce=1,
        deadline=2e9,
        request=tuple(NodeRequest(node_id=str(number), resources=one) for number, one in enumerate(nodes)),
    )
    assert names(classes_to_look_up(request)) == ["vram ≥ 16 GiB", "ram ≥ 64 GiB", "cores ≥ 2"]


AMOUNTS = st.integers(0, 64 * TIB)


@given(
    cores=st.integers(1, 512),
    ram=AMOUNTS,
    disk=AMOUNTS,
    vram=st.lists(st.integers(0, 256 * GIB), max_size=20),
    asked_cores=st.integers(0, 512_000).map(lambda millicores: millicores / 1000),
    asked_ram=AMOUNTS,
    asked_disk=AMOUNTS,
    asked_vram=st.lists(st.integers(0, 256 * GIB), max_size=20),
)
def test_who_could_take_it_is_in_every_class_needed(
    cores: int,
    ram: int,
    disk: int,
    vram: list[int],
    asked_cores: float,
    asked_ram: int,
    asked_disk: int,
    asked_vram: list[int],
) -> None:
    there = free(cores, ram, disk, tuple(GPU(uuid=str(n), vram=size) for n, size in enumerate(vram) if size))
    asked = demand(asked_cores, asked_ram, asked_disk, tuple(size for size in asked_vram if size))
    if would_fit(there, asked):
        assert set(classes_needed(asked)) <= set(classes_reached(there))
