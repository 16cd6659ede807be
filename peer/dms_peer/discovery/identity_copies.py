"""Warns when this peer's own id is heard at an address that is not its own: then two machines have one key.

That happens when a virtual machine is cloned or a home directory is copied. Other peers see one of the two, by chance.
An advert is signed, so it proves that the key is elsewhere. A record of mDNS and a bootstrap address prove nothing, but
the owner wants to know in any case. Strangers can send such records, so the lines are few.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Final

from dms_protocols.messages.adverts import CapacityAdvert

__all__ = ["IdentityCopies"]

_log = logging.getLogger(__name__)

# Lines while the program runs.
_MOST_LINES: Final = 3
# Of the addresses that were this peer's own since it started.
_MOST_OWN: Final = 256


class IdentityCopies:
    """What is heard of this peer's own id. `own` returns the addresses that the peer has now."""

    def __init__(self, own: Callable[[], Sequence[str]]) -> None:
        self._own = own
        self._ever_own: set[str] = set()
        self._warned: set[str] = set()

    def note_own(self) -> None:
        """Remember the addresses of now, so that they do not look like another machine's after they have changed."""
        if len(self._ever_own) < _MOST_OWN:
            self._ever_own.update(self._own())

    def heard(self, addrs: Sequence[str]) -> None:
        """Note addresses under which this peer's id was announced. The first address of another machine is logged."""
        if len(self._warned) >= _MOST_LINES:
            return
        self.note_own()
        others = [address for address in addrs if address not in self._ever_own]
        # Each address counts: one that both machines have, such as that of a container's bridge, tells nothing.
        if not others or not self._warned.isdisjoint(others):
            return
        self._warned.add(others[0])
        _log.warning(
            "another peer at %s has this peer's key: two machines must not share one; "
            "remove `key` from one of the homes",
            others[0],
        )

    def heard_advert(self, advert: CapacityAdvert, newest: int) -> None:
        """Note an advert with this peer's signature. Its own ones have sequence numbers up to `newest`."""
        if advert.sequence > newest:
            self.heard(advert.addrs)
