"""A market in memory and in virtual time."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio.testing

from dms_simulation.market import SimulatedMarket, open_market


@pytest.fixture
async def market(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> AsyncIterator[SimulatedMarket]:
    """Providers and a network, in virtual time; no providers yet."""
    async with open_market(tmp_path, random.Random(1)) as opened:
        yield opened
