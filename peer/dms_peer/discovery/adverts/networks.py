"""Tells from which network a connected peer speaks, so that what one address brings is counted together."""

from __future__ import annotations

from libp2p.abc import IHost
from libp2p.connection_types import ConnectionType
from libp2p.peer.id import ID

from dms_host.streams.outbound import living_connections
from dms_host.swarm.connection_gater import address_group
from dms_host.swarm.swarm import remote_ip

__all__ = ["peer_network"]


def peer_network(host: IHost, peer_id: str) -> str:
    """What counts as the address of a connected peer; empty for one that is not connected.

    A relay hides the address, so all peers behind relays count as one network.
    """
    for connection in living_connections(host, ID.from_string(peer_id)):
        if connection.muxed_conn.get_connection_type() is ConnectionType.RELAYED:
            return "relays"
        return address_group(remote_ip(connection.muxed_conn))
    return ""
