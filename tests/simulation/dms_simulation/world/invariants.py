"""The invariants of one ledger and of one service at every step, computed from their contents."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from dms_protocols.rpc.limits import ServiceLimits
from dms_protocols.rpc.shares import SharesInUse
from dms_resources.ledger.book import MOST_ENDED, Book
from dms_resources.ledger.leases import Lease

__all__ = ["oversold", "unbounded", "uneven"]


def oversold(book: Book) -> str:
    """What part of the machine or of the offer is promised more than once; empty if none is."""
    leases = [record.lease for record in book.leases.values()]
    offer, machine = book.offer.onboarded, book.machine
    if offer is None:
        return f"nothing is offered and {leases} are promised" if leases else ""
    amounts = (
        ("cores", sum(one.resources.cpu.cores.millicores for one in leases), offer.cpu.cores.millicores,
         machine.cpu.cores.millicores),
        ("RAM", sum(one.resources.ram.size for one in leases), offer.ram.size, machine.ram.size),
        ("disk", sum(one.resources.disk.size for one in leases), offer.disk.size, machine.disk.size),
    )  # fmt: skip
    for name, taken, offered, there in amounts:
        if not 0 <= taken <= min(offered, there):
            return f"{name}: {taken} are promised of {min(offered, there)}"
    return _oversold_gpus(leases, {gpu.uuid: gpu.vram for gpu in offer.gpus}) or _oversold_ports(leases)


def _oversold_gpus(leases: Iterable[Lease], vram: dict[str, int]) -> str:
    taken: Counter[str] = Counter()
    users: Counter[str] = Counter()
    exclusive = set()
    for lease in leases:
        if len({gpu.uuid for gpu in lease.resources.gpus}) < len(lease.demand.gpus):
            return f"{lease} has fewer GPUs than were asked for"
        for gpu in lease.resources.gpus:
            taken[gpu.uuid] += gpu.vram
            users[gpu.uuid] += 1
            if gpu.exclusive:
                exclusive.add(gpu.uuid)
    for uuid, amount in taken.items():
        if amount > vram.get(uuid, 0) or (uuid in exclusive and users[uuid] > 1):
            return f"{uuid}: {amount} bytes for {users[uuid]} leases of {vram.get(uuid)}"
    return ""


def _oversold_ports(leases: Iterable[Lease]) -> str:
    ports = Counter(port for lease in leases for port in lease.ports)
    twice = [port for port, users in ports.items() if users > 1]
    return f"the ports {twice} are promised twice" if twice else ""


def uneven(book: Book) -> str:
    """Where the running totals of a book are not the sums of its leases."""
    for state, totals in book.totals.items():
        own = [record.lease for record in book.leases.values() if record.lease.state is state]
        sums = (
            sum(one.resources.cpu.cores.millicores for one in own),
            sum(one.resources.ram.size for one in own),
            sum(one.resources.disk.size for one in own),
            len(own),
        )
        if sums != (totals.millicores, totals.ram, totals.disk, totals.count):
            return f"{state.value}: the totals say {totals}, the leases {sums}"
    if sum(map(len, book.ids_by_holder.values())) != len(book.leases):
        return "the holders' leases are not all leases"
    return ""


def unbounded(book: Book, shares: SharesInUse, limits: ServiceLimits) -> str:
    """Which table is larger than its limit."""
    bounds, total = shares.limits, shares._total
    tables = (
        ("ended leases", len(book.ended), MOST_ENDED),
        ("deadlines", len(book._due), 2 * len(book.leases) + 65),
        ("peers", shares.peers, bounds.total.streams + bounds.remembered),
        ("absent peers", len(shares._absent), bounds.remembered),
        ("streams", total.streams, bounds.total.streams),
        ("operations", total.operations, bounds.total.operations),
        # What one stream has read at once, and one answer, may be added.
        ("bytes", total.bytes, bounds.total.bytes_in_flight + 2 * limits.read_bytes + limits.answer_bytes),
        *(
            (f"streams of {peer_id}", share._own.streams, bounds.peer.streams)
            for peer_id, share in shares._present.items()
        ),
    )
    for name, size, bound in tables:
        if not 0 <= size <= bound:
            return f"{name}: {size}, the bound is {bound}"
    return ""
