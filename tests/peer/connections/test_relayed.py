"""The connection pool over a relay."""

from __future__ import annotations

import trio
from libp2p.connection_types import ConnectionType

from dms_host import RelayLimits, host_addresses, new_identity, open_host
from dms_peer.connections import ConnectionLimits, open_connections

LOOPBACK = "/ip4/127.0.0.1/tcp/0"


async def test_a_relayed_connection_and_that_to_its_relay_end_when_they_are_idle() -> None:
    limits = ConnectionLimits(stream_idle=0.05, connection_idle=0.05)
    async with (
        open_host(new_identity(), [LOOPBACK], relay=RelayLimits()) as relay,
        open_host(new_identity(), reserve_at=[host_addresses(relay)[0]]) as hidden,
        open_host(new_identity()) as client,
    ):
        with trio.fail_after(10):
            while not hidden.relayed_addresses:  # noqa: ASYNC110  # nothing announces it
                await trio.sleep(0.005)
            peer_id = hidden.get_id().to_base58()
            async with open_connections(client, limits=limits) as connections:
                await connections.connect(peer_id, [host_addresses(hidden)[0], f"/ip4/127.0.0.1/tcp/1/p2p/{peer_id}"])
                (connection,) = client.get_network().get_connections(hidden.get_id())
                assert connection.muxed_conn.get_connection_type() is ConnectionType.RELAYED
                assert connections.statistics.dialled_connections == 2
                while client.get_network().get_connections():  # noqa: ASYNC110  # nothing announces it
                    await trio.sleep(0.005)
