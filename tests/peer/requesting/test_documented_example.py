"""The example in docs/requesting.md works unchanged."""

from __future__ import annotations

import re
import sys
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace

from dms_peer.requesting import strategies, strategy_named
from dms_simulation.providers import simulated_machine

DOCUMENT = (Path(__file__).parents[3] / "docs" / "requesting.md").read_text()


def block(marker: str) -> dict[str, object]:
    found = re.search(rf"<!-- {marker} -->\n```python\n(.*?)```", DOCUMENT, re.DOTALL)
    assert found, marker
    names: dict[str, object] = {}
    exec(compile(found[1], f"docs/requesting.md ({marker})", "exec"), names)
    return names


async def test_the_example_takes_an_ensemble_and_gives_it_back(market, autojump_clock, capsys):
    for peer_id in ("p0", "p1"):
        await market.start(peer_id, simulated_machine(cores=2))
    ran = []

    async def run_the_job(peers):
        ran.append(peers)
        assert all(market.manager(peer_id).get_total_allocation().cpu.cores.millicores for peer_id in peers.values())

    names = block("example")
    names["run_the_job"] = run_the_job
    await names["train"](market.requester(), market.ensemble("a", "b", cores=2))
    assert len(ran) == 1
    assert len(capsys.readouterr().out.splitlines()) == 2
    assert all(market.manager(peer_id).leases() == () for peer_id in market.peer_ids)


async def test_the_documented_strategy_is_found_and_chooses(market, autojump_clock, monkeypatch):
    points = tomllib.loads(re.search(r"```toml\n(.*?)```", DOCUMENT, re.DOTALL)[1])["project"]["entry-points"]
    (name, value) = next(iter(points[strategies.STRATEGY_GROUP].items()))
    module, _, attribute = value.partition(":")
    for package in (module.partition(".")[0], module):
        monkeypatch.setitem(sys.modules, package, SimpleNamespace(**block("strategy"), __path__=[]))
    monkeypatch.setattr(
        strategies,
        "entry_points",
        lambda *, group, **which: [EntryPoint(name, value, group)] if which.get("name", name) == name else [],
    )
    assert type(strategy_named(name)).__name__ == attribute
    await market.start("large", simulated_machine(gpus=(16, 16)))
    await market.start("small")
    async with market.requester().reserve(market.ensemble("a"), strategy=name) as reservation:
        assert reservation.peers == {"a": "small"}
