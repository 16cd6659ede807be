"""NVIDIA's GPUs through the real ctypes path of `pynvml`, with a fake library, and with the real one if
there is a GPU.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from dms_resources.components import GPU, GPUVendor
from dms_resources.demands import GPUDemand
from dms_resources.machine.hardware import HOST
from dms_resources.machine.hardware.gpu import GPUReport, read_gpus
from dms_resources.machine.hardware.gpu.process import ask_process, command_line, environment
from dms_resources.placement import DeviceState, place_together
from dms_resources.units import GIB

Behave = Callable[..., None]

_FUNCTIONS = (
    "nvmlInitWithFlags",
    "nvmlShutdown",
    "nvmlSystemGetDriverVersion",
    "nvmlSystemGetCudaDriverVersion_v2",
    "nvmlDeviceGetCount_v2",
    "nvmlDeviceGetHandleByIndex_v2",
    "nvmlDeviceGetUUID",
    "nvmlDeviceGetName",
    "nvmlDeviceGetMemoryInfo",
    "nvmlDeviceGetPciInfo_v3",
    "nvmlDeviceGetCudaComputeCapability",
    "nvmlDeviceGetMigMode",
    "nvmlDeviceGetMaxMigDeviceCount",
    "nvmlDeviceGetMigDeviceHandleByIndex",
)
# NOT_SUPPORTED and FUNCTION_NOT_FOUND: devices and drivers from before MIG.
_WITHOUT_MIG = {("nvmlDeviceGetMigMode", 3), ("nvmlDeviceGetMigMode", 13)}


def _no_process_is_left() -> bool:
    return not psutil.Process().children()


def test_eight_devices_are_told_in_full(fake_nvml: Behave) -> None:
    fake_nvml(devices=8, used=3 * GIB)
    report = ask_process("nvidia")
    assert report.problems == ()
    assert report.devices[1].gpu == GPU(
        uuid="GPU-00000001-0000-4000-8000-000000000000",
        index=1,
        vendor=GPUVendor.NVIDIA,
        model="NVIDIA A100-SXM4-40GB",
        vram=40 * GIB,
        pci_address="0000:11:00.0",
        driver_version="555.42.06",
        cuda_version="12.5",
        compute_capability="8.0",
    )
    assert len({device.gpu.uuid for device in report.devices}) == 8
    assert [device.used for device in report.devices] == [3 * GIB] + [0] * 7


def test_no_device_is_nothing_not_a_failure(fake_nvml: Behave) -> None:
    fake_nvml(devices=0)
    assert ask_process("nvidia") == GPUReport(notes=("the NVIDIA driver sees no GPU",))


def test_no_library_is_nothing_not_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    if _has_nvidia_gpu():
        pytest.skip("this machine has NVIDIA's library")
    monkeypatch.delenv("LD_LIBRARY_PATH", raising=False)
    assert ask_process("nvidia") == GPUReport(notes=("no NVIDIA driver is installed",))


def test_mig_devices_are_devices_of_their_own(fake_nvml: Behave) -> None:
    fake_nvml(devices=2, mig=1)
    whole, *parts = ask_process("nvidia").devices
    assert whole.gpu.uuid == "GPU-00000000-0000-4000-8000-000000000000"
    assert [(part.gpu.uuid[:12], part.position) for part in parts] == [("MIG-00000001", "1:0"), ("MIG-00000001", "1:1")]
    assert {part.gpu.vram for part in parts} == {20 * GIB}
    assert {part.gpu.pci_address for part in parts} == {"0000:11:00.0"}
    assert {part.gpu.compute_capability for part in parts} == {"8.0"}
    assert {part.parent_uuid for part in parts} == {"GPU-00000001-0000-4000-8000-000000000000"}


def test_every_device_gets_a_number_of_its_own(fake_nvml: Behave) -> None:
    fake_nvml(devices=3, mig=1)
    assert [device.gpu.index for device in read_gpus(HOST, {}).devices] == [0, 1, 2, 3]


def test_mig_mode_without_a_mig_device_offers_nothing(fake_nvml: Behave) -> None:
    fake_nvml(devices=1, mig=0, fail="nvmlDeviceGetMigDeviceHandleByIndex:6")
    report = ask_process("nvidia")
    assert report.devices == ()
    assert report.problems == ("NVIDIA GPU 0 is in MIG mode, but has no MIG device",)


@pytest.mark.parametrize("function", ["nvmlDeviceGetHandleByIndex_v2", "nvmlDeviceGetUUID", "nvmlDeviceGetMemoryInfo"])
def test_a_lost_device_leaves_the_others(fake_nvml: Behave, function: str) -> None:
    fake_nvml(devices=4, fail=f"{function}:15:2")
    report = ask_process("nvidia")
    assert [device.gpu.index for device in report.devices] == [0, 1, 3]
    assert report.problems == ("NVIDIA GPU 2: GPU is lost",)
    assert not report.failed


def test_a_driver_that_is_not_loaded_is_a_failure(fake_nvml: Behave) -> None:
    fake_nvml(devices=1, fail="nvmlInitWithFlags:9")
    assert ask_process("nvidia") == GPUReport.failure("the NVIDIA driver fails: Driver Not Loaded")


def test_every_error_of_every_function_is_reported_and_none_raises(nvml_folder: Path) -> None:
    script = textwrap.dedent("""
        import json, os, sys
        from dms_resources.machine.hardware.gpu.nvidia import report_nvidia
        for function in sys.argv[1:]:
            for code in [*range(1, 40), 999]:
                os.environ["FAKE_NVML_FAIL"] = f"{function}:{code}"
                report = report_nvidia()
                said = len(report.problems + report.limits)
                print(json.dumps([function, code, len(report.devices), said, len(report.notes)]))
    """)
    answer = subprocess.run(
        [sys.executable, "-P", "-c", script, *_FUNCTIONS],
        env={**environment(), "LD_LIBRARY_PATH": str(nvml_folder), "FAKE_NVML_DEVICES": "2", "FAKE_NVML_MIG": "1"},
        capture_output=True,
        check=True,
        text=True,
    )
    results = [json.loads(line) for line in answer.stdout.splitlines()]
    assert len(results) == len(_FUNCTIONS) * 40
    for function, code, devices, problems, notes in results:
        if (function, code) in _WITHOUT_MIG:
            assert (devices, problems) == (2, 0)
        else:
            # Either everything is reported, or a sentence says why not.
            assert devices == 3 or problems or notes, (function, code)


@pytest.mark.parametrize("function", ["nvmlInitWithFlags", "nvmlDeviceGetMemoryInfo", "nvmlShutdown"])
def test_a_library_that_crashes_takes_nothing_along(fake_nvml: Behave, function: str) -> None:
    fake_nvml(devices=1, crash=function)
    assert ask_process("nvidia") == GPUReport.failure("nvidia's GPU library crashed (SIGSEGV)")
    assert _no_process_is_left()


def test_a_library_that_hangs_is_ended(fake_nvml: Behave) -> None:
    fake_nvml(devices=1, hang="nvmlDeviceGetName")
    assert ask_process("nvidia", 0.5) == GPUReport.failure("nvidia's GPU library did not answer within 0.5 s")
    assert _no_process_is_left()


def test_a_hanging_process_ends_itself_when_nobody_is_left_to_end_it(fake_nvml: Behave) -> None:
    fake_nvml(devices=1, hang="nvmlInitWithFlags")
    process = subprocess.run(command_line("nvidia", 0.0), env=environment(), stdout=subprocess.DEVNULL, timeout=30)
    assert process.returncode == -signal.SIGALRM


def test_a_library_that_prints_does_not_spoil_the_report(fake_nvml: Behave) -> None:
    fake_nvml(devices=1, print="nvmlDeviceGetName")
    assert len(ask_process("nvidia").devices) == 1


def test_a_damaged_library_is_no_exception(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "libnvidia-ml.so.1").write_bytes(b"\x7fELF but nothing else")
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    assert ask_process("nvidia").devices == ()


def test_the_current_folder_is_not_searched_for_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pynvml.py").write_text("raise SystemExit(3)")
    monkeypatch.chdir(tmp_path)
    assert "crashed" not in "".join(ask_process("nvidia").problems)


def test_an_interpreter_that_is_not_there_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    assert ask_process("nvidia") == GPUReport.failure("nvidia GPUs cannot be queried: No such file or directory")
    monkeypatch.setattr(sys, "executable", "")
    assert ask_process("nvidia").failed


def test_cuda_visible_devices_is_obeyed_on_the_machine(fake_nvml: Behave) -> None:
    fake_nvml(devices=8)
    report = read_gpus(HOST, {"CUDA_VISIBLE_DEVICES": "5,2"})
    assert [device.gpu.index for device in report.devices] == [2, 5]
    assert report.limits == ("2 of 8 GPUs: CUDA_VISIBLE_DEVICES",)


_DECORATIONS = (
    "nvmlDeviceGetName",
    "nvmlDeviceGetPciInfo_v3",
    "nvmlDeviceGetCudaComputeCapability",
    "nvmlDeviceGetComputeMode",
    "nvmlDeviceGetRemappedRows",
    "nvmlDeviceGetRetiredPages",
    "nvmlDeviceGetRetiredPagesPendingStatus",
    "nvmlDeviceGetEccMode",
    "nvmlDeviceGetVirtualizationMode",
    "nvmlSystemGetDriverVersion",
    "nvmlSystemGetCudaDriverVersion_v2",
)


@pytest.mark.parametrize("function", _DECORATIONS)
@pytest.mark.parametrize("code", [4, 15, 999])
def test_an_answer_that_only_describes_costs_no_device(fake_nvml: Behave, function: str, code: int) -> None:
    fake_nvml(devices=2, fail=f"{function}:{code}")
    report = ask_process("nvidia")
    assert (len(report.devices), report.problems, report.failed) == (2, (), False)


def test_every_card_that_the_driver_lists_is_known_by_its_address(fake_nvml: Behave) -> None:
    fake_nvml(devices=2, mode=2)
    assert (ask_process("nvidia").devices, ask_process("nvidia").listed) == ((), ("0000:10:00.0", "0000:11:00.0"))
    fake_nvml(devices=1, mig=0)
    assert ask_process("nvidia").listed == ("0000:10:00.0",)
    fake_nvml(devices=2, fail="nvmlDeviceGetHandleByIndex_v2:15:1")
    assert ask_process("nvidia").listed == ("0000:10:00.0", "")


def test_a_name_that_is_not_text_costs_the_name(fake_nvml: Behave) -> None:
    fake_nvml(devices=2, badname=1)
    assert [device.gpu.model for device in ask_process("nvidia").devices] == ["NVIDIA A100-SXM4-40GB", ""]


def test_a_mig_device_that_fails_leaves_the_others(fake_nvml: Behave) -> None:
    fake_nvml(devices=1, mig=0, migfailslot=4)
    report = ask_process("nvidia")
    assert [device.position for device in report.devices] == ["0:0"]
    assert report.problems == ("NVIDIA GPU 0, MIG device in slot 4: Unknown Error",)


@pytest.mark.parametrize("fail", ["nvmlDeviceGetName:4", "nvmlDeviceGetPciInfo_v3:4", "nvmlDeviceGetComputeMode:4"])
def test_of_a_gpu_in_mig_mode_only_its_parts_are_needed(fake_nvml: Behave, fail: str) -> None:
    fake_nvml(devices=1, mig=0, parentnoperm=1, fail=fail)
    report = ask_process("nvidia")
    assert [device.gpu.vram for device in report.devices] == [20 * GIB, 20 * GIB]
    assert report.problems == ()


def test_memory_that_the_driver_keeps_is_not_offered(fake_nvml: Behave) -> None:
    fake_nvml(devices=1, total=16106127360, reserved=471859200, used=GIB)
    (device,) = ask_process("nvidia").devices
    assert (device.gpu.vram, device.used) == (16106127360 - 471859200, GIB)
    fake_nvml(devices=1, total=16106127360, reserved=471859200, v1=1)
    assert [device.gpu.vram for device in ask_process("nvidia").devices] == [16106127360]


def test_more_reserved_than_there_is_offers_nothing(fake_nvml: Behave) -> None:
    fake_nvml(devices=1, total=1000, reserved=2000)
    assert [device.gpu.vram for device in ask_process("nvidia").devices] == [0]


def test_a_gpu_that_its_owner_closed_is_not_offered(fake_nvml: Behave) -> None:
    fake_nvml(devices=1, mode=2)
    report = ask_process("nvidia")
    assert (report.devices, report.problems) == ((), ())
    assert report.limits == ("NVIDIA GPU 0: its compute mode is PROHIBITED: it is not offered",)


@pytest.mark.parametrize("mode", [1, 3])
def test_a_gpu_for_one_process_is_for_one_lease(fake_nvml: Behave, mode: int) -> None:
    fake_nvml(devices=2, mode=mode)
    report = ask_process("nvidia")
    assert [device.gpu.exclusive for device in report.devices] == [True, True]
    states = [DeviceState(device=device.gpu, total=device.gpu.vram) for device in report.devices]
    twenty = GPUDemand(vram=20 * GIB)
    placed = place_together([[twenty], [twenty]], states)
    assert placed is not None
    assert {one.uuid for (one,) in placed} == {device.gpu.uuid for device in report.devices}
    assert {(one.vram, one.exclusive) for (one,) in placed} == {(40 * GIB, True)}
    assert place_together([[twenty], [twenty], [twenty]], states) is None


def test_a_row_that_could_not_be_remapped_is_said(fake_nvml: Behave) -> None:
    fake_nvml(devices=1, brokenrow=1)
    report = ask_process("nvidia")
    assert len(report.devices) == 1
    assert report.problems == (
        "NVIDIA GPU 0: a row of its memory is broken and could not be remapped: have it replaced",
    )


@pytest.mark.parametrize("setting", ["pendingrow", "pendingpage"])
def test_memory_that_waits_to_be_taken_out_of_use_is_said(fake_nvml: Behave, setting: str) -> None:
    fake_nvml(devices=1, **{setting: 1})
    report = ask_process("nvidia")
    assert len(report.devices) == 1
    assert report.problems == (
        "NVIDIA GPU 0: a part of its memory is broken, and is taken out of use at the next reset: reset it",
    )


def test_retired_pages_of_both_causes_are_not_offered(fake_nvml: Behave) -> None:
    fake_nvml(devices=1, retired=3, reserved=GIB)
    (device,) = ask_process("nvidia").devices
    assert (device.gpu.vram, device.physical) == (39 * GIB - 6 * 65536, 40 * GIB)
    fake_nvml(devices=1, retired=9999)
    assert [device.gpu.vram for device in ask_process("nvidia").devices] == [40 * GIB - 4096 * 65536]


@pytest.mark.parametrize(("mode", "said"), [(1, True), (11, False), (10, False), (0, False)])
def test_error_correction_that_takes_memory_from_the_next_reset_on_is_said(
    fake_nvml: Behave, mode: int, said: bool
) -> None:
    fake_nvml(devices=1, ecc=mode)
    report = ask_process("nvidia")
    assert len(report.devices) == 1
    sentence = "NVIDIA GPU 0: its ECC is turned on at the next reset: it may have less memory then"
    assert report.problems == ((sentence,) if said else ())


@pytest.mark.parametrize(("mode", "offered"), [(0, 1), (1, 1), (2, 1), (3, 0), (4, 0)])
def test_a_gpu_that_is_divided_for_virtual_machines_is_not_offered(fake_nvml: Behave, mode: int, offered: int) -> None:
    # A GPU that was passed to this virtual machine (1), or is itself a virtual one (2), is ours.
    fake_nvml(devices=1, virtual=mode)
    report = ask_process("nvidia")
    assert (len(report.devices), report.problems) == (offered, ())
    assert len(report.limits) == 1 - offered


def test_devices_that_claim_one_uuid_are_not_offered(fake_nvml: Behave) -> None:
    fake_nvml(devices=3, sameuuid=1)
    report = read_gpus(HOST, {})
    assert report.devices == ()
    assert report.problems == (
        "3 GPUs have the uuid GPU-00000000-0000-4000-8000-00000000dead: none of them is offered",
    )


@pytest.mark.parametrize("name", ["NVIDIA GB10", "NVIDIA_GB10", "Orin (nvgpu)", "NVIDIA Jetson Thor"])
def test_a_gpu_on_a_chip_shares_main_memory(fake_nvml: Behave, name: str) -> None:
    fake_nvml(devices=1, name=name)
    report = read_gpus(HOST, {})
    assert report.devices == ()
    assert report.limits == (f"NVIDIA GPU 0: {name} shares main memory: it is not offered",)


def test_memory_as_large_as_the_machines_is_the_machines(fake_nvml: Behave) -> None:
    total = int(re.search(r"MemTotal: +(\d+)", Path("/proc/meminfo").read_text())[1]) * 1024  # type: ignore[index]
    fake_nvml(devices=1, total=total, reserved=1000)
    assert read_gpus(HOST, {}).devices == ()
    fake_nvml(devices=1, total=total + 2**21)
    assert len(read_gpus(HOST, {}).devices) == 1


def test_a_driver_that_reports_no_memory_shares_the_machines(fake_nvml: Behave) -> None:
    fake_nvml(devices=2, fail="nvmlDeviceGetMemoryInfo:3:1")
    report = ask_process("nvidia")
    assert (len(report.devices), report.problems) == (1, ())
    assert report.limits == ("NVIDIA GPU 1: NVIDIA A100-SXM4-40GB has no memory of its own: it is not offered",)


def _has_nvidia_gpu() -> bool:
    return os.path.exists("/dev/nvidiactl")


@pytest.mark.skipif(not _has_nvidia_gpu(), reason="there is no NVIDIA GPU here")
def test_a_real_gpu_is_told_in_full() -> None:
    report = ask_process("nvidia")
    assert report.problems == ()
    for device in report.devices:
        assert device.gpu.uuid.startswith(("GPU-", "MIG-"))
        assert 0 <= device.used <= device.gpu.vram
        assert device.gpu.vram > GIB
        assert device.gpu.model
        assert device.gpu.pci_address
        assert device.gpu.driver_version
        assert device.gpu.cuda_version
        assert device.gpu.compute_capability
