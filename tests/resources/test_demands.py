"""Demands: which devices match, and how a shortage is described."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dms_resources.components import GPU, GPUVendor
from dms_resources.demands import (
    CPUDemand,
    CPUShortage,
    Demand,
    DiskDemand,
    DiskShortage,
    GPUDemand,
    GPUShortage,
    PortDemand,
    PortShortage,
    RAMDemand,
    RAMShortage,
    Shortage,
    describe_shortage,
)
from dms_resources.units import GIB, Cores, decode_value, encode_value

_AMOUNTS = st.integers(min_value=0, max_value=2**63 - 1)
_CORES = st.integers(min_value=0, max_value=10**15).map(Cores)
_TEXTS = st.text(max_size=12)
_CPUS = st.builds(CPUDemand, cores=_CORES, architecture=_TEXTS, clock_speed=_AMOUNTS)
_GPUS = st.lists(
    st.builds(
        GPUDemand,
        vram=_AMOUNTS,
        vendor=st.sampled_from(GPUVendor),
        model=_TEXTS,
        uuid=_TEXTS,
        exclusive=st.booleans(),
    ),
    max_size=3,
).map(tuple)
_PORTS = st.builds(PortDemand, static=st.lists(st.integers(1, 65535), max_size=3).map(tuple), dynamic=_AMOUNTS)
_SHORTAGES = st.one_of(
    st.builds(CPUShortage, asked=_CPUS, free=_CPUS, total=_CPUS),
    st.builds(RAMShortage, asked=_AMOUNTS, free=_AMOUNTS, total=_AMOUNTS),
    st.builds(DiskShortage, asked=_AMOUNTS, free=_AMOUNTS, total=_AMOUNTS),
    st.builds(GPUShortage, asked=_GPUS, free=_GPUS, total=_GPUS),
    st.builds(PortShortage, asked=_PORTS, free=_PORTS, total=_PORTS),
)


@given(
    st.builds(
        Demand,
        cpu=_CPUS,
        ram=st.builds(RAMDemand, size=_AMOUNTS),
        disk=st.builds(DiskDemand, size=_AMOUNTS),
        gpus=_GPUS,
    )
)
def test_a_demand_is_the_same_after_the_wire(demand: Demand) -> None:
    text = msgspec.json.encode(demand, enc_hook=encode_value)
    assert msgspec.json.decode(text, type=Demand, dec_hook=decode_value) == demand
    assert demand.describe()


@given(_SHORTAGES)
def test_a_shortage_is_the_same_after_the_wire(shortage: Shortage) -> None:
    text = msgspec.json.encode(shortage, enc_hook=encode_value)
    assert msgspec.json.decode(text, type=Shortage, dec_hook=decode_value) == shortage
    assert describe_shortage(shortage)


def test_an_empty_map_asks_for_nothing() -> None:
    assert msgspec.convert({}, Demand, dec_hook=decode_value) == Demand()


@pytest.mark.parametrize(
    ("asked", "model", "met"),
    [
        ("A100", "NVIDIA A100-SXM4-80GB", True),
        ("nvidia a100", "NVIDIA A100-SXM4-80GB", True),
        ("80GB A100", "NVIDIA A100-SXM4-80GB", True),
        ("", "anything", True),
        ("T4", "Tesla T400", False),
        ("T4", "Tesla T4", True),
        ("A10", "NVIDIA A100-SXM4-80GB", False),
        ("RTX 3090", "NVIDIA GeForce RTX 3090", True),
        ("RTX 3090 Ti", "NVIDIA GeForce RTX 3090", False),
        ("A100", "", False),
    ],
)
def test_a_model_is_asked_for_by_its_words(asked: str, model: str, met: bool) -> None:
    assert GPUDemand(model=asked).accepts(GPU(uuid="a", vram=0, model=model)) is met


@pytest.mark.parametrize(
    ("asked", "vendor", "met"),
    [
        (GPUVendor.UNKNOWN, GPUVendor.INTEL, True),
        (GPUVendor.NONE, GPUVendor.NVIDIA, True),
        (GPUVendor.AMD, GPUVendor.AMD, True),
        (GPUVendor.AMD, GPUVendor.INTEL, False),
        (GPUVendor.NVIDIA, GPUVendor.UNKNOWN, False),
    ],
)
def test_a_vendor_is_asked_for_or_any(asked: GPUVendor, vendor: GPUVendor, met: bool) -> None:
    assert GPUDemand(vendor=asked).accepts(GPU(uuid="a", vram=0, vendor=vendor)) is met


def test_a_device_is_asked_for_by_its_uuid() -> None:
    assert GPUDemand(uuid="GPU-a").accepts(GPU(uuid="GPU-a", vram=0))
    assert not GPUDemand(uuid="GPU-a").accepts(GPU(uuid="GPU-ab", vram=0))


@pytest.mark.parametrize(
    ("shortage", "sentence"),
    [
        (
            CPUShortage(
                asked=CPUDemand(cores=Cores(4000), architecture="arm64"),
                free=CPUDemand(cores=Cores(1500), architecture="x86_64"),
                total=CPUDemand(cores=Cores(8000), architecture="x86_64", clock_speed=2_500_000_000),
            ),
            "cpu: 4 cores arm64 asked, 1.5 cores x86_64 free of 8 cores x86_64 2.5 GHz",
        ),
        (RAMShortage(asked=8 * GIB, free=2 * GIB, total=4 * GIB), "ram: 8 GiB asked, 2 GiB free of 4 GiB"),
        (DiskShortage(asked=1, free=0, total=0), "disk: 1 B asked, 0 B free of 0 B"),
        (
            GPUShortage(
                asked=(GPUDemand(vram=8 * GIB), GPUDemand(vram=8 * GIB, exclusive=True)),
                free=(GPUDemand(vram=16 * GIB, model="A2"),),
                total=(),
            ),
            "gpus: 8 GiB + 8 GiB exclusive asked, 16 GiB A2 free of none",
        ),
        (
            PortShortage(
                asked=PortDemand(static=(80, 443), dynamic=2), free=PortDemand(dynamic=1), total=PortDemand(dynamic=9)
            ),
            "ports: 80 443 any 2 asked, any 1 free of 9",
        ),
    ],
)
def test_a_shortage_in_words(shortage: Shortage, sentence: str) -> None:
    assert describe_shortage(shortage) == sentence
