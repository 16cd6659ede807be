"""On generated machines: what is offered is available, no pool is counted twice, and every loss is reported.

A second, plain model of each machine computes the limits of the kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings

from dms_resources.machine.hardware import Roots, measure_machine
from dms_resources.machine.hardware import disk as disk_module
from dms_resources.machine.hardware.disk import Space
from dms_resources.machine.hardware.gpu import GPUReport
from dms_resources.machine.hardware.load import free_ram, read_domain
from dms_resources.units import GIB, KIB

_UNLIMITED = 2**60


@dataclass
class Group:
    """A cgroup; None where it sets no limit."""

    cpus: frozenset[int] | None
    quota: int | None
    memory: int | None
    high: int | None
    node_list: frozenset[int] | None


@dataclass
class Card:
    """An AMD card: whether this process can open its nodes, and into how many parts it is divided.

    With `shared` each part reports all of the memory, which the parts share.
    """

    bus: int
    vram: int
    has_node: bool
    parts: int
    readable: bool
    virtual: int
    shared: bool
    in_drm: bool


@dataclass
class Machine:
    """The properties of a machine, and every limit of its kernel."""

    present: int
    online: frozenset[int]
    affinity: frozenset[int]
    groups: list[Group]
    nodes: list[int]
    gpu_nodes: frozenset[int]
    mems_allowed: frozenset[int]
    huge: int
    broken: int
    commit_limit: int | None
    committed: int
    swap: int
    address_space: int | None
    available: int
    disk_in_memory: bool
    disk: int
    cards: list[Card]
    kfd: bool
    clocks: dict[int, int] = field(default_factory=dict)

    @property
    def total(self) -> int:
        return sum(self.nodes)

    def usable_cpus(self) -> frozenset[int]:
        allowed = self.online & self.affinity
        for group in self.groups:
            if group.cpus is not None:
                allowed &= group.cpus
        return allowed

    def most_millicores(self) -> int:
        return min([len(self.usable_cpus()) * 1000, *(g.quota for g in self.groups if g.quota is not None)])

    def most_memory(self) -> int:
        """The most bytes that one job could get on the empty machine."""
        bounds = [self.total - self.huge - self.broken - sum(self.nodes[n] for n in self.gpu_nodes)]
        bounds += [limit for g in self.groups for limit in (g.memory, g.high) if limit is not None]
        main = frozenset(range(len(self.nodes))) - self.gpu_nodes
        for nodes in [self.mems_allowed, *(g.node_list for g in self.groups if g.node_list is not None)]:
            bounds.append(sum(self.nodes[n] for n in nodes & main))
        if self.commit_limit is not None:
            bounds.append(max(0, self.commit_limit - self.swap))
        if self.address_space is not None:
            bounds.append(self.address_space)
        return max(0, min(bounds))

    def describe(self) -> str:
        """The machine's files."""
        files: dict[str, object] = {
            "/sys/devices/system/cpu/present": f"0-{self.present - 1}",
            "/sys/devices/system/cpu/online": _as_list(self.online),
            "/proc/self/status": f"Cpus_allowed_list:\t{_as_list(self.affinity)}\n"
            f"Mems_allowed_list:\t{_as_list(self.mems_allowed)}",
            "/proc/meminfo": self._meminfo(),
            "/proc/self/mountinfo": (
                f"24 1 0:5 / / rw - {'tmpfs tmpfs' if self.disk_in_memory else 'ext4 /dev/sda1'} rw\n"
                "30 24 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw"
            ),
            "/proc/self/cgroup": "0::" + ("".join(f"/g{n}" for n in range(len(self.groups))) or "/"),
            "/proc/sys/vm/overcommit_memory": 0 if self.commit_limit is None else 2,
        }
        folder = "/sys/fs/cgroup"
        for number, group in enumerate(self.groups):
            folder += f"/g{number}"
            files[f"{folder}/cpu.max"] = f"{group.quota * 100} 100000" if group.quota is not None else "max 100000"
            files[f"{folder}/memory.max"] = "max" if group.memory is None else group.memory
            files[f"{folder}/memory.high"] = "max" if group.high is None else group.high
            if group.cpus is not None:
                files[f"{folder}/cpuset.cpus.effective"] = _as_list(group.cpus)
            if group.node_list is not None:
                files[f"{folder}/cpuset.mems.effective"] = _as_list(group.node_list)
        for number, size in enumerate(self.nodes):
            files[f"/sys/devices/system/node/node{number}/meminfo"] = f"Node {number} MemTotal: {size // KIB} kB"
        for number in self.gpu_nodes:
            files[f"/proc/driver/nvidia/gpus/{number:04x}:01:00.0/numa_status"] = f"Node: {number}\nStatus: online"
        for cpu, clock in self.clocks.items():
            policy = f"/sys/devices/system/cpu/cpufreq/policy{cpu}"
            files |= {f"{policy}/related_cpus": cpu, f"{policy}/cpuinfo_max_freq": clock}
        if self.address_space is not None:
            files["/proc/self/limits"] = f"Max address space         {self.address_space}           unlimited   bytes"
        files["/dev/null"] = ""
        if self.kfd:
            files["/dev/kfd"] = ""
        for number, card in enumerate(self.cards):
            files |= _card_files(card, 128 + 8 * number)
        return "".join(f"== {path}\n{content}\n" for path, content in files.items())

    def _meminfo(self) -> str:
        lines = {"MemTotal": self.total, "MemAvailable": self.available, "SwapTotal": self.swap, "Hugetlb": self.huge}
        lines["HardwareCorrupted"] = self.broken
        lines |= {"CommitLimit": self.commit_limit or self.total, "Committed_AS": self.committed}
        return "\n".join(f"{name}: {size // KIB} kB" for name, size in lines.items())


