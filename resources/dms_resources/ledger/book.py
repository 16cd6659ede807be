"""The ledger in memory: the offer, the leases, and running totals of them.

A `Change` has the state of each affected lease before and after it. Applying a change updates the totals; undoing it
restores them exactly. This module decides nothing and never waits: `decisions` makes changes, `journal` makes them
durable.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator

from msgspec import Struct
from msgspec.structs import replace

from ..bounded_dict import BoundedDict
from ..components import (
    CPU,
    DEFAULT_PORT_RANGE,
    GPU,
    RAM,
    Disk,
    FreeResources,
    MachineResources,
    OnboardedResources,
    PortRange,
    Resources,
)
from ..placement import DeviceState
from ..units import Cores
from .accounts import Sums
from .capacity import FreeCapacity
from .history import HistoryEntry
from .leases import EndedLease, EndReason, Lease, LeaseState
from .ports import PortPool

__all__ = [
    "MOST_ENDED",
    "NOTHING_OFFERED",
    "Book",
    "Change",
    "OfferState",
    "Record",
    "Totals",
    "free_resources",
    "promised_resources",
]

# This many ended leases are remembered, in memory and on disk. The one that ended first is forgotten first. The number
# does not depend on a clock: a clock that is set forward and back must not let a released bid be committed again.
MOST_ENDED = 65_536
# For the lists of evicted leases: the most leases of each holder, and the most holders.
_MOST_EVICTED = 100
_MOST_HOLDERS = 1024


class OfferState(Struct, frozen=True, kw_only=True):
    """The owner's decisions: the onboarded resources (None: nothing is offered) and whether the machine drains.

    `drain_deadline` (Unix seconds) is the time by which the owner wants the drain to end, if there is one.
    """

    onboarded: OnboardedResources | None = None
    draining: bool = False
    drain_deadline: float | None = None


NOTHING_OFFERED = OfferState()


class Record(Struct, frozen=True):
    """A lease and when it ends on the steady clock (None: it has no deadline)."""

    lease: Lease
    due: float | None = None


class Change(Struct, frozen=True, kw_only=True):
    """One atomic change: every affected lease before and after it, what ended, and the entries of the history."""

    leases: tuple[tuple[Record | None, Record | None], ...] = ()
    ended: tuple[EndedLease, ...] = ()
    offer: tuple[OfferState, OfferState] | None = None
    entries: tuple[HistoryEntry, ...] = ()
    fence: int = 0

    @property
    def empty(self) -> bool:
        """Whether the change has no effect."""
        return not (self.leases or self.ended or self.offer or self.entries)


class Totals(Struct, frozen=True):
    """Sums over leases: millicores, bytes, and the number of leases."""

    millicores: int = 0
    ram: int = 0
    disk: int = 0
    count: int = 0

    def plus(self, lease: Lease, sign: int) -> Totals:
        """The totals with this lease added (1) or removed (-1). Raises `ValueError` if a total would be negative."""
        wanted = lease.resources
        totals = Totals(
            self.millicores + sign * wanted.cpu.cores.millicores,
            self.ram + sign * wanted.ram.size,
            self.disk + sign * wanted.disk.size,
            self.count + sign,
        )
        if min(totals.millicores, totals.ram, totals.disk, totals.count) < 0:
            raise ValueError(f"lease {lease.lease_id} gives back more than was taken")
        return totals


class Book:
    """The state of one ledger. It is not thread-safe: only the thread of the event loop may use it."""

    def __init__(self, machine: MachineResources, offer: OfferState = NOTHING_OFFERED, fence: int = 0) -> None:
        self.machine = machine
        self.fence = fence
        self.version = 0
        self.leases: dict[str, Record] = {}
        self.ended: BoundedDict[str, EndedLease] = BoundedDict(MOST_ENDED)
        self._evicted: BoundedDict[str, BoundedDict[str, EndedLease]] = BoundedDict(_MOST_HOLDERS)
        self.totals: dict[LeaseState, Totals] = dict.fromkeys(LeaseState, Totals())
        self.vram: dict[LeaseState, dict[str, int]] = {state: {} for state in LeaseState}
        self.sums = Sums()
        self.held_by: dict[str, int] = {}
        self.ids_by_holder: dict[str, dict[str, None]] = {}
        self.devices: dict[str, DeviceState] = {}
        # The pool of many ports is the most expensive part, so it is made once.
        self.ports = PortPool(_port_range(offer))
        self.used_ports: frozenset[int] = frozenset()
        self._due: list[tuple[float, str]] = []
        # Every bid needs it. It stays the same until a lease or the offer changes.
        self._capacity: FreeCapacity | None = None
        self.offer = NOTHING_OFFERED
        self._set_offer(offer)

    @classmethod
    def load(
        cls,
        machine: MachineResources,
        offer: OfferState,
        fence: int,
        records: Iterable[Record],
        ended: Iterable[EndedLease],
    ) -> Book:
        """Build the book from the stored state."""
        book = cls(machine, offer, fence)
        for record in records:
            book._put(record)
        for end in ended:
            book._remember(end)
        return book

    def apply(self, change: Change) -> None:
        """Apply a change. Raises `ValueError` if a total would be negative, which is a defect."""
        for before, after in change.leases:
            self._swap(before, after)
        for end in change.ended:
            self._remember(end)
        if change.offer:
            self._set_offer(change.offer[1])
        self.fence = max(self.fence, change.fence)
        self.version += 1

    def undo(self, change: Change) -> None:
        """Undo a change that did not become durable; the last applied change first. Fencing numbers are not reused."""
        if change.offer:
            self._set_offer(change.offer[0])
        for end in change.ended:
            self._forget(end)
        for before, after in reversed(change.leases):
            self._swap(after, before)
        self.version += 1

    def capacity(self) -> FreeCapacity:
        """The free capacity now."""
        if self._capacity is None:
            self._capacity = self._measure_capacity()
        return self._capacity

    def _measure_capacity(self) -> FreeCapacity:
        offered, taken = self.offered(), self.promised()
        # The machine determines the kind of CPU: an owner who onboards only a number of cores keeps the architecture.
        cpu = self.machine.cpu if self.offer.onboarded else CPU(cores=Cores(0))
        return FreeCapacity(
            millicores=max(0, offered[0] - taken.millicores),
            ram=max(0, offered[1] - taken.ram),
            disk=max(0, offered[2] - taken.disk),
            total_millicores=offered[0],
            total_ram=offered[1],
            total_disk=offered[2],
            cpu=cpu,
            devices=tuple(self.devices.values()),
            ports=self.ports,
        )

    def offered(self) -> tuple[int, int, int]:
        """Millicores, bytes of RAM and bytes of disk that can be promised: onboarded, minus headroom, and still
        present.
        """
        onboarded = self.offer.onboarded
        if onboarded is None:
            return (0, 0, 0)
        keep, machine = onboarded.headroom, self.machine
        return (
            min(keep.cut(onboarded.cpu.cores.millicores, keep.cpu.millicores), machine.cpu.cores.millicores),
            min(keep.cut(onboarded.ram.size, keep.ram), machine.ram.size),
            min(keep.cut(onboarded.disk.size, keep.disk), machine.disk.size),
        )

    def promised(self) -> Totals:
        """The sum of all holds, commitments and allocations."""
        totals = self.totals.values()
        return Totals(
            sum(total.millicores for total in totals),
            sum(total.ram for total in totals),
            sum(total.disk for total in totals),
            sum(total.count for total in totals),
        )

    def next_due(self) -> tuple[float, Record] | None:
        """The commitment or hold that ends first, and when on the steady clock."""
        while self._due:
            due, lease_id = self._due[0]
            record = self.leases.get(lease_id)
            if record is not None and record.due == due:
                return due, record
            heapq.heappop(self._due)
        return None

    def due_until(self, steady: float) -> list[Record]:
        """The commitments and holds whose deadline is at or before `steady`."""
        records: dict[str, Record] = {}
        while self._due and self._due[0][0] <= steady:
            due, lease_id = heapq.heappop(self._due)
            record = self.leases.get(lease_id)
            if record is not None and record.due == due:
                records[lease_id] = record
        return list(records.values())

    def set_machine(self, machine: MachineResources) -> None:
        """Replace the description of the machine. Devices that are gone are no longer offered."""
        self.machine = machine
        self._set_offer(self.offer)
        self.version += 1

    def set_used_ports(self, ports: frozenset[int]) -> bool:
        """Record which ports programs of this machine use now. Returns whether the free ports have changed."""
        self.used_ports = ports
        changed = self.ports.set_in_use(ports)
        self.version += changed
        return changed

    def evicted(self, holder: str) -> tuple[EndedLease, ...]:
        """The last leases of this holder that the owner evicted, the oldest first."""
        return tuple(end for end in self._evicted.get(holder, {}).values() if end.lease_id in self.ended)

    def _remember(self, end: EndedLease) -> None:
        self.ended[end.lease_id] = end
        if end.reason is EndReason.EVICTED:
            if end.holder not in self._evicted:
                self._evicted[end.holder] = BoundedDict(_MOST_EVICTED)
            self._evicted[end.holder][end.lease_id] = end

    def _forget(self, end: EndedLease) -> None:
        self.ended.pop(end.lease_id, None)
        if end.holder in self._evicted:
            self._evicted[end.holder].pop(end.lease_id, None)

    def _swap(self, before: Record | None, after: Record | None) -> None:
        if before is not None:
            self._remove(before)
        if after is not None:
            self._put(after)

    def _put(self, record: Record) -> None:
        lease = record.lease
        if lease.lease_id in self.leases:
            raise ValueError(f"lease {lease.lease_id} is promised twice")
        self.leases[lease.lease_id] = record
        self.ids_by_holder.setdefault(lease.holder, {})[lease.lease_id] = None
        self._count(lease, 1)
        self.ports.take(lease.ports)
        if record.due is not None:
            heapq.heappush(self._due, (record.due, lease.lease_id))
            if len(self._due) > 2 * len(self.leases) + 64:
                self._due = [(one.due, key) for key, one in self.leases.items() if one.due is not None]
                heapq.heapify(self._due)

    def _remove(self, record: Record) -> None:
        lease = record.lease
        del self.leases[lease.lease_id]
        own = self.ids_by_holder[lease.holder]
        del own[lease.lease_id]
        if not own:
            del self.ids_by_holder[lease.holder]
        self._count(lease, -1)
        self.ports.give_back(lease.ports)

    def _count(self, lease: Lease, sign: int) -> None:
        self._capacity = None
        self.totals[lease.state] = self.totals[lease.state].plus(lease, sign)
        self.sums.count(lease.holder, lease.accounts, lease.resources, sign)
        vram = self.vram[lease.state]
        for gpu in lease.resources.gpus:
            self.devices[gpu.uuid] = _with_share(self._device(gpu), gpu, sign)
            vram[gpu.uuid] = vram.get(gpu.uuid, 0) + sign * gpu.vram
        if lease.state is LeaseState.HELD:
            held = self.held_by.get(lease.holder, 0) + sign
            self.held_by[lease.holder] = held
            if not held:
                del self.held_by[lease.holder]

    def _device(self, gpu: GPU) -> DeviceState:
        # A lease may be on a device that has since left the offer or the machine.
        return self.devices.get(gpu.uuid) or DeviceState(device=gpu, total=0, missing=True)

    def _set_offer(self, offer: OfferState) -> None:
        self._capacity = None
        self.offer = offer
        onboarded = offer.onboarded
        self.devices = dict(_devices(onboarded, self.machine, self.devices))
        port_range = _port_range(offer)
        if port_range != self.ports.range:
            self.ports = PortPool(port_range, self.ports.taken, self.used_ports)


def _port_range(offer: OfferState) -> PortRange:
    return offer.onboarded.port_range if offer.onboarded else DEFAULT_PORT_RANGE


def _devices(
    onboarded: OnboardedResources | None, machine: MachineResources, known: dict[str, DeviceState]
) -> Iterator[tuple[str, DeviceState]]:
    present = {gpu.uuid: gpu for gpu in machine.gpus}
    offered = {gpu.uuid: gpu for gpu in onboarded.gpus} if onboarded else {}
    keep = onboarded.headroom if onboarded else None
    for uuid in offered.keys() | {uuid for uuid, state in known.items() if state.users}:
        before, there = known.get(uuid), present.get(uuid)
        gpu = there or offered.get(uuid) or (before.device if before else None)
        if gpu is None:
            continue
        total = keep.cut(offered[uuid].vram, 0) if keep and uuid in offered else 0
        yield (
            uuid,
            DeviceState(
                device=gpu,
                total=min(total, there.vram) if there else total,
                used=before.used if before else 0,
                users=before.users if before else 0,
                exclusive=before.exclusive if before else False,
                missing=there is None or uuid not in offered,
            ),
        )


def _with_share(state: DeviceState, gpu: GPU, sign: int) -> DeviceState:
    used, users = state.used + sign * gpu.vram, state.users + sign
    if used < 0 or users < 0:
        raise ValueError(f"more is given back on GPU {gpu.uuid} than was taken")
    exclusive = state.exclusive or gpu.exclusive if sign > 0 else state.exclusive and not gpu.exclusive
    return replace(state, used=used, users=users, exclusive=exclusive)


def free_resources(book: Book) -> FreeResources:
    """What could be committed now."""
    capacity = book.capacity()
    return FreeResources(
        cpu=replace(capacity.cpu, cores=Cores(capacity.millicores)),
        ram=RAM(size=capacity.ram),
        disk=Disk(size=capacity.disk),
        gpus=_by_index(
            replace(state.device, vram=state.free, exclusive=state.exclusive)
            for state in capacity.devices
            if not state.missing
        ),
        ports=book.ports.free if book.offer.onboarded else 0,
        onboarded=book.offer.onboarded is not None,
        draining=book.offer.draining,
        simulated=book.machine.simulated,
    )


def promised_resources(book: Book, *states: LeaseState) -> Resources:
    """The sum of all leases in these states. GPUs have the bytes that are promised on them."""
    sums = [book.totals[state] for state in states]
    gpus = []
    for uuid, device in book.devices.items():
        vram = sum(book.vram[state].get(uuid, 0) for state in states)
        if vram:
            gpus.append(replace(device.device, vram=vram))
    return Resources(
        cpu=CPU(cores=Cores(sum(total.millicores for total in sums))),
        ram=RAM(size=sum(total.ram for total in sums)),
        disk=Disk(size=sum(total.disk for total in sums)),
        gpus=_by_index(gpus),
    )


def _by_index(gpus: Iterable[GPU]) -> tuple[GPU, ...]:
    return tuple(sorted(gpus, key=lambda gpu: (gpu.index, gpu.uuid)))
