"""Ports that programs use are followed also while nobody requests any."""

from __future__ import annotations

from typing import Any

import trio
import trio.testing


async def test_the_ports_that_programs_use_are_read_again_and_again(
    open_ledger: Any, autojump_clock: trio.testing.MockClock
) -> None:
    used: frozenset[int] | None = frozenset()
    async with open_ledger(read_ports=lambda: used) as manager:
        assert manager.get_free_resources().ports == 100
        used = frozenset({20_000, 20_001})
        async with manager.watch() as changes:
            await anext(changes)
            assert (await anext(changes)).ports == 98
        # What cannot be read leaves everything as it was.
        used = None
        await trio.sleep(100.0)
        assert manager.get_free_resources().ports == 98
        manager.reserve_ports([20_050])
        assert manager.get_free_resources().ports == 97
