"""Cards that are visible but cannot be used, cards that are divided, and what the runtimes' variables show."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from dms_resources.components import GPU, GPUVendor
from dms_resources.machine.hardware import Roots
from dms_resources.machine.hardware.gpu import GPUDevice, GPUReport, read_gpus, visible_devices
from dms_resources.machine.hardware.gpu.kfd import parse_properties
from dms_resources.units import GIB

Build = Callable[[str], Roots]

_BUS = "/sys/bus/pci/devices"


def _file(path: str, content: object) -> str:
    return f"== {path}\n{content}\n"


def _card(slot: str, vendor: str = "0x1002", device: str = "0x740f", minor: int | None = 128, **files: object) -> str:
    folder = f"{_BUS}/0000:{slot}:00.0"
    known = {"class": "0x030000", "vendor": vendor, "device": device, **files}
    text = "".join(_file(f"{folder}/{name}", value) for name, value in known.items())
    return text + (_file(f"{folder}/drm/renderD{minor}/dev", f"226:{minor}") if minor is not None else "")


def _four() -> str:
    memory = {"mem_info_vram_total": 64 * GIB, "mem_info_vram_used": 0}
    slots = enumerate(("03", "23", "43", "63"))
    return "".join(_card(slot, minor=128 + n, unique_id=f"5f1d2c3b4a5968{slot}", **memory) for n, slot in slots)


def _nodes(*names: str) -> str:
    return "".join(_file(f"/dev/{name}", "") for name in names)


@pytest.mark.parametrize(
    ("nodes", "offered", "reason"),
    [
        (("null",), [], "/dev/kfd"),
        (("kfd",), [], "/dev/dri/renderD128"),
        (("dri/renderD128",), [], "/dev/kfd"),
        (("kfd", "dri/card0"), [], "/dev/dri/renderD128"),
        (("kfd", "dri/renderD129"), ["0000:23:00.0"], "/dev/dri/renderD128"),
        (("kfd", "dri/renderD128", "dri/renderD131"), ["0000:03:00.0", "0000:63:00.0"], "/dev/dri/renderD129"),
    ],
)
def test_a_card_without_its_device_nodes_is_not_offered(
    build_machine: Build, nodes: tuple[str, ...], offered: list[str], reason: str
) -> None:
    report = read_gpus(build_machine(_four() + _nodes(*nodes)), {})
    assert [device.gpu.pci_address for device in report.devices] == offered
    assert len(report.limits) == 4 - len(offered)
    assert report.limits[0].endswith(f"is not offered: this process cannot open {reason}")


def test_a_card_without_a_render_node_in_sysfs_is_not_offered(build_machine: Build) -> None:
    report = read_gpus(
        build_machine(_card("03", minor=None, mem_info_vram_total=GIB) + _nodes("kfd", "dri/renderD128")), {}
    )
    assert report.limits == ("AMD GPU at 0000:03:00.0 is not offered: this process cannot open /dev/dri/renderD*",)


def test_intels_card_needs_its_node_and_not_amds(build_machine: Build) -> None:
    tile = {"tile0/physical_vram_size_bytes": hex(16 * GIB)}
    card = _card("03", "0x8086", "0x56a0", **tile)
    assert len(read_gpus(build_machine(card + _nodes("dri/renderD128")), {}).devices) == 1


def test_intels_card_without_its_node_is_not_offered(build_machine: Build) -> None:
    card = _card("03", "0x8086", "0x56a0", **{"tile0/physical_vram_size_bytes": hex(16 * GIB)})
    report = read_gpus(build_machine(card + _nodes("dri/renderD129")), {})
    assert report.devices == ()
    assert report.limits == ("Intel GPU at 0000:03:00.0 is not offered: this process cannot open /dev/dri/renderD128",)


def test_device_nodes_that_were_not_recorded_are_not_missing(build_machine: Build) -> None:
    assert len(read_gpus(build_machine(_four()), {}).devices) == 4


def _partitioned(mode: str, parts: int, size: int, *, own_ids: bool = True, total: int = 192 * GIB) -> str:
    text = _card(
        "05", device="0x74a1", mem_info_vram_total=total, mem_info_vram_used=0, unique_id="dc91284879207f2b",
        current_compute_partition=mode,
    )  # fmt: skip
    folder = "/sys/class/kfd/kfd/topology/nodes"
    text += _file(f"{folder}/0/properties", "cpu_cores_count 96\nsimd_count 0\nlocation_id 0")
    for part in range(parts):
        number = 0xDC91284879207F2B + (part if own_ids else 0)
        properties = f"cpu_cores_count 0\nsimd_count 152\nlocation_id {0x500 + part}\ndomain 0\n"
        properties += f"drm_render_minor {128 + part}\nunique_id {number}"
        text += _file(f"{folder}/{part + 1}/properties", properties)
        text += _file(f"{folder}/{part + 1}/mem_banks/0/properties", f"heap_type 1\nsize_in_bytes {size}\nflags 0")
        text += _file(f"{folder}/{part + 1}/mem_banks/1/properties", f"heap_type 0\nsize_in_bytes {GIB}\nflags 0")
    return text


@pytest.mark.parametrize(("mode", "parts"), [("CPX", 8), ("DPX", 2), ("QPX", 4), ("TPX", 3), ("cpx", 8)])
@pytest.mark.parametrize("own_ids", [True, False])
def test_a_divided_card_is_its_parts(build_machine: Build, mode: str, parts: int, own_ids: bool) -> None:
    report = read_gpus(build_machine(_partitioned(mode, parts, 192 * GIB // parts, own_ids=own_ids)), {})
    assert [device.gpu.vram for device in report.devices] == [192 * GIB // parts] * parts
    assert len({device.gpu.uuid for device in report.devices}) == parts
    assert {device.gpu.pci_address for device in report.devices} == {"0000:05:00.0"}
    assert report.limits == (f"AMD GPU at 0000:05:00.0 is divided ({mode.upper()}) into {parts} devices",)


def test_parts_that_share_the_memory_do_not_count_it_twice(build_machine: Build) -> None:
    # In CPX with NPS1 each part reports all of the memory.
    report = read_gpus(build_machine(_partitioned("CPX", 8, 192 * GIB)), {})
    assert sum(device.gpu.vram for device in report.devices) == 192 * GIB


def test_parts_without_their_node_are_not_offered(build_machine: Build) -> None:
    machine = _partitioned("CPX", 8, 24 * GIB) + _nodes("kfd", "dri/renderD130", "dri/renderD131")
    report = read_gpus(build_machine(machine), {})
    assert len(report.devices) == 2
    assert "part 0, is not offered: this process cannot open /dev/dri/renderD128" in report.limits[1]


def test_a_divided_card_whose_parts_are_unknown_is_not_offered(build_machine: Build) -> None:
    report = read_gpus(build_machine(_partitioned("CPX", 0, 0)), {})
    assert report.devices == ()
    assert report.problems == (
        "AMD GPU at 0000:05:00.0 is divided (CPX), but its parts cannot be read: it is not offered",
    )


def test_an_undivided_card_of_that_kind_is_one_device(build_machine: Build) -> None:
    report = read_gpus(build_machine(_partitioned("SPX", 1, 192 * GIB)), {})
    assert [device.gpu.vram for device in report.devices] == [192 * GIB]


def test_an_accelerator_that_shares_main_memory_is_not_offered(build_machine: Build) -> None:
    report = read_gpus(build_machine(_card("05", device="0x74a0", mem_info_vram_total=128 * GIB)), {})
    assert report.limits == ("AMD GPU at 0000:05:00.0: AMD Instinct MI300A shares main memory: it is not offered",)


def test_retired_pages_are_not_offered(build_machine: Build) -> None:
    pages = "0x00000001 : 0x00001000 : R\n0x00000002 : 0x00001000 : P\nnonsense\n0x3 : 0x00001000 : X"
    card = _card("03", mem_info_vram_total=GIB, **{"ras/gpu_vram_bad_pages": pages})
    assert [device.gpu.vram for device in read_gpus(build_machine(card), {}).devices] == [GIB - 8192]


@pytest.mark.parametrize("vendor", ["0x1002", "0x8086", "0x10de"])
def test_a_card_that_is_divided_for_virtual_machines_is_not_offered(build_machine: Build, vendor: str) -> None:
    memory = {"mem_info_vram_total": GIB, "tile0/physical_vram_size_bytes": hex(GIB)}
    card = _card("03", vendor, "0x56c0", sriov_numvfs=4, sriov_totalvfs=31, **memory)
    part = f"{_BUS}/0000:03:00.1"
    part_files = {"class": "0x030000", "vendor": vendor, "device": "0x56c0", **memory}
    virtual = "".join(_file(f"{part}/{name}", value) for name, value in part_files.items())
    virtual += f"== {part}/physfn -> ../0000:03:00.0\n\n"
    ours = GPUDevice(gpu=GPU(uuid="GPU-1", vendor=GPUVendor.NVIDIA, vram=GIB, pci_address="0000:03:00.0"))
    nvidia = GPUReport(devices=(ours,)) if vendor == "0x10de" else GPUReport()
    report = read_gpus(build_machine(card + virtual), {}, lambda _: nvidia)
    assert report.devices == ()
    assert report.limits == ("GPU at 0000:03:00.0 is divided into 4 virtual functions: it is not offered",)


def test_a_card_on_the_bus_that_the_library_does_not_list_is_said(build_machine: Build) -> None:
    cards = _card("01", "0x10de", "0x20b0") + _card("02", "0x10de", "0x20b0") + _card("03", "0x10de", "0x20b0")
    cards += f"== {_BUS}/0000:02:00.0/driver -> ../../../bus/pci/drivers/vfio-pci\n\n"
    roots = build_machine(cards)
    listed = GPUDevice(gpu=GPU(uuid="GPU-1", vendor=GPUVendor.NVIDIA, vram=GIB, pci_address="0000:01:00.0"))
    report = read_gpus(roots, {}, lambda _: GPUReport(devices=(listed,)))
    assert report.problems == (
        "NVIDIA GPU at 0000:02:00.0: no driver shows it (vfio-pci has it)",
        "NVIDIA GPU at 0000:03:00.0: no driver shows it",
    )
    # A container was given one of them, which is no failure.
    report = read_gpus(roots, {"NVIDIA_VISIBLE_DEVICES": "GPU-1"}, lambda _: GPUReport(devices=(listed,)))
    assert (report.problems, len(report.limits)) == ((), 2)


@pytest.mark.parametrize(
    "report",
    [
        GPUReport(
            limits=("NVIDIA GPU 0: its compute mode is PROHIBITED: it is not offered",), listed=("0000:01:00.0",)
        ),
        GPUReport(problems=("NVIDIA GPU 0: Unknown Error",), listed=("0000:01:00.0",)),
    ],
)
def test_a_sentence_on_one_card_hides_no_other(build_machine: Build, report: GPUReport) -> None:
    roots = build_machine(_card("01", "0x10de", "0x20b0") + _card("02", "0x10de", "0x20b0"))
    found = read_gpus(roots, {}, lambda _: report)
    assert found.problems[-1] == "NVIDIA GPU at 0000:02:00.0: no driver shows it"
    assert not any("0000:01:00.0" in sentence for sentence in found.problems)
    # Where a card has no address it may be either of them, and a library that failed says so itself.
    for unknown in (replace(report, listed=("",)), replace(report, listed=(), failed=True)):
        assert read_gpus(roots, {}, lambda _, unknown=unknown: unknown).problems == report.problems  # type: ignore[misc]


@pytest.mark.parametrize(("vendor", "device"), [("0x8086", "0x56a0"), ("0x1002", "0x740f")])
def test_a_card_that_a_virtual_machine_has_is_said(build_machine: Build, vendor: str, device: str) -> None:
    driver = f"== {_BUS}/0000:03:00.0/driver -> ../../../bus/pci/drivers/vfio-pci\n\n"
    report = read_gpus(build_machine(_card("03", vendor, device) + driver), {})
    (problem,) = report.problems
    assert problem.endswith("GPU at 0000:03:00.0 is not offered: vfio-pci has it")


def test_a_card_without_memory_is_not_offered_and_said(build_machine: Build) -> None:
    report = read_gpus(build_machine(_card("03", mem_info_vram_total=0, unique_id="1")), {})
    assert report.devices == ()
    assert report.problems == ("GPU GPU-0000000000000001: its driver shows no memory: it is not offered",)


@pytest.mark.parametrize(
    ("kind", "said"), [("0x120000", True), ("0x030200", True), ("0x030000", False), ("0x020000", False)]
)
def test_an_accelerator_of_another_vendor_is_said(build_machine: Build, kind: str, said: bool) -> None:
    report = read_gpus(build_machine(_card("03", "0x1da3", "0x1020", **{"class": kind})), {})
    assert report.devices == ()
    sentence = "accelerator at 0000:03:00.0 (1da3:1020) is of a vendor that is not known here: it is not offered"
    assert report.limits == ((sentence,) if said else ())


def test_another_card_in_the_same_slot_is_another_device(build_machine: Build) -> None:
    one = read_gpus(build_machine(_card("03", device="0x73bf", mem_info_vram_total=GIB)), {}).devices[0].gpu.uuid
    two = read_gpus(build_machine(_card("03", device="0x744c", mem_info_vram_total=GIB)), {}).devices[0].gpu.uuid
    assert one != two


def _devices(vendor: GPUVendor, count: int, parts: int = 1) -> tuple[GPUDevice, ...]:
    return tuple(
        GPUDevice(gpu=GPU(uuid=f"GPU-{n:016x}", index=n, vendor=vendor, vram=2 * GIB), parts=parts)
        for n in range(count)
    )


@pytest.mark.parametrize(
    ("environment", "shown"),
    [
        ({"ROCR_VISIBLE_DEVICES": "1"}, [1]),
        ({"ROCR_VISIBLE_DEVICES": ""}, []),
        ({"ROCR_VISIBLE_DEVICES": "0,GPU-0000000000000003"}, [0, 3]),
        ({"ROCR_VISIBLE_DEVICES": "0,9,1"}, [0]),
        ({"HIP_VISIBLE_DEVICES": "2,3"}, [2, 3]),
        ({"HIP_VISIBLE_DEVICES": "-1"}, []),
        ({"GPU_DEVICE_ORDINAL": "0"}, [0]),
        ({"CUDA_VISIBLE_DEVICES": "3"}, [3]),
        ({"HIP_VISIBLE_DEVICES": "1", "CUDA_VISIBLE_DEVICES": "3"}, [1]),
        # The second variable counts what the first one leaves.
        ({"ROCR_VISIBLE_DEVICES": "2,3", "HIP_VISIBLE_DEVICES": "1"}, [3]),
        ({"ROCR_VISIBLE_DEVICES": "\u0663"}, []),
        ({"NVIDIA_VISIBLE_DEVICES": "none", "ZE_AFFINITY_MASK": "9"}, [0, 1, 2, 3]),
    ],
)
def test_amds_variables_are_obeyed(environment: dict[str, str], shown: list[int]) -> None:
    visible = visible_devices(_devices(GPUVendor.AMD, 4), environment)
    assert [device.gpu.index for device in visible.devices] == shown
    assert bool(visible.limits) == (len(shown) < 4)


_BOTH = [(0, 2), (1, 2)]


def _shown_tiles(environment: dict[str, str]) -> list[tuple[int, int]]:
    visible = visible_devices(_devices(GPUVendor.INTEL, 2, parts=2), environment)
    shown = [(device.gpu.index, device.gpu.vram // GIB) for device in visible.devices]
    assert bool(visible.limits) == (shown != _BOTH)
    return shown


@pytest.mark.parametrize(
    ("mask", "shown"),
    [
        ("0", [(0, 2)]),
        ("1", [(1, 2)]),
        ("0,1", _BOTH),
        ("0.1", [(0, 1)]),
        ("0.0,0.1,1.0", [(0, 2), (1, 1)]),
        ("0.7", []),
        ("5", []),
        ("", _BOTH),
        ("default", _BOTH),
        ("x", []),
    ],
)
def test_intels_mask_shows_devices_and_tiles(mask: str, shown: list[tuple[int, int]]) -> None:
    assert _shown_tiles({"ZE_AFFINITY_MASK": mask, "ZE_FLAT_DEVICE_HIERARCHY": "COMPOSITE"}) == shown


@pytest.mark.parametrize(
    ("mask", "shown"),
    [("0", [(0, 1)]), ("1", [(0, 1)]), ("2,3", [(1, 2)]), ("0,2", [(0, 1), (1, 1)]), ("0,1,2,3", _BOTH), ("4", [])],
)
def test_where_devices_are_flat_each_tile_has_a_number(mask: str, shown: list[tuple[int, int]]) -> None:
    for hierarchy in ("", "FLAT", "combined"):
        assert _shown_tiles({"ZE_AFFINITY_MASK": mask, "ZE_FLAT_DEVICE_HIERARCHY": hierarchy}) == shown
    # A tile that is named as a part of a device means devices with parts, unless they are flat.
    assert _shown_tiles({"ZE_AFFINITY_MASK": "0.1"}) == [(0, 1)]
    assert _shown_tiles({"ZE_AFFINITY_MASK": "0.1", "ZE_FLAT_DEVICE_HIERARCHY": "FLAT"}) == []


@pytest.mark.parametrize(
    ("selector", "shown"),
    [
        ("level_zero:0", [(0, 2)]),
        ("Level_Zero:1", [(1, 2)]),
        ("level_zero:0,1", _BOTH),
        ("level_zero:*", _BOTH),
        ("level_zero:gpu", _BOTH),
        ("opencl:gpu", _BOTH),
        ("*:gpu", _BOTH),
        ("*:*", _BOTH),
        ("level_zero:0.1", [(0, 1)]),
        ("level_zero:*.*", _BOTH),
        ("level_zero:1.*", [(1, 2)]),
        ("!level_zero:0", _BOTH),
        ("!opencl:*;!level_zero:0", [(1, 2)]),
        ("!*:gpu", []),
        ("*:gpu;!opencl:1;!level_zero:0.0", [(0, 1), (1, 2)]),
        ("opencl:cpu", []),
        ("cuda:*", []),
        ("hip:0", []),
        ("opencl:0", []),
        ("level_zero:7", []),
        ("nonsense", []),
        (";", _BOTH),
        ("", _BOTH),
    ],
)
def test_the_selector_of_oneapi_is_obeyed(selector: str, shown: list[tuple[int, int]]) -> None:
    assert _shown_tiles({"ONEAPI_DEVICE_SELECTOR": selector}) == shown


def test_mask_and_selector_both_hold() -> None:
    environment = {"ZE_AFFINITY_MASK": "0.1,1", "ONEAPI_DEVICE_SELECTOR": "level_zero:0"}
    assert _shown_tiles(environment) == [(0, 1)]


@given(st.text(max_size=20), st.text(max_size=20), st.text(max_size=20))
def test_no_value_of_any_variable_raises(rocr: str, hip: str, mask: str) -> None:
    devices = _devices(GPUVendor.AMD, 2) + _devices(GPUVendor.INTEL, 2)
    names = {"ROCR_VISIBLE_DEVICES": rocr, "HIP_VISIBLE_DEVICES": hip, "ZE_AFFINITY_MASK": mask}
    names["ONEAPI_DEVICE_SELECTOR"] = rocr
    assert sum(d.gpu.vram for d in visible_devices(devices, names).devices) <= sum(d.gpu.vram for d in devices)


def test_a_topology_that_makes_no_sense_is_left_out() -> None:
    assert parse_properties("simd_count 4\nx\nname abc\nsize_in_bytes -1\nbig 99999999999999999999") == {
        "simd_count": 4,
        "big": 2**63 - 1,
    }
