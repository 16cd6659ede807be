"""What happens to leases, event after event, without gaps from a point on.

The history is the source: an event is an entry of the history about a lease, and has its number. Entries are told when
they are durable, so that no reader acts on what is taken back later. The last ones are kept in memory; a reader that is
behind reads the file.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from enum import Enum
from typing import Final, TypeAlias

import trio
from msgspec import Struct

from ..errors import EventsGoneError
from .book import Change
from .history import HistoryEntry

__all__ = ["EventKind", "EventLog", "HistoryPage", "LeaseEvent"]

# Far more than a reader falls behind that does not wait for anything slow.
_RECENT = 4096
_PAGE = 500


class EventKind(Enum):
    """What happened to a lease.

    `HELD` for a bid; `GRANTED` as a commitment; `ALLOCATED`; `RENEWED`; `ATTACHED` a job; `NOTICED`: the owner gave
    notice; `WITHDRAWN`: the notice was taken back; `GRACED`: the allocation lasts longer because its provider was away;
    `ENDING`: it ended for its holder and its job still runs; `GONE`: nothing of its job runs any more;
    `ENDED`: its capacity is free; `RELOADED`: an audit read the ledger anew, and a reader has to list all leases again.
    """

    HELD = "held"
    GRANTED = "granted"
    ALLOCATED = "allocated"
    RENEWED = "renewed"
    ATTACHED = "attached"
    NOTICED = "noticed"
    WITHDRAWN = "withdrawn"
    GRACED = "graced"
    ENDING = "ending"
    GONE = "gone"
    ENDED = "ended"
    RELOADED = "reloaded"


# The actions of the history that are about leases.
_KINDS: Final = {
    "hold": EventKind.HELD,
    "commit": EventKind.GRANTED,
    "allocate": EventKind.ALLOCATED,
    "renew": EventKind.RENEWED,
    "attach": EventKind.ATTACHED,
    "notice": EventKind.NOTICED,
    "withdraw": EventKind.WITHDRAWN,
    "grace": EventKind.GRACED,
    "ending": EventKind.ENDING,
    "gone": EventKind.GONE,
    "end": EventKind.ENDED,
    "reload": EventKind.RELOADED,
}


class LeaseEvent(Struct, frozen=True, kw_only=True):
    """One event: its number in the history, when (Unix seconds), the lease, its holder and fencing number, and why.

    `reason` of `ENDING` and `ENDED` is the value of an `EndReason`. `detail` is for people. Events of a ledger before
    version 4 have no holder, and the fencing number 0.
    """

    number: int
    at: float
    lease_id: str
    holder: str
    fence: int
    kind: EventKind
    reason: str = ""
    detail: str = ""


class HistoryPage(Struct, frozen=True, kw_only=True):
    """Entries of the history in their order, and the number of the oldest that is kept (None: none is)."""

    oldest: int | None
    entries: list[tuple[int, HistoryEntry]]


ReadPage: TypeAlias = Callable[[int, int], Awaitable[HistoryPage]]
"""Reads the entries after a number, so many at most. Raises `StorageError`."""


class EventLog:
    """The events of one ledger. `last` is the number of the last durable entry of its history."""

    def __init__(self, last: int, read: ReadPage) -> None:
        self.last = last
        self._read = read
        self._recent: deque[tuple[int, HistoryEntry]] = deque(maxlen=_RECENT)
        self._written = trio.Event()

    def written(self, changes: Sequence[Change]) -> None:
        """These changes became durable, in this order. Never waits."""
        before = self.last
        for change in changes:
            for entry in change.entries:
                self.last += 1
                self._recent.append((self.last, entry))
        if self.last != before:
            self._tell()

    def reset(self, last: int) -> None:
        """Begins anew after the file was read: more may be in it than was told."""
        self.last = last
        self._recent.clear()
        self._tell()

    async def check(self, after: int) -> None:
        """Raises `EventsGoneError` when the events after this number are not all known, or `StorageError`."""
        await self._page(after, 1)

    async def follow(self, after: int) -> AsyncGenerator[LeaseEvent, None]:
        """Every event after this number, old and new; waits for the next one. Raises as `check`."""
        while True:
            written = self._written
            page = await self._page(after, _PAGE)
            for number, entry in page:
                after = number
                event = _event(number, entry)
                if event is not None:
                    yield event
            if not page:
                await written.wait()

    async def _page(self, after: int, most: int) -> Sequence[tuple[int, HistoryEntry]]:
        if after == self.last:
            return ()
        if self._recent and self._recent[0][0] <= after + 1 <= self.last:
            # Numbers have no gaps: the place of an entry in memory is known.
            first = after + 1 - self._recent[0][0]
            return [self._recent[place] for place in range(first, min(first + most, len(self._recent)))]
        if after > self.last:
            raise EventsGoneError(f"no event {after} has happened in this ledger", hint=_HINT)
        page = await self._read(after, most)
        if page.oldest is None or page.oldest > after + 1:
            raise EventsGoneError(f"the events after {after} are no longer kept", hint=_HINT)
        # What was written and not told, because the disk failed just then, is told after the file was read anew.
        return [one for one in page.entries if one[0] <= self.last]

    def _tell(self) -> None:
        written, self._written = self._written, trio.Event()
        written.set()


def _event(number: int, entry: HistoryEntry) -> LeaseEvent | None:
    kind = _KINDS.get(entry.action)
    if kind is None:
        return None
    return LeaseEvent(
        number=number,
        at=entry.at,
        lease_id=entry.lease_id,
        holder=entry.holder,
        fence=entry.fence,
        kind=kind,
        reason=entry.reason,
        detail=entry.detail,
    )


_HINT: Final = "list all leases, and follow the events from now on"
