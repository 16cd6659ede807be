"""Policies that are Python code: whatever the code does, the peer continues and nothing of it is left."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from msgspec.structs import replace

from dms_peer.errors import PolicyError
from dms_peer.policies.open import open_policies
from dms_peer.policies.settings import EntryPointSettings
from dms_protocols.bidding.policies import Decision, Decisions, PolicyRequest, no_answer
from dms_resources.ledger.leases import Price

REFUSED = Decisions(decisions=no_answer(2))
ACCEPTED = Decisions(decisions=(Decision(accept=True),) * 2)


def settings(name: str, **bounds: Any) -> EntryPointSettings:
    return EntryPointSettings(name=name, **{"budget": 20.0, "max_concurrent": 1, **bounds})


@pytest.mark.parametrize(
    "body",
    [
        "def decide(request):\n    return [Decision(accept=True) for node in request.nodes]",
        "def decide(request):\n    return Decisions(decisions=(Decision(accept=True),) * 2)",
        "import trio\nasync def decide(request):\n    await trio.sleep(0)\n    return [Decision(accept=True)] * 2",
        "class decide:\n    def decide(self, request):\n        return [Decision(accept=True)] * 2",
        "def decide(request):\n    print('noise', flush=True)\n    return [Decision(accept=True)] * 2",
        "def decide(request):\n    import sys\n    sys.stdin.read()\n    return [Decision(accept=True)] * 2",
    ],
    ids=["list", "decisions", "async", "class", "prints", "reads"],
)
async def test_the_forms_of_an_entry_point(
    entry_point: Callable[[str], str], question: PolicyRequest, body: str
) -> None:
    async with open_policies([settings(entry_point(body))]) as (policy,):
        with trio.fail_after(20):
            assert await policy.decide(question) == ACCEPTED


async def test_it_sees_typed_values_and_keeps_what_it_knows_between_questions(
    entry_point: Callable[[str], str], question: PolicyRequest
) -> None:
    body = """
        from dms_resources.ledger.leases import Price
        asked = []
        def decide(request):
            asked.append(request.requester)
            cores = request.nodes[0].resources.cpu.cores.millicores
            price = Price(micros_per_hour=cores * len(asked), currency="EUR")
            return Decisions(
                decisions=(Decision(accept=True, price=price), Decision(accept=False, message="no", retry_after=3)),
                max_age=0.0,
            )
    """
    async with open_policies([settings(entry_point(body))]) as (policy,):
        for count in (1, 2):
            answer = await policy.decide(question)
            assert answer.decisions == (
                Decision(accept=True, price=Price(micros_per_hour=1500 * count, currency="EUR")),
                Decision(accept=False, message="no", retry_after=3.0),
            )


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("def decide(request):\n    raise ZeroDivisionError('by design')", "ZeroDivisionError: by design"),
        ("def decide(request):\n    return 'yes'", "Error"),
        ("def decide(request):\n    return [Decision(accept=True)]", "ValueError"),
        ("def decide(request):\n    return [Decision(accept=True, message='x' * 501)] * 2", "cannot be read"),
        ("def decide(request):\n    return [Decision(accept=True, message='x' * 200000)] * 2", "more than 65536"),
    ],
)
async def test_an_error_is_a_refusal_and_the_worker_goes_on_where_it_can(
    entry_point: Callable[[str], str],
    question: PolicyRequest,
    caplog: pytest.LogCaptureFixture,
    body: str,
    reason: str,
) -> None:
    async with open_policies([settings(entry_point(body))]) as (policy,):
        for _ in range(2):
            with trio.fail_after(20), caplog.at_level(logging.ERROR):
                assert await policy.decide(question) == REFUSED
    assert reason in caplog.records[0].getMessage()


BLOCKS_ONCE = """
    import os, time
    def decide(request):
        try:
            open("{marker}", "x").write(str(os.getpid()))
        except FileExistsError:
            return [Decision(accept=True)] * 2
        {fault}
"""


@pytest.mark.parametrize("fault", ["time.sleep(1000)", "os._exit(3)", "while True: pass"])
async def test_a_worker_that_hangs_or_dies_is_replaced(
    entry_point: Callable[[str], str], question: PolicyRequest, tmp_path: Path, ended: Any, fault: str
) -> None:
    name = entry_point(BLOCKS_ONCE.format(marker=tmp_path / "marker", fault=fault))
    async with open_policies([settings(name, budget=1.0)]) as (policy,):
        assert await policy.decide(question) == REFUSED
        await ended(int((tmp_path / "marker").read_text()))
        with trio.fail_after(30):
            while await policy.decide(question) != ACCEPTED:
                pass


async def test_while_it_blocks_others_are_answered(
    entry_point: Callable[[str], str], question: PolicyRequest, tmp_path: Path, ended: Any, eventually: Any
) -> None:
    marker = tmp_path / "marker"
    name = entry_point(BLOCKS_ONCE.format(marker=marker, fault="while True: pass"))
    async with (
        open_policies([settings(name, budget=1000.0, max_concurrent=2)]) as (policy,),
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(policy.decide, question)
        await eventually(lambda: marker.exists() and marker.read_text() != "")
        # One requester gets half of the workers. Another one is answered by the other worker.
        with trio.fail_after(30):
            assert (await policy.decide(question)).decisions[0].code == "busy"
            assert await policy.decide(replace(question, requester="another")) == ACCEPTED
        nursery.cancel_scope.cancel()
    await ended(int(marker.read_text()))


@pytest.mark.parametrize(
    ("name", "body", "reason"),
    [
        ("absent", "", "unknown entry point 'absent'"),
        ("test-policy", "raise RuntimeError('by design')", "RuntimeError: by design"),
        ("test-policy", "import os\nos._exit(1)", "its worker ended"),
        ("test-policy", "decide = 3", "neither a function"),
        ("test-policy", "", "AttributeError"),
    ],
)
async def test_what_cannot_be_loaded_is_an_error_at_the_start(
    entry_point: Callable[[str], str], name: str, body: str, reason: str
) -> None:
    entry_point(body)
    with pytest.raises(PolicyError, match=reason) as caught:
        async with open_policies([settings(name)]):
            pass
    assert caught.value.code == "policy_unusable"


async def test_an_error_of_the_block_comes_out_as_it_is(entry_point: Callable[[str], str]) -> None:
    name = entry_point("def decide(request): return []")
    with pytest.raises(ZeroDivisionError):
        async with open_policies([settings(name)]):
            raise ZeroDivisionError


async def test_at_the_end_no_worker_is_left(
    entry_point: Callable[[str], str], question: PolicyRequest, tmp_path: Path, ended: Any
) -> None:
    body = f"""
        import os
        def decide(request):
            open({str(tmp_path / "pid")!r}, "w").write(str(os.getpid()))
            return [Decision(accept=True)] * 2
    """
    async with open_policies([settings(entry_point(body))]) as (policy,):
        await policy.decide(question)
        number = int((tmp_path / "pid").read_text())
        os.kill(number, 0)
    await ended(number)
