"""How leases end: released by their holders, at their deadlines, or evicted by the owner. Pure, like `decisions`.

A lease whose job still runs becomes `ENDING`. For its holder it has ended, but its capacity counts until the job is
gone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from msgspec import Struct
from msgspec.structs import replace

from ..errors import (
    AmountError,
    EndedError,
    EvictedError,
    ExpiredError,
    LeaseError,
    NotAllocatedError,
    NotCommittedError,
    NotHolderError,
    StaleFenceError,
)
from .book import Book, Change, Record
from .deadlines import end_reason, renewed, shifted
from .history import history_entry
from .leases import EndedLease, EndReason, Lease, LeaseState, Notice
from .moment import Moment

__all__ = [
    "LONGEST_ID",
    "Eviction",
    "check_text",
    "end",
    "evict",
    "expire",
    "held_lease",
    "past_lease",
    "raise_if_ended",
    "standing",
    "withdraw_notices",
]

LONGEST_ID = 256
"""The largest number of characters of a lease id."""

# The reason is stored with each lease and in the history, and is sent over the wire.
_LONGEST_REASON = 200
_LONGEST_NOTICE = 365 * 86400.0


class Eviction(Struct, frozen=True, kw_only=True):
    """What an eviction did: the leases that have `ended`, and those under notice (`noticed`) with their deadlines.

    A lease that had ended before, for any reason, is among `ended` as the ledger remembers it.
    """

    ended: tuple[EndedLease, ...] = ()
    noticed: tuple[Lease, ...] = ()


def end(
    book: Book,
    lease_id: str,
    now: Moment,
    *,
    states: Sequence[LeaseState],
    holder: str | None,
    fence: int | None,
    actor: str = "",
    reason: EndReason = EndReason.RELEASED,
    why: str = "",
) -> tuple[Change, EndedLease]:
    """End a lease. A repeated release gets the same answer. An unknown lease is an error."""
    missing = NotAllocatedError if LeaseState.ALLOCATED in states else NotCommittedError
    ended = past_lease(book, lease_id)
    if ended is not None and ended.reason is EndReason.RELEASED:
        if holder is not None and ended.holder != holder:
            raise NotHolderError(f"{lease_id} is another holder's", lease_id=lease_id)
        if fence is not None and ended.fence != fence:
            raise StaleFenceError(f"{lease_id} had another fencing number", lease_id=lease_id)
        if ended.state not in states:
            raise missing(f"{lease_id} was {ended.state.value} when it ended", lease_id=lease_id)
        return Change(), ended
    record = held_lease(book, lease_id, holder, fence, missing)
    if record.lease.state not in states:
        raise missing(f"{lease_id} is {record.lease.state.value}", lease_id=lease_id)
    change, gone = _ending(record, now, reason, actor or record.lease.holder, why)
    return change, gone


def expire(book: Book, now: Moment) -> Change:
    """End every lease whose deadline has passed."""
    changes = []
    for record in book.due_until(now.steady):
        reason, why = end_reason(record.lease)
        actor = "owner" if reason is EndReason.EVICTED else "deadline"
        changes.append(_ending(record, now, reason, actor, why)[0])
    return _joined(changes)


def evict(
    book: Book, lease_ids: Iterable[str], now: Moment, *, reason: str, notice: float, drain: bool = False
) -> tuple[Change, Eviction]:
    """End leases of any state: at once, or at the latest `notice` seconds from now.

    A later notice does not replace an earlier one, so that a repeated eviction gives no more time. Raises
    `NotAllocatedError` for an unknown id, and `AmountError`; then nothing changes.
    """
    check_text(reason)
    if len(reason) > _LONGEST_REASON:
        raise AmountError(f"a reason has at most {_LONGEST_REASON} characters", value=reason[:_LONGEST_REASON])
    if not 0 <= notice <= _LONGEST_NOTICE:
        raise AmountError(f"a notice is 0 s to {_LONGEST_NOTICE:.0f} s, not {notice:g} s", value=str(notice))
    changes: list[Change] = []
    ended: list[EndedLease] = []
    noticed: list[Lease] = []
    for lease_id in dict.fromkeys(lease_ids):
        record = book.leases.get(lease_id)
        if record is None or record.lease.state is LeaseState.ENDING:
            past = past_lease(book, lease_id)
            if past is None:
                raise NotAllocatedError(f"no lease {lease_id[:LONGEST_ID]!r} is known here", lease_id=lease_id)
            ended.append(past)
        elif not notice:
            change, gone = _ending(record, now, EndReason.EVICTED, "owner", reason)
            changes.append(change)
            ended.append(gone)
        else:
            after = _with_notice(record, now, reason, notice, drain)
            if after is not record:
                text = f"ends in {notice:.0f} s" + (f": {reason}" if reason else "")
                changes.append(_noted(record, after, now, "notice", text))
            noticed.append(after.lease)
    return _joined(changes), Eviction(ended=tuple(ended), noticed=tuple(noticed))


def standing(book: Book, holder: str | None = None) -> tuple[str, ...]:
    """The ids of all leases, or of this holder's, that have not ended for their holders."""
    ids = book.leases if holder is None else book.ids_by_holder.get(holder, ())
    return tuple(one for one in ids if book.leases[one].lease.state is not LeaseState.ENDING)


