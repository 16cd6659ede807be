"""Turns a raw connection into a secured, multiplexed one: Noise, then Yamux, and nothing else.

What breaks: `new_host` also offers `/plaintext/2.0.0`, where a peer has any identity that it claims, and secio; and
Mplex, where one frame can end the host and one slow stream stops all others. `MuxerMultistream.new_conn` builds the
library's own Yamux, whichever class is configured. Peers are not checked against any list.
Measure: `hardened_upgrader` offers Noise and BoundedYamux alone. It closes the connection of a peer that is not allowed
as soon as the handshake has proved the peer's id, before any byte of a protocol is read.
Upstream: no upstream report found (November 2026).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Final

from libp2p.abc import IMuxedConn, IRawConnection, ISecureConn
from libp2p.crypto.keys import KeyPair
from libp2p.crypto.x25519 import create_new_key_pair as create_noise_key_pair
from libp2p.custom_types import TProtocol
from libp2p.peer.id import ID
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport as NoiseTransport
from libp2p.security.security_multistream import SecurityMultistream
from libp2p.stream_muxer.muxer_multistream import MuxerMultistream
from libp2p.transport.exceptions import SecurityUpgradeFailure
from libp2p.transport.upgrader import TransportUpgrader

from ..keys.rsa_keys import bound_rsa_keys
from ..limits import HostLimits
from ..swarm.connection_gater import address_group
from ..yamux.accounts import Accounts
from ..yamux.connection import BoundedYamux
from .multistream import BoundedSelector

__all__ = ["hardened_upgrader"]

YAMUX: Final = TProtocol("/yamux/1.0.0")

# The first message of a stranger contains a key.
bound_rsa_keys()


class _NoiseOnly(SecurityMultistream):
    """Negotiates Noise or fails."""

    def __init__(self, key_pair: KeyPair, limits: HostLimits) -> None:
        super().__init__({})
        self._selector = BoundedSelector(limits)
        # Noise needs a Diffie-Hellman key of its own; the handshake signs it with the peer's key.
        self.add_transport(NOISE, NoiseTransport(key_pair, create_noise_key_pair().private_key))


class _YamuxOnly(MuxerMultistream):
    """Negotiates Yamux or fails, and builds ours."""

    def __init__(self, limits: HostLimits, limits_hit: Counter[str], accounts: Accounts) -> None:
        super().__init__({})
        self._limits = limits
        self._limits_hit = limits_hit
        self._accounts = accounts
        self._selector = BoundedSelector(limits)
        self.add_transport(YAMUX, BoundedYamux)  # never called: new_conn builds it

    async def new_conn(self, conn: ISecureConn, peer_id: ID) -> IMuxedConn:
        """Agree on Yamux with the other side. Raises MultiselectError or MultiselectClientError."""
        protocol, _ = await self._selector.select(conn, conn.is_initiator)
        # All relayed connections share one account, because behind a relay there is no address.
        address = self._accounts.of(address_group((conn.get_remote_address() or ("",))[0]))
        connection = BoundedYamux(conn, peer_id, self._limits, self._limits_hit, address)
        return self._annotate_connection(connection, conn, protocol)


class _GatedUpgrader(TransportUpgrader):
    """Checks each peer between the handshake and the multiplexer."""

    def __init__(self, allows_peer: Callable[[ID], bool], limits_hit: Counter[str]) -> None:
        super().__init__({}, {})
        self._allows_peer = allows_peer
        self._limits_hit = limits_hit

    async def upgrade_security(
        self, raw_conn: IRawConnection, is_initiator: bool, peer_id: ID | None = None
    ) -> ISecureConn:
        """Like the original. Raises SecurityUpgradeFailure also for a peer that is not allowed."""
        secured = await super().upgrade_security(raw_conn, is_initiator, peer_id)
        if not self._allows_peer(secured.get_remote_peer()):
            self._limits_hit["denied_peers"] += 1
            await secured.close()
            raise SecurityUpgradeFailure(f"{secured.get_remote_peer()} is not allowed")
        return secured


def _allow_all(peer_id: ID) -> bool:
    return True


def hardened_upgrader(
    key_pair: KeyPair,
    limits: HostLimits,
    allows_peer: Callable[[ID], bool] = _allow_all,
    limits_hit: Counter[str] | None = None,
    accounts: Accounts | None = None,
) -> TransportUpgrader:
    """An upgrader that secures a connection, checks `allows_peer` and multiplexes with BoundedYamux, or fails.

    Refused peers are counted in `limits_hit`. Frames without content are charged to `accounts`.
    """
    limits_hit = Counter() if limits_hit is None else limits_hit
    upgrader = _GatedUpgrader(allows_peer, limits_hit)
    upgrader.security_multistream = _NoiseOnly(key_pair, limits)
    upgrader.muxer_multistream = _YamuxOnly(limits, limits_hit, accounts or Accounts(limits))
    return upgrader
