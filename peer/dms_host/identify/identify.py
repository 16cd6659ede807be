"""Identify: what peers report about themselves, within bounds.

What breaks in py-libp2p: an identify message may have a mebibyte. The addresses of the signed record in it are compared
one by one, so that the time grows with the square of their number: 10,000 addresses in 120 KB keep the processor busy
for 3.5 seconds. Any connected peer may push such messages without end.
Measure: `bound_identify` ignores messages that are longer than those of go-libp2p and, on our own hosts, messages of a
peer that sends too many.
Upstream: no upstream report found (November 2026).
"""

from __future__ import annotations

import logging
from typing import Final

from libp2p.abc import IHost, IPeerStore
from libp2p.host import basic_host
from libp2p.identity.identify import identify as library
from libp2p.identity.identify.pb.identify_pb2 import Identify
from libp2p.identity.identify_push import identify_push
from libp2p.identity.update import update_peerstore_from_identify
from libp2p.peer.id import ID
from libp2p.peer.peerstore import PeerStore
from multiaddr import Multiaddr  # type: ignore[import-untyped]  # it has no types

from ..bounded import BoundedDict
from ..logs import RateLimiter, log_limited

__all__ = ["BoundedPeerStore", "bound_identify", "identify_message"]

logger = logging.getLogger(__name__)
limiter = RateLimiter()

_library_message = library._mk_identify_protobuf

# Bytes. A message of go-libp2p has at most 8 KiB, including its signed record.
MAX_MESSAGE: Final = 8 * 1024
# Messages of one peer: at once, and per second after that.
BURST: Final = 10
PER_SECOND: Final = 0.2
# The number of peers whose messages are counted. The peer that has been silent for longest is forgotten first.
MAX_PEERS: Final = 1024


class BoundedPeerStore(PeerStore):
    """A peer store that counts the identify messages of each peer."""

    def __init__(self, *, max_records: int, max_peers: int) -> None:
        super().__init__(max_records=max_records, max_peers=max_peers)
        self._heard: BoundedDict[ID, RateLimiter] = BoundedDict(MAX_PEERS)

    def admits(self, peer_id: ID) -> bool:
        """Count a message of this peer. Returns whether to read it."""
        heard = self._heard.get(peer_id)
        if heard is None:
            heard = self._heard[peer_id] = RateLimiter(BURST, PER_SECOND)
        self._heard.move_to_end(peer_id)
        admitted = heard.admit()
        # This ends at the latest at the current peer, whose bucket is not full.
        while next(iter(self._heard.values())).rested:
            self._heard.popitem(last=False)
        return admitted


def bound_identify() -> None:
    """Make the library read only messages within the bounds, and send a host's agent version. A second call has no
    effect.
    """
    for named in (library, identify_push):
        named._mk_identify_protobuf = identify_message  # type: ignore[attr-defined]  # imported there
    for module in (basic_host, identify_push):
        module.update_peerstore_from_identify = _update  # type: ignore[attr-defined]  # imported there


def identify_message(host: IHost, observed: Multiaddr | None) -> Identify:
    """The identify message of a host, with its own agent version if it has one, otherwise with that of the library."""
    message = _library_message(host, observed)
    if agent := getattr(host, "agent", ""):
        message.agent_version = agent
    return message


async def _update(peerstore: IPeerStore, peer_id: ID, identify_msg: Identify) -> None:
    size = identify_msg.ByteSize()
    if size > MAX_MESSAGE:
        log_limited(logger, limiter, logging.INFO, "ignored %d bytes of identify from %s", size, peer_id)
    elif not isinstance(peerstore, BoundedPeerStore) or peerstore.admits(peer_id):
        await update_peerstore_from_identify(peerstore, peer_id, identify_msg)
