"""Which peers may connect, and the relays of this peer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import PeerError

if TYPE_CHECKING:
    from dms_host import ConnectionGater

__all__ = ["NetworkSettings"]


@dataclass(frozen=True, slots=True)
class NetworkSettings:
    """Which peers may connect: lists of peer ids and address ranges; an empty allow list admits everybody.

    With `relay` the peer carries connections of peers that cannot be dialled. `reserve_at` are the addresses of relays
    through which this peer itself can be reached.
    """

    allow_peers: tuple[str, ...] = ()
    deny_peers: tuple[str, ...] = ()
    allow_addresses: tuple[str, ...] = ()
    deny_addresses: tuple[str, ...] = ()
    relay: bool = False
    reserve_at: tuple[str, ...] = ()

    def gate(self) -> ConnectionGater:
        """Returns the lists as the host takes them. Raises PeerError `bad_list` for an invalid id or range."""
        # libp2p takes more than a second to import, and `dms-peer config` does not need it.
        from dms_host import ConnectionGater

        try:
            return ConnectionGater(
                allow_peers=frozenset(self.allow_peers),
                deny_peers=frozenset(self.deny_peers),
                allow_addresses=self.allow_addresses,
                deny_addresses=self.deny_addresses,
            )
        except ValueError as error:
            raise PeerError(
                str(error), code="bad_list", hint="write peer ids, and addresses such as 192.0.2.0/24"
            ) from None
