"""Which executors this peer offers now: those that were found to work, looked at again each minute."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

import trio

from dms_protocols.bidding.service import BidTerms, CurrentTerms

from ..executors.executor import Capabilities, Executor

__all__ = ["OfferedExecutors"]

_log = logging.getLogger(__name__)

_AGAIN_SECONDS: Final = 60.0
_LONGEST_PROBE: Final = 30.0


class OfferedExecutors:
    """Keeps the executors of the terms on which this peer bids to those that work.

    An executor of the owner's terms that is none of `executors` is offered on the owner's word.
    """

    def __init__(self, executors: Mapping[str, Executor], terms: CurrentTerms) -> None:
        self.capabilities: dict[str, Capabilities] = {}
        """Each executor, and whether it works."""
        self._executors = executors
        self._terms = terms
        self._owners = terms.terms.executors

    @property
    def names(self) -> frozenset[str]:
        """The executors that work."""
        return frozenset(name for name, found in self.capabilities.items() if found.works)

    def replace_terms(self, terms: BidTerms) -> None:
        """Bid on other terms from now on."""
        self._owners = terms.executors
        self._terms.terms = replace(terms, executors=(self._owners - self._executors.keys()) | self.names)

    async def probe(self) -> None:
        """Look at all executors once. May be cancelled."""
        async with trio.open_nursery() as nursery:
            for name, executor in self._executors.items():
                nursery.start_soon(self._probe, name, executor)
        self.replace_terms(replace(self._terms.terms, executors=self._owners))

    async def run(self) -> None:
        """Look at them again and again, until cancelled."""
        while True:
            await trio.sleep(_AGAIN_SECONDS)
            await self.probe()

    async def _probe(self, name: str, executor: Executor) -> None:
        found = Capabilities(works=False, problem=f"it did not answer within {_LONGEST_PROBE:.0f} s")
        with trio.move_on_after(_LONGEST_PROBE):
            found = await executor.probe()
        before = self.capabilities.get(name)
        self.capabilities[name] = found
        if before is not None and before.works == found.works:
            return
        if found.works:
            _log.info("executor %s works; jobs may be started on it", name)
        else:
            _log.warning("executor %s is not offered: %s", name, found.problem)