def _as_list(numbers: frozenset[int]) -> str:
    return ",".join(map(str, sorted(numbers)))


def _card_files(card: Card, minor: int) -> dict[str, object]:
    folder = f"/sys/bus/pci/devices/0000:{card.bus:02x}:00.0"
    files: dict[str, object] = {
        f"{folder}/class": "0x120000",
        f"{folder}/vendor": "0x1002",
        f"{folder}/device": "0x74a1",
        f"{folder}/mem_info_vram_total": card.vram,
        f"{folder}/unique_id": f"{card.bus:016x}",
        f"{folder}/sriov_numvfs": card.virtual,
        f"{folder}/current_compute_partition": "SPX" if card.parts == 1 else "CPX",
    }
    if card.in_drm:
        files[f"{folder}/drm/renderD{minor}/dev"] = "226:0"
    for part in range(card.parts):
        if card.has_node:
            files[f"/dev/dri/renderD{minor + part}"] = ""
        if card.readable:
            node = f"/sys/class/kfd/kfd/topology/nodes/{card.bus * 8 + part}"
            files[f"{node}/properties"] = (
                f"simd_count 4\nlocation_id {(card.bus << 8) + part}\ndomain 0\ndrm_render_minor {minor + part}"
            )
            files[f"{node}/mem_banks/0/properties"] = (
                f"heap_type 1\nsize_in_bytes {card.vram // (1 if card.shared else card.parts)}"
            )
    return files


