"""Whether a request is granted, and the change that grants it: pure functions of the book and the time.

Rules, in the order in which they are asked:
1. The same id with the same contents (holder, demand, ports) answers what it answered; with other contents it is a
   `conflict`. The time to live is no part of the contents: a commitment may have been renewed since. Nor is the price:
   what was agreed first stands, until a commitment takes the place of a hold at the price of the bid that it takes.
2. An id that ended is not given out again while it is remembered.
3. Draining, not onboarded, outside the owner's windows: refused with that reason.
4. The room: refused with every dimension that falls short.
5. What would be outstanding then: within the owner's share for one holder and for all, and within every grant that the
   request is charged to. Otherwise granted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial

from msgspec import Struct
from msgspec.structs import replace

from ..demands import Demand, PortDemand, Shortage, describe_shortage
from ..errors import (
    AmountError,
    ConflictError,
    EndedError,
    ExpiredError,
    LeaseError,
    NotAllocatedError,
    NotCommittedError,
    NotHolderError,
    OnboardingError,
    StaleFenceError,
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
from .accounts import MOST_ACCOUNTS
from .book import NOTHING_OFFERED, Book, Change, OfferState, Record
from .capacity import FreeCapacity, Granted
from .charging import Charges, outlasting
from .history import HistoryEntry
from .leases import EndedLease, EndReason, Lease, LeaseRequest, LeaseState, ResourceAllocation
from .onboarding import onboarding_problems
from .windows import ALWAYS_OPEN, Opening

__all__ = [
    "LONGEST_TTL",
    "Moment",
    "allocate",
    "change_offer",
    "commit",
    "end",
    "expire",
    "fit",
    "hold",
    "objections",
    "offboard",
    "renew",
]

LONGEST_TTL = 30 * 86400.0
"""The longest time to live of a commitment, in seconds: it is a promise for minutes or hours."""
_LONGEST_ID = 256
# The history is bounded in entries: what a peer may ask for must not make one of them any size.
_LONGEST_DETAIL = 400


class Moment(Struct, frozen=True, kw_only=True):
    """The instant of a decision: both clocks in seconds, and what the owner's windows say.

    `physical` tells where a demand is more than the machine itself has free now; None when nobody looks.
    """

    wall: float
    steady: float
    opening: Opening = ALWAYS_OPEN
    physical: Callable[[Demand], tuple[Shortage, ...]] | None = None


def commit(book: Book, requests: Sequence[LeaseRequest], now: Moment, *, group: str = "") -> tuple[Change, list[Lease]]:
    """Commits all the requests or none. Raises `RequestError` or `LeaseError` and leaves everything as it was."""
    return _promise(book, requests, now, LeaseState.COMMITTED, group)


def hold(book: Book, requests: Sequence[LeaseRequest], now: Moment) -> tuple[Change, list[Lease]]:
    """Holds all the requests for their bids, within the owner's limits. Raises `HoldLimitError` beyond them."""
    _check_hold_limits(book, [request for request in requests if request.lease_id not in book.leases])
    change, leases = _promise(book, requests, now, LeaseState.HELD, "")
    _check_held_share(book, [after.lease for before, after in change.leases if after is not None])
    return change, leases


def renew(
    book: Book, lease_id: str, now: Moment, *, ttl: float, holder: str | None, fence: int | None
) -> tuple[Change, Lease]:
    """Moves the deadline of a commitment to `ttl` seconds from now; it keeps its fencing number."""
    _check_ttl(ttl)
    record = _held_lease(book, lease_id, holder, fence, NotCommittedError)
    if record.lease.state is not LeaseState.COMMITTED:
        raise NotCommittedError(f"{lease_id} is {record.lease.state.value}, not committed", lease_id=lease_id)
    _check_window(now, ttl)
    until = record.lease.until
    if until is not None and now.wall + ttl > until:
        raise outlasting(ttl, until - now.wall)
    lease = replace(record.lease, ttl=ttl, deadline=now.wall + ttl)
    return _change(book, record, Record(lease, now.steady + ttl), now, "renew"), lease


