"""Decides whether a request is granted, and makes the change that grants it: pure functions of the book and the time.

Rules, in the order in which they are checked:
1. The same id with the same contents (holder, demand, ports) gets the same answer; with other contents it is a
   `conflict`. The time to live is not part of the contents, because a commitment may have been renewed since. Nor is
   the price: the first agreed price stays, until a commitment replaces a hold at the price of its bid.
2. The id of an ended lease cannot be used again while it is remembered.
3. Draining, not onboarded, outside the owner's windows: the request is refused with that reason.
4. Too little free capacity: the request is refused with every dimension that falls short.
5. What would then be outstanding has to stay within the owner's share for one holder and for all, and within every
   grant to which the request is charged. Otherwise the request is granted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial

from msgspec.structs import replace

from ..demands import Demand, PortDemand, describe_shortage
from ..errors import (
    AmountError,
    ConflictError,
    NotCommittedError,
    OnboardingError,
    StillPromisedError,
)
from ..placement import Placement, place_together
from ..refusals import (
    DrainingError,
    HoldLimitError,
    InsufficientError,
    NotOnboardedError,
    PhysicalError,
    RequestError,
    WindowError,
)
from . import endings
from .accounts import MOST_ACCOUNTS
from .book import NOTHING_OFFERED, Book, Change, OfferState, Record
from .capacity import FreeCapacity, Granted
from .charging import Charges, outlasting
from .deadlines import AllocationTerms, renewed, shifted
from .endings import LONGEST_ID, Eviction, check_text, held_lease, raise_if_ended
from .history import HistoryEntry, history_entry
from .jobs import attach_processes
from .leases import LONGEST_NAME, Lease, LeaseRequest, LeaseState, Limit, ResourceAllocation
from .moment import Moment
from .onboarding import onboarding_problems

__all__ = [
    "LONGEST_TTL",
    "allocate",
    "cancel_drain",
    "change_offer",
    "commit",
    "drain",
    "fit",
    "hold",
    "objections",
    "offboard",
    "renew",
]

LONGEST_TTL = 30 * 86400.0
"""The longest time to live of a commitment, in seconds. Commitments are meant for minutes or hours."""
_DEFAULT_TERMS = AllocationTerms()
_UNTIL_RELEASED = AllocationTerms(keep_alive=None)
# The number of entries in the history is limited. This limits their size, which depends on what peers send.
_LONGEST_DETAIL = 400


def commit(book: Book, requests: Sequence[LeaseRequest], now: Moment, *, group: str = "") -> tuple[Change, list[Lease]]:
    """Commit all the requests or none. Raises `RequestError` or `LeaseError`; then nothing changes."""
    return _promise(book, requests, now, LeaseState.COMMITTED, group)


def hold(book: Book, requests: Sequence[LeaseRequest], now: Moment) -> tuple[Change, list[Lease]]:
    """Hold capacity for all the requests, within the owner's limits. Raises `HoldLimitError` beyond them."""
    _check_hold_limits(book, [request for request in requests if request.lease_id not in book.leases])
    change, leases = _promise(book, requests, now, LeaseState.HELD, "")
    _check_held_share(book, [after.lease for before, after in change.leases if after is not None])
    return change, leases


def renew(
    book: Book,
    lease_id: str,
    now: Moment,
    *,
    ttl: float,
    holder: str | None,
    fence: int | None,
    terms: AllocationTerms = _DEFAULT_TERMS,
) -> tuple[Change, Lease]:
    """Move the deadline of a commitment to `ttl` seconds from now, or that of an allocation by the keep-alive of
    `terms`.

    Neither goes beyond the limits of the lease. The lease keeps its fencing number. An allocation without a keep-alive
    does not change.
    """
    _check_ttl(ttl)
    record = held_lease(book, lease_id, holder, fence, NotCommittedError)
    lease = record.lease
    if lease.state is LeaseState.ALLOCATED:
        if not lease.ttl:
            return Change(), lease
        ttl = terms.keep_alive or 0.0
    elif lease.state is LeaseState.COMMITTED:
        _check_window(now, ttl)
        if lease.until is not None and now.wall + ttl > lease.until:
            raise outlasting(ttl, lease.until - now.wall)
    else:
        raise NotCommittedError(f"{lease_id} is {lease.state.value}, not committed", lease_id=lease_id)
    after = renewed(Record(replace(lease, grace=False), record.due), now, ttl)
    return _change(book, record, after, now, "renew"), after.lease


