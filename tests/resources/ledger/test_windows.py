"""The owner's windows: read strictly, in local time, over midnight and over changes to summer time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

import hypothesis.strategies as st
import pytest
from hypothesis import given

from dms_resources.errors import AmountError
from dms_resources.ledger.windows import ALWAYS_OPEN, Opening, Window, opening_at


@pytest.fixture(autouse=True)
def _utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TZ", "UTC0")
        time.tzset()
        yield
    time.tzset()


@pytest.fixture
def berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    # The rule itself, so that no time zone database is needed: 31 March and 27 October in 2024.
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
        time.tzset()
        yield
    time.tzset()


def at(text: str) -> float:
    """Local time as Unix seconds; 2026-11-23 is a Monday."""
    return datetime.fromisoformat(text).timestamp()


def opening(when: str, *windows: str) -> Opening:
    return opening_at([Window.parse(window) for window in windows], at(when))


def test_without_windows_it_is_always_open() -> None:
    assert opening_at([], at("2026-11-23T12:00")) == ALWAYS_OPEN


def test_hours_of_every_day() -> None:
    assert opening("2026-11-23T12:00", "09:00-18:00") == Opening(open=True, until=at("2026-11-23T18:00"))
    assert opening("2026-11-23T08:59", "09:00-18:00") == Opening(open=False, until=at("2026-11-23T09:00"))
    assert opening("2026-11-23T18:00", "09:00-18:00") == Opening(open=False, until=at("2026-11-24T09:00"))


@pytest.mark.parametrize(
    ("text", "start", "end"),
    [
        ("09:30-18:45", 9 * 60 + 30, 18 * 60 + 45),
        ("00:59-23:59", 59, 24 * 60 - 1),
        ("0:01-24:00", 1, 24 * 60),
    ],
)
def test_minutes_count_after_the_hour(text: str, start: int, end: int) -> None:
    assert Window.parse(text) == Window(days=(0, 1, 2, 3, 4, 5, 6), start=start, end=end)


@pytest.mark.parametrize("text", ["24:01-01:00", "22:00-24:01", "10:60-12:00", "25:00-01:00"])
def test_an_hour_that_no_day_has_is_refused(text: str) -> None:
    with pytest.raises(AmountError):
        Window.parse(text)


def test_over_midnight() -> None:
    assert opening("2026-11-23T23:00", "22:00-06:00") == Opening(open=True, until=at("2026-11-24T06:00"))
    assert opening("2026-11-24T05:59", "22:00-06:00") == Opening(open=True, until=at("2026-11-24T06:00"))
    assert opening("2026-11-24T06:00", "22:00-06:00") == Opening(open=False, until=at("2026-11-24T22:00"))


def test_a_night_belongs_to_the_day_on_which_it_begins() -> None:
    # Friday's night ends on Saturday morning; Saturday has none.
    assert opening("2026-11-28T05:00", "mon-fri 22:00-06:00").open
    assert opening("2026-11-28T23:00", "mon-fri 22:00-06:00") == Opening(open=False, until=at("2026-11-30T22:00"))
    assert not opening("2026-11-23T05:00", "mon-fri 22:00-06:00").open


@pytest.mark.parametrize("days", ["sat,sun", "sat-sun", "Saturday, Sunday", "sat sun", "sat - sun"])
def test_lists_and_ranges_of_days(days: str) -> None:
    assert opening("2026-11-28T12:00", days) == Opening(open=True, until=at("2026-11-30T00:00"))
    assert opening("2026-11-27T12:00", days) == Opening(open=False, until=at("2026-11-28T00:00"))


def test_a_range_of_days_may_go_over_the_end_of_the_week() -> None:
    assert opening("2026-11-29T12:00", "sat-mon") == Opening(open=True, until=at("2026-12-01T00:00"))


def test_windows_that_touch_are_one() -> None:
    windows = ("mon-fri 18:00-24:00", "sat,sun", "tue-fri 00:00-08:00", "mon 00:00-08:00")
    assert opening("2026-11-27T19:00", *windows) == Opening(open=True, until=at("2026-11-30T08:00"))


@pytest.mark.parametrize("windows", [("daily",), ("00:00-24:00",), ("mon-fri", "sat,sun"), ("12:00-12:00",)])
def test_what_is_open_all_week_does_not_close(windows: tuple[str, ...]) -> None:
    assert opening("2026-11-25T12:34", *windows) == ALWAYS_OPEN


def test_until_closes_for_good() -> None:
    assert opening("2026-11-23T12:00", "until 2026-11-24T18:00") == Opening(open=True, until=at("2026-11-24T18:00"))
    assert opening("2026-11-24T18:00", "until 2026-11-24T18:00") == Opening(open=False, until=None)
    assert opening("2026-11-23T12:00", "until 2026-12-31") == Opening(open=True, until=at("2026-12-31T00:00"))
    assert opening("2026-11-23T12:00", "until 2026-11-24T18:00+02:00").until == at("2026-11-24T16:00")


def test_until_joins_the_night_that_follows() -> None:
    found = opening("2026-11-23T12:00", "until 2026-11-23T23:00", "22:00-06:00")
    assert found == Opening(open=True, until=at("2026-11-24T06:00"))


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        ",",
        "-",
        "whenever",
        "monkey",
        "mo",
        "mon-",
        "mon-tue-wed",
        "25:00-26:00",
        "24:01-25:00",
        "12:60-13:00",
        "12:00",
        "12:00-",
        "12-13",
        "until",
        "until ",
        "until 18:00",
        "until yesterday",
        "until 0001-01-01T00:00",
        "22:00-06:00 mon",
        "mon 22:00-06:00 tue",
        "\uff11\uff12:00-13:00",
    ],
)
def test_what_cannot_be_read_is_an_error_that_shows_how_to_write_it(text: str) -> None:
    with pytest.raises(AmountError, match="write 22:00-06:00") as caught:
        Window.parse(text)
    assert caught.value.value == text


@given(st.text(alphabet="montuewdhfris0123456789:-, until", max_size=25))
def test_no_text_does_more_than_that(text: str) -> None:
    try:
        window = Window.parse(text)
    except AmountError:
        return
    assert isinstance(opening_at([window], 1_800_000_000.0), Opening)


@pytest.mark.usefixtures("berlin")
def test_hours_are_the_owners_on_both_sides_of_summer_time() -> None:
    # 2024-03-31 and 2024-10-27 have 23 and 25 hours.
    spring = opening("2024-03-30T23:00", "22:00-06:00")
    assert spring.until is not None
    assert datetime.fromtimestamp(spring.until).isoformat() == "2024-03-31T06:00:00"
    assert spring.until - at("2024-03-30T22:00") == 7 * 3600
    autumn = opening("2024-10-26T23:00", "22:00-06:00")
    assert autumn.until is not None
    assert autumn.until - at("2024-10-26T22:00") == 9 * 3600


@pytest.mark.usefixtures("berlin")
def test_a_window_in_the_hour_that_is_left_out_does_not_open() -> None:
    found = opening("2024-03-31T00:30", "02:15-03:00")
    assert found == Opening(open=False, until=at("2024-04-01T02:15"))
    assert opening("2024-03-30T00:30", "02:15-03:00") == Opening(open=False, until=at("2024-03-30T02:15"))


@pytest.mark.usefixtures("berlin")
@pytest.mark.parametrize("day", ["2024-03-28", "2024-10-24"])
def test_what_is_open_all_week_stays_open_over_summer_time(day: str) -> None:
    assert opening(f"{day}T12:00", "daily") == ALWAYS_OPEN


@given(
    st.lists(
        st.builds(
            Window,
            days=st.sets(st.integers(0, 6), min_size=1).map(lambda days: tuple(sorted(days))),
            start=st.integers(0, 24 * 60),
            end=st.integers(0, 24 * 60),
        ),
        min_size=1,
        max_size=3,
    ),
    st.integers(0, 14 * 24 * 60),
)
def test_every_minute_agrees_with_the_plain_reading(windows: list[Window], minutes: int) -> None:
    def plainly_open(minute: int) -> bool:
        return any(_covers(window, minute) for window in windows)

    found = opening_at(windows, at("2026-11-23T00:00") + 60.0 * minutes)
    assert found.open == plainly_open(minutes)
    # It correctly reports when this changes.
    week = range(minutes, minutes + 7 * 24 * 60)
    change = next((minute for minute in week if plainly_open(minute) != found.open), None)
    assert found.until == (None if change is None else at("2026-11-23T00:00") + 60.0 * change)


def _covers(window: Window, minute: int) -> bool:
    """Whether this minute since a Monday lies in the window, or in the one that began the day before."""
    day, within = divmod(minute, 24 * 60)
    length = window.end - window.start if window.end > window.start else window.end + 24 * 60 - window.start
    return any(
        (day - back) % 7 in window.days and window.start <= within + back * 24 * 60 < window.start + length
        for back in (0, 1, 2)
    )


def test_the_same_windows_are_read_again_when_the_zone_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    def opens_at(zone: str) -> float | None:
        monkeypatch.setenv("TZ", zone)
        time.tzset()
        return opening_at([Window.parse("22:00-06:00")], 1_800_000_000.0).until

    use: Callable[[str], float | None] = opens_at
    assert use("UTC0") != use("XXX-3")


_NEW_YORK = "EST5EDT,M3.2.0,M11.1.0"
_BERLIN = "CET-1CEST,M3.5.0,M10.5.0/3"
_LORD_HOWE = "<+1030>-10:30<+11>-11,M10.1.0,M4.1.0"


@pytest.mark.parametrize(
    ("zone", "window", "utc", "is_open"),
    [
        # 02:00 becomes 03:00 at 01:00 UTC.
        (_BERLIN, "22:00-02:30", "2026-03-29T00:59", True),
        (_BERLIN, "22:00-02:30", "2026-03-29T01:10", False),
        (_BERLIN, "02:15-02:45", "2026-03-29T01:20", False),
        (_BERLIN, "02:30-06:00", "2026-03-29T00:59", False),
        (_BERLIN, "02:30-06:00", "2026-03-29T01:10", True),
        (_BERLIN, "until 2026-03-29T02:30", "2026-03-29T00:59", True),
        (_BERLIN, "until 2026-03-29T02:30", "2026-03-29T01:01", False),
        (_BERLIN, "until 2026-03-29T03:30+02:00", "2026-03-29T01:01", True),
        (_NEW_YORK, "20:00-02:30", "2026-03-08T06:59", True),
        (_NEW_YORK, "20:00-02:30", "2026-03-08T07:10", False),
        # Half an hour is skipped: 02:00 becomes 02:30 at 15:30 UTC.
        (_LORD_HOWE, "22:00-02:15", "2026-10-03T15:29", True),
        (_LORD_HOWE, "22:00-02:15", "2026-10-03T15:31", False),
        (_LORD_HOWE, "02:20-04:00", "2026-10-03T15:31", True),
        # 03:00 becomes 02:00 at 01:00 UTC: the first 02:30 is at 00:30 UTC.
        (_BERLIN, "22:00-02:30", "2026-10-25T00:29", True),
        (_BERLIN, "22:00-02:30", "2026-10-25T00:31", False),
        (_BERLIN, "22:00-02:30", "2026-10-25T01:29", False),
        (_BERLIN, "02:30-06:00", "2026-10-25T00:31", True),
    ],
)
def test_times_that_the_clocks_skip_or_show_twice(
    monkeypatch: pytest.MonkeyPatch, zone: str, window: str, utc: str, is_open: bool
) -> None:
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    now = datetime.fromisoformat(utc).replace(tzinfo=UTC).timestamp()
    assert opening_at([Window.parse(window)], now).open is is_open