_SIZES = st.integers(1, 512).map(lambda n: n * GIB // 4)


@st.composite
def _machines(draw: st.DrawFn) -> Machine:
    present = draw(st.integers(1, 16))
    some_cpus = st.frozensets(st.integers(0, present - 1), min_size=1)
    online = draw(some_cpus)
    # The kernel keeps every cpuset and the affinity within their enclosing group.
    # Often several nodes, of which a part is a bound.
    nodes = draw(st.one_of(st.lists(_SIZES, min_size=3, max_size=5), st.lists(_SIZES, min_size=1, max_size=2)))
    gpu_nodes = draw(st.sampled_from([frozenset(), frozenset({1}), frozenset({1, 3})])) & frozenset(range(len(nodes)))
    main = sorted(frozenset(range(len(nodes))) - gpu_nodes)
    parts = [frozenset(some) for count in range(1, len(main) + 1) for some in combinations(main, count)]
    # A cpuset may name the nodes of GPUs beside others.
    some_nodes = st.sampled_from([*parts, *(part | gpu_nodes for part in parts)])
    groups, cpus, node_list = [], online, frozenset(range(len(nodes)))
    for _ in range(draw(st.integers(0, 3))):
        cpus = draw(st.sampled_from([cpus, draw(some_cpus) & cpus or cpus]))
        fewer = draw(some_nodes) & node_list
        node_list = draw(st.sampled_from([node_list, fewer if fewer - gpu_nodes else node_list]))
        groups.append(
            Group(
                cpus=draw(st.sampled_from([None, cpus])),
                quota=draw(st.none() | st.integers(1, 20_000)),
                # Mostly none, so that every other bound is the lowest one often enough.
                memory=draw(st.sampled_from([None, None, None, draw(_SIZES)])),
                high=draw(st.sampled_from([None, None, None, draw(_SIZES)])),
                node_list=draw(st.sampled_from([None, node_list])),
            )
        )
    fewer = draw(some_nodes) & node_list or node_list
    total = sum(nodes)
    buses = draw(st.lists(st.integers(1, 31), unique=True, max_size=4))
    cards = [
        Card(bus, draw(_SIZES) * 8, draw(st.booleans()), draw(st.sampled_from([1, 1, 2, 8])), draw(st.booleans()),
             draw(st.sampled_from([0, 0, 0, 4])), draw(st.booleans()), draw(st.sampled_from([True, True, False])))
        for bus in buses
    ]  # fmt: skip
    return Machine(
        present=present,
        online=online,
        affinity=draw(st.sampled_from([online, cpus, draw(some_cpus) & cpus or cpus])),
        groups=groups,
        nodes=nodes,
        gpu_nodes=gpu_nodes,
        mems_allowed=draw(st.sampled_from([frozenset(range(len(nodes))), node_list, fewer, fewer])),
        huge=draw(st.sampled_from([0, 0, nodes[0] // 2 // GIB * GIB])),
        broken=draw(st.sampled_from([0, 0, 0, GIB, total])),
        commit_limit=draw(st.sampled_from([None, None, draw(_SIZES)])),
        committed=draw(_SIZES),
        swap=draw(st.sampled_from([0, GIB, 64 * GIB])),
        address_space=draw(st.sampled_from([None, None, None, draw(_SIZES)])),
        available=total // 2,
        disk_in_memory=draw(st.booleans()),
        disk=draw(_SIZES),
        cards=cards,
        kfd=draw(st.booleans()),
        clocks={cpu: draw(st.sampled_from([1_800_000, 4_300_000, 5_800_000])) for cpu in online},
    )


@given(_machines())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_offered_can_be_had(
    tmp_path_factory: pytest.TempPathFactory, build_into: Callable[[str, Path], Roots], machine: Machine
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(disk_module, "read_space", lambda _: Space(machine.disk, machine.disk, 0))
        roots = build_into(machine.describe(), tmp_path_factory.mktemp("machine"))
        measured = measure_machine(Path("/"), roots, environment={}, ask_gpus=lambda _: GPUReport())
    said = "\n".join(measured.limits + measured.problems)

    # Processors: exactly what the kernel would run at once, at a clock that each of them reaches.
    assert measured.cpu.cores.millicores == machine.most_millicores()
    assert measured.cpu.clock_speed == min(machine.clocks[cpu] for cpu in machine.usable_cpus()) * 1000
    if machine.most_millicores() < machine.present * 1000:
        assert " cores: " in said

    # Memory: exactly what one job could get, and a disk in memory is a part of it.
    in_memory = measured.disk.size if machine.disk_in_memory else 0
    assert measured.ram.size + in_memory == machine.most_memory()
    # The program needs some of the memory, whatever the size of the disk in it.
    assert measured.ram.size >= max(0, machine.most_memory() // 2)
    if machine.disk_in_memory:
        assert measured.disk.size == min(machine.disk, machine.most_memory() // 2)
    else:
        assert measured.disk.size == machine.disk
    if measured.ram.size < machine.total:
        assert " RAM: " in said or "the disk is in memory" in said
    assert measured.disk.size <= machine.disk
    if measured.disk.size < machine.disk:
        assert "of disk: the disk is in memory" in said

    # What is free now is no more than what strict accounting leaves.
    free = free_ram(roots, read_domain(roots))
    assert free is not None
    assert free <= machine.available
    if machine.commit_limit is not None:
        assert free <= max(0, machine.commit_limit - machine.committed)

    # GPUs: no more than each card has, on devices that can be opened. Every card that is left out has a sentence.
    assert len({gpu.uuid for gpu in measured.gpus}) == len(measured.gpus)
    for card in machine.cards:
        address = f"0000:{card.bus:02x}:00.0"
        own = [gpu.vram for gpu in measured.gpus if gpu.pci_address == address]
        assert sum(own) <= card.vram
        usable = machine.kfd and card.has_node and not card.virtual
        usable = usable and (card.in_drm if card.parts == 1 else card.readable)
        assert own == ([card.vram // card.parts] * card.parts if usable else [])
        if not usable:
            assert address in said
