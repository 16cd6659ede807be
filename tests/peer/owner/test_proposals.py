"""The proposals to an owner stay within the DMS's limits, and so does every answer."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dms_peer.owner.offers import onboarded_resources
from dms_peer.owner.proposals import propose, questions, settle
from dms_resources.components import CPU, GPU, RAM, Disk, MachineResources
from dms_resources.errors import AmountError
from dms_resources.units import GIB, Cores


def machine(millicores: int = 8000, ram: int = 16 * GIB, disk: int = 100 * GIB, vram: tuple[int, ...] = ()):
    return MachineResources(
        cpu=CPU(cores=Cores(millicores)),
        ram=RAM(size=ram),
        disk=Disk(size=disk),
        gpus=tuple(GPU(uuid=f"GPU-{index}", index=index, vram=size) for index, size in enumerate(vram)),
    )


@given(
    st.integers(1, 256_000),
    st.integers(GIB, 4096 * GIB),
    st.integers(0, 10_000 * GIB),
    st.lists(st.integers(GIB, 200 * GIB), max_size=8),
)
def test_every_proposed_answer_is_accepted_and_within_the_machine(millicores, ram, disk, vram):
    owned = machine(millicores, ram, disk, tuple(vram))
    answers = {question.name: question.read(question.proposed) for question in questions(owned)}
    offer = settle(answers)
    assert 0 < offer.cpu.millicores <= millicores
    assert ram * 10 <= offer.ram * 100 <= ram * 90
    assert offer.disk * 100 <= disk * 90
    offered = onboarded_resources(offer, owned)
    assert [gpu.vram * 100 <= whole * 90 for gpu, whole in zip(offered.gpus, vram, strict=True)] == [True] * len(vram)


def test_a_core_is_left_to_the_owner_where_there_are_two():
    assert propose(machine(millicores=2000)).millicores == 1000
    assert propose(machine(millicores=500)).millicores == 500
    assert propose(machine(millicores=8000)).millicores == 7000


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("cpu", "0"), ("cpu", "9"), ("cpu", "many"), ("ram", "1GiB"), ("ram", "15GiB"), ("ram", "2 parsecs"),
        ("ram", "8"),
        ("disk", "95GiB"), ("GPU-0", "23GiB"), ("GPU-0", "1GiB"),
    ],
)  # fmt: skip
def test_an_answer_outside_the_limits_is_refused(name, answer):
    asked = {question.name: question for question in questions(machine(vram=(24 * GIB,)))}
    with pytest.raises(AmountError):
        asked[name].read(answer)


def test_a_gpu_can_be_kept_back():
    asked = {question.name: question for question in questions(machine(vram=(24 * GIB, 24 * GIB)))}
    answers = {name: question.read(question.proposed) for name, question in asked.items()}
    answers["GPU-1"] = asked["GPU-1"].read("none")
    assert [choice.device for choice in settle(answers).gpus] == ["GPU-0"]
