"""The DMS's resource types: what is written can be read, and unknown values are left out."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dms_resources.components import (
    CPU,
    DEFAULT_PORT_RANGE,
    GPU,
    RAM,
    Disk,
    FreeResources,
    GPUVendor,
    Headroom,
    HoldLimits,
    MachineResources,
    NetworkInfo,
    NetworkInterface,
    OnboardedResources,
    PortRange,
    Resources,
)
from dms_resources.units import GIB, Cores, decode_value, encode_value

_AMOUNTS = st.integers(min_value=0, max_value=2**63 - 1)
_CORES = st.integers(min_value=0, max_value=10**15).map(Cores)
_TEXTS = st.text(max_size=12)
_FLAGS = st.booleans()

_CPUS = st.builds(
    CPU,
    cores=_CORES,
    clock_speed=_AMOUNTS,
    architecture=_TEXTS,
    vendor=_TEXTS,
    model=_TEXTS,
    threads=_AMOUNTS,
    cache_size=_AMOUNTS,
    physical_cores=_AMOUNTS,
    base_clock_speed=_AMOUNTS,
)
_RAMS = st.builds(RAM, size=_AMOUNTS, clock_speed=_AMOUNTS, type=_TEXTS)
_DISKS = st.builds(Disk, size=_AMOUNTS, model=_TEXTS, vendor=_TEXTS, type=_TEXTS, interface=_TEXTS, read_speed=_AMOUNTS)
_GPUS = st.lists(
    st.builds(
        GPU,
        uuid=_TEXTS,
        index=_AMOUNTS,
        vendor=st.sampled_from(GPUVendor),
        model=_TEXTS,
        vram=_AMOUNTS,
        pci_address=_TEXTS,
        exclusive=_FLAGS,
        compute_capability=_TEXTS,
    ),
    max_size=3,
).map(tuple)
_PARTS: dict[str, Any] = {"cpu": _CPUS, "ram": _RAMS, "disk": _DISKS, "gpus": _GPUS}
_SENTENCES = st.lists(_TEXTS, max_size=2).map(tuple)
_RANGES = st.builds(PortRange, first=st.integers(1, 65535), last=st.integers(1, 65535))
_ALL = st.one_of(
    st.builds(Resources, **_PARTS),
    st.builds(FreeResources, **_PARTS, ports=_AMOUNTS, onboarded=_FLAGS, draining=_FLAGS, simulated=_FLAGS),
    st.builds(
        OnboardedResources,
        **_PARTS,
        port_range=_RANGES,
        headroom=st.builds(Headroom, share=st.integers(0, 1000), cpu=_CORES, ram=_AMOUNTS, disk=_AMOUNTS),
        windows=_SENTENCES,
        holds=st.builds(HoldLimits, max_seconds=st.floats(0, 1e6), per_holder=_AMOUNTS, share=st.integers(0, 1000)),
    ),
    st.builds(
        MachineResources,
        **_PARTS,
        network=st.builds(
            NetworkInfo,
            interfaces=st.lists(st.builds(NetworkInterface, name=_TEXTS, addresses=_SENTENCES), max_size=2).map(tuple),
            public=st.none() | _FLAGS,
        ),
        limits=_SENTENCES,
        problems=_SENTENCES,
        simulated=_FLAGS,
    ),
)


@given(_ALL)
def test_what_is_written_can_be_read(resources: Resources) -> None:
    text = msgspec.json.encode(resources, enc_hook=encode_value)
    assert msgspec.json.decode(text, type=type(resources), dec_hook=decode_value) == resources


def test_the_names_and_units_are_the_dms_own() -> None:
    resources = Resources(
        cpu=CPU(cores=Cores(1500), clock_speed=2_900_000_000, architecture="x86_64", threads=16, cache_size=2**24),
        ram=RAM(size=4 * GIB),
        disk=Disk(size=10 * GIB, type="NVMe"),
        gpus=(GPU(uuid="GPU-1", vendor=GPUVendor.AMD, model="MI210", vram=64 * GIB, pci_address="0000:43:00.0"),),
    )
    assert json.loads(msgspec.json.encode(resources, enc_hook=encode_value)) == {
        "cpu": {
            "cores": 1.5,
            "clock_speed": 2900000000,
            "architecture": "x86_64",
            "threads": 16,
            "cache_size": 16777216,
        },
        "ram": {"size": 4294967296},
        "disk": {"size": 10737418240, "type": "NVMe"},
        "gpus": [
            {
                "uuid": "GPU-1",
                "vendor": "AMD/ATI",
                "model": "MI210",
                "vram": 68719476736,
                "pci_address": "0000:43:00.0",
            }
        ],
    }


def test_unknown_keys_of_a_later_version_are_passed_over() -> None:
    assert msgspec.convert({"size": 1, "latency": 9}, RAM) == RAM(size=1)


@pytest.mark.parametrize("size", [-1, 2**63, 1.0, "1", True, None])
def test_an_amount_is_a_whole_number_of_64_bits(size: object) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"size": size}, RAM)


@pytest.mark.parametrize(
    ("written", "vendor"),
    [
        ("NVIDIA", GPUVendor.NVIDIA),
        ("AMD/ATI", GPUVendor.AMD),
        ("Intel", GPUVendor.INTEL),
        ("Unknown", GPUVendor.UNKNOWN),
        ("None", GPUVendor.NONE),
        ("", GPUVendor.UNKNOWN),
    ],
)
def test_vendors_are_spelt_as_the_dms_does(written: str, vendor: GPUVendor) -> None:
    assert msgspec.convert({"uuid": "a", "vram": 1, "vendor": written}, GPU).vendor is vendor


@pytest.mark.parametrize("written", ["Intel Corporation", "nvidia", "ATI"])
def test_other_names_are_not_searched_for_vendors(written: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=r"`\$\.vendor`"):
        msgspec.convert({"uuid": "a", "vram": 1, "vendor": written}, GPU)


def test_values_do_not_change() -> None:
    with pytest.raises(AttributeError):
        RAM(size=1).size = 2  # type: ignore[misc]
    assert {RAM(size=1), RAM(size=1)} == {RAM(size=1)}


@pytest.mark.parametrize(
    ("ports", "count"),
    [(PortRange(first=5, last=5), 1), (PortRange(first=6, last=5), 0), (DEFAULT_PORT_RANGE, 16384)],
)
def test_both_ends_of_a_range_of_ports_are_in_it(ports: PortRange, count: int) -> None:
    assert len(ports) == count
    assert all((port in ports) is (count > 0) for port in (ports.first, ports.last))
    assert ports.last + 1 not in ports


@pytest.mark.parametrize("port", [0, 65536, -1])
def test_what_is_no_port(port: int) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"first": port, "last": 1}, PortRange)


@pytest.mark.parametrize(
    ("share", "amount", "onboarded", "left"),
    [
        (0, 0, 100, 100),
        (100, 0, 100, 90),
        (100, 5, 100, 85),
        # A share is rounded up, so that no less is kept back than was requested.
        (1, 0, 100, 99),
        (1000, 0, 100, 0),
        (500, 80, 100, 0),
        (333, 0, 2**63 - 1, 2**63 - 1 - -(-(2**63 - 1) * 333 // 1000)),
    ],
)
def test_headroom_is_cut_from_what_is_onboarded(share: int, amount: int, onboarded: int, left: int) -> None:
    assert Headroom(share=share).cut(onboarded, amount) == left