def allocate(
    book: Book, request: ResourceAllocation, now: Moment, processes: tuple[tuple[int, float], ...] = ()
) -> tuple[Change, Lease]:
    """Turns a commitment into an allocation in one step; without one, allocates directly."""
    # Who shows a fencing number had a commitment; that it is forgotten here does not make it a new request.
    if request.lease_id not in book.leases and request.resources is not None and request.fence is None:
        direct = LeaseRequest(
            lease_id=request.lease_id, holder=request.holder, demand=request.resources, ports=request.ports, ttl=0.0
        )
        change, leases = _promise(book, [direct], now, LeaseState.ALLOCATED, "", processes)
        return change, leases[0]
    record = _held_lease(book, request.lease_id, request.holder, request.fence, NotCommittedError)
    lease = record.lease
    asked = (request.resources, request.ports)
    if request.resources is not None and asked != (lease.demand, lease.asked_ports):
        raise ConflictError(f"{lease.lease_id} was committed with other contents", lease_id=lease.lease_id)
    if lease.state is LeaseState.ALLOCATED:
        return Change(), lease
    if lease.state is LeaseState.HELD:
        raise NotCommittedError(f"{lease.lease_id} is held for a bid: commit it first", lease_id=lease.lease_id)
    allocated = replace(lease, state=LeaseState.ALLOCATED, deadline=None, ttl=0.0, processes=processes)
    return _change(book, record, Record(allocated), now, "allocate"), allocated


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
    """Gives a lease back. Released twice it answers the same; what was never known is an error that is seen."""
    missing = NotAllocatedError if LeaseState.ALLOCATED in states else NotCommittedError
    ended = book.ended.get(lease_id)
    if lease_id not in book.leases and ended is not None and ended.reason is EndReason.RELEASED:
        if holder is not None and ended.holder != holder:
            raise NotHolderError(f"{lease_id} is another holder's", lease_id=lease_id)
        if fence is not None and ended.fence != fence:
            raise StaleFenceError(f"{lease_id} had another fencing number", lease_id=lease_id)
        if ended.state not in states:
            raise missing(f"{lease_id} was {ended.state.value} when it ended", lease_id=lease_id)
        return Change(), ended
    record = _held_lease(book, lease_id, holder, fence, missing)
    if record.lease.state not in states:
        raise missing(f"{lease_id} is {record.lease.state.value}", lease_id=lease_id)
    change, gone = _ending(record, now, reason, actor or record.lease.holder, why)
    return change, gone


def expire(book: Book, now: Moment) -> Change:
    """Ends every commitment and hold whose deadline has passed."""
    pairs: list[tuple[Record | None, Record | None]] = []
    ended: list[EndedLease] = []
    entries: list[HistoryEntry] = []
    for record in book.due_until(now.steady):
        change, _ = _ending(record, now, EndReason.EXPIRED, "deadline", "")
        pairs += change.leases
        ended += change.ended
        entries += change.entries
    return Change(leases=tuple(pairs), ended=tuple(ended), entries=tuple(entries))


