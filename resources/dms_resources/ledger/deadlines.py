"""When a lease ends: at its own deadline, at the longest time that the owner allows, or at the end of the owner's
notice, whichever is first.

Three rules:

1. A commitment lasts for its time to live. An allocation has a keep-alive (`Lease.ttl`), which each renewal restarts;
   an allocation without a keep-alive lasts until it is released.
2. No renewal goes beyond `Lease.longest` or `Lease.notice`.
3. If the keep-alive of an allocation ended while this provider was down, its holder could not renew it. It gets one
   more keep-alive from the start of the ledger, and no second one before it is renewed.

A lease shows Unix times, but the ledger counts on the steady clock (`Record.due`). The difference between `deadline`
and `due` relates the two, so that all times of a lease move together when the wall clock is set.
"""

from __future__ import annotations

from msgspec import Struct
from msgspec.structs import replace

from .book import Record
from .clock import Clock, remaining_after_restart
from .leases import EndReason, Lease, LeaseState, Limit
from .moment import Moment

__all__ = ["AllocationTerms", "end_reason", "renewed", "restored", "shifted"]

# The allocation of a client that cannot renew it must end too.
_WITHOUT_RENEWAL = 86400.0


class AllocationTerms(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How long the owner lets an allocation last that replaces a commitment.

    `keep_alive` is in seconds: an allocation ends if its holder does not renew it for that time; None means that it
    needs no renewal. `longest` is in seconds: an allocation ends after that time in any case; None means no such limit.
    If both are None, an allocation lasts until it is released.
    """

    keep_alive: float | None = 900.0
    longest: float | None = None

    def __post_init__(self) -> None:
        """Raise ValueError for a time that is not positive and finite."""
        for name, seconds in (("keep_alive", self.keep_alive), ("longest", self.longest)):
            if seconds is not None and not 0 < seconds < float("inf"):
                raise ValueError(f"{name} must be more than 0 s, not {seconds:g} s; None for no limit")

    def without_renewal(self) -> AllocationTerms:
        """The terms for a client that cannot renew: `longest`, or a day if only `keep_alive` is set."""
        longest = self.longest
        if longest is None and self.keep_alive is not None:
            longest = _WITHOUT_RENEWAL
        return AllocationTerms(keep_alive=None, longest=longest)


def renewed(record: Record, now: Moment, ttl: float) -> Record:
    """The record with a deadline `ttl` seconds from now, or at the lease's limit if that comes first.

    With `ttl` 0 the lease has only the deadlines of its limits.
    """
    lease = shifted(record, now)
    ends = [(now.wall + ttl, now.steady + ttl)] if ttl else []
    ends += [(limit.deadline, now.steady + limit.deadline - now.wall) for limit in _limits(lease)]
    if not ends:
        return Record(replace(lease, ttl=ttl, deadline=None))
    deadline, due = min(ends)
    return Record(replace(lease, ttl=ttl, deadline=deadline), due)


def shifted(record: Record, now: Moment) -> Lease:
    """The lease with its times on the wall clock as it is set now."""
    lease = record.lease
    if record.due is None or lease.deadline is None:
        return lease
    shift = (now.wall - now.steady) - (lease.deadline - record.due)
    if not shift:
        return lease
    return replace(
        lease,
        deadline=lease.deadline + shift,
        longest=lease.longest and replace(lease.longest, deadline=lease.longest.deadline + shift),
        notice=lease.notice and replace(lease.notice, deadline=lease.notice.deadline + shift),
    )


def end_reason(lease: Lease) -> tuple[EndReason, str]:
    """Why this lease ends at its deadline, with a sentence for people."""
    if lease.notice is not None and lease.deadline == lease.notice.deadline:
        return EndReason.EVICTED, lease.notice.reason
    if lease.longest is not None and lease.deadline == lease.longest.deadline:
        return EndReason.EXPIRED, f"it lasted {lease.longest.seconds:.0f} s, the longest that the owner allows"
    if lease.state is LeaseState.ALLOCATED:
        return EndReason.LOST, f"its holder did not renew it for {lease.ttl:.0f} s"
    return EndReason.EXPIRED, ""


def restored(lease: Lease, due: float | None, boot_id: str, clock: Clock) -> Record:
    """The record of a lease that was stored with this `due` in the boot `boot_id`, by the rules of this module."""
    if due is None or lease.deadline is None:
        return Record(lease)
    now = Moment(wall=clock.wall(), steady=clock.steady())
    longest = min([lease.ttl or float("inf"), *(limit.seconds for limit in _limits(lease))])
    left = remaining_after_restart(clock, due=due, boot_id=boot_id, deadline=lease.deadline, ttl=longest)
    if left > 0 or lease.grace or end_reason(lease)[0] is not EndReason.LOST:
        return Record(lease, now.steady + max(0.0, left))
    after = renewed(Record(replace(lease, grace=True), now.steady + left), now, lease.ttl)
    if after.due is not None and after.due <= now.steady:
        # The longest time of the allocation, or the owner's notice, has passed too.
        return Record(replace(after.lease, grace=False), now.steady)
    return after


def _limits(lease: Lease) -> list[Limit]:
    return [limit for limit in (lease.longest, lease.notice) if limit is not None]