def allocate(
    book: Book,
    request: ResourceAllocation,
    now: Moment,
    processes: tuple[tuple[int, float], ...] = (),
    terms: AllocationTerms | None = None,
) -> tuple[Change, Lease]:
    """Turn a commitment into an allocation in one step; without a commitment, allocate directly.

    The allocation lasts as `terms` say; without terms, until it is released.
    """
    terms = terms or _UNTIL_RELEASED
    # A holder with a fencing number had a commitment. The ledger has forgotten it, but that does not make this a new
    # request.
    if request.lease_id not in book.leases and request.resources is not None and request.fence is None:
        direct = LeaseRequest(
            lease_id=request.lease_id, holder=request.holder, demand=request.resources, ports=request.ports, ttl=0.0
        )
        change, leases = _promise(book, [direct], now, LeaseState.ALLOCATED, "", processes, terms)
        return change, leases[0]
    record = held_lease(book, request.lease_id, request.holder, request.fence, NotCommittedError)
    lease = record.lease
    asked = (request.resources, request.ports)
    if request.resources is not None and asked != (lease.demand, lease.asked_ports):
        raise ConflictError(f"{lease.lease_id} was committed with other contents", lease_id=lease.lease_id)
    if lease.state is LeaseState.ALLOCATED:
        return attach_processes(book, lease.lease_id, processes) if processes else (Change(), lease)
    if lease.state is LeaseState.HELD:
        raise NotCommittedError(f"{lease.lease_id} is held for a bid: commit it first", lease_id=lease.lease_id)
    after = _allocated(Record(replace(lease, processes=processes), record.due), now, terms)
    return _change(book, record, after, now, "allocate"), after.lease


def fit(book: Book, requests: Sequence[LeaseRequest], now: Moment) -> list[Granted | RequestError]:
    """For each request, what it would get together with the requests before it, or the error. Nothing changes."""
    capacity, charges = book.capacity(), Charges(book.sums, _next_end(book, now))
    answers: list[Granted | RequestError] = []
    before: tuple[Demand, Granted] | None = None
    for request in requests:
        if before is not None:
            capacity, before = capacity.less(*before), None
        try:
            _check_open(book, now, request.ttl)
            granted = _grant(book, capacity, request, now)
            charges.charge(request, granted.resources, now.wall)
        except RequestError as refusal:
            answers.append(refusal)
            continue
        before = request.demand, granted
        answers.append(granted)
    return answers


def objections(book: Book, request: LeaseRequest, now: Moment) -> tuple[RequestError, ...]:
    """All errors of a request on its own, in the order of the rules.

    What would be outstanding is checked only if there is capacity.
    """
    found: list[RequestError] = []
    try:
        _check_onboarded(book)
    except NotOnboardedError as error:
        return (error,)
    for check in (partial(_check_draining, book), partial(_check_window, now, request.ttl)):
        try:
            check()
        except RequestError as error:
            found.append(error)
    try:
        granted = _grant(book, book.capacity(), request, now)
        Charges(book.sums, _next_end(book, now)).charge(request, granted.resources, now.wall)
    except RequestError as error:
        found.append(error)
    return tuple(found)


def change_offer(book: Book, offer: OfferState, now: Moment, *, action: str, detail: str = "") -> Change:
    """Onboard other resources, or change the terms or the draining. Raises `OnboardingError` with all problems."""
    if offer.onboarded is not None and offer.onboarded != book.offer.onboarded:
        problems = onboarding_problems(offer.onboarded, book)
        if problems:
            raise OnboardingError(problems, hint="see `dms-peer hardware` and `dms-peer status`")
    if offer == book.offer:
        return Change()
    entry = HistoryEntry(at=now.wall, actor="owner", action=action, detail=detail)
    return Change(offer=(book.offer, offer), entries=(entry,))