def withdraw_notices(book: Book, now: Moment, *, drain: bool) -> tuple[Change, list[Lease]]:
    """Withdraw the notices of leases; with `drain`, only those of a drain.

    Each of these leases lasts from now as if it had just been renewed.
    """
    changes: list[Change] = []
    leases: list[Lease] = []
    for record in book.leases.values():
        lease = record.lease
        if lease.notice is None or (drain and not lease.notice.drain):
            continue
        ttl = lease.ttl if lease.until is None else max(1.0, min(lease.ttl, lease.until - now.wall))
        free = Record(replace(shifted(record, now), notice=None), record.due)
        after = renewed(Record(free.lease), now, ttl if lease.ttl else 0.0)
        after = Record(replace(after.lease, ttl=lease.ttl), after.due)
        changes.append(_noted(record, after, now, "withdraw", "the notice was withdrawn"))
        leases.append(after.lease)
    return _joined(changes), leases


def held_lease(book: Book, lease_id: str, holder: str | None, fence: int | None, missing: type[LeaseError]) -> Record:
    """The lease of this id, if it belongs to this holder and has this fencing number. Raises `LeaseError`."""
    record = book.leases.get(lease_id)
    if record is None or record.lease.state is LeaseState.ENDING:
        raise_if_ended(book, lease_id, holder)
        raise missing(f"no lease {lease_id[:LONGEST_ID]!r} is known here", lease_id=lease_id)
    if holder is not None and record.lease.holder != holder:
        raise NotHolderError(f"{lease_id} is another holder's", lease_id=lease_id)
    if fence is not None and record.lease.fence != fence:
        raise StaleFenceError(f"{lease_id} has another fencing number: it was taken anew", lease_id=lease_id)
    return record


def past_lease(book: Book, lease_id: str) -> EndedLease | None:
    """What the ledger remembers of a lease that ended for its holder. None for an unknown lease, and for one that has
    not ended.
    """
    record = book.leases.get(lease_id)
    # The list of ended leases is bounded, so a lease that is ending stores how it ended.
    return book.ended.get(lease_id) if record is None else record.lease.ended


def raise_if_ended(book: Book, lease_id: str, holder: str | None) -> None:
    """Raise the error that says why a lease of this id ended, if one is remembered."""
    ended = past_lease(book, lease_id)
    if ended is None:
        return
    if holder is not None and ended.holder != holder:
        raise NotHolderError(f"{lease_id} is another holder's", lease_id=lease_id)
    if ended.reason is EndReason.EVICTED:
        why = f": {ended.detail}" if ended.detail else ""
        raise EvictedError(f"the owner of the machine evicted {lease_id}{why}", lease_id=lease_id)
    if ended.reason in (EndReason.EXPIRED, EndReason.LOST):
        why = f": {ended.detail}" if ended.detail else ""
        raise ExpiredError(f"{lease_id} passed its deadline and ended{why}", lease_id=lease_id)
    raise EndedError(f"{lease_id} has ended; take a new id", lease_id=lease_id)


def check_text(text: str) -> None:
    """Raise `AmountError` for text that is not valid UTF-8 or not printable."""
    if not text.isprintable():
        raise AmountError(f"{text[:LONGEST_ID]!r} is no printable text", value=ascii(text[:LONGEST_ID]))


def _with_notice(record: Record, now: Moment, reason: str, notice: float, drain: bool) -> Record:
    lease = shifted(record, now)
    deadline, due = now.wall + notice, now.steady + notice
    if lease.notice is not None and lease.notice.deadline <= deadline:
        return record
    lease = replace(lease, notice=Notice(deadline=deadline, seconds=notice, reason=reason, drain=drain))
    if record.due is not None and record.due < due:
        return Record(lease, record.due)
    return Record(replace(lease, deadline=deadline), due)


def _ending(record: Record, now: Moment, reason: EndReason, actor: str, why: str) -> tuple[Change, EndedLease]:
    lease = record.lease
    ended = EndedLease(
        lease_id=lease.lease_id,
        holder=lease.holder,
        state=lease.state,
        fence=lease.fence,
        reason=reason,
        ended=now.wall,
        detail=why,
    )
    if not lease.runs_job:
        entry = history_entry(lease, now.wall, actor, "end", reason=reason.value, detail=why)
        return Change(leases=((record, None),), ended=(ended,), entries=(entry,)), ended
    ending = replace(lease, state=LeaseState.ENDING, ended=ended, deadline=None, longest=None, notice=None, grace=False)
    entry = history_entry(lease, now.wall, actor, "ending", reason=reason.value, detail=why)
    return Change(leases=((record, Record(ending)),), ended=(ended,), entries=(entry,)), ended


def _noted(before: Record, after: Record, now: Moment, action: str, detail: str) -> Change:
    entry = history_entry(after.lease, now.wall, "owner", action, detail=detail)
    return Change(leases=((before, after),), entries=(entry,))


def _joined(changes: Sequence[Change]) -> Change:
    if len(changes) == 1:
        return changes[0]
    return Change(
        leases=tuple(pair for change in changes for pair in change.leases),
        ended=tuple(ended for change in changes for ended in change.ended),
        entries=tuple(entry for change in changes for entry in change.entries),
    )
