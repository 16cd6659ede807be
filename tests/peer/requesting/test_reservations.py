"""All or nothing, kept while a block runs, and given back."""

from __future__ import annotations

import pytest
import trio

from dms_peer.errors import ReservationError
from dms_simulation.providers import simulated_machine


def nothing_promised(market):
    return all(not market.manager(peer_id).leases() for peer_id in market.peer_ids if market.running(peer_id))


async def start(market, count, **sizes):

    for number in range(count):
        await market.start(f"p{number}", simulated_machine(**sizes))


async def test_an_ensemble_is_committed_while_the_block_runs_and_free_after_it(market, autojump_clock):
    await start(market, 3, cores=2)
    async with market.requester().reserve(market.ensemble("a", "b", "c", cores=2)) as reservation:
        assert sorted(reservation.peers) == ["a", "b", "c"]
        assert set(reservation.peers.values()) == {"p0", "p1", "p2"}
        for node_id, lease in reservation.leases.items():
            assert market.manager(reservation.peers[node_id]).is_committed(lease.lease_id)
    assert nothing_promised(market)


async def test_commitments_outlive_their_time_while_the_block_runs(market, autojump_clock):
    await start(market, 2, cores=2)
    async with market.requester().reserve(market.ensemble("a", "b", cores=2), ttl=30) as reservation:
        await trio.sleep(500)
        for node_id, lease in reservation.leases.items():
            assert market.manager(reservation.peers[node_id]).is_committed(lease.lease_id)
    assert nothing_promised(market)


async def test_nothing_is_taken_when_one_node_cannot_be_had(market, autojump_clock):
    await start(market, 2, cores=2)
    with pytest.raises(ReservationError) as caught:
        async with market.requester().reserve(market.ensemble("a", "b", "c", cores=2)):
            pytest.fail("the block ran")
    assert caught.value.code in ("no_bids", "no_assignment")
    assert nothing_promised(market)
