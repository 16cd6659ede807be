from __future__ import annotations

from typing import Any

import msgspec
import pytest

from dms_protocols.rpc.operations import Operations


def test_operations_are_named_by_their_request(messages: Any) -> None:
    operations = Operations()
    operations.quick(messages.Echo, lambda request, caller: request)
    assert list(operations) == ["echo"]
    assert operations["echo"].kind == "quick"


def test_two_operations_of_one_name_are_refused(messages: Any) -> None:
    one, other = Operations(), Operations()
    for operations in (one, other):
        operations.quick(messages.Echo, lambda request, caller: request)
    with pytest.raises(ValueError, match="echo"):
        _ = one | other


def test_merged_operations_hold_all_and_leave_the_parts_alone(messages: Any) -> None:
    one, other = Operations(), Operations()
    one.quick(messages.Echo, lambda request, caller: request)
    other.quick(messages.Fail, lambda request, caller: request)
    assert set(one | other) == {"echo", "fail"}
    assert set(one) == {"echo"}


def test_a_request_without_a_tag_names_no_operation() -> None:
    class Plain(msgspec.Struct):
        pass

    with pytest.raises(TypeError, match="names no operation"):
        Operations().quick(Plain, lambda request, caller: request)