def drain(book: Book, now: Moment, *, evict: bool, deadline: float, reason: str) -> tuple[Change, Eviction]:
    """Accept no more commitments. With `evict`, every lease ends at the latest `deadline` seconds from now.

    Without `evict`, the deadline is only recorded. A drain that goes on keeps its deadline until it gets another one.
    """
    until = now.wall + deadline if deadline > 0 else None if evict else book.offer.drain_deadline
    offer = replace(book.offer, draining=True, drain_deadline=until)
    change = change_offer(book, offer, now, action="drain", detail=reason)
    if not evict:
        return change, Eviction()
    ends, eviction = endings.evict(book, endings.standing(book), now, reason=reason, notice=deadline, drain=True)
    return replace(ends, offer=change.offer, entries=change.entries + ends.entries), eviction


def cancel_drain(book: Book, now: Moment) -> tuple[Change, list[Lease]]:
    """Accept commitments again, and withdraw the notices that the drain gave."""
    change = change_offer(book, replace(book.offer, draining=False, drain_deadline=None), now, action="undrain")
    notices, leases = endings.withdraw_notices(book, now, drain=True)
    return replace(notices, offer=change.offer, entries=change.entries + notices.entries), leases


def offboard(book: Book, now: Moment) -> Change:
    """Offer nothing any more. Raises `StillPromisedError` while leases exist."""
    if book.leases:
        some = tuple(sorted(book.leases)[:10]) if len(book.leases) <= 1000 else tuple(list(book.leases)[:10])
        ending = book.totals[LeaseState.ENDING].count
        wait = "`dms-peer offboard --drain` waits until they have ended"
        raise StillPromisedError(
            f"leases that have not ended: {len(book.leases)} ({', '.join(some)})"
            + (f"; {ending} of them wait for the end of their jobs" if ending else ""),
            lease_ids=some,
            count=len(book.leases),
            hint=wait if ending == len(book.leases) else f"{wait}; `dms-peer evict --all` ends them now",
        )
    return change_offer(book, NOTHING_OFFERED, now, action="offboard")


def _promise(
    book: Book,
    requests: Sequence[LeaseRequest],
    now: Moment,
    state: LeaseState,
    group: str,
    processes: tuple[tuple[int, float], ...] = (),
    terms: AllocationTerms = _UNTIL_RELEASED,
) -> tuple[Change, list[Lease]]:
    for request in requests:
        _check_request(request)
        if state is not LeaseState.ALLOCATED:
            _check_ttl(request.ttl)
    check_text(group)
    ids = [request.lease_id for request in requests]
    if len(set(ids)) != len(ids):
        raise ConflictError("one id stands twice in the request", lease_id=max(ids, key=ids.count))
    known = [_same_lease(book, request) for request in requests]
    fresh = [request for request, record in zip(requests, known, strict=True) if record is None]
    granted = _grant_all(book, fresh, now)
    charges = Charges(book.sums, _next_end(book, now))
    fence, pairs, leases, entries = book.fence, [], [], []
    for request, record in zip(requests, known, strict=True):
        if record is None:
            fence += 1
            given = granted[request.lease_id]
            charges.charge(request, given.resources, now.wall)
            lease = Lease(
                lease_id=request.lease_id,
                holder=request.holder,
                state=state,
                demand=request.demand,
                asked_ports=request.ports,
                resources=given.resources,
                ports=given.ports,
                fence=fence,
                created=now.wall,
                group=group,
                ensemble_id=request.ensemble_id,
                node_id=request.node_id,
                processes=processes,
                price=request.price,
                accounts=tuple(account.id for account in request.accounts),
                until=request.until,
            )
        elif record.lease.state is LeaseState.HELD and state is LeaseState.COMMITTED:
            # The commitment replaces the hold in the same step: the capacity is free at no time between them.
            _check_window(now, request.ttl)
            charges.charge(request, record.lease.resources, now.wall, before=record.lease)
            lease = replace(
                record.lease,
                state=state,
                group=group,
                price=request.price,
                accounts=tuple(account.id for account in request.accounts),
                until=request.until,
            )
        else:
            leases.append(record.lease)
            continue
        taken = Record(lease, record.due if record else None)
        after = _allocated(taken, now, terms) if state is LeaseState.ALLOCATED else renewed(taken, now, request.ttl)
        leases.append(after.lease)
        pairs.append((record, after))
        entries.append(_entry(now, after.lease, _ACTIONS[state]))
    return Change(leases=tuple(pairs), entries=tuple(entries), fence=fence), leases


