"""GPUs from files: vendors by PCI id, identities, memory, and the devices that the environment shows."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from dms_resources.components import GPU, GPUVendor
from dms_resources.machine.hardware import Roots
from dms_resources.machine.hardware.gpu import GPUDevice, GPUReport, read_gpus, visible_devices
from dms_resources.machine.hardware.gpu.amd import name_amd
from dms_resources.machine.hardware.gpu.pci import parse_models, short_address
from dms_resources.machine.hardware.gpu.process import ask_process

Build = Callable[[str], Roots]


def _device(position: str, uuid: str, parent: str = "") -> GPUDevice:
    gpu = GPU(uuid=uuid, vendor=GPUVendor.NVIDIA, vram=1)
    return GPUDevice(gpu=gpu, position=position, parent_uuid=parent)


_GPUS = tuple(_device(str(n), f"GPU-{n}{n}aa-{n}") for n in range(8))
_WITH_MIG = (
    _device("0", "GPU-00aa"),
    _device("1:0", "MIG-11aa", parent="GPU-11aa"),
    _device("1:1", "MIG-11bb", parent="GPU-11aa"),
)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("0,3", ["0", "3"]),
        ("3,0", ["0", "3"]),
        (" 1 , 2 ", ["1", "2"]),
        ("", []),
        ("-1", []),
        ("none", []),
        ("2,-1,3", ["2"]),
        ("2,99,3", ["2"]),
        ("GPU-33aa-3", ["3"]),
        ("GPU-33", ["3"]),
        ("GPU-", []),
        ("GPU-77aa-7,1", ["1", "7"]),
        ("GPU-ff", []),
        ("1,1", ["1"]),
        ("\u0663", []),
    ],
)
def test_cuda_shows_devices_by_number_and_by_uuid(value: str, shown: list[str]) -> None:
    visible = visible_devices(_GPUS, {"CUDA_VISIBLE_DEVICES": value})
    assert [device.position for device in visible.devices] == shown
    assert visible.limits == (f"{len(shown)} of 8 GPUs: CUDA_VISIBLE_DEVICES",)


@pytest.mark.parametrize(
    ("value", "shown"),
    [("1", 2), ("GPU-11aa", 2), ("1:1", 1), ("MIG-11bb", 1), ("0:0", 0), ("0,1:0", 2), ("MIG-11", 0)],
)
def test_mig_devices_are_shown_alone_or_with_their_gpu(value: str, shown: int) -> None:
    assert len(visible_devices(_WITH_MIG, {"CUDA_VISIBLE_DEVICES": value}).devices) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("all", 8),
        ("none", 0),
        # What a runtime with the Container Device Interface writes; the devices are there.
        ("void", 8),
        ("nvidia.com/gpu=all", 8),
        ("nvidia.com/gpu=0", 1),
        ("nvidia.com/gpu=GPU-33aa-3,nvidia.com/gpu=1", 2),
        ("/var/run/nvidia-container-devices", 8),
        ("3", 1),
        ("0,1", 2),
        ("GPU-33aa-3,GPU-44", 2),
        ("", 8),
    ],
)
def test_the_container_runtimes_choice_is_obeyed(value: str, shown: int) -> None:
    assert len(visible_devices(_GPUS, {"NVIDIA_VISIBLE_DEVICES": value}).devices) == shown


def test_numbers_that_the_runtime_has_obeyed_are_not_obeyed_twice() -> None:
    # Of eight GPUs the runtime shows "6,7". Inside they are 0 and 1.
    inside = _GPUS[:2]
    assert visible_devices(inside, {"NVIDIA_VISIBLE_DEVICES": "6,7"}).devices == inside


def _mixed() -> tuple[GPUDevice, ...]:
    models = ("NVIDIA T4", "NVIDIA A100-SXM4-80GB", "NVIDIA A100-SXM4-80GB")
    return tuple(replace(device, gpu=replace(device.gpu, model=m)) for device, m in zip(_GPUS, models, strict=False))


@pytest.mark.parametrize(
    ("environment", "shown"),
    [
        # CUDA's device 0 is an A100, the driver's is the T4.
        ({"CUDA_VISIBLE_DEVICES": "0"}, []),
        ({"CUDA_VISIBLE_DEVICES": "0", "CUDA_DEVICE_ORDER": "FASTEST_FIRST"}, []),
        ({"CUDA_VISIBLE_DEVICES": "0", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}, ["0"]),
        ({"CUDA_VISIBLE_DEVICES": "GPU-11"}, ["1"]),
        ({"CUDA_VISIBLE_DEVICES": "NoDevFiles"}, []),
        ({"CUDA_VISIBLE_DEVICES": "0", "NVIDIA_VISIBLE_DEVICES": "GPU-11,GPU-22"}, []),
        ({"CUDA_VISIBLE_DEVICES": "1", "NVIDIA_VISIBLE_DEVICES": "GPU-11aa-1"}, ["1"]),
        ({}, ["0", "1", "2"]),
    ],
)
def test_numbers_of_cuda_name_what_they_name_to_cuda(environment: dict[str, str], shown: list[str]) -> None:
    visible = visible_devices(_mixed(), environment)
    assert [device.position for device in visible.devices] == shown
    assert bool(visible.limits) == (len(shown) < 3)


def test_both_variables_hold() -> None:
    visible = visible_devices(_GPUS, {"NVIDIA_VISIBLE_DEVICES": "1,2,3", "CUDA_VISIBLE_DEVICES": "3,1"})
    assert [device.position for device in visible.devices] == ["1", "3"]
    assert visible.limits == ("3 of 8 GPUs: NVIDIA_VISIBLE_DEVICES", "2 of 3 GPUs: CUDA_VISIBLE_DEVICES")


@given(st.text(), st.text())
def test_no_value_of_the_variables_raises(first: str, second: str) -> None:
    shown = visible_devices(_GPUS, {"NVIDIA_VISIBLE_DEVICES": first, "CUDA_VISIBLE_DEVICES": second})
    assert set(shown.devices) <= set(_GPUS)


def test_amd_and_intel_are_told_by_their_files(build_machine: Build) -> None:
    report = read_gpus(build_machine("numa_server"), {})
    assert [(d.gpu.uuid, d.gpu.index, d.gpu.vendor, d.gpu.vram, d.used) for d in report.devices] == [
        ("GPU-9d6fa4d2a1c0b3e7", 0, GPUVendor.AMD, 68702699520, 2**30),
        # A card without a number of its own is named by its slot.
        ("AMD-0000:83:00.0-73bf", 1, GPUVendor.AMD, 17163091968, 20971520),
        ("Intel-0000:c3:00.0-56c0", 2, GPUVendor.INTEL, 14 * 2**30, 0),
    ]
    assert report.devices[0].gpu.model == "AMD Instinct MI210"
    assert report.problems == ()


def test_a_gpu_that_shares_main_memory_is_not_offered(build_machine: Build) -> None:
    report = read_gpus(build_machine("bare_metal"), {})
    assert report.devices == ()
    assert report.limits == ("Intel 8086:9bc5 at 0000:00:02.0 has no memory of its own: it is not offered",)


def test_a_card_that_no_driver_shows_is_a_problem(build_machine: Build) -> None:
    roots = build_machine("bare_metal")
    unseen = ("NVIDIA GPU at 0000:01:00.0: no driver shows it",)
    assert read_gpus(roots, {}).problems == unseen
    assert read_gpus(roots, {}, lambda _: GPUReport(notes=("no driver",))).problems == unseen
    # The report of a library that gives a reason, or lists devices, is used.
    assert read_gpus(roots, {}, lambda _: GPUReport.failure("broken")).problems == ("broken",)
    assert read_gpus(roots, {}, lambda _: GPUReport(devices=_GPUS)).problems == ()


def test_intels_older_driver_tells_the_memory_of_the_card(build_machine: Build) -> None:
    card = "/sys/bus/pci/devices/0000:03:00.0"
    roots = build_machine(
        f"== {card}/class\n0x030000\n== {card}/vendor\n0x8086\n== {card}/device\n0x56a0\n"
        f"== {card}/drm/card1/lmem_total_bytes\n17095983104\n"
    )
    assert [device.gpu.vram for device in read_gpus(roots, {}).devices] == [17095983104]


def test_intel_corporation_is_not_ati(build_machine: Build) -> None:
    # A search in names would find "ati" in "Intel Corporation". Vendors are recognized by number.
    assert {d.gpu.vendor for d in read_gpus(build_machine("numa_server"), {}).devices[2:]} == {GPUVendor.INTEL}


_AMDSMI = """
class AmdSmiException(Exception): pass
def amdsmi_init(): pass
def amdsmi_shut_down(): pass
def amdsmi_get_processor_handles(): return [1, 2]
def amdsmi_get_gpu_asic_info(handle): return {"market_name": "AMD Radeon RX 6900 XT" if handle == 1 else "N/A"}
def amdsmi_get_gpu_driver_info(handle): return {"driver_version": "6.7.0"}
def amdsmi_get_gpu_device_bdf(handle): return {1: "0000:83:00.0", 2: "0000:43:00.0"}[handle]
"""


@pytest.fixture
def amdsmi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module in place of AMD's, in the process that queries it."""
    module = tmp_path / "modules" / "amdsmi.py"
    module.parent.mkdir()
    module.write_text(_AMDSMI)
    monkeypatch.setattr(sys, "path", [str(module.parent), *sys.path])
    return module


