"""Jobs of allocations: which job a lease carries, its processes, and when nothing of it runs any more. Pure.

A lease carries one job in its life. The job is attached durably before anything of it is started, so that after a crash
the ledger knows every lease that may have a running job. The capacity of such a lease is free only after `gone`.
"""

from __future__ import annotations

import re

from msgspec.structs import replace

from ..errors import AmountError, ConflictError, NotAllocatedError
from .book import Book, Change, Record
from .endings import LONGEST_ID, check_text, held_lease, raise_if_ended
from .history import history_entry
from .leases import Lease, LeaseJob, LeaseState
from .moment import Moment

__all__ = ["MOST_PROCESSES", "attach", "attach_processes", "gone"]

MOST_PROCESSES = 1024
"""Processes that are noted of one lease."""

_DIGEST = re.compile(r"[0-9a-f]{1,128}", re.ASCII)
# What a path in the kernel has at most.
_LONGEST_CGROUP = 4096
_LONGEST_HOW = 200
# Enough to tell jobs apart in the history.
_SHOWN_DIGEST = 16


def attach(
    book: Book, lease_id: str, now: Moment, *, digest: str, holder: str | None, fence: int | None
) -> tuple[Change, Lease]:
    """Notes the job of an allocation.

    Raises `ConflictError` when the lease has another job, `NotAllocatedError`, and what `endings.held_lease` raises.
    """
    if not _DIGEST.fullmatch(digest):
        raise AmountError("the digest of a job has 1 to 128 lowercase hexadecimal digits", value=digest[:LONGEST_ID])
    record = held_lease(book, lease_id, holder, fence, NotAllocatedError)
    lease = record.lease
    if lease.state is not LeaseState.ALLOCATED:
        raise NotAllocatedError(f"{lease_id} is {lease.state.value}, not allocated", lease_id=lease_id)
    if lease.job is not None:
        if lease.job.digest != digest:
            raise ConflictError(f"{lease_id} has another job; a lease carries one job", lease_id=lease_id)
        return Change(), lease
    after = replace(lease, job=LeaseJob(digest=digest))
    entry = history_entry(after, now.wall, lease.holder, "attach", detail=f"job {digest[:_SHOWN_DIGEST]}")
    return Change(leases=((record, Record(after, record.due)),), entries=(entry,)), after


def attach_processes(
    book: Book, lease_id: str, processes: tuple[tuple[int, float], ...], cgroup: str | None = None
) -> tuple[Change, Lease]:
    """Notes the processes of an allocation, also of one that is ending, in place of those noted before.

    With `cgroup` None the group that was noted stays. Raises `NotAllocatedError` or `AmountError`.
    """
    if len(processes) > MOST_PROCESSES:
        raise AmountError(f"at most {MOST_PROCESSES} processes are noted of a lease", value=str(len(processes)))
    if cgroup is not None:
        check_text(cgroup)
        if len(cgroup) > _LONGEST_CGROUP:
            raise AmountError(f"the name of a cgroup has at most {_LONGEST_CGROUP} characters", value=cgroup[:64])
    record = book.leases.get(lease_id)
    if record is None:
        raise_if_ended(book, lease_id, None)
        raise NotAllocatedError(f"no lease {lease_id[:LONGEST_ID]!r} is known here", lease_id=lease_id)
    lease = record.lease
    if lease.state not in (LeaseState.ALLOCATED, LeaseState.ENDING):
        raise NotAllocatedError(f"{lease_id} is {lease.state.value}, not allocated", lease_id=lease_id)
    after = replace(lease, processes=processes, cgroup=lease.cgroup if cgroup is None else cgroup)
    if after == lease:
        return Change(), lease
    return Change(leases=((record, Record(after, record.due)),)), after


def gone(book: Book, lease_id: str, now: Moment, *, fence: int, how: str = "") -> tuple[Change, None]:
    """Notes that nothing of the job runs any more. A lease that is ending ends in the same step.

    Nothing changes for a lease that is unknown, has another fencing number or has no running job.
    """
    record = book.leases.get(lease_id)
    if record is None or record.lease.fence != fence:
        return Change(), None
    lease, ended = record.lease, record.lease.ended
    if lease.job is None or lease.job.gone:
        return Change(), None
    how = "".join(character if character.isprintable() else "?" for character in how[:_LONGEST_HOW])
    entry = history_entry(lease, now.wall, "job", "gone", detail=how)
    if ended is not None:
        end = history_entry(lease, now.wall, "job", "end", reason=ended.reason.value, detail=ended.detail)
        # So many leases may have ended meanwhile that this one was forgotten: its id is still not given out again.
        again = () if lease_id in book.ended else (ended,)
        return Change(leases=((record, None),), ended=again, entries=(entry, end)), None
    after = replace(lease, job=replace(lease.job, gone=True), processes=(), cgroup="")
    return Change(leases=((record, Record(after, record.due)),), entries=(entry,)), None
