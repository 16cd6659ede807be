"""The times at which the owner offers capacity: "free until 18:00", "every night", "at the weekend".

A window is written as days and hours of the owner's local time, or as an end: `22:00-06:00` (every day, over midnight),
`mon-fri 18:00-08:00`, `sat,sun`, `until 2026-11-24T18:00`. Several windows are joined. A lease that would end after the
open window is refused.

When the clocks are set forward, a start or end in the skipped hour is the moment of the change. When they are set back,
a start or end in the repeated hour is its first occurrence.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from datetime import date, datetime, timedelta
from typing import Final

from msgspec import Struct

from ..errors import AmountError

__all__ = ["ALWAYS_OPEN", "Opening", "Window", "opening_at"]

_DAYS: Final = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_FORM: Final = re.compile(
    r"(?:(?P<days>[a-z,\- ]+?)\s*)?(?:(?P<start>\d{1,2}:\d{2})\s*-\s*(?P<end>\d{1,2}:\d{2}))?", re.ASCII
)
_HORIZON_DAYS: Final = 8
# Windows that repeat every week and are open for a whole week never close.
_WEEK: Final = 7 * 86400.0


class Window(Struct, frozen=True, kw_only=True):
    """Days of the week (0 is Monday) from minute `start` to minute `end` of the day, or everything up to `until`.

    If `end` is at or before `start`, it lies on the next day. `until` is Unix time in seconds.
    """

    days: tuple[int, ...] = ()
    start: int = 0
    end: int = 24 * 60
    until: float | None = None

    @classmethod
    def parse(cls, text: str) -> Window:
        """Read a window in the form that the module describes. Raises `AmountError`."""
        words = text.strip().casefold()
        if words.startswith("until "):
            return cls(until=_end_of(text.strip()[6:].strip(), text))
        found = _FORM.fullmatch(words)
        if not words or found is None:
            raise _unreadable(text)
        days = _days(found["days"], text) if found["days"] else tuple(range(7))
        if not found["start"]:
            return cls(days=days)
        start, end = _minute(found["start"], text), _minute(found["end"], text)
        return cls(days=days, start=start, end=end)

    def spans(self, day: date) -> Iterator[tuple[float, float]]:
        """The spans of this window that begin within the horizon after `day`, as Unix times in seconds."""
        if self.until is not None:
            yield (0.0, self.until)
            return
        for offset in range(-1, _HORIZON_DAYS + 1):
            begin = day + timedelta(days=offset)
            if begin.weekday() in self.days:
                last = begin if self.end > self.start else begin + timedelta(days=1)
                span = (_local(begin, self.start), _local(last, self.end))
                # A window inside the hour that the clocks skip does not open that day.
                if span[0] < span[1]:
                    yield span


class Opening(Struct, frozen=True, kw_only=True):
    """Whether capacity may be committed now. `until` is when this changes, in Unix seconds (None: never)."""

    open: bool
    until: float | None


ALWAYS_OPEN = Opening(open=True, until=None)


def opening_at(windows: Sequence[Window], now: float) -> Opening:
    """The state of the windows at `now` (Unix seconds). Without windows it is always open."""
    if not windows:
        return ALWAYS_OPEN
    today = datetime.fromtimestamp(now).date()
    weekly = [span for window in windows if window.until is None for span in window.spans(today)]
    if any(begin <= now and end >= now + _WEEK for begin, end in _joined(weekly)):
        return ALWAYS_OPEN
    for begin, end in _joined(span for window in windows for span in window.spans(today)):
        if begin <= now < end:
            return Opening(open=True, until=end)
        if begin > now:
            return Opening(open=False, until=begin)
    return Opening(open=False, until=None)


def _joined(spans: Iterable[tuple[float, float]]) -> Iterator[tuple[float, float]]:
    current: tuple[float, float] | None = None
    for begin, end in sorted(spans):
        if current is None:
            current = (begin, end)
        elif begin <= current[1]:
            current = (current[0], max(current[1], end))
        else:
            yield current
            current = (begin, end)
    if current is not None:
        yield current


def _local(day: date, minute: int) -> float:
    # Built from local calendar fields, so that 22:00 is 22:00 before and after a change to summer time.
    return _unix_time(datetime(day.year, day.month, day.day) + timedelta(minutes=minute))


def _unix_time(wall: datetime) -> float:
    """The Unix time at which local clocks show `wall`.

    A time in the skipped hour is the moment at which clocks are set forward. Of a time that occurs twice it is the
    first.
    """
    found = wall.timestamp()
    if datetime.fromtimestamp(found) == wall:
        return found
    # Python shifts a time that does not exist by the length of the gap. With the other `fold` it shifts the other way,
    # so the moment of the jump lies between the two.
    before, after = sorted((found, wall.replace(fold=1).timestamp()))
    return _first_at_or_after(wall, before, after)


def _first_at_or_after(wall: datetime, before: float, after: float) -> float:
    """The first second in `before`..`after` at which local clocks show `wall` or later."""
    low, high = int(before), int(after)
    while low < high:
        middle = (low + high) // 2
        if datetime.fromtimestamp(middle) >= wall:
            high = middle
        else:
            low = middle + 1
    return float(low)


def _minute(clock: str, text: str) -> int:
    hour, minute = map(int, clock.split(":"))
    if minute > 59 or hour * 60 + minute > 24 * 60:
        raise _unreadable(text)
    return hour * 60 + minute


def _days(names: str, text: str) -> tuple[int, ...]:
    days: set[int] = set()
    for part in filter(None, re.split(r"[,\s]+", re.sub(r"\s*-\s*", "-", names.strip()))):
        if part == "daily":
            days.update(range(7))
            continue
        ends = [_day(name, text) for name in part.split("-")]
        if len(ends) > 2:
            raise _unreadable(text)
        first, last = ends[0], ends[-1]
        days.update((first + step) % 7 for step in range((last - first) % 7 + 1))
    if not days:
        raise _unreadable(text)
    return tuple(sorted(days))


def _day(name: str, text: str) -> int:
    for number, day in enumerate(_DAYS):
        if len(name) >= 3 and day.startswith(name):
            return number
    raise _unreadable(text)


def _end_of(moment: str, text: str) -> float:
    try:
        found = datetime.fromisoformat(moment)
        return found.timestamp() if found.tzinfo is not None else _unix_time(found)
    except (ValueError, OverflowError, OSError):
        raise _unreadable(text) from None


def _unreadable(text: str) -> AmountError:
    return AmountError(
        f"invalid window {text!r} (write 22:00-06:00, mon-fri 18:00-08:00, sat,sun or until 2026-11-24T18:00)",
        value=text,
    )
