"""Compares the ledger with itself, with its file, and with what the operating system reports.

Findings by code: `totals` (the running totals are not the sum of the leases), `stored` (the file has other leases),
`oversold` (more is promised than offered), `device_gone` (a lease is on a GPU that is not there), `port_in_use` (a
program uses a port that is promised to a lease which has not started), `vram_in_use` (programs use memory of a GPU that
leases are on), `process_gone` (the processes of an allocation have ended). The owner can act on each. The audit can
repair `totals` and `stored` without the owner, and `process_gone` if no job is attached to the allocation: only the
program that runs a job knows when all of it is gone.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import psutil

from ..components import Resources
from ..machine.hardware.roots import HOST, parse_amount, read_text
from ..machine.listening import read_ephemeral_ports
from ..placement import DeviceState
from ..units import Cores, format_cores, format_size
from .accounts import Sums
from .book import Book
from .history import Finding
from .leases import Lease, LeaseState
from .storage import StoredLease

__all__ = ["AuditSnapshot", "audit_snapshot", "parse_start_ticks", "runs", "started_after_boot"]

_NOT_STARTED: Final = (LeaseState.HELD, LeaseState.COMMITTED)
# Drivers and desktops use some memory of every GPU.
_VRAM_TOLERANCE = 1 << 30
# Far less than the time until the kernel reuses a process number.
_START_TOLERANCE = 1.0


@dataclass(frozen=True, slots=True)
class AuditSnapshot:
    """The book at one instant, and the leases in its file (None if changes were not written yet)."""

    leases: tuple[Lease, ...]
    totals: tuple[int, int, int, int]
    offered: tuple[int, int, int]
    devices: tuple[DeviceState, ...]
    sums: Sums
    stored: list[StoredLease] | None

    @classmethod
    def of(cls, book: Book, stored: list[StoredLease] | None) -> AuditSnapshot:
        """Copy what an audit compares, so that a thread can read it."""
        promised = book.promised()
        return cls(
            leases=tuple(record.lease for record in book.leases.values()),
            totals=(promised.millicores, promised.ram, promised.disk, promised.count),
            offered=book.offered(),
            devices=tuple(book.devices.values()),
            sums=book.sums.copy(),
            stored=stored,
        )


def audit_snapshot(snapshot: AuditSnapshot, usage: Resources | None) -> list[Finding]:
    """All findings. It blocks on system calls: call it in a worker thread."""
    return [*_itself(snapshot), *_file(snapshot), *_devices(snapshot, usage), *_ports(snapshot), *_processes(snapshot)]


def _itself(snapshot: AuditSnapshot) -> Iterator[Finding]:
    leases = snapshot.leases
    sums = (
        sum(lease.resources.cpu.cores.millicores for lease in leases),
        sum(lease.resources.ram.size for lease in leases),
        sum(lease.resources.disk.size for lease in leases),
        len(leases),
    )
    if sums != snapshot.totals:
        message = f"the leases add up to {_sums(sums)}; the totals say {_sums(snapshot.totals)}"
        yield Finding(code="totals", message=message, repairable=True)
    added_up = Sums.of((lease.holder, lease.accounts, lease.resources) for lease in leases)
    for difference in added_up.differences(snapshot.sums):
        yield Finding(code="totals", message=f"the leases and the totals say of {difference}", repairable=True)
    shown: tuple[Callable[[int], str], ...] = (
        lambda amount: format_cores(Cores(amount)),
        format_size,
        format_size,
    )
    for name, promised, offered, show in zip(("CPU", "RAM", "disk"), sums, snapshot.offered, shown, strict=False):
        if promised > offered:
            yield Finding(
                code="oversold",
                message=f"{name}: {show(promised)} promised, {show(offered)} offered: offer more, or evict leases",
            )
    for state in snapshot.devices:
        used = sum(gpu.vram for lease in leases for gpu in lease.resources.gpus if gpu.uuid == state.device.uuid)
        if used != state.used:
            by_lease, total = format_size(used), format_size(state.used)
            message = f"GPU {state.device.uuid}: {by_lease} by lease, {total} in total"
            yield Finding(code="totals", message=message, repairable=True)


def _sums(sums: tuple[int, int, int, int]) -> str:
    millicores, ram, disk, count = sums
    return f"{format_cores(Cores(millicores))}, {format_size(ram)} RAM, {format_size(disk)} disk in {count} leases"


def _file(snapshot: AuditSnapshot) -> Iterator[Finding]:
    if snapshot.stored is None:
        return
    stored = {one.lease.lease_id: one.lease for one in snapshot.stored}
    known = {lease.lease_id: lease for lease in snapshot.leases}
    for lease_id in stored.keys() | known.keys():
        if stored.get(lease_id) != known.get(lease_id):
            message = f"the file has another lease {lease_id}"
            yield Finding(code="stored", message=message, lease_id=lease_id, repairable=True)


def _devices(snapshot: AuditSnapshot, usage: Resources | None) -> Iterator[Finding]:
    in_use = {gpu.uuid: gpu.vram for gpu in usage.gpus} if usage else {}
    for state in snapshot.devices:
        device = f"GPU {state.device.index} ({state.device.uuid})"
        if state.missing and state.users:
            yield Finding(
                code="device_gone", message=f"{device} is gone and {state.users} leases are on it: evict them"
            )
        beyond = in_use.get(state.device.uuid, 0) - state.used
        # The owner's programs may use what is not offered; while nothing is promised they take nothing from anybody.
        if state.users and beyond > max(_VRAM_TOLERANCE, state.device.vram - state.total):
            yield Finding(
                code="vram_in_use",
                message=f"{device}: programs use {format_size(beyond)} beyond what is promised: stop them",
            )


def _ports(snapshot: AuditSnapshot) -> Iterator[Finding]:
    # The job of an allocation is expected to use its ports. A free port that a program uses is skipped when ports are
    # granted, so it is no finding.
    waiting = {port: lease for lease in snapshot.leases if lease.state in _NOT_STARTED for port in lease.ports}
    if not waiting:
        return
    try:
        connections = psutil.net_connections(kind="inet")
    except (psutil.Error, OSError):
        return
    users = {one.laddr.port: one.pid for one in connections if one.laddr and _keeps_port(one)}
    for port in sorted(users.keys() & waiting.keys()):
        lease_id = waiting[port].lease_id
        yield Finding(
            code="port_in_use",
            message=f"port {port} is promised to a lease that has not started, but {_program(users[port])} uses it: "
            "stop the program, or evict the lease",
            lease_id=lease_id,
        )


def _keeps_port(connection: Any) -> bool:
    """Whether a socket keeps a job from its port: a listening TCP socket, or a UDP socket that serves every peer."""
    if connection.type == socket.SOCK_DGRAM:
        # A client's socket has a remote address, or a port that the kernel chose; it soon goes.
        first, last = read_ephemeral_ports()
        return not connection.raddr and not first <= connection.laddr.port <= last
    return bool(connection.status == psutil.CONN_LISTEN)


def _program(process: int | None) -> str:
    """A program for people. Another user's program has no name unless root asks."""
    try:
        return f"{psutil.Process(process).name()[:64]} (process {process})" if process else "a program"
    except (psutil.Error, OSError):
        return f"process {process}"


