"""Searches that the running peer of a home performs for its commands, which load neither libp2p nor an event loop."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from typing import Final

from dms_protocols.errors import ConnectionLostError, RemoteError
from dms_protocols.messages.bid import EnsembleRequest, NodeRequest
from dms_protocols.rpc.blocking_client import BlockingClient

from ..home.home import Home
from ..owner.remote_messages import DiscoverRequest, SearchEvent
from ..owner.socket_file import connect
from ..requesting.reports import Found, FoundRow, SearchProgress

__all__ = ["one_node", "search_in_peer"]

# Seconds, in addition to the time of the search, in which the running peer has to answer.
_SPARE: Final = 15.0


def search_in_peer(
    home: Home,
    ensemble: EnsembleRequest,
    *,
    count: int | None,
    timeout: float,
    tell: Callable[[FoundRow, SearchProgress], None],
    token: bytes | None = None,
) -> Found | None:
    """What the running peer of the home finds in `timeout` seconds; None if none runs, or one that cannot search.

    `tell` is called with each peer that answers. Raises RemoteError and ConnectionLostError. Blocks.
    """
    home.prepare()
    connection = connect(home.socket_path)
    if connection is None:
        return None
    request = DiscoverRequest(ensemble=ensemble, count=count, token=token)
    with connection:
        try:
            for event in BlockingClient(connection).watch(request, SearchEvent, timeout=timeout + _SPARE):
                if event.row is not None and event.progress is not None:
                    tell(event.row, event.progress)
                if event.found is not None:
                    return event.found
        except RemoteError as error:
            if error.code == "unknown_operation":
                return None
            raise
    raise ConnectionLostError("the running peer ended the search without a result")


def one_node(node: NodeRequest, seconds: float) -> EnsembleRequest:
    """A request for bids on one node, for the next `seconds`."""
    return EnsembleRequest(
        id=secrets.token_hex(8), nonce=secrets.randbits(53), deadline=time.time() + seconds, request=(node,)
    )