_ACTIONS = {LeaseState.HELD: "hold", LeaseState.COMMITTED: "commit", LeaseState.ALLOCATED: "allocate"}


def _same_lease(book: Book, request: LeaseRequest) -> Record | None:
    lease_id = request.lease_id
    record = book.leases.get(lease_id)
    if record is None or record.lease.state is LeaseState.ENDING:
        raise_if_ended(book, lease_id, request.holder)
        return None
    lease = record.lease
    if (lease.holder, lease.demand, lease.asked_ports) != (request.holder, request.demand, request.ports):
        raise ConflictError(f"{lease_id} is in use with other contents", lease_id=lease_id)
    return record


def _grant_all(book: Book, requests: Sequence[LeaseRequest], now: Moment) -> dict[str, Granted]:
    left = book.capacity()
    granted: dict[str, Granted] = {}
    placements = place_together([request.demand.gpus for request in requests], left.devices)
    for index, request in enumerate(requests):
        if index:
            before = requests[index - 1]
            left = left.less(before.demand, granted[before.lease_id])
        _check_open(book, now, request.ttl)
        # Static ports of the other requests are not given to this one as dynamic ports.
        capacity = left.keeping(port for other in requests if other is not request for port in other.ports.static)
        # If it was possible, the devices of all jobs were chosen together.
        placed = None if placements is None else placements[index]
        granted[request.lease_id] = _grant(book, capacity, request, now, index, placed)
    return granted


def _check_open(book: Book, now: Moment, ttl: float) -> None:
    _check_onboarded(book)
    _check_draining(book)
    _check_window(now, ttl)


def _check_onboarded(book: Book) -> None:
    if book.offer.onboarded is None:
        raise NotOnboardedError("the owner of this machine offers nothing", hint="onboard with `dms-peer onboard`")


def _check_draining(book: Book) -> None:
    if book.offer.draining:
        raise DrainingError("this machine drains: it takes nothing new")


def _check_window(now: Moment, ttl: float) -> None:
    opening = now.opening
    if not opening.open:
        wait = opening.until - now.wall if opening.until is not None else None
        raise WindowError("the owner's window is closed now", retry_after=wait)
    if opening.until is not None and now.wall + ttl > opening.until:
        raise WindowError(
            f"it would last {ttl:.0f} s but the owner's window closes in {opening.until - now.wall:.0f} s",
            retry_after=None,
        )


def _grant(
    book: Book,
    capacity: FreeCapacity,
    request: LeaseRequest,
    now: Moment,
    index: int = 0,
    placements: tuple[Placement, ...] | None = None,
) -> Granted:
    demand, ports = request.demand, request.ports
    placed = capacity.place(demand) if placements is None else placements
    if placed is None or capacity.shortages(demand, ports, placed):
        raise _insufficient(book, capacity, demand, ports, now, index)
    shortages = now.physical(demand) if now.physical else ()
    if shortages:
        sentence = "the machine itself is short of it now: " + "; ".join(map(describe_shortage, shortages))
        raise PhysicalError(sentence, shortages=shortages, index=index)
    return capacity.grant(demand, ports, placed)


def _insufficient(
    book: Book, capacity: FreeCapacity, demand: Demand, ports: PortDemand, now: Moment, index: int
) -> InsufficientError:
    shortages = capacity.shortages(demand, ports)
    sentence = "; ".join(map(describe_shortage, shortages)) or "the GPUs cannot be placed together"
    return InsufficientError(sentence, shortages=shortages, retry_after=_next_end(book, now), index=index)


def _next_end(book: Book, now: Moment) -> float | None:
    due = book.next_due()
    return max(0.0, due[0] - now.steady) if due else None


def _check_hold_limits(book: Book, requests: Sequence[LeaseRequest]) -> None:
    limits = book.offer.onboarded.holds if book.offer.onboarded else None
    if limits is None or not requests:
        return
    longest = max(request.ttl for request in requests)
    if longest > limits.max_seconds:
        allowed = f"at most {limits.max_seconds:g} s" if limits.max_seconds else "none"
        raise HoldLimitError(f"a hold of {longest:g} s was asked, the owner allows {allowed}")
    for holder, count in Counter(request.holder for request in requests).items():
        if book.held_by.get(holder, 0) + count > limits.per_holder:
            raise HoldLimitError(f"one peer may hold {limits.per_holder} bids at a time")
    if book.totals[LeaseState.HELD].count + len(requests) > limits.total:
        raise HoldLimitError(f"all peers together may hold {limits.total} bids at a time")


