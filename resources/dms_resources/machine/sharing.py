"""Whether the offers of several peers on one machine fit into it together.

Each home has a ledger of its own, so two of them could offer the same core twice. Each running peer publishes what it
offers and the bounds within which it does so (see `registry`). A bound is the machine, a cgroup, or a set of CPUs or
NUMA nodes. Two peers within the same bound together may offer no more than it has; two services with a quota of
2 cores each, on a machine of 16, may offer 2 each.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from msgspec import Struct

from ..components import Amount, MachineResources, OnboardedResources
from ..units import Cores, format_cores, format_size
from .hardware.cgroups import describe_group
from .hardware.disk import existing_directory, is_in_memory, read_space
from .hardware.load import read_domain
from .hardware.mounts import find_mount, read_mounts
from .hardware.quotas import read_quota
from .hardware.ram import unrestricted_ram
from .hardware.roots import HOST, Roots, parse_cpu_list, read_text

__all__ = ["Bound", "OtherPeer", "PublishedOffer", "offers_beyond", "published_offer", "read_bounds", "shared_ports"]


class Bound(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The most that all peers within one scope may offer; None where it does not bound that. `id` names the scope.

    `cores` are thousandths, `ram` and `disk` bytes.
    """

    id: str
    name: str
    cores: Amount | None = None
    ram: Amount | None = None
    disk: Amount | None = None


