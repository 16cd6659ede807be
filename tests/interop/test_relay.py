"""Relays of two libraries: our peers behind a relay of go-libp2p, and its peers behind ours."""

from __future__ import annotations

from typing import Any

import trio

from dms_host import HardenedHost, RelayLimits, dial, host_addresses, open_host, open_stream
from dms_host.keys.identity import new_identity

LOOPBACK = "/ip4/127.0.0.1/tcp/0"


async def ping(host: HardenedHost, address: str) -> None:
    peer_id = await dial(host, address)
    async with await open_stream(host, peer_id, ["/ipfs/ping/1.0.0"]) as stream:
        await stream.send_all(bytes(32))
        assert await stream.receive_some() == bytes(32)


async def test_our_peers_meet_at_a_go_relay(programs: Any) -> None:
    with programs.running("Go", "relay") as relay:
        async with (
            open_host(new_identity(), reserve_at=[relay.address]) as hidden,
            open_host(new_identity()) as caller,
        ):
            with trio.fail_after(10):
                while not hidden.relayed_addresses:  # noqa: ASYNC110  # nothing announces it
                    await trio.sleep(0.01)
            await ping(caller, hidden.relayed_addresses[0])


async def test_a_go_peer_is_reached_through_our_relay(programs: Any) -> None:
    programs.need("Go")
    async with (
        open_host(new_identity(), [LOOPBACK], relay=RelayLimits()) as relay,
        open_host(new_identity()) as caller,
    ):
        running = programs.running("Go", "hidden", host_addresses(relay)[0])
        # It connects to our relay before it is ready, so this thread must not wait for it.
        hidden = await trio.to_thread.run_sync(running.__enter__)
        try:
            await ping(caller, hidden.address)
        finally:
            await trio.to_thread.run_sync(running.__exit__, None, None, None)
