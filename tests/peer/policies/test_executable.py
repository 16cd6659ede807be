"""Policies that are programs: their input and output, and that nothing of them is left or waited for."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from msgspec.structs import replace

from dms_peer.policies.open import open_policies
from dms_peer.policies.settings import ExecutableSettings
from dms_protocols.bidding.policies import Decision, Decisions, PolicyRequest, no_answer
from dms_resources.ledger.leases import Price

ACCEPT = """
nodes = [node["node"]["node_id"] for node in question["nodes"]]
print(json.dumps({"decisions": [{"node_id": node, "accept": True} for node in nodes]}))
"""
REFUSED = Decisions(decisions=no_answer(2))


async def ask(settings: ExecutableSettings, question: PolicyRequest) -> Decisions:
    async with open_policies([settings]) as (policy,):
        with trio.fail_after(20):
            return await policy.decide(question)


async def test_it_sees_the_request_and_sets_a_price_or_refuses(
    program: Callable[..., ExecutableSettings], question: PolicyRequest, tmp_path: Path
) -> None:
    settings = program(
        """
        seen = {"question": question, "arguments": sys.argv[1:], "environment": dict(os.environ), "cwd": os.getcwd()}
        json.dump(seen, open("seen", "w"))
        print(json.dumps({"max_age": 5, "decisions": [
            {"node_id": "b", "accept": False, "message": "not today", "retry_after": 60},
            {"node_id": "a", "accept": True, "price": {"micros_per_hour": 7, "currency": "EUR"}},
        ]}))
        """,
        budget=10.0,
    )
    assert await ask(settings, question) == Decisions(
        decisions=(
            Decision(accept=True, price=Price(micros_per_hour=7, currency="EUR")),
            Decision(accept=False, message="not today", retry_after=60.0),
        ),
        max_age=5.0,
    )
    seen = json.loads((tmp_path / "seen").read_text())
    assert seen["question"] == {
        "version": 1, "requester": "peer-1", "ensemble_id": "e", "nonce": 1, "hold": 0.0, "ttl": 60.0,
        "nodes": [
            {
                "node": {"node_id": "a", "resources": {"cpu": {"cores": 1.5}}},
                "resources": {"cpu": {"cores": 1.5}, "ram": {"size": 2**30}, "disk": {"size": 0}, "gpus": []},
                "price": {"micros_per_hour": 10, "currency": "EUR"},
            },
            {
                "node": {"node_id": "b", "resources": {"cpu": {"cores": 1.5}}},
                "resources": {"cpu": {"cores": 1.5}, "ram": {"size": 2**30}, "disk": {"size": 0}, "gpus": []},
            },
        ],
    }  # fmt: skip
    assert seen["arguments"] == ["argument"]
    assert seen["cwd"] == str(tmp_path)
    assert seen["environment"].keys() <= {"PATH", "LANG", "LC_CTYPE", "DMS_PEER_POLICY"}, "nothing of ours leaks"


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("time.sleep(1000)", "no answer within 0.3 s"),
        ("os.kill(os.getpid(), 9)", "ended with -9"),
        ("sys.exit('disk on fire')", "ended with 1: 'disk on fire"),
        (ACCEPT + "sys.exit(3)", "ended with 3"),
        ("pass", "cannot be read"),
        ("print('yes')", "cannot be read"),
        ("print(chr(123) * 60000)", "cannot be read"),
        ("sys.stdout.buffer.write(bytes([255, 0, 1]))", "cannot be read"),
        ("print('{}')", "decisions"),
        ("print('{\"decisions\": []}')", "one decision for each node"),
        ("print(json.dumps({'decisions': [{'node_id': 'a', 'accept': True}] * 2}))", "one decision for each node"),
        (
            "print(json.dumps({'decisions': [{'node_id': n, 'accept': True} for n in 'abc']}))",
            "one decision for each node",
        ),
        (
            "print(json.dumps({'decisions': [{'node_id': n, 'accept': True} for n in 'aab']}))",
            "one decision for each node",
        ),
        ("print(json.dumps({'decisions': [{'node_id': n, 'acept': True} for n in 'ab']}))", "acept"),
        ("print(json.dumps({'decisions': [{'node_id': n, 'accept': 1} for n in 'ab']}))", "bool"),
        (
            "price = {'micros_per_hour': -1, 'currency': 'EUR'}\n"
            "print(json.dumps({'decisions': [{'node_id': n, 'accept': True, 'price': price} for n in 'ab']}))",
            "micros_per_hour",
        ),
        (
            "print(json.dumps({'decisions': [{'node_id': n, 'accept': False, 'message': chr(27)} for n in 'ab']}))",
            "unprintable",
        ),
        ("while True: print('x' * 10000)", "more than 65536 bytes"),
        ("os.close(1); time.sleep(1000)", "no answer within 0.3 s"),
    ],
)
async def test_what_is_no_answer_is_a_refusal_and_the_log_says_why(
    program: Callable[..., ExecutableSettings],
    question: PolicyRequest,
    caplog: pytest.LogCaptureFixture,
    body: str,
    reason: str,
) -> None:
    budget = 0.3 if "0.3 s" in reason else 20.0
    with caplog.at_level(logging.ERROR):
        assert await ask(program(body, budget=budget), question) == REFUSED
    (record,) = caplog.records
    assert reason in record.getMessage()
    assert len(record.getMessage()) < 1000


async def test_a_program_that_is_not_there_or_is_none_is_a_refusal(tmp_path: Path, question: PolicyRequest) -> None:
    text = tmp_path / "text"
    text.write_text("no program")
    text.chmod(0o755)
    for path in (tmp_path / "none", text, tmp_path):
        assert await ask(ExecutableSettings(command=(str(path),), budget=20.0), question) == REFUSED


async def test_it_may_decide_without_reading_the_question(
    program: Callable[..., ExecutableSettings], question: PolicyRequest, tmp_path: Path
) -> None:
    path = tmp_path / "unread"
    answer = json.dumps({"decisions": [{"node_id": node, "accept": True} for node in "ab"]})
    path.write_text(f"#!/bin/sh\nexec echo '{answer}'\n")
    path.chmod(0o755)
    # More than a pipe holds.
    long = replace(question, requester="x" * 200_000)
    answered = await ask(ExecutableSettings(command=(str(path),), budget=20.0), long)
    assert answered == Decisions(decisions=(Decision(accept=True),) * 2)


CHILD = """
import subprocess
child = subprocess.Popen(["/bin/sleep", "1000"], start_new_session={apart})
open("pids.new", "w").write(f"{{os.getpid()}} {{child.pid}}")
os.rename("pids.new", "pids")
"""


async def read_pids(folder: Path) -> list[int]:
    with trio.fail_after(20):
        while not (folder / "pids").exists():  # noqa: ASYNC110  # nothing announces it
            await trio.sleep(0.01)
    return [int(number) for number in (folder / "pids").read_text().split()]


async def test_at_the_deadline_it_is_killed_with_its_children(
    program: Callable[..., ExecutableSettings], question: PolicyRequest, tmp_path: Path, ended: Any
) -> None:
    settings = program(CHILD.format(apart=False) + "time.sleep(1000)", budget=1000.0)
    async with open_policies([settings]) as (policy,), trio.open_nursery() as nursery:
        nursery.start_soon(policy.decide, question)
        pids = await read_pids(tmp_path)
        nursery.cancel_scope.cancel()
    for number in pids:
        await ended(number)


async def test_a_child_that_outlives_a_good_answer_is_killed_too(
    program: Callable[..., ExecutableSettings], question: PolicyRequest, tmp_path: Path, ended: Any
) -> None:
    # It inherits standard error, and has standard output closed, so that the answer has an end.
    body = CHILD.format(apart=False).replace('"1000"]', '"1000"], stdout=subprocess.DEVNULL') + ACCEPT
    async with open_policies([program(body, budget=20.0)]) as (policy,):
        assert all(decision.accept for decision in (await policy.decide(question)).decisions)
        for number in await read_pids(tmp_path):
            await ended(number)


async def test_who_left_the_process_group_ends_with_the_policies(
    program: Callable[..., ExecutableSettings], question: PolicyRequest, tmp_path: Path, ended: Any
) -> None:
    settings = program(CHILD.format(apart=True) + "time.sleep(1000)", budget=1000.0)
    async with open_policies([settings]) as (policy,):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(policy.decide, question)
            _, child = await read_pids(tmp_path)
            nursery.cancel_scope.cancel()
        os.kill(child, 0)
    await ended(child)


def running(folder: Path) -> int:
    return len(list(folder.glob("run-*")))


async def test_no_more_than_allowed_run_at_a_time_and_one_requester_gets_half_of_them(
    program: Callable[..., ExecutableSettings], question: PolicyRequest, tmp_path: Path
) -> None:
    settings = program("open(f'run-{os.getpid()}', 'w')\ntime.sleep(1000)", budget=1000.0, max_concurrent=4)
    async with open_policies([settings]) as (policy,), trio.open_nursery() as nursery:
        for peer in ("one", "one", "two", "two"):
            nursery.start_soon(policy.decide, replace(question, requester=peer))
        with trio.fail_after(20):
            while running(tmp_path) < 4:  # noqa: ASYNC110  # nothing announces it
                await trio.sleep(0.01)
        for peer in ("one", "three"):
            busy = (await policy.decide(replace(question, requester=peer))).decisions
            assert [(one.accept, one.code, one.retry_after) for one in busy] == [(False, "busy", 1000.0)] * 2
        assert running(tmp_path) == 4
        nursery.cancel_scope.cancel()
