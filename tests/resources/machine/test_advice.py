"""Offers that leave too little to the machine or to jobs are allowed, with a warning."""

from __future__ import annotations

import pytest

from dms_resources import AvailableResources, open_manager
from dms_resources.components import CPU, GPU, RAM, Disk, MachineResources, OnboardedResources, PortRange
from dms_resources.machine.advice import offer_warnings
from dms_resources.units import GIB, Cores

_LINUX = (32768, 60999)
_MACHINE = MachineResources(
    cpu=CPU(cores=Cores(8000)),
    ram=RAM(size=100 * GIB),
    disk=Disk(size=1000 * GIB),
    gpus=(GPU(uuid="a", vram=100 * GIB),),
)


def _offer(
    cores: int = 4000, ram: int = 50, disk: int = 500, vram: int = 50, ports: PortRange | None = None
) -> OnboardedResources:
    return OnboardedResources(
        cpu=CPU(cores=Cores(cores)),
        ram=RAM(size=ram * GIB),
        disk=Disk(size=disk * GIB),
        gpus=(GPU(uuid="a", vram=vram * GIB),),
        port_range=ports or PortRange(first=16384, last=32767),
    )


def test_a_usual_offer_has_no_warning() -> None:
    for share in (10, 50, 90):
        offer = _offer(ram=share, disk=share, vram=share)
        assert offer_warnings(offer, _MACHINE, _LINUX) == ()
    assert offer_warnings(_offer(disk=0), _MACHINE, _LINUX) == ()


@pytest.mark.parametrize(
    ("offer", "warning"),
    [
        (_offer(cores=500), "CPU: 0.5 cores are less than 1; few jobs fit"),
        (_offer(ram=91), "RAM: 91 GiB are more than 90 % of 100 GiB"),
        (_offer(ram=9), "RAM: 9 GiB are less than 10 % of 100 GiB"),
        (_offer(disk=901), "disk: 901 GiB are more than 90 % of 1000 GiB"),
        (_offer(vram=100), "GPU 0: 100 GiB are more than 90 % of 100 GiB"),
        (_offer(vram=1), "GPU 0: 1 GiB are less than 10 % of 100 GiB"),
        (
            _offer(ports=PortRange(first=16384, last=65535)),
            "ports 32768-60999 are also taken for outgoing connections (net.ipv4.ip_local_port_range); "
            "use ports below 32768",
        ),
        (
            _offer(ports=PortRange(first=60999, last=61000)),
            "ports 60999-60999 are also taken for outgoing connections (net.ipv4.ip_local_port_range); "
            "use ports below 32768",
        ),
    ],
)
def test_an_unusual_offer_is_said(offer: OnboardedResources, warning: str) -> None:
    assert offer_warnings(offer, _MACHINE, _LINUX) == (warning,)


def test_the_seeds_name_of_an_offer_is_kept() -> None:
    assert AvailableResources is OnboardedResources


async def test_a_manager_without_a_machine_says_what_it_needs(tmp_path) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(TypeError, match="open_manager needs the machine's resources, not NoneType: measure them"):
        async with open_manager(tmp_path / "ledger.db", None):  # type: ignore[arg-type]
            pass
    assert list(tmp_path.iterdir()) == []
