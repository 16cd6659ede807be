from __future__ import annotations

import logging

import pytest

from dms_protocols.logs import LimitedLog


def test_lines_are_bounded_and_the_rest_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    log = LimitedLog(logging.getLogger("test"), lines=2, period=60)
    for number in range(5):
        log.error("line %d", number, now=1000 + number)
    assert [record.message for record in caplog.records] == ["line 0", "line 1"]
    log.error("line %d", 5, now=1060)
    assert [record.message for record in caplog.records][2:] == ["3 more lines were held back", "line 5"]
