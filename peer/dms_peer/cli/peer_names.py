"""How people name peers and leases: by multiaddr, by id, or by the beginning of an id that this home knows.

Ids of Ed25519 keys all begin with `12D3KooW`, so the characters after that also name a peer.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from typing import Final

from msgspec import Struct

from dms_protocols.errors import RemoteError

from ..errors import PeerError
from ..home.home import Home
from ..home.lease_journal import HeldLease, LeaseJournal

__all__ = ["NamedPeer", "find_lease", "find_peer"]

_COMMON: Final = "12D3KooW"
_SHORTEST_ID: Final = 46
_BASE58: Final = "[1-9A-HJ-NP-Za-km-z]"
_ADDRESS: Final = re.compile(
    rf"/(?:ip4|ip6|dns|dns4|dns6)/[^/]+/tcp/\d{{1,5}}/p2p/{_BASE58}+(?:/p2p-circuit/p2p/{_BASE58}+)?"
)
_ID: Final = re.compile(rf"{_BASE58}{{1,128}}")


class NamedPeer(Struct, frozen=True, kw_only=True):
    """A peer, and its possible addresses."""

    peer_id: str
    addrs: tuple[str, ...] = ()


def find_peer(home: Home, text: str) -> NamedPeer:
    """The peer that `text` names: a multiaddr, a peer id, or the beginning of the id of a known peer.

    Known peers are those of the running peer, otherwise those of the peers file and the bootstrap peers of the
    configuration; the providers of the journal of leases; and this home's own running peer. Raises AddressError,
    DocumentError, and PeerError `unknown_peer` or `ambiguous_peer`. Blocks.
    """
    if text.startswith("/") or "/" in text:
        return _at_address(text)
    if not _ID.fullmatch(text):
        # This reports what is wrong with it, and how an address looks.
        return _at_address(text)
    known = _known(home)
    matches = {peer_id: addrs for peer_id, addrs in known.items() if _named(peer_id, text)}
    if text in matches:
        matches = {text: matches[text]}
    if len(matches) > 1:
        ids = ", ".join(sorted(matches)[:4])
        raise PeerError(f"{text} is the beginning of {len(matches)} peer ids: {ids}", code="ambiguous_peer",
                        hint="write more of the id")  # fmt: skip
    if matches:
        ((peer_id, addrs),) = matches.items()
        return NamedPeer(peer_id=peer_id, addrs=addrs)
    own = _own(home)
    if own is not None and _named(own, text):
        return NamedPeer(peer_id=own)
    if len(text) >= _SHORTEST_ID:
        # The running peer may know its addresses.
        return NamedPeer(peer_id=text)
    raise PeerError(
        f"no known peer has an id that begins with {text}",
        code="unknown_peer",
        hint="see `dms-peer peers`, or give an address that ends in /p2p/PEER_ID",
    )


def find_lease(home: Home, text: str, peer_id: str | None = None) -> HeldLease | None:
    """The lease of the journal whose id begins with `text`, at one peer if one is named; None if there is none.

    Raises PeerError `ambiguous_lease`. Blocks.
    """
    found = [
        held
        for held in LeaseJournal(home.path).leases()
        if held.lease.lease_id.startswith(text) and peer_id in (None, held.peer_id)
    ]
    exact = [held for held in found if held.lease.lease_id == text]
    if len(exact or found) > 1:
        ids = ", ".join(sorted(held.lease.lease_id for held in found)[:4])
        raise PeerError(f"{text} is the beginning of {len(found)} lease ids: {ids}", code="ambiguous_lease",
                        hint="write more of the id")  # fmt: skip
    return next(iter(exact or found), None)


def _named(peer_id: str, text: str) -> bool:
    # A part of the common beginning names no peer.
    whole = len(text) > len(_COMMON) and peer_id.startswith(text)
    return peer_id == text or whole or peer_id.removeprefix(_COMMON).startswith(text)


def _at_address(text: str) -> NamedPeer:
    if not _ADDRESS.fullmatch(text):
        # This import loads libp2p, which a valid address does not need.
        from dms_host import parse_peer_address

        parse_peer_address(text)
    return NamedPeer(peer_id=text.rpartition("/p2p/")[2], addrs=(text,))


def _known(home: Home) -> dict[str, tuple[str, ...]]:
    from ..owner.client import read_peers

    known: dict[str, tuple[str, ...]] = {}
    configured: list[tuple[str, tuple[str, ...]]] = []
    journal = [(one.peer_id, one.addrs) for one in LeaseJournal(home.path).providers()]
    try:
        answer = read_peers(home, 1000)
        peers = [(row.peer_id, row.addrs) for row in answer.peers]
        if not answer.running:
            configured = _bootstrap(home)
    except RemoteError:
        # A peer that runs without discovery knows no others.
        peers = []
    except PeerError as error:
        # A home that has only sent requests so far has no peer.
        if error.code != "no_peer":
            raise
        peers = []
    for peer_id, addrs in _in_order(peers, journal, configured):
        known[peer_id] = tuple(dict.fromkeys((*known.get(peer_id, ()), *addrs)))[:16]
    return known


def _bootstrap(home: Home) -> list[tuple[str, tuple[str, ...]]]:
    """The bootstrap peers of the configuration; a running peer knows its own."""
    # To read them loads libp2p, so it is not done in vain.
    if not os.path.lexists(home.path / "peer.yaml") and not {"DMS_CONFIG", "DMS_PEER_BOOTSTRAP"} & os.environ.keys():
        return []
    from .options.discovery import discovery_settings

    return [(one.rpartition("/p2p/")[2], (one,)) for one in discovery_settings(home, {}).bootstrap if "/p2p/" in one]


def _in_order(*sources: Iterable[tuple[str, tuple[str, ...]]]) -> Iterable[tuple[str, tuple[str, ...]]]:
    for source in sources:
        yield from source


def _own(home: Home) -> str | None:
    from ..owner.client import read_status
    from ..owner.socket_file import connect

    connection = connect(home.socket_path)
    if connection is None:
        return None
    connection.close()
    return read_status(home).peer_id
