"""A provider that is killed while it starts, runs and ends jobs. `provider_kills.py` alone kills it more often."""

from __future__ import annotations

from pathlib import Path

from provider_kills import kill_and_check


async def test_jobs_survive_the_kills_of_their_provider(tmp_path: Path) -> None:
    ended = await kill_and_check(tmp_path, kills=3, seed=3)
    assert ended.total() == 3