class PublishedOffer(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What one peer offers: thousandths of cores, bytes, VRAM by the device's uuid; and the bounds around it.

    `whole_gpus` are the devices that one program at a time may use. `ports` are the first and the last one.
    """

    bounds: tuple[Bound, ...] = ()
    cores: Amount = 0
    ram: Amount = 0
    disk: Amount = 0
    gpus: dict[str, Amount] = {}
    gpu_sizes: dict[str, Amount] = {}
    whole_gpus: tuple[str, ...] = ()
    ports: tuple[int, int] | None = None


class OtherPeer(Struct, frozen=True, kw_only=True):
    """Another peer of this machine: its process id ("unknown" where it cannot be read), and its offer where it can."""

    process: str
    offer: PublishedOffer | None = None


def read_bounds(machine: MachineResources, work_dir: Path, roots: Roots = HOST) -> tuple[Bound, ...]:
    """Read every bound around this process: the machine, its cgroups, CPUs and disk. Never raises. Blocks on disk.

    A scope has an id that two processes can compare: the boot's, a cgroup's inode, a file system's device number.
    """
    return tuple(_bounds(machine, work_dir, roots))


def _bounds(machine: MachineResources, work_dir: Path, roots: Roots) -> Iterator[Bound]:
    boot = read_text(roots.proc / "sys" / "kernel" / "random" / "boot_id") or "boot"
    online = parse_cpu_list(read_text(roots.sys / "devices" / "system" / "cpu" / "online"))
    cores = 1000 * (len(online) if online else machine.cpu.threads) or machine.cpu.cores.millicores
    yield Bound(id=boot, name="this machine has", cores=cores, ram=unrestricted_ram(roots) or machine.ram.size)
    domain = read_domain(roots)
    if domain.cpus:
        # Peers that are bound to the same CPUs share these, and peers bound to others do not.
        cpus = ",".join(map(str, sorted(domain.cpus)))
        yield Bound(id=f"{boot} cpus {cpus}", name="the CPUs of this process are", cores=len(domain.cpus) * 1000)
    for group in domain.groups:
        with contextlib.suppress(OSError):
            found = os.stat(group.directory)
            name = f"the cgroup {describe_group(group.name)} allows"
            yield Bound(id=f"{boot} {found.st_dev}:{found.st_ino}", name=name, cores=group.cpu_quota, ram=group.memory)
    if not is_in_memory(work_dir, roots):
        yield from _disk_bounds(boot, existing_directory(work_dir), roots)


def _disk_bounds(boot: str, directory: Path, roots: Roots) -> Iterator[Bound]:
    with contextlib.suppress(OSError):
        space, device = read_space(directory), os.stat(directory).st_dev
        yield Bound(id=f"{boot} disk {device}", name="the file system has", disk=space.total - space.reserved)
        mount = find_mount(read_mounts(roots), str(directory))
        quota = read_quota(mount, directory, roots) if mount else None
        if quota is not None:
            # Two users have two quotas, and so have two projects of one user.
            name = f"{boot} disk {device} {os.getuid()} {os.getegid()} {quota.owner}"
            yield Bound(id=name, name=f"the quota of {quota.owner} is", disk=quota.size)


def published_offer(
    offer: OnboardedResources | None, machine: MachineResources, bounds: Sequence[Bound], *, in_memory: bool = False
) -> PublishedOffer:
    """Return what a peer publishes of its offer: what it may promise, without its headroom. Pure.

    `in_memory` says that its disk is in main memory, so that RAM and disk come from one pool.
    """
    if offer is None:
        return PublishedOffer(bounds=tuple(bounds))
    keep = offer.headroom
    ram, disk = keep.cut(offer.ram.size, keep.ram), keep.cut(offer.disk.size, keep.disk)
    offered = {gpu.uuid for gpu in offer.gpus}
    return PublishedOffer(
        bounds=tuple(bounds),
        cores=keep.cut(offer.cpu.cores.millicores, keep.cpu.millicores),
        ram=ram + disk if in_memory else ram,
        disk=0 if in_memory else disk,
        gpus={gpu.uuid: keep.cut(gpu.vram, 0) for gpu in offer.gpus},
        gpu_sizes={gpu.uuid: gpu.vram for gpu in machine.gpus if gpu.uuid in offered},
        whole_gpus=tuple(gpu.uuid for gpu in machine.gpus if gpu.exclusive and gpu.uuid in offered),
        ports=(offer.port_range.first, offer.port_range.last),
    )


def offers_beyond(own: PublishedOffer, others: Sequence[OtherPeer]) -> tuple[str, ...]:
    """A sentence for everything that `own` and the other peers together offer beyond what there is. Pure."""
    return tuple(_beyond(own, others))


def _beyond(own: PublishedOffer, others: Sequence[OtherPeer]) -> Iterator[str]:
    offers = [(other.process, other.offer) for other in others if other.offer is not None]
    said: set[str] = set()
    for bound in own.bounds:
        within = [(process, offer) for process, offer in offers if any(bound.id == b.id for b in offer.bounds)]
        for what, most, amount, taken in (
            ("CPU", bound.cores, own.cores, [offer.cores for _, offer in within]),
            ("RAM", bound.ram, own.ram, [offer.ram for _, offer in within]),
            ("disk", bound.disk, own.disk, [offer.disk for _, offer in within]),
        ):
            if most is None or not amount or not any(taken) or amount + sum(taken) <= most or what in said:
                continue
            said.add(what)
            show = _cores if what == "CPU" else format_size
            names = _processes([process for (process, _), size in zip(within, taken, strict=True) if size])
            yield f"{what}: {show(amount)} here and {show(sum(taken))} of {names}, but {bound.name} {show(most)}"
    for uuid, amount in own.gpus.items():
        users = [(process, offer.gpus[uuid]) for process, offer in offers if uuid in offer.gpus]
        taken_vram = sum(size for _, size in users)
        names = _processes([process for process, _ in users])
        size = own.gpu_sizes.get(uuid, amount)
        if users and uuid in own.whole_gpus:
            yield f"GPU {uuid}: {names} offers it too, but one process at a time may use it"
        elif users and amount + taken_vram > size:
            yield (
                f"GPU {uuid}: {format_size(amount)} here and {format_size(taken_vram)} of {names}, "
                f"but it has {format_size(size)}"
            )


def shared_ports(own: PublishedOffer, others: Sequence[OtherPeer]) -> tuple[str, ...]:
    """A sentence for each other peer that promises some of the same ports; each may promise one that the other has."""
    found = []
    for other in others:
        if own.ports is None or other.offer is None or other.offer.ports is None:
            continue
        first, last = max(own.ports[0], other.offer.ports[0]), min(own.ports[1], other.offer.ports[1])
        if first <= last:
            found.append(
                f"ports {first}-{last} are promised by {_processes([other.process])} too; "
                "give each home ports of its own (`dms-peer onboard --ports`)"
            )
    return tuple(found)


def _cores(millicores: int) -> str:
    return format_cores(Cores(min(millicores, 10**15)))


def _processes(names: Sequence[str]) -> str:
    return ("process " if len(names) == 1 else "processes ") + ", ".join(names)
