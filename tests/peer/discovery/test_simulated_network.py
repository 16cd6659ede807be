"""The network of `tests/simulation/ten_thousand.py`, small: the same seed gives the same plausible figures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import trio
from libp2p.peer.id import ID

from dms_protocols.adverts.classes import classes_to_look_up
from dms_simulation.crowd import TALLY, Crowd, CrowdKademlia, Tally
from dms_simulation.figures import quantile
from dms_simulation.population import REQUESTS, Population
from dms_simulation.searches import ensemble

PROGRAM = Path(__file__).parents[2] / "simulation" / "ten_thousand.py"


def start(output: Path, hash_seed: int) -> subprocess.Popen[str]:
    arguments = ["--peers", "200", "--searches", "2", "--short", "--no-idle", "--json", str(output)]
    environment = {**os.environ, "PYTHONHASHSEED": str(hash_seed)}
    return subprocess.Popen(
        [sys.executable, PROGRAM, *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    outputs = [tmp_path_factory.mktemp("simulated") / f"{number}.json" for number in range(2)]
    processes = [start(output, number) for number, output in enumerate(outputs)]
    said = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    return [json.loads(output.read_text())["searches"] for output in outputs]


def test_the_same_seed_gives_the_same_figures(runs: list[Any]) -> None:
    assert runs[0] == runs[1]


def test_searches_find_what_is_there(runs: list[Any]) -> None:
    for row in runs[0]:
        if row["request"] == "common":
            assert row["many"][0] == row["many"][1] == row["searches"], row
    assert {row["variant"] for row in runs[0]} >= {"DHT, cold", "DHT, warm", "gossip, warm", "all, cold", "all, warm"}


def test_every_request_has_one_answer_at_most(runs: list[Any]) -> None:
    for row in runs[0]:
        median, most = row["messages"]
        assert 0 <= median <= most
        if "broadcast" not in row["variant"]:
            # Three bids need three requests. Each request brings at most one answer, and a failed dial brings none.
            assert median >= 3
            assert median < row["frames"][0] <= 2 * most


@pytest.mark.parametrize("seed", range(3))
async def test_a_search_that_begins_with_the_peer_waits_for_the_first_answer(
    seed: int, autojump_clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_out = CrowdKademlia._find_out

    async def find_out_slowly(self: CrowdKademlia, peer_id: ID) -> None:
        await trio.sleep(1)
        await find_out(self, peer_id)

    monkeypatch.setattr(CrowdKademlia, "_find_out", find_out_slowly)
    population = Population(60, begin=0.0, end=4000.0, seed=seed)
    async with trio.open_nursery() as nursery:
        crowd = Crowd(nursery, population, seed)
        TALLY.set(Tally())
        wanted = ensemble(1)
        (looked_up,) = classes_to_look_up(wanted)
        provider = crowd.anybody().number
        crowd.keyspace.announce(provider, looked_up, 0.0)
        name = ID(b"\x00\x24\x08\x01\x12\x20" + bytes(32)).to_base58()
        await crowd.connect(name, crowd.keyspace.names[crowd.anybody().number])
        dht = CrowdKademlia(crowd, name)
        nursery.start_soon(dht.keep_up)
        # It is querying the only peer that it knows.
        await trio.sleep(0.5)
        async with dht.candidates(wanted) as candidates:
            found = [candidate.peer_id async for candidate in candidates]
        nursery.cancel_scope.cancel()
    assert found == [crowd.keyspace.names[provider]]


def test_as_many_are_there_and_able_as_the_requests_say() -> None:
    population = Population(2000, begin=0.0, end=4000.0, seed=1)
    for moment in (1.0, 2000.0, 3999.0):
        there = sum(member.session(moment) is not None for member in population.members)
        assert 1850 < there < 2150
        for number, request in enumerate(REQUESTS):
            counted = sum(
                member.session(moment) is not None and member.would_take(request.demand, moment)
                for member in population.members
            )
            assert counted == population.able(number, moment)
    assert 60 < population.able(1, 2000.0) < 140
    assert 900 < population.able(2, 2000.0) < 1100


def test_quantiles_are_values_that_occurred() -> None:
    assert quantile(range(1, 101), 0.5) == 50
    assert quantile(range(1, 101), 0.99) == 99
    assert quantile([7], 0.99) == 7