def _check_held_share(book: Book, leases: Sequence[Lease]) -> None:
    limits = book.offer.onboarded.holds if book.offer.onboarded else None
    if limits is None or not leases:
        return
    capacity, held = book.capacity(), book.totals[LeaseState.HELD]
    for lease in leases:
        held = held.plus(lease, 1)
    # This counts what was granted, not what was requested: an exclusive device is held as a whole.
    vram = sum(book.vram[LeaseState.HELD].values()) + sum(gpu.vram for one in leases for gpu in one.resources.gpus)
    amounts = (
        (held.millicores, capacity.total_millicores, "cpu"),
        (held.ram, capacity.total_ram, "ram"),
        (held.disk, capacity.total_disk, "disk"),
        (vram, sum(state.total for state in capacity.devices), "gpus"),
    )
    for amount, total, name in amounts:
        if amount * 1000 > total * limits.share:
            raise HoldLimitError(f"bids may hold {limits.share / 10:g} % of the {name} at a time")


def _check_request(request: LeaseRequest) -> None:
    # The wire checks its messages, but a caller in this process may pass anything.
    if not 0 < len(request.lease_id) <= LONGEST_ID:
        raise AmountError(f"a lease id has 1 to {LONGEST_ID} characters", value=request.lease_id[:LONGEST_ID])
    check_text(request.lease_id)
    check_text(request.holder)
    _check_name(request.ensemble_id)
    _check_name(request.node_id)
    ids = {account.id for account in request.accounts}
    if len(ids) > MOST_ACCOUNTS or len(ids) != len(request.accounts):
        raise AmountError(f"a lease is charged to at most {MOST_ACCOUNTS} accounts, to each once")
    for account in ids:
        check_text(account)
    demand = request.demand
    amounts = (demand.ram.size, demand.disk.size, request.ports.dynamic, *(gpu.vram for gpu in demand.gpus))
    for amount in amounts:
        if not 0 <= amount < 2**63:
            raise AmountError(f"{amount} is no amount that can be promised", value=str(amount))


def _check_name(name: str) -> None:
    # Unlike an id it may have any characters: it is stored and shown, never typed.
    try:
        name.encode()
    except UnicodeEncodeError:
        raise AmountError(f"{name[:LONGEST_NAME]!a} is not valid UTF-8", value=ascii(name[:LONGEST_NAME])) from None
    if len(name) > LONGEST_NAME:
        raise AmountError(f"a name has at most {LONGEST_NAME} characters", value=name[:LONGEST_NAME])


def _check_ttl(ttl: float) -> None:
    if not 0 < ttl <= LONGEST_TTL:
        raise AmountError(
            f"a commitment lasts more than 0 s and at most {LONGEST_TTL:.0f} s, not {ttl:g} s", value=str(ttl)
        )


def _allocated(record: Record, now: Moment, terms: AllocationTerms) -> Record:
    longest = None if terms.longest is None else Limit(deadline=now.wall + terms.longest, seconds=terms.longest)
    lease = replace(shifted(record, now), state=LeaseState.ALLOCATED, longest=longest)
    due = record.due if lease.deadline is None else now.steady + lease.deadline - now.wall
    return renewed(Record(lease, due), now, terms.keep_alive or 0.0)


def _change(book: Book, before: Record, after: Record, now: Moment, action: str) -> Change:
    return Change(leases=((before, after),), entries=(_entry(now, after.lease, action),), fence=book.fence)


def _entry(now: Moment, lease: Lease, action: str) -> HistoryEntry:
    detail = lease.demand.describe()
    if lease.price is not None:
        detail += f", {lease.price.describe()}"
    if len(detail) > _LONGEST_DETAIL:
        detail = detail[: _LONGEST_DETAIL - 3] + "..."
    return history_entry(lease, now.wall, lease.holder, action, detail=detail)