def fit(book: Book, requests: Sequence[LeaseRequest], now: Moment) -> list[Granted | RequestError]:
    """For each request what it would get, together with those before it, or why not. Nothing is changed."""
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
    """Everything that stands against a request for which nothing else is asked, in the order of the rules.

    What would be outstanding is known only where there is capacity.
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
    """Onboards other resources or drains. Raises `OnboardingError` naming everything that is wrong."""
    if offer.onboarded is not None and offer.onboarded != book.offer.onboarded:
        problems = onboarding_problems(offer.onboarded, book)
        if problems:
            raise OnboardingError(problems, hint="see `dms-peer hardware` and `dms-peer status`")
    if offer == book.offer:
        return Change()
    entry = HistoryEntry(at=now.wall, actor="owner", action=action, detail=detail)
    return Change(offer=(book.offer, offer), entries=(entry,))


def offboard(book: Book, now: Moment) -> Change:
    """Offers nothing any more. Raises `StillPromisedError` while anything is promised."""
    if book.leases:
        some = tuple(sorted(book.leases)[:10]) if len(book.leases) <= 1000 else tuple(list(book.leases)[:10])
        raise StillPromisedError(
            f"{len(book.leases)} leases are still promised, for example {some[0]}",
            lease_ids=some,
            count=len(book.leases),
            hint="drain first: `dms-peer offboard --drain` takes nothing new and waits until all has ended",
        )
    return change_offer(book, NOTHING_OFFERED, now, action="offboard")


def _promise(
    book: Book,
    requests: Sequence[LeaseRequest],
    now: Moment,
    state: LeaseState,
    group: str,
    processes: tuple[tuple[int, float], ...] = (),
) -> tuple[Change, list[Lease]]:
    for request in requests:
        _check_request(request)
        if state is not LeaseState.ALLOCATED:
            _check_ttl(request.ttl)
    _check_text(group)
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
                processes=processes,
                price=request.price,
                accounts=tuple(account.id for account in request.accounts),
                until=request.until,
            )
        elif record.lease.state is LeaseState.HELD and state is LeaseState.COMMITTED:
            # The commitment takes the place of the hold: there is no instant at which nobody has it.
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
        due = None
        if state is not LeaseState.ALLOCATED:
            lease = replace(lease, ttl=request.ttl, deadline=now.wall + request.ttl)
            due = now.steady + request.ttl
        leases.append(lease)
        pairs.append((record, Record(lease, due)))
        entries.append(_entry(now, lease, _ACTIONS[state]))
    return Change(leases=tuple(pairs), entries=tuple(entries), fence=fence), leases


_ACTIONS = {LeaseState.HELD: "hold", LeaseState.COMMITTED: "commit", LeaseState.ALLOCATED: "allocate"}


def _same_lease(book: Book, request: LeaseRequest) -> Record | None:
    lease_id = request.lease_id
    record = book.leases.get(lease_id)
    if record is None:
        _raise_if_ended(book, lease_id, request.holder)
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
        # The ports that the others name are not given to this one as any.
        capacity = left.keeping(port for other in requests if other is not request for port in other.ports.static)
        # Where each job's GPUs go was decided for all of them together, if it could be.
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
    # As granted and not as asked: a device that is held exclusively is held whole.
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
    # What comes from the wire was checked there; a caller in this process may pass anything.
    if not 0 < len(request.lease_id) <= _LONGEST_ID:
        raise AmountError(f"a lease id has 1 to {_LONGEST_ID} characters", value=request.lease_id[:_LONGEST_ID])
    _check_text(request.lease_id)
    _check_text(request.holder)
    ids = {account.id for account in request.accounts}
    if len(ids) > MOST_ACCOUNTS or len(ids) != len(request.accounts):
        raise AmountError(f"a lease is charged to at most {MOST_ACCOUNTS} accounts, to each once")
    for account in ids:
        _check_text(account)
    demand = request.demand
    amounts = (demand.ram.size, demand.disk.size, request.ports.dynamic, *(gpu.vram for gpu in demand.gpus))
    for amount in amounts:
        if not 0 <= amount < 2**63:
            raise AmountError(f"{amount} is no amount that can be promised", value=str(amount))


def _check_text(text: str) -> None:
    # The ledger is UTF-8, which half a surrogate pair is not.
    if not text.isprintable():
        raise AmountError(f"{text[:_LONGEST_ID]!r} is no printable text", value=ascii(text[:_LONGEST_ID]))


def _check_ttl(ttl: float) -> None:
    if not 0 < ttl <= LONGEST_TTL:
        raise AmountError(
            f"a commitment lasts more than 0 s and at most {LONGEST_TTL:.0f} s, not {ttl:g} s", value=str(ttl)
        )


def _held_lease(book: Book, lease_id: str, holder: str | None, fence: int | None, missing: type[LeaseError]) -> Record:
    record = book.leases.get(lease_id)
    if record is None:
        _raise_if_ended(book, lease_id, holder)
        raise missing(f"no lease {lease_id[:_LONGEST_ID]!r} is known here", lease_id=lease_id)
    if holder is not None and record.lease.holder != holder:
        raise NotHolderError(f"{lease_id} is another holder's", lease_id=lease_id)
    if fence is not None and record.lease.fence != fence:
        raise StaleFenceError(f"{lease_id} has another fencing number: it was taken anew", lease_id=lease_id)
    return record


def _raise_if_ended(book: Book, lease_id: str, holder: str | None) -> None:
    ended = book.ended.get(lease_id)
    if ended is None:
        return
    if holder is not None and ended.holder != holder:
        raise NotHolderError(f"{lease_id} is another holder's", lease_id=lease_id)
    if ended.reason is EndReason.EXPIRED:
        raise ExpiredError(f"{lease_id} passed its deadline and ended", lease_id=lease_id)
    raise EndedError(f"{lease_id} has ended; take a new id", lease_id=lease_id)


def _ending(record: Record, now: Moment, reason: EndReason, actor: str, why: str) -> tuple[Change, EndedLease]:
    lease = record.lease
    ended = EndedLease(
        lease_id=lease.lease_id,
        holder=lease.holder,
        state=lease.state,
        fence=lease.fence,
        reason=reason,
        ended=now.wall,
    )
    entry = HistoryEntry(
        at=now.wall, actor=actor, action="end", lease_id=lease.lease_id, reason=reason.value, detail=why
    )
    return Change(leases=((record, None),), ended=(ended,), entries=(entry,)), ended


def _change(book: Book, before: Record, after: Record, now: Moment, action: str) -> Change:
    return Change(leases=((before, after),), entries=(_entry(now, after.lease, action),), fence=book.fence)


def _entry(now: Moment, lease: Lease, action: str) -> HistoryEntry:
    detail = lease.demand.describe()
    if lease.price is not None:
        detail += f", {lease.price.describe()}"
    if len(detail) > _LONGEST_DETAIL:
        detail = detail[: _LONGEST_DETAIL - 3] + "..."
    return HistoryEntry(at=now.wall, actor=lease.holder, action=action, lease_id=lease.lease_id, detail=detail)