def _processes(snapshot: AuditSnapshot) -> Iterator[Finding]:
    for lease in snapshot.leases:
        if lease.processes and not any(map(runs, lease.processes)):
            message = f"the processes of allocation {lease.lease_id} have ended"
            if lease.job is not None:
                message += ", and its job is not reported as gone"
            yield Finding(code="process_gone", message=message, lease_id=lease.lease_id, repairable=lease.job is None)


def started_after_boot(process: int) -> float:
    """How many seconds after the machine's boot a process started. Setting the clock does not change it.

    Raises `psutil.Error`, and `ValueError` or `OverflowError` for an impossible process number.
    """
    if process <= 0:
        raise ValueError(f"{process} is not the id of a process")
    ticks = parse_start_ticks(read_text(HOST.proc / str(process) / "stat") or "")
    if ticks is not None:
        return ticks / os.sysconf("SC_CLK_TCK")
    # This is not Linux, or the process may not be read.
    try:
        return float(psutil.Process(process).create_time() - psutil.boot_time())
    except OSError as error:
        raise ValueError(f"the start of process {process} cannot be read: {error.strerror}") from None


def parse_start_ticks(text: str) -> int | None:
    """The start of a process in clock ticks after boot, from the text of its `/proc/PID/stat`. None if it
    is missing.
    """
    # The name is in parentheses and may contain anything, also parentheses and spaces.
    fields = text.rpartition(")")[2].split()
    return parse_amount(fields[19]) if len(fields) > 19 else None


def runs(process: tuple[int, float]) -> bool:
    """Whether this process runs that started so many seconds after boot; True if that cannot be known."""
    number, started = process
    try:
        return abs(started_after_boot(number) - started) < _START_TOLERANCE
    except (psutil.NoSuchProcess, ValueError, OverflowError):
        return _is_hidden(number)
    except psutil.Error:
        # A process that may not be read is not necessarily gone.
        return True


def _is_hidden(process: int) -> bool:
    """Whether a process exists that /proc hides from us (the mount option hidepid)."""
    try:
        os.kill(process, 0)
    except PermissionError:
        return True
    except (OSError, OverflowError):
        return False
    return not (HOST.proc / str(process)).exists()