def test_amdsmi_adds_names_and_leaves_identities(build_machine: Build, amdsmi: Path) -> None:
    roots = build_machine("numa_server")
    report = read_gpus(roots, {}, lambda vendor: ask_process("amd") if vendor == "amd" else GPUReport())
    plain = read_gpus(roots, {})
    assert [d.gpu.uuid for d in report.devices] == [d.gpu.uuid for d in plain.devices]
    assert [d.gpu.model for d in report.devices[:2]] == ["AMD Instinct MI210", "AMD Radeon RX 6900 XT"]
    assert {d.gpu.driver_version for d in report.devices[:2]} == {"6.7.0"}


def test_an_amdsmi_that_fails_leaves_what_the_files_tell(build_machine: Build, amdsmi: Path) -> None:
    plain = read_gpus(build_machine("numa_server"), {})
    amdsmi.write_text(_AMDSMI.replace("def amdsmi_init(): pass", "def amdsmi_init(): raise AmdSmiException('no')"))
    assert ask_process("amd") == GPUReport.failure("amdsmi fails: no")
    amdsmi.write_text("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)")
    crashed = ask_process("amd")
    assert crashed.failed
    named = name_amd(plain, crashed)
    assert named.devices == plain.devices
    assert named.problems == ("amd's GPU library crashed (SIGSEGV)",)


def test_pci_names_come_from_the_vendors_part_of_the_list() -> None:
    text = "# comment\n1002  AMD\n\t73bf  Navi 21\n\t\t1002 0e3a  Board\n\t740f  MI210\n10de  NVIDIA\n\t73bf  Other\n"
    assert parse_models(text, 0x1002) == {0x73BF: "Navi 21", 0x740F: "MI210"}
    assert parse_models(text, 0x8086) == {}


def test_pci_addresses_have_one_spelling() -> None:
    assert short_address("00000000:3B:00.0") == "0000:3b:00.0"
    assert short_address("0001:3b:00.0") == "0001:3b:00.0"
