"""A peer offers the executors that work, and says of the others why not."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from dms_peer.jobs.offered import OfferedExecutors
from dms_protocols.bidding.service import BidTerms, CurrentTerms
from job_engine import Engine, EngineExecutor


async def test_an_executor_is_offered_while_it_works(engine: Engine, mock_clock: Any, caplog: Any) -> None:
    mock_clock.autojump_threshold = 0
    terms = CurrentTerms(BidTerms(executors=frozenset({"docker", "by hand"})))
    offered = OfferedExecutors({"docker": EngineExecutor(engine), "batch": EngineExecutor(Engine(), "batch")}, terms)
    await offered.probe()
    # What the owner names and is no executor here is offered on the owner's word.
    assert terms.terms.executors == {"docker", "batch", "by hand"}
    engine.down = True
    await offered.probe()
    assert terms.terms.executors == {"batch", "by hand"}
    assert "executor docker is not offered" in caplog.text
    # New terms of the owner's do not bring it back.
    offered.replace_terms(BidTerms(executors=frozenset({"docker"}), valid_seconds=9))
    assert (terms.terms.executors, terms.terms.valid_seconds) == ({"batch"}, 9)
    engine.down = False
    await offered.probe()
    assert terms.terms.executors == {"docker", "batch"}


async def test_an_executor_that_does_not_answer_is_not_offered(
    engine: Engine, mock_clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def silent(executor: EngineExecutor) -> None:
        await trio.sleep_forever()

    mock_clock.autojump_threshold = 0
    monkeypatch.setattr(EngineExecutor, "probe", silent)
    terms = CurrentTerms()
    offered = OfferedExecutors({"docker": EngineExecutor(engine)}, terms)
    await offered.probe()
    assert not terms.terms.executors
    assert offered.capabilities["docker"].problem == "it did not answer within 30 s"
