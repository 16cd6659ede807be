"""What is onboarded but no longer present."""

from __future__ import annotations

import msgspec
import pytest
from msgspec.structs import replace

from dms_resources.components import CPU, GPU, RAM, Disk, MachineResources, OnboardedResources
from dms_resources.ledger.missing import (
    CPUMissing,
    DiskMissing,
    GPUMissing,
    Missing,
    RAMMissing,
    describe_missing,
    missing_resources,
    remaining_resources,
)
from dms_resources.units import GIB, Cores, decode_value, encode_value

_GPUS = (GPU(uuid="GPU-a", model="A100", vram=40 * GIB), GPU(uuid="GPU-b", index=1, vram=16 * GIB))
_MACHINE = MachineResources(cpu=CPU(cores=Cores(8000)), ram=RAM(size=32 * GIB), disk=Disk(size=100 * GIB), gpus=_GPUS)
_ONBOARDED = OnboardedResources(
    cpu=CPU(cores=Cores(4000)),
    ram=RAM(size=16 * GIB),
    disk=Disk(size=50 * GIB),
    gpus=tuple(replace(gpu, vram=gpu.vram // 2) for gpu in _GPUS),
)


@pytest.mark.parametrize(
    ("machine", "missing", "sentence"),
    [
        (
            replace(_MACHINE, cpu=CPU(cores=Cores(1500))),
            CPUMissing(onboarded=Cores(4000), present=Cores(1500)),
            "cpu: 4 cores onboarded, 1.5 left",
        ),
        (
            replace(_MACHINE, ram=RAM(size=8 * GIB)),
            RAMMissing(onboarded=16 * GIB, present=8 * GIB),
            "ram: 16 GiB onboarded, 8 GiB left",
        ),
        (
            replace(_MACHINE, disk=Disk(size=0)),
            DiskMissing(onboarded=50 * GIB, present=0),
            "disk: 50 GiB onboarded, 0 B left",
        ),
        (
            replace(_MACHINE, gpus=_GPUS[1:]),
            GPUMissing(uuid="GPU-a", model="A100", onboarded=20 * GIB, present=0),
            "gpu A100 GPU-a: 20 GiB onboarded, gone",
        ),
        (
            replace(_MACHINE, gpus=(_GPUS[0], replace(_GPUS[1], vram=4 * GIB))),
            GPUMissing(uuid="GPU-b", onboarded=8 * GIB, present=4 * GIB),
            "gpu GPU-b: 8 GiB onboarded, 4 GiB left",
        ),
    ],
)
def test_each_dimension_that_is_no_longer_there(machine: MachineResources, missing: Missing, sentence: str) -> None:
    assert missing_resources(_ONBOARDED, machine) == (missing,)
    assert describe_missing(missing) == sentence
    # Everything in the rest of the offer is present.
    assert missing_resources(remaining_resources(_ONBOARDED, machine), machine) == ()


def test_nothing_is_missing_of_a_machine_that_has_it_all() -> None:
    assert missing_resources(_ONBOARDED, _MACHINE) == ()
    assert remaining_resources(_ONBOARDED, _MACHINE) == _ONBOARDED


def test_a_gpu_with_a_new_number_is_the_same_gpu() -> None:
    renumbered = replace(_MACHINE, gpus=(replace(_GPUS[1], index=0), replace(_GPUS[0], index=1)))
    assert missing_resources(_ONBOARDED, renumbered) == ()


def test_another_gpu_in_the_place_of_one_is_not_the_same() -> None:
    swapped = replace(_MACHINE, gpus=(replace(_GPUS[0], uuid="GPU-new"), _GPUS[1]))
    assert [type(missing) for missing in missing_resources(_ONBOARDED, swapped)] == [GPUMissing]
    assert [gpu.uuid for gpu in remaining_resources(_ONBOARDED, swapped).gpus] == ["GPU-b"]


def test_everything_that_is_missing_is_told_at_once() -> None:
    bare = MachineResources(cpu=CPU(cores=Cores(0)), ram=RAM(size=0), disk=Disk(size=0), gpus=())
    found = missing_resources(_ONBOARDED, bare)
    assert len(found) == 5
    text = msgspec.json.encode(found, enc_hook=encode_value)
    assert msgspec.json.decode(text, type=tuple[Missing, ...], dec_hook=decode_value) == found
