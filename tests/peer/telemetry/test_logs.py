"""Log lines: one per event whatever it contains, and a limited number for each peer."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dms_host import logs
from dms_peer.telemetry.logs import EventLine, PeerLimit, write_logs


def record(event: str = "refused a request", **fields: Any) -> logging.LogRecord:
    made = logging.LogRecord("dms_peer.test", logging.INFO, "file.py", 1, event, (), None)
    made.fields = fields
    made.created = 1_800_000_000.5
    return made


def test_a_line_is_keys_and_values() -> None:
    line = EventLine(as_json=False).format(record(peer="12D3Koo", code="busy", retry_after=1.5, detail="two words"))
    assert line == (
        'time=2027-01-15T08:00:00.500Z level=info logger=dms_peer.test event="refused a request" '
        'peer=12D3Koo code=busy retry_after=1.5 detail="two words"'
    )


def test_a_line_of_json_has_the_same() -> None:
    line = EventLine(as_json=True).format(record(peer="12D3Koo", code="busy", retry_after=1.5))
    assert json.loads(line) == {
        "time": "2027-01-15T08:00:00.500Z",
        "level": "info",
        "logger": "dms_peer.test",
        "event": "refused a request",
        "peer": "12D3Koo",
        "code": "busy",
        "retry_after": 1.5,
    }


@given(text=st.text(), as_json=st.booleans())
def test_nothing_that_a_peer_says_begins_a_line_or_is_endless(text: str, as_json: bool) -> None:
    line = EventLine(as_json=as_json).format(record(op=text * 100))
    assert len(line.splitlines()) == 1
    assert len(line) < 8000


def test_an_exception_is_one_line_too() -> None:
    made = record()
    try:
        raise ValueError("first\nsecond")
    except ValueError as error:
        made.exc_info = (type(error), error, error.__traceback__)
    assert EventLine(as_json=False).format(made).endswith('error="ValueError: first\\nsecond"')


def test_each_peer_has_its_own_share(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(logs.time, "monotonic", lambda: now[0])
    limit = PeerLimit(burst=3, per_second=1)
    assert [limit.filter(record(peer="loud")) for _ in range(5)] == [True, True, True, False, False]
    assert limit.filter(record(peer="quiet"))
    now[0] += 1
    after = record(peer="loud")
    assert limit.filter(after)
    assert "left_out=2" in EventLine(as_json=False).format(after)
    assert all(limit.filter(record()) for _ in range(100)), "what no peer caused is not held back"


def test_many_names_have_a_share_together_and_no_endless_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs.time, "monotonic", lambda: 100.0)
    limit = PeerLimit(burst=3, per_second=1, total_per_second=10)
    passed = sum(limit.filter(record(peer=f"peer-{number}")) for number in range(5000))
    assert passed == 100
    assert len(limit._peers) <= 1024


@pytest.fixture
def loggers() -> Iterator[list[logging.Logger]]:
    """The loggers of the three packages. Everything is restored afterwards."""
    root, rooms = logging.getLogger(), [logging.getLogger(f"dms_{room}") for room in ("peer", "protocols", "resources")]
    before = root.handlers[:], root.level, [room.level for room in rooms]
    yield rooms
    root.handlers[:] = before[0]
    root.setLevel(before[1])
    for room, level in zip(rooms, before[2], strict=True):
        room.setLevel(level)


def test_debug_writes_what_we_log_and_not_what_libraries_do(
    loggers: list[logging.Logger], capsys: pytest.CaptureFixture[str]
) -> None:
    write_logs("debug", as_json=True)
    assert all(room.isEnabledFor(logging.DEBUG) for room in loggers)
    assert not logging.getLogger("somebody").isEnabledFor(logging.DEBUG)
    loggers[0].debug("opened", extra={"fields": {"peer": "12D3Koo"}})
    assert json.loads(capsys.readouterr().err)["peer"] == "12D3Koo"
